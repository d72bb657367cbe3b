"""Numbers from references and predictions. Imports postprocessors and utils; no torch."""

from metrics import edit_rate, labels, probabilities, teacher_forced, text

FAMILIES = (teacher_forced, text, edit_rate, labels, probabilities)  # each registers its own metrics when it is loaded
