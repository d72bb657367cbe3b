"""Labels by their probability: what comes out of a batch, and the priors that are found before the first one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config.flags.data import DataFlags, LengthFlags
from config.flags.inference import DecodeFlags, InferenceConfig, LabelFlags
from config.templates import Template
from datamodules.splits import RowEncoder, prediction_split
from generation.batch_limits import BatchLimits
from generation.engines.base import Prediction
from generation.engines.labels import LabelDecoding, ScoreEngine, ScorePredictor, SetPredictor, label_log_probs
from generation.engines.pytorch import TorchEngine
from generation.highlighting import VariableWords
from generation.label_scoring import LabelScorer
from metrics.report import calibration_settings
from metrics.score import score
from metrics.uncertainty.calibration import LabelCalibration, fit_threshold, log_mean_probability, softmax
from metrics.uncertainty.conformal import NO_SILENCE, SetRule
from metrics.uncertainty.probabilities import with_probabilities
from postprocessors.labels import LabelMap
from prediction.label_calibration import (
    SHARING_SEED,
    LabelledRows,
    content_free_sources,
    domain_sources,
    label_decoding,
)
from prediction.parts import Chunks, Parts, write_part
from task_utils import Task
from tests.trained_models import TOKENIZER, encoded, half_trained, label_map, words
from utils.devices import Devices
from utils.errors import UserError

LABELS = LabelMap.parse("0=a,1=ab,2=c")
ONE = Devices("cpu", 1, 1, "32-true")
CPU = torch.device("cpu")


def load() -> Any:
    """Anew at every call, as commands do: engines take the weights away that they do not use."""
    return copy.deepcopy(half_trained("bart")), TOKENIZER


def predictor(**calibration: Any) -> ScorePredictor:
    labels = LabelDecoding("score", LABELS, calibration=LabelCalibration(**calibration))
    return ScorePredictor(*load(), labels, ONE)


def sources(texts: list[str]) -> list[np.ndarray]:
    return [np.array(TOKENIZER(text).input_ids) for text in texts]


def test_words_lose_what_one_pass_a_word_says() -> None:
    """The words of the template are left out; batches of another size give the same."""
    texts = ["Q: " + " ".join(dict.fromkeys(three)) for three in zip(*[iter(words(12, seed=4))] * 3, strict=True)]
    found = []
    for rows in (1, 64):
        decoding = LabelDecoding("score", LABELS, highlight=words_of("Q: {{ source }}"), limits=BatchLimits(rows))
        found.append(ScorePredictor(*load(), decoding, ONE)(range(4), sources(texts)))
    for text, one, many in zip(texts, *found, strict=True):
        spoken = text.split()[1:]
        assert [word for word, _ in one.words] == [word for word, _ in many.words] == spoken
        assert [loss for _, loss in one.words] == pytest.approx([loss for _, loss in many.words], abs=1e-6)
        label = LABELS.texts.index(one.text)
        for word, loss in many.words:
            rest = "Q: " + " ".join(other for other in spoken if other != word)
            (alone,) = predictor()(range(1), sources([rest]))
            assert loss == pytest.approx(many.label_probabilities[label] - alone.label_probabilities[label], abs=1e-6)
    (silent,) = ScorePredictor(*load(), decoding, ONE)(range(1), sources(["Q:"]))
    assert silent.words == ()


def words_of(template: str, only: str = "") -> VariableWords:
    return VariableWords(Template(template).parts or (), only)


PROMPT = "###입력: {{ review }}\n###키워드: {{ keyword }}"


@pytest.mark.parametrize(
    ("template", "only", "text", "expected"),
    [
        ("{{ source }}", "", " good film ", "good film"),
        ("review of a film: {{ source }}\n", "", "review of a film: review of a film: good", "review of a film: good"),
        ("리뷰:{{ source }} (끝)", "", "리뷰:좋아 요 (끝)", "좋아 요"),
        ("a {{ x }} b {{ y }} c d", "", "a 1 2 b 3 c d", "1 2 3"),
        ("{{ x }} {{ y }}", "y", "1 2", "1 2"),
        ("{% if a %}x{% endif %} {{ a }}", "", "x 1", "x 1"),
        (PROMPT, "", "###입력: 배송 빠름 ###키워드: 배송", "배송 빠름 배송"),
        (PROMPT, "review", "###입력: ###키워드: 빠름\n###키워드: 배송", "###키워드: 빠름"),
        (PROMPT, "review", "###입력: 배송 빠", "배송 빠"),
    ],
)
def test_words_are_those_that_stand_for_the_variables(template: str, only: str, text: str, expected: str) -> None:
    spans = words_of(template, only).find(text)
    assert " ".join(text[start:end] for start, end in spans) == expected


def test_a_prediction_is_the_likeliest_label_with_its_own_score() -> None:
    texts = words(12, seed=4)
    expected = LabelScorer(*load(), LABELS.texts)(*encoded(texts)).double().numpy()
    found = predictor()(range(12), sources(texts))
    assert [prediction.text for prediction in found] == [LABELS.texts[label] for label in expected.argmax(1)]
    assert [prediction.score for prediction in found] == expected.max(1).tolist()
    assert [prediction.label_probabilities for prediction in found] == [
        tuple(row) for row in softmax(expected).tolist()
    ]


def test_a_prior_changes_the_label_and_leaves_the_score_that_of_the_model() -> None:
    texts = words(12, seed=4)
    plain = predictor()(range(12), sources(texts))
    turned = predictor(log_prior=(0.0, 0.0, -1000.0), temperature=3.0)(range(12), sources(texts))
    log_probs = LabelScorer(*load(), LABELS.texts)(*encoded(texts)).double().numpy()
    assert {prediction.text for prediction in plain} != {"c"}
    assert [prediction.text for prediction in turned] == ["c"] * 12
    assert [prediction.score for prediction in turned] == log_probs[:, 2].tolist()


def test_constrained_search_finds_the_most_probable_label() -> None:
    texts = words(12, seed=4)
    labels = LabelDecoding("score", LABELS)
    options = DecodeFlags(beam_size=3, length_penalty=0.0)
    found = TorchEngine((load,), options, labels=LABELS)(CPU)(range(12), sources(texts))
    scored = ScoreEngine(load, labels, ONE)(CPU)(range(12), sources(texts))
    assert [output.text for output in found] == [output.text for output in scored]
    joined = TorchEngine((load,), options, labels=label_map("ac", "|"))(CPU)(range(12), sources(texts))
    assert {output.text for output in joined} <= {"a", "c", "a|c"}


def test_a_label_has_the_share_of_the_sets_that_hold_it() -> None:
    """Two labels have three sets, and all of them are looked at; thresholds decide what is predicted."""
    labels, texts = label_map("ac", "|"), words(9, seed=4)
    log_probs = LabelScorer(*load(), ["a", "c", "a|c"])(*encoded(texts)).double().numpy()
    shares = softmax(log_probs) @ np.array([[1, 0], [0, 1], [1, 1]])
    decoding = LabelDecoding("score", labels, limits=BatchLimits(4), thresholds=(float(np.median(shares[:, 0])), 1.1))
    found = ScoreEngine(load, decoding, ONE)(CPU)(range(9), sources(texts))
    np.testing.assert_allclose([one.label_probabilities for one in found], shares, atol=1e-5)
    assert [one.score for one in found] == pytest.approx(log_probs.max(1).tolist(), abs=1e-4)
    assert sorted(one.text for one in found) == [""] * 4 + ["a"] * 5
    scores = score(["a"] * 9, [one.text for one in found], labels, correction="chosen", names=["subset_accuracy"])
    assert scores.metrics["subset_accuracy"] == 5 / 9
    assert (scores.invalid_outputs, scores.per_class[0]["recall"]) == (0, 5 / 9)


def test_batches_by_length_come_back_in_order() -> None:
    texts = words(23, seed=9)
    whole = label_log_probs(predictor(), sources(texts), BatchLimits(23))
    expected = LabelScorer(*load(), LABELS.texts)(*encoded(texts)).double().numpy()
    np.testing.assert_allclose(whole, expected, atol=1e-5, rtol=1e-6)
    np.testing.assert_allclose(
        label_log_probs(predictor(), sources(texts), BatchLimits(4)), expected, atol=1e-5, rtol=1e-6
    )


def test_labels_that_the_model_cannot_take_are_a_user_s_mistake() -> None:
    long = LabelDecoding("score", label_map(["a" * 200, "b"]))
    with pytest.raises(UserError, match="-label_decoding score: the longest label has 201 tokens; the model writes at"):
        ScorePredictor(*load(), long, ONE)
    with pytest.raises(UserError, match="-label_decoding constrained: the longest label has 201 tokens"):
        TorchEngine((load,), DecodeFlags(), labels=long.labels)(CPU)


# ---- before the first row


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., tuple[LabelDecoding | None, list[str]]]:
    """`prepared(flag=value, ...)`: what `label_decoding` gives for 5 rows to predict, and what it tells."""

    def get(
        template: str = "{{ source }}", valid: str = "", thresholds: str = "", separator: str = "", **flags: Any
    ) -> tuple[LabelDecoding | None, list[str]]:
        (tmp_path / "rows.tsv").write_text("abc\t0\ncab\t1\na\t\nfgh\t2\nhh\t1\n")
        (tmp_path / "valid.tsv").write_text(valid or thresholds)
        flags |= {"calibrate": str(tmp_path / "valid.tsv")} if valid else {}
        flags |= {"thresholds": str(tmp_path / "valid.tsv")} if thresholds else {}
        labels = LABELS.joined_by(separator)
        data = DataFlags(test_data=(str(tmp_path / "rows.tsv"),), header="false")
        task = Task("t", "", input_template=template, label_map=labels)
        encoder = RowEncoder(data, LengthFlags(), task, TOKENIZER, 0, tmp_path)
        split, _ = prediction_split(encoder)
        config = InferenceConfig(data=data, label=LabelFlags(**flags))
        lines: list[str] = []
        return label_decoding(config, labels, load, encoder, split, ONE, lambda *told: lines.extend(told)), lines

    return get


def test_plain_generation_needs_no_labels(prepared: Any) -> None:
    assert prepared() == (None, [])
    assert prepared(label_decoding="constrained") == (LabelDecoding("constrained", LABELS), [])
    expected = LabelDecoding("score", LABELS, calibration=LabelCalibration((), 2.5))
    assert prepared(label_decoding="score", label_temperature=2.5) == (expected, [])


def test_the_domain_prior_is_the_mean_over_the_input(prepared: Any) -> None:
    decoding, lines = prepared(label_decoding="score", label_prior="domain")
    log_probs = LabelScorer(*load(), LABELS.texts)(*encoded(["abc", "cab", "a", "fgh", "hh"]))
    assert decoding.calibration.log_prior == pytest.approx(log_mean_probability(log_probs.numpy()), abs=1e-5)
    pairs = zip(LABELS.texts, decoding.calibration.log_prior, strict=True)
    shares = ", ".join(f"{text} {np.exp(part):.4f}" for text, part in pairs)
    assert lines == [f"-label_prior domain: mean probabilities of 5 rows of the input: {shares}"]


def test_the_contextual_prior_is_of_inputs_without_content(prepared: Any) -> None:
    decoding, lines = prepared(label_decoding="score", label_prior="contextual", template="say {{ source }}!")
    log_probs = LabelScorer(*load(), LABELS.texts)(*encoded(["say N/A!", "say [MASK]!", "say !"]))
    assert decoding.calibration.log_prior == pytest.approx(log_mean_probability(log_probs.numpy()), abs=1e-5)
    assert lines[0].startswith("-label_prior contextual: mean probabilities of 3 content-free inputs: a ")
    with pytest.raises(UserError, match="cannot be rendered with 'N/A' as every column"):
        prepared(label_decoding="score", label_prior="contextual", template="{{ 1 / (source != 'N/A') }}")


def test_the_temperature_is_fitted_behind_the_prior(prepared: Any) -> None:
    from metrics.uncertainty.calibration import fit_temperature

    valid = "ab\t0\ncc\t2\nabab\t1\nx\t\nb\tc\n"
    decoding, lines = prepared(label_decoding="score", label_prior="domain", valid=valid)
    log_probs = LabelScorer(*load(), LABELS.texts)(*encoded(["ab", "cc", "abab", "b"])).double().numpy()
    expected = fit_temperature(log_probs - np.array(decoding.calibration.log_prior), [0, 2, 1, 2])
    assert decoding.calibration.temperature == pytest.approx(expected, rel=1e-4)
    assert lines[-1] == f"-calibrate: temperature {decoding.calibration.temperature:.6g}, fitted on 4 labelled rows"
    with pytest.raises(UserError, match="no row has a label; give a labelled validation file"):
        prepared(label_decoding="score", valid="ab\t\n")


def test_thresholds_are_fitted_label_by_label(prepared: Any) -> None:
    """The rows say nothing about `c`, which keeps 0.5."""
    plain, lines = prepared(label_decoding="score", separator="|")
    assert (plain.thresholds, lines) == ((0.5, 0.5, 0.5), [])
    decoding, lines = prepared(label_decoding="score", separator="|", thresholds="abc\t0\ncab\t1|0\na\t\nfgh\t1\n")
    shares = np.array([one.label_probabilities for one in sets_of(plain, ["abc", "cab", "fgh"])])
    fitted = [fit_threshold(shares[:, 0], [True, True, False]), fit_threshold(shares[:, 1], [False, True, True])]
    assert decoding.thresholds == pytest.approx((*fitted, 0.5))
    assert lines[-2:] == [
        f"-thresholds: fitted on 3 labelled rows: a {fitted[0]:.4g}, ab {fitted[1]:.4g}",
        "-thresholds: nothing to fit, so 0.5, for c (no row has it)",
    ]
    assert plain.describe()[:3] == decoding.describe()[:3] == ["score", ["a", "ab", "c"], "|"]
    assert plain.describe() != decoding.describe()
    with pytest.raises(UserError, match=r"-thresholds .*: no row has a label; give a labelled validation file"):
        prepared(label_decoding="score", separator="|", thresholds="ab\t\n")


def sets_of(decoding: LabelDecoding, texts: list[str]) -> list[Prediction]:
    return SetPredictor(*load(), decoding, ONE)(range(len(texts)), sources(texts))


def test_the_domain_is_a_thousand_rows_all_over_the_input(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("".join(f"{number}\n" for number in range(2999)))
    data = DataFlags(test_data=(str(tmp_path / "rows.txt"),), header="false")
    encoder = RowEncoder(data, LengthFlags(), Task("t", ""), TOKENIZER, 0, tmp_path)
    found = domain_sources(prediction_split(encoder)[0])
    texts = [TOKENIZER.decode(ids, skip_special_tokens=True) for ids in found]
    assert (len(texts), texts[0], texts[1], texts[-1]) == (1000, "0", "3", "2998")


def test_content_free_inputs_keep_to_the_length_limit(tmp_path: Path) -> None:
    encoder = RowEncoder(DataFlags(), LengthFlags(max_seq_length=4), Task("t", ""), TOKENIZER, 0, tmp_path)
    assert [len(ids) for ids in content_free_sources(encoder)] == [4, 4, 1]


def test_rules_are_fitted_on_rows_that_did_not_fit_the_temperature(prepared: Any) -> None:
    """The temperature is that of one half alone, the sets those of the rest."""
    texts, numbers = words(40, seed=4), [0, 1, 2, 1, 0] * 8
    valid = "".join(f"{text}\t{number}\n" for text, number in zip(texts, numbers, strict=True))
    order = np.arange(40)
    np.random.default_rng(SHARING_SEED).shuffle(order)
    half, rest = order[::2], order[1::2]
    alone, _ = prepared(label_decoding="score", valid="".join(valid.splitlines(True)[row] for row in half))
    decoding, lines = prepared(label_decoding="score", valid=valid, label_sets=0.9)
    assert decoding.calibration.temperature == pytest.approx(alone.calibration.temperature)
    calibration = LabelCalibration((), decoding.calibration.temperature)
    shares = calibration.probabilities(
        LabelScorer(*load(), LABELS.texts)(*encoded([texts[row] for row in rest])).double().numpy()
    )
    second = sorted(shares[range(20), [numbers[row] for row in rest]])[
        1
    ]  # rank ceil(21 * 0.9) = 19 of the scores is the second last
    assert decoding.silence.sets == SetRule(0.9, 20, pytest.approx(second, rel=1e-4))
    told = f"-label_sets 0.9: labels of probability {decoding.silence.sets.least:g} or more, by 20 other rows"
    assert lines[-1] == told
    assert decoding.describe() == replace(decoding, silence=NO_SILENCE).describe()  # finished parts stay good
    with pytest.raises(UserError, match=r"^-abstain 0.2: no part of these 40 labelled rows shows so few errors; "):
        prepared(label_decoding="score", valid=valid * 2, abstain=0.2)


def test_too_few_labelled_rows_are_told_with_the_number_that_is_needed(prepared: Any) -> None:
    with pytest.raises(UserError) as told:
        prepared(label_decoding="score", valid="ab\t0\n" * 17, label_sets=0.9, abstain=0.05)
    (path,) = {problem.split(", and ")[1].split(" has ")[0] for problem in told.value.problems}
    assert [problem.replace(path, "FILE") for problem in told.value.problems] == [
        f"{flag} needs {needed} labelled rows of -calibrate, half of them for the temperature, and FILE has 17; give"
        " more rows, or ask for less"
        for flag, needed in (("-label_sets 0.9", 18), ("-abstain 0.05", 234))
    ]


# ---- the report


def test_only_rows_with_a_reference_count(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [(0.8, 0.1, 0.1)] * 2
    monkeypatch.setattr("metrics.uncertainty.probabilities.ROWS_AT_ONCE", 1)
    scores = score(["a", None], ["a", "a"], LABELS)
    found = with_probabilities(scores, ["a", None], shares)
    assert found.metrics["brier_score"] == pytest.approx(0.04 + 0.01 + 0.01)
    assert found.metrics["expected_calibration_error"] == pytest.approx(0.2)
    assert found.metrics["negative_log_likelihood"] == pytest.approx(-np.log(0.8))
    assert found.metrics.items() >= scores.metrics.items()
    nothing = with_probabilities(score([None], ["a"], LABELS), [None], shares[:1])
    assert (nothing.metrics, nothing.details) == ({}, {})


def test_the_prior_in_the_report_is_by_label() -> None:
    calibration = LabelCalibration(tuple(np.log([0.5, 0.2, 0.3]).tolist()), 2.0)
    settings = calibration_settings(calibration, LABELS)
    assert settings == {"temperature": 2.0, "prior": pytest.approx({"a": 0.5, "ab": 0.2, "c": 0.3})}
    assert calibration_settings(LabelCalibration(), LABELS) == {"temperature": 1.0, "prior": None}


def test_small_probabilities_outlive_the_part_file(tmp_path: Path) -> None:
    """One that is rounded to 0 would be a negative log-likelihood of 708 nats in the report."""
    write_part(tmp_path, 0, [0], [Prediction("a", -1.5, label_probabilities=(0.12345678, 1.2345678e-9))])
    found = Prediction("a", -1.5, label_probabilities=(0.123457, 1.23457e-9))
    assert list(Parts(tmp_path, Chunks(np.array([0]), [0], 1))) == [found]


def test_last_digits_of_the_calibration_make_no_other_run() -> None:
    def described(prior: float, temperature: float) -> list[Any]:
        return LabelDecoding("score", label_map("a"), calibration=LabelCalibration((prior,), temperature)).describe()

    assert described(-0.12345678, 1.2345678) == described(-0.12345679, 1.2345679)
    assert described(-0.12345678, 1.2345678) != described(-0.12345678, 1.24)


def test_a_temperature_at_the_end_of_its_range_is_told(prepared: Any) -> None:
    plain, _ = prepared(label_decoding="score")
    predicted = [found.text for found in predictor()(range(3), sources(["abc", "cab", "fgh"]))]
    valid = "".join(f"{text}\t{label}\n" for text, label in zip(["abc", "cab", "fgh"], predicted, strict=True))
    decoding, lines = prepared(label_decoding="score", valid=valid)
    assert (plain.calibration.temperature, decoding.calibration.temperature) == (1.0, 0.01)
    assert lines[-1] == (
        "-calibrate: the best temperature lies below 0.01, the lowest one that is tried: these rows are all predicted"
        " right, so that more sure is always better; take more or harder rows"
    )


def test_labels_that_take_turns_in_a_file_are_in_both_halves_of_it(tmp_path: Path) -> None:
    path = tmp_path / "turns.tsv"
    path.write_text("a\t0\nc\t2\n" * 20, encoding="utf-8")
    data = DataFlags(header="false")
    encoder = RowEncoder(data, LengthFlags(), Task("t", "", label_map=LABELS), TOKENIZER, 0, tmp_path)
    flags = LabelFlags(label_decoding="score", calibrate=str(path), label_sets=0.8)
    rows, again = (LabelledRows.of(flags, LABELS, encoder, lambda *_: None) for _ in range(2))
    halves = [rows.for_temperature, rows.for_rules]
    assert [len(half) for half in halves] == [20, 20]
    assert [set(half.targets) for half in halves] == [{0, 2}, {0, 2}]
    assert rows.targets == again.targets
    assert sorted(rows.targets) == [0] * 20 + [2] * 20
    text = {0: "a", 2: "c"}
    for source, target in zip(rows.sources, rows.targets, strict=True):  # each source has kept its label
        assert list(source) == list(encoder.tokenizer(text[target])["input_ids"])
