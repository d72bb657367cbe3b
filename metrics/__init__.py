"""Numbers from references and predictions. Imports postprocessors and utils; no torch."""

from metrics import dependencies, edit_rate, labels, probabilities, spans, teacher_forced, text

FAMILIES = (
    teacher_forced,
    text,
    edit_rate,
    labels,
    spans,
    dependencies,
    probabilities,
)  # each registers its own metrics when it is loaded
