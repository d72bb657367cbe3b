"""The decoder that keeps what it computed: one token a step."""
