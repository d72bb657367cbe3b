"""Texts as vectors, and what is found among them. Imports prediction, generation, datamodules and the floors below."""
