"""Losses summed over target tokens, in chunks where the vocabulary is large. Imports models and utils."""
