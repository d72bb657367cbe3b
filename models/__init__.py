"""The network and its training step: build, load, one pass, the loss. Imports utils."""
