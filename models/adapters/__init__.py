"""Adapters of `peft`: their modules, their weights in a model, their folders. May import models and utils."""
