"""Faster blocks: accelerate(model), and behind flags fused attention and compilation. Imports models and utils."""
