"""From a batch of sources to outputs. Imports checkpoints, models and the floors below."""
