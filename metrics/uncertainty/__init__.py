"""How sure a prediction is and how sure a figure is. Imports what metrics/ may: postprocessors and utils; no torch."""
