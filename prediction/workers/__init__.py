"""Processes that share the rows of a prediction, on any machines. Imports generation and the floors below."""
