"""Fit, stop, resume. Imports generation, checkpoints, datamodules and the floors below."""
