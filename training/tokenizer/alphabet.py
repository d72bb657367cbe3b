"""Characters that get a piece however rare they are, and how SentencePiece is brought to keep them all."""

from __future__ import annotations

import math
import string
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from models.sentencepiece_models.fast_tokenizer import Form
from task_utils import get_task

ASCII = "".join(letter for letter in string.printable if not letter.isspace())
RAREST = 2.0**-22  # share of the text that a required character has at least: the trainer counts in single precision
MARGIN = 1e-5  # of the coverage: the trainer counts the text once more in its own way
LINES_AT_ONCE = 10_000
LETTERS_A_LINE = 500


def required_characters(given: str, tasks: Iterable[str], form: Form) -> str:
    """ASCII, the characters of -required_chars, and those of the templates and labels of tasks; sorted, none twice.

    Raises `UserError` for a task that is none.
    """
    texts = [ASCII, given]
    for name in tasks:
        task = get_task(name)
        texts += [task.input_template, task.target_template, *(task.label_map.texts if task.label_map else ())]
    wanted = set(unicodedata.normalize(form, "".join(texts)))
    return "".join(sorted(letter for letter in wanted if not letter.isspace()))


def coverage_with(required: str, lines: Sequence[str], coverage: float) -> tuple[float, list[str]]:
    """The coverage to ask of SentencePiece, and lines to train on besides, so that all of `required` get a piece.

    It takes required characters first, the most frequent first, but stops as soon as what it has taken covers the
    share of the text that was asked for: of an English text, before the rare ones of ASCII.
    """
    counts: np.ndarray = np.zeros(0x110000, dtype=np.int64)
    for some in batched(lines, LINES_AT_ONCE):
        letters = np.frombuffer("".join(some).encode("utf-32-le"), dtype=np.uint32)
        counts += np.bincount(letters, minlength=len(counts))
    total = int(counts.sum())
    codes = np.array([ord(letter) for letter in required])
    least = math.ceil(total * RAREST)
    rare = [letter for letter in required if counts[ord(letter)] < least]
    parts = ["".join(part) for part in batched(rare, LETTERS_A_LINE)]
    of_required = int(counts[codes].sum()) + least * len(rare)
    share = of_required / (total + least * len(rare))
    return min(1.0, max(coverage, share + MARGIN)), [" ".join(part) for part in parts] * least


def batched(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """`items`, `size` at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))
