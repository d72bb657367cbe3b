"""BLEU, chrF, TER, ROUGE, WER and CER by name, against the golden cases of their own scorers."""

from __future__ import annotations

import sys
import unicodedata
from importlib.util import find_spec
from statistics import fmean
from types import SimpleNamespace

import pytest

from metrics.registry import missing_packages
from metrics.score import score
from metrics.text import MECAB, Bleu, Chrf, Rouge
from tests.official_scorers import differing

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
needs_mecab = pytest.mark.skipif(find_spec(MECAB) is None, reason="mecab-ko is not installed: sacrebleu[ko]")


def figures(references, predictions, *names):
    return score(references, predictions, names=names).metrics


def single(case):
    """The only reference of each row; None where a row has several or none."""
    rows = case["references"]
    return [row[0] for row in rows] if rows and all(len(row) == 1 for row in rows) else None


def whole_corpus(name, case):
    """The figure of sacrebleu's metric behind `name` where rows have several references, which `score` does not."""
    from sacrebleu.metrics.ter import TER

    ours = {"chrf": Chrf, "chrf++": Chrf}.get(name)
    metric = TER() if name == "ter" else (ours(name) if ours else Bleu(name, case["options"]["tokenize"])).metric
    most = max(map(len, case["references"]), default=0)
    streams = [[row[number] if number < len(row) else None for row in case["references"]] for number in range(most)]
    return float(metric.corpus_score(case["predictions"], streams).score)


@pytest.mark.parametrize(
    "file, name, options",
    [
        ("bleu_13a", "bleu_13a", {"tokenize": "13a"}),
        ("bleu_char", "bleu_char", {"tokenize": "char"}),
        ("bleu_intl", "bleu_intl", {"tokenize": "intl"}),
        pytest.param("bleu_ko_mecab", "bleu_ko_mecab", {"tokenize": "ko-mecab"}, marks=needs_mecab),
        ("chrf", "chrf", {}),
        ("chrf_plus_plus", "chrf++", {"word_order": 2}),
        ("ter", "ter", {}),
    ],
)
def test_sacrebleus_metrics(file, name, options):
    def of_case(case):
        if case["options"] != options:
            return {}  # ours has none of these options
        references = single(case)
        if references is not None and len(references) == len(case["predictions"]):
            found = score(references, case["predictions"], names=[name])
            assert found.details[name] == case["expected"]["signature"], case["id"]
            return {"score": found.metrics[name]}
        if "raises" in case["expected"]:
            assert figures([], [], name) == {}
            return {}
        return {"score": whole_corpus(name, case)}

    assert differing(file, of_case) == []


@pytest.mark.parametrize(
    "file, tokens",
    [
        ("rouge_space", "_space"),
        ("rouge_char", "_char"),
        ("rouge_korouge", "_korouge"),
        ("rouge_default", "_ascii"),
        pytest.param("rouge_ko_mecab", "_ko_mecab", marks=needs_mecab),
    ],
)
def test_rouge(file, tokens):
    names = [kind + tokens for kind in KINDS]

    def of_case(case):
        if case["options"]["scorer"].endswith("_stem"):
            return {}
        case["expected"] = {kind: case["expected"]["mean"][kind]["f1"] for kind in KINDS}
        references = single(case)
        if references is not None:
            found = figures(references, case["predictions"], *names)
            return {kind: found[kind + tokens] for kind in KINDS}
        scorer = Rouge(names, tokens).scorer  # `score` has one reference a row
        rows = [scorer.score_multi(*pair) for pair in zip(case["references"], case["predictions"], strict=True)]
        return {kind: fmean(row[kind].fmeasure for row in rows) for kind in KINDS}

    assert differing(file, of_case) == []


def test_wer_and_cer():
    def of_case(case):
        if "raises" in case["expected"]:
            with pytest.raises(ValueError, match="references, but"):
                figures(case["references"], case["predictions"], "wer")
            return {}
        return figures(case["references"], case["predictions"], "wer", "cer")

    assert differing("cer_wer", of_case) == []


