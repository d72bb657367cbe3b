"""Pretraining objectives: a piece of raw text -> source and target. Imports numpy, config and the floors below it."""
