"""Which exports are refused because they decode otherwise."""

from __future__ import annotations

import pytest

from deploy.proof import refuse_other_outputs
from generation.engines.base import Prediction
from utils.errors import UserError

ROWS = range(16)
OURS = [Prediction(f"text {row}", -1.0) for row in ROWS]


def changed(count: int, text: str = "other", score: float = -1.0) -> list[Prediction]:
    """The outputs of `OURS`, the first of them others."""
    return [Prediction(text or one.text, score) if place < count else one for place, one in enumerate(OURS)]


def test_equal_outputs_and_ties_of_another_engine_pass() -> None:
    for form in ("safetensors", "ctranslate2", "onnx"):
        refuse_other_outputs(form, ROWS, OURS, OURS)
    refuse_other_outputs("onnx", ROWS, OURS, changed(2, score=-1.0009))


@pytest.mark.parametrize(
    ("form", "theirs", "told"),
    [
        ("safetensors", changed(1), "1 of 16 texts differ"),
        ("safetensors", changed(3, text="", score=-1.0000001), "3 of 16 scores differ"),
        ("ctranslate2", changed(3), "3 of 16 texts differ"),
        ("onnx", changed(1, text="", score=-1.002), "1 of 16 scores differ"),
    ],
)
def test_others_are_refused_with_the_first_row(form: str, theirs: list[Prediction], told: str) -> None:
    with pytest.raises(UserError) as refused:
        refuse_other_outputs(form, ROWS, OURS, theirs)
    place = f"row 1 is {theirs[0].text!r} (score {theirs[0].score:.4f}) for 'text 0' (-1.0000)"
    assert str(refused.value) == f"-format {form}: {told} from the model's, and nothing is written: {place}"
