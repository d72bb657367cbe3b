"""The decoder that keeps what it computed: one token a step. Imports models and the floors below."""
