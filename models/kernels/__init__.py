"""Faster blocks behind one door, accelerate(model). Imports utils."""
