"""Dependency lines: written, read as the scripts of their inventors do, and corrected."""

from __future__ import annotations

import pytest

from postprocessors.dependencies import NO_ARC, Arc, Dependencies, dependency_line
from utils.errors import UserError

PARSER = Dependencies(("NP_SBJ", "NP_OBJ", "VP"))
WORDS = ["나는", "밥을", "먹었다."]
ARCS = [Arc(3, "NP_SBJ"), Arc(3, "NP_OBJ"), Arc(0, "VP")]
LINE = "deprel: (1/2, 3, NP_SBJ)▁(2/2, 3, NP_OBJ)▁(3/4, 0, VP)\nword_counts: 3"


def test_a_tree_is_written_and_read_back() -> None:
    assert dependency_line(WORDS, ARCS) == LINE
    assert PARSER.value(LINE) == tuple(ARCS)
    assert PARSER.correct([LINE]) == [LINE]


@pytest.mark.parametrize(
    "text, arcs",
    [
        (LINE.replace("3, NP_OBJ", "x, NP_OBJ"), [ARCS[0], NO_ARC, ARCS[2]]),
        (LINE.replace("\nword_counts: 3", ""), ARCS),
        (LINE.replace("(2/2", "(9/9"), ARCS),
        (LINE.replace("▁", " "), [ARCS[0]]),
        ("noise\n" + LINE, ARCS),
        ("noise " + LINE, []),
        (f"deprel: (1/2, {'9' * 5000}, VP)", [NO_ARC]),
        ("", []),
    ],
)
def test_what_can_be_read_of_a_text(text: str, arcs: list[Arc]) -> None:
    assert PARSER.arcs(text) == arcs


@pytest.mark.parametrize(
    "text",
    [
        LINE.replace("counts: 3", "counts: 4"),
        LINE.replace("3, NP_OBJ", "4, NP_OBJ"),  # no such word
        LINE.replace("NP_OBJ", "NP_AJT"),  # no such relation
        LINE.replace("3, NP_OBJ", ", NP_OBJ"),
        "noise\n" + LINE,
        "",
    ],
)
def test_a_tree_that_is_not_as_it_should_be_has_no_value(text: str) -> None:
    assert PARSER.value(text) is None


def test_words_are_found_whatever_stands_between_them() -> None:
    swallowed = "deprel: (1/2, 3, NP_SBJ) (2/2, 3, NP_OBJ) (3/4, 0, VP) word_counts: 3"  # as T5's tokenizer writes it
    assert PARSER.correct([swallowed, "deprel: (1/2,3,VP) (2/2", "nothing"]) == [
        LINE,
        "deprel: (1/2, 3, VP)\nword_counts: 1",
        None,
    ]


def test_relations_are_capitals_named_once() -> None:
    with pytest.raises(UserError) as caught:
        Dependencies(("NP", "nsubj", "NP"))
    assert caught.value.problems == (
        "relations: 'nsubj' is no relation; it may have capital letters and _ only",
        "relations: 'NP' stands there twice",
    )
    with pytest.raises(UserError, match="name the relations"):
        Dependencies()


@pytest.mark.parametrize(
    "reference, problem",
    [
        (LINE, ""),
        ("나는 밥을", "reference is no dependency line"),
        (LINE.replace("NP_OBJ", "NP_AJT"), "reference has a relation that the task does not name: NP_AJT (word 2)"),
        (LINE.replace("3, NP_OBJ", "4, NP_OBJ"), "reference has a head beyond its last word"),
    ],
)
def test_a_reference_is_a_tree(reference: str, problem: str) -> None:
    assert PARSER.reference_problem(reference) == problem
