"""What fits into the memory of the devices. Imports models, datamodules and the floors below."""
