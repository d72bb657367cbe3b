"""Optimizers, their schedules and settings, and the averages of the weights. Imports models and utils."""
