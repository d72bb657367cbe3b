"""What a page shows of the rows of a prediction themselves: the worst of them, lengths, and how sure the model was."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from metrics.f1 import f1
from metrics.score import Scores, correct
from postprocessors.answers import expected
from reports.charts import Histogram, Reliability

MOST_EXAMPLES = 20
MOST_SOURCE, MOST_ANSWER = 600, 300  # letters that are kept of a text


@dataclass(frozen=True)
class Example:
    """A wrong row; `sure` is the probability or score of the prediction, None where nobody asked for it."""

    row: int  # from 0, in the order of the input
    source: str | None
    reference: str
    prediction: str
    sure: float | None = None


@dataclass(frozen=True)
class Look:
    """The worst of the `wrong` rows, by the `order` that is told, and charts of all rows."""

    examples: tuple[Example, ...] = ()
    wrong: int = 0
    order: str = ""
    lengths: tuple[Histogram, ...] = ()
    reliability: Reliability | None = None

    def to_dict(self) -> dict[str, Any]:
        """What a JSON report holds of it: the rows and the lengths."""
        content = asdict(self)
        del content["reliability"]
        return content

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Look:
        """Inverse of `to_dict`, through JSON."""
        return cls(
            tuple(Example(**example) for example in state.get("examples", ())),
            state.get("wrong", 0),
            state.get("order", ""),
            tuple(map(Histogram.from_dict, state.get("lengths", ()))),
        )


def worst_rows(
    scores: Scores,
    references: Sequence[str | None],
    predictions: Sequence[str],
    sure: Iterable[float | None],
    source_of: Callable[[int], str | None],
) -> Look:
    """The wrong rows that are worst: of labels those whose wrong label was the surest, of texts those that have least
    in common with their reference.

    Args:
        sure: of each row the probability or score of its prediction, None where it is not known.
        source_of: is asked by row number, for the rows that are kept alone.
    """
    labels = bool(scores.postprocessor.texts)
    kept: list[tuple[float, int, str, str, float | None]] = []
    wrong, known = 0, False

    @lru_cache(maxsize=2**16)
    def is_right(reference: str, prediction: str) -> bool:
        if reference == prediction:
            return True
        processor = scores.postprocessor
        (corrected,) = correct([prediction], processor, scores.correction, scores.max_distance)
        value = processor.value(reference)
        return value is not None and corrected is not None and processor.value(corrected) == value

    for row, (reference, prediction, certain) in enumerate(zip(references, predictions, sure, strict=True)):
        if reference is None:
            continue
        wanted = expected(scores.postprocessor, reference, prediction)
        if is_right(wanted, prediction) if labels else wanted == prediction:
            continue
        wrong += 1
        known |= certain is not None
        badness = (certain or 0.0) if labels else -in_common(wanted, prediction)
        entry = (badness, -row, wanted, prediction, certain)
        (heapq.heappush if len(kept) < MOST_EXAMPLES else heapq.heappushpop)(kept, entry)
    kept.sort(key=lambda entry: entry[:2], reverse=True)
    examples = tuple(
        Example(
            -row,
            _cut(source_of(-row), MOST_SOURCE),
            wanted[: MOST_ANSWER + 1],
            prediction[: MOST_ANSWER + 1],
            certain,
        )
        for _, row, wanted, prediction, certain in kept
    )
    order = "the surest first" if known else "in the order of the input"
    return Look(examples, wrong, order if labels else "those first that have least in common with their reference")


def in_common(reference: str, prediction: str) -> float:
    """F1 of the pairs of neighbouring letters of two texts, from 0 to 1."""
    one, other = (Counter(pairwise(text)) for text in (reference, prediction))
    return f1((one & other).total(), one.total(), other.total())


def _cut(text: str | None, most: int) -> str | None:
    return None if text is None else text[: most + 1]
