"""A data set through an engine, over processes. Imports generation, datamodules and the floors below."""
