"""Numbers from references and predictions. Imports postprocessors and utils; no torch."""
