"""WER, CER and TER by hand, and their sums over blocks."""

from __future__ import annotations

import unicodedata

import pytest

from metrics.edit_rate import words
from metrics.score import score

REFERENCES = ["나는 밥을 먹었다", "the cat sat", "", None, "하나"]
PREDICTIONS = ["나는 밥을 먹는다", "the cat  sat down", "x", "y", "하나"]


def figures(references, predictions, *names):
    return score(references, predictions, names=names).metrics


def test_word_and_character_error_rates_by_hand():
    # words: 1 of 3, 1 more than 3, 1 more than none, none of 1: 3 edits, 7 words
    # characters: 9 with blanks, one other; 11, 6 more of which a second blank; 1 more; 2
    assert figures(REFERENCES, PREDICTIONS, "wer", "cer") == {"wer": 3 / 7, "cer": (1 + 6 + 1) / (9 + 11 + 0 + 2)}


@pytest.mark.parametrize(
    "reference, prediction, wer, cer",
    [
        ("a b", "a b", 0.0, 0.0),
        ("a", "b c d", 3.0, 5.0),  # more is written than there is
        ("", "", 0.0, 0.0),
        ("", "b c", 2.0, 3.0),  # no unit to divide by: the number of insertions
        (" a ", "a", 0.0, 0.0),
        ("A", "a", 1.0, 1.0),
        ("가", unicodedata.normalize("NFD", "가"), 1.0, 2.0),  # texts as they stand
    ],
)
def test_edges(reference, prediction, wer, cer):
    assert figures([reference], [prediction], "wer", "cer") == {"wer": wer, "cer": cer}


def test_words_are_those_of_jiwer():
    assert words(" a  b\t\tc d\te ") == ["a", "b", "c", "d\te"]
    assert words(" \n ") == []


def test_ter_is_sacrebleus_and_adds_up_over_blocks(monkeypatch):
    from sacrebleu.metrics.ter import TER

    references = [f"the {row} cats sat on mat {row % 4}" for row in range(11)]
    predictions = [f"sat the {row} Cats on mat {row % 3}" for row in range(11)]
    expected = TER().corpus_score(predictions, [references]).score
    whole = figures(references, predictions, "ter", "wer", "cer")
    assert whole["ter"] == pytest.approx(expected, abs=1e-12)
    monkeypatch.setattr("metrics.text.BLOCK", 3)
    assert figures(references, predictions, "ter", "wer", "cer") == pytest.approx(whole)
    found = score(references, predictions, names=["ter", "wer"])
    assert found.details["ter"].startswith("nrefs:1|case:lc|tok:tercom")
    assert found.details["wer"] == "words parted by blanks, as they stand"
