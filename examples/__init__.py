"""Worked examples of what users add themselves; no product code imports them."""
