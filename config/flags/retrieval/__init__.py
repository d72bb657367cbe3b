"""Flags of vectors of texts. Imports config and utils."""
