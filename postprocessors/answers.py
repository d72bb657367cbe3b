"""Outputs that answer a question about a passage, of which several may be right or none."""

from __future__ import annotations

import json
from dataclasses import dataclass

from postprocessors.base import FreeText, Postprocessor

MARK, RIGHT, NEW = "출력: ", "정답임", ", 새 정답: "  # of an answer in two lines


@dataclass(frozen=True)
class Answers(FreeText):
    """Any text is an answer; `unanswerable` is the text by which the model says that the passage has none.

    References are JSON lists of all right answers, `[]` where the question has no answer. With `two_lines` an output is
    an answer and, on a second line, whether it is right or which one is (`answer_of_two_lines`).
    """

    unanswerable: str = ""
    two_lines: bool = False

    name = "answer"
    kind = "answers"

    def value(self, text: str) -> str:
        """The answer; empty for none."""
        text = answer_of_two_lines(text, self.unanswerable) if self.two_lines else text
        return "" if text.strip() == self.unanswerable.strip() else text

    def golds(self, reference: str) -> tuple[str, ...]:
        """The right answers of a reference; `ValueError` when it is not a JSON list of texts."""
        try:
            golds = json.loads(reference)
        except ValueError:
            golds = None
        if not isinstance(golds, list) or not all(isinstance(gold, str) for gold in golds):
            raise ValueError(f"reference {reference[:100]!r} is not a JSON list of answers")
        return tuple(golds)

    def reference_problem(self, reference: str) -> str:
        """It must be a list of answers."""
        try:
            self.golds(reference)
        except ValueError:
            return "reference is not a JSON list of answers"
        return ""

    def describe(self) -> str:
        """`answers, or '[알 수 없음]' for none`."""
        return f"answers, or {self.unanswerable!r} for none"


def expected(postprocessor: Postprocessor, reference: str, prediction: str) -> str:
    """The text that a prediction is compared with: the reference, of several right answers the one that it equals."""
    if not isinstance(postprocessor, Answers):
        return reference
    golds = postprocessor.golds(reference) or (postprocessor.unanswerable,)
    answer = postprocessor.value(prediction) if postprocessor.two_lines else prediction
    return prediction if answer in golds else golds[0]


def answer_of_two_lines(text: str, unanswerable: str) -> str:
    """The answer 서울 of `출력: 서울`, `정답임` or of `출력: 부산`, `정답이 아님, 새 정답: 서울`; without a second line
    `unanswerable`.

    Marks are cut off by their length, whether they are there or not, as etri-crossmodal/llm-downstream-s2s does.
    """
    first, *others = text.split("\n")
    if not others:
        return unanswerable
    second = others[0]
    return first[len(MARK) :] if second.startswith(RIGHT) else second[second.rfind(NEW) + len(NEW) :]
