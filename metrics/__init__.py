"""Numbers from references and predictions. Imports postprocessors and utils; no torch."""

from metrics import answers, dependencies, edit_rate, labels, numbers, probabilities, spans, teacher_forced, text

FAMILIES = (
    teacher_forced,
    text,
    edit_rate,
    labels,
    numbers,
    answers,
    spans,
    dependencies,
    probabilities,
)  # each registers its own metrics when it is loaded