@pytest.mark.parametrize(
    "name, expected",
    [
        ("rouge1_space", 2 * 2 / (4 + 3)),  # 갔다. is not 갔다
        ("rouge2_space", 0.0),
        ("rougeL_char", 2 * 7 / (10 + 7)),
        ("rouge1_korouge", 2 * 2 / 7),
        ("rouge1_ascii", 0.0),  # no Hangul
        ("rouge1", 2 * 3 / 7),
        ("cer", 4 / 13),
        ("cer_nospace", 3 / 10),
    ],
)
def test_a_row_by_hand(name, expected):
    assert figures(["나는 어제 학교에 갔다."], ["나는 학교에 갔다"], name) == {name: pytest.approx(expected, rel=1e-12)}


@pytest.mark.parametrize(
    "name, expected",
    [
        ("bleu_13a", 70.71067811865478),
        ("bleu_char", 85.22456714074852),
        ("bleu_intl", 70.71067811865478),
        pytest.param("bleu_ko_mecab", 65.10803637373398, marks=needs_mecab),
        ("chrf", 79.61721795839537),
        ("chrf++", 67.24969712866417),
    ],
)
def test_a_row_of_the_golden_cases(name, expected):
    references, predictions = ["가격은 1,234.5원(10%)이다."], ["가격은 1234.5원 (10 %)이다."]
    assert figures(references, predictions, name) == {name: pytest.approx(expected, rel=1e-9)}


def test_blanks_of_every_sort_are_left_out_of_cer_nospace():
    assert figures(["가 나\u3000다\t라\n"], ["가나다마"], "cer_nospace") == {"cer_nospace": 1 / 4}
    composed, apart = "가", unicodedata.normalize("NFD", "가")
    assert figures([composed], [apart], "cer_nospace") == {"cer_nospace": 2.0}


def test_every_family_says_how_it_was_computed():
    names = ["rouge1_space", "rougeL_space", "rouge1_char", "bleu_char", "cer_nospace"]
    details = score(["가"], ["가"], names=names).details
    assert details == {
        "rouge_space": "F-measure, mean of rows; words parted by blanks, as they stand",
        "rouge_char": "F-measure, mean of rows; characters as they stand, without blanks",
        "bleu_char": "nrefs:1|case:mixed|eff:no|tok:char|smooth:exp|version:2.6.0",
        "cer_nospace": "Unicode characters as they stand, all blanks left out on both sides",
    }


def test_morphemes_of_kiwi_are_its_forms(monkeypatch):
    class Kiwi:
        def tokenize(self, text):
            return [SimpleNamespace(form=form) for form in text.replace("에 ", " 에 ").split()]

    monkeypatch.setitem(sys.modules, "kiwipiepy", SimpleNamespace(Kiwi=Kiwi))
    monkeypatch.setattr("metrics.text.metadata.version", {"kiwipiepy": "0.24.1"}.get)
    found = score(["학교에 가 았 다"], ["학교 가 았 다"], names=["rouge1_kiwi", "rougeL_kiwi"])
    assert found.metrics == pytest.approx({"rouge1_kiwi": 2 * 4 / 9, "rougeL_kiwi": 2 * 4 / 9})
    assert found.details == {"rouge_kiwi": "F-measure, mean of rows; morphemes of kiwipiepy 0.24.1"}


def test_a_tokenizer_that_is_not_installed_is_named_before_anything_runs(monkeypatch):
    monkeypatch.setattr("metrics.registry.find_spec", {"numpy": 1}.get)
    assert missing_packages(["bleu", "bleu_ko_mecab", "rouge2_ko_mecab", "rougeL_kiwi", "unknown"]) == [
        "metric 'bleu_ko_mecab' needs mecab_ko, which is not installed: pip install 'sacrebleu[ko]'",
        "metric 'rouge2_ko_mecab' needs mecab_ko, which is not installed: pip install 'sacrebleu[ko]'",
        "metric 'rougeL_kiwi' needs kiwipiepy, which is not installed: pip install 'kiwipiepy'",
    ]
