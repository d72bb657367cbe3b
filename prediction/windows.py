"""The predictions of the windows of a row (-doc_stride) as one: their answers by the scores of the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from config.flags.inference import DecodeFlags
from datamodules.encoding.store import EncodedSplit, row_starts
from generation.decoder import Hypothesis
from generation.engines.base import Prediction
from postprocessors.answers import Answers
from postprocessors.base import Postprocessor
from prediction.lazy_sequence import LazySequence
from prediction.parts import rounded, significant


def by_probability(decode: DecodeFlags) -> DecodeFlags:
    """The flags with whole log-probabilities as scores: others would favour long answers over an empty one."""
    return replace(decode, length_penalty=0.0)


def by_row(
    split: EncodedSplit, predictions: Sequence[Prediction], postprocessor: Postprocessor, most: int = 1
) -> tuple[EncodedSplit, Sequence[Prediction]]:
    """A view of the rows of `split` by their first windows, and a prediction for each, made when it is asked for.

    Args:
        predictions: one for each window, with its score.
        most: outputs of a row that are kept.
    """
    assert isinstance(postprocessor, Answers)  # no others are cut into windows
    starts = row_starts(split.row_ids)
    ends = np.append(starts[1:], len(split))

    def of_row(row: int) -> Prediction:
        return combined([predictions[window] for window in range(starts[row], ends[row])], postprocessor, most)

    return split.subset(starts), LazySequence(len(starts), of_row)


def combined(windows: Sequence[Prediction], answers: Answers, most: int = 1) -> Prediction:
    """The `most` best outputs of all windows of a row.

    An answer weighs the sum of its probabilities, exp(score), in the windows that give it, as passages are marginalised
    in RAG (Lewis et al. 2020, section 2.1). That there is none weighs the least that it weighs in any window, and
    nothing where a window has not found it, as for the spans of BERT on SQuAD 2.0 (Devlin et al. 2019, section 4.3):
    one window is enough to answer. Where the task has no text for it, an empty output counts for nothing beside an
    answer.

    Scores are logarithms of these weights, probabilities their shares among all outputs of the row.
    """
    outputs: dict[str, list[Hypothesis]] = {}  # by the answer; "" is none
    for window in windows:
        found: dict[str, Hypothesis] = {}
        for output in window.nbest or (Hypothesis(window.text, window.score or 0.0, window.cut),):
            found.setdefault(answers.value(output.text).strip(), output)  # of equal ones the best
        for answer, output in found.items():
            outputs.setdefault(answer, []).append(output)
    none = outputs.pop("", [])
    scores = {answer: float(np.logaddexp.reduce([one.score for one in same])) for answer, same in outputs.items()}
    if not outputs or (len(none) == len(windows) and answers.unanswerable):
        outputs[""], scores[""] = none, min(output.score for output in none)
    total = np.logaddexp.reduce(list(scores.values()))
    ranked = sorted(scores, key=lambda answer: -scores[answer])[:most]
    best = [max(outputs[answer], key=lambda output: output.score) for answer in ranked]
    nbest = tuple(
        Hypothesis(output.text, rounded(scores[answer]), output.cut, significant(np.exp(scores[answer] - total)))
        for answer, output in zip(ranked, best, strict=True)
    )
    no_answer = float(np.exp(scores[""] - total)) if "" in scores else 0.0
    return Prediction(nbest[0].text, nbest[0].score, nbest, cut=nbest[0].cut, no_answer=no_answer)
