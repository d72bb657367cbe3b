"""Numbers from references and predictions. Imports postprocessors and utils; no torch."""

from metrics import answers, dependencies, edit_rate, labels, numbers, rankings, spans, structured, text
from metrics.uncertainty import probabilities

FAMILIES = (
    probabilities,
    text,
    edit_rate,
    labels,
    numbers,
    answers,
    spans,
    dependencies,
    structured,
    rankings,
)  # each registers its own metrics when it is loaded
