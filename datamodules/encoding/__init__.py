"""Rows to token ids, encoded once and memory-mapped. Imports readers, task_utils and the floors below it."""
