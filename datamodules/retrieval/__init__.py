"""Queries with their passages: hard negatives and batches. May import datamodules and what lies below it."""
