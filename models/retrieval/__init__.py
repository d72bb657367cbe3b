"""Texts as vectors, and what a retrieval model is trained by. May import models and utils."""
