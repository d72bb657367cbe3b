"""From generated text to a value, or None. Imports utils."""
