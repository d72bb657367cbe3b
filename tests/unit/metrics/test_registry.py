"""A metric is registered in one place, and everything that names metrics knows it."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from config.flags.data import DataFlags, TrainTaskFlags
from config.flags.run import RunFlags
from config.flags.train import TrainConfig
from metrics import registry
from metrics.registry import METRICS, TEXTS, Metric, figure_texts, metric_names, register
from metrics.report import report_text
from metrics.score import score
from task_utils import Task, get_task
from training.checkpointing import Checkpointer
from training.checks import check_train
from training.run import closing_lines
from utils.devices import Devices
from utils.errors import NotFiniteError, UserError

MECAB_IS_MISSING = "metric 'bleu_ko_mecab' needs mecab_ko, which is not installed: pip install 'sacrebleu[ko]'"


class Surplus:
    """Characters written beyond the reference, all rows together."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, block):
        self.count += sum(max(0, len(prediction) - len(reference)) for reference, prediction in block)

    def result(self):
        return {"surplus": float(self.count)}, {"surplus": "characters"}


@pytest.fixture
def surplus():
    register(Metric("surplus", TEXTS, "characters too many", lambda *_: Surplus(), higher_is_better=False))
    yield
    METRICS.pop("surplus")


def checkpointer(monitor: str, folder) -> Checkpointer:
    return Checkpointer(RunFlags(save_path=str(folder), monitor=monitor), folder, {}, stop=None, strategy=None)


def monitor_problems(monitor: str, **data: str) -> list[str]:
    problems: list[str] = []
    flags = DataFlags(train_data=("missing.tsv",), valid_data_proportions=0.1, **data)
    config = TrainConfig(data=flags, task=TrainTaskFlags("seq2seq"), run=RunFlags(save_path="run", monitor=monitor))
    check_train(config, frozenset(), problems)
    return [problem for problem in problems if problem.startswith(("-monitor", "metric "))]


@pytest.mark.usefixtures("surplus")
def test_an_imaginary_metric_is_known_wherever_metrics_are_named(tmp_path):
    task = Task.from_dict({"name": "own", "metrics": ["surplus"]})
    assert task.generated_metrics("val_loss") == ("exact_match", "surplus")
    assert monitor_problems("surplus") == []
    assert get_task("seq2seq").generated_metrics("surplus")[-1] == "surplus"

    scores = score(["ab", "c", None], ["abcd", "c", "zzz"], names=task.metrics)
    assert scores.metrics == {"surplus": 2.0}
    assert "  surplus              2.0000   characters; the smaller the better\n" in report_text(scores)

    saved = checkpointer("surplus", tmp_path)
    assert [saved._note_score(value, step) for step, value in enumerate((3.0, 2.0, 2.0, 5.0))] == [
        True, True, False, False,
    ]  # fmt: skip
    assert (saved.best_score, saved.best_step, saved.validations_without_gain) == (2.0, 1, 2)


def test_a_figure_that_is_undefined_in_a_validation_ends_no_training(tmp_path):
    saved = checkpointer("pearson", tmp_path)
    saved.validation = {"val_loss": 0.5}
    told = closing_lines(tmp_path, saved, 12, Devices("cpu", 1, 1, "32-true"), "")
    assert told[0] == (
        "trained to optimizer step 12; pearson was undefined in every validation: best/ is of the last one"
    )
    figures = (math.nan, math.nan, -3.0, math.nan, 5.0)
    assert [saved._note_score(value, step) for step, value in enumerate(figures)] == [True, True, True, False, True]
    assert (saved.best_score, saved.best_step, saved.validations_without_gain) == (5.0, 4, 0)
    trainer = SimpleNamespace(global_step=7, datamodule=SimpleNamespace(position=lambda: (1, 0)))
    validated, request = SimpleNamespace(val_loss=0.5), SimpleNamespace(timed_save=False)
    module = SimpleNamespace(validation={"val_loss": 0.5})
    assert saved._due(trainer, module, request, validated)[0].order == -math.inf
    with pytest.raises(NotFiniteError, match="-monitor val_loss: the validation gave no such figure"):
        checkpointer("val_loss", tmp_path)._note_score(math.nan, 1)


@pytest.mark.parametrize("name", metric_names(registry.TEACHER_FORCED, TEXTS))
def test_the_five_best_checkpoints_follow_the_direction(name, tmp_path):
    trainer = SimpleNamespace(global_step=7, datamodule=SimpleNamespace(position=lambda: (1, 0)))
    validated = SimpleNamespace(val_loss=0.5)
    orders = []
    for value in (0.1, 0.9):
        module = SimpleNamespace(validation={name: value})
        request = SimpleNamespace(timed_save=False)
        (due,) = checkpointer(name, tmp_path)._due(trainer, module, request, validated)
        orders.append(due.order)
    lower = {"val_loss", "ter", "wer", "cer", "cer_nospace"}
    assert (orders[0] > orders[1]) == (name in lower)


def test_two_metrics_of_one_name_are_refused():
    register(METRICS["bleu"])
    with pytest.raises(ValueError, match="'bleu' is registered already"):
        register(Metric("bleu", TEXTS, "another"))


def test_unknown_names_get_the_choices_and_the_nearest():
    (problem,) = monitor_problems("exact_macth")
    assert problem.startswith(
        "-monitor exact_macth: one of val_loss, token_accuracy, exact_match, chrf, bleu, rouge1, rouge2, rougeL, "
    )
    assert problem.endswith(" ter, wer, cer, cer_nospace expected (did you mean exact_match?)")
    assert monitor_problems("bleu_ko_mecab") == ([] if find_spec("mecab_ko") else [MECAB_IS_MISSING])
    assert monitor_problems("macro_f1", label_map="0=a,1=b") == []
    assert monitor_problems("brier_score", label_map="0=a,1=b")  # a validation has no label probabilities
    with pytest.raises(UserError, match=r"unknown metric 'were' \(did you mean wer\?\); known: exact_match, chrf"):
        Task.from_dict({"name": "own", "metrics": ["were"]})


def test_a_validation_of_labels_shows_one_figure_for_equality():
    task = get_task("nsmc-naive")
    names = task.generated_metrics("val_loss")
    assert names == ("exact_match", "accuracy", "accuracy_corrected", "macro_f1", "micro_f1")
    shown = figure_texts({"val_loss": 0.5, **dict.fromkeys(names, 0.25)})
    assert list(shown) == ["val_loss", "accuracy", "accuracy_corrected", "macro_f1", "micro_f1"]
    assert figure_texts({"exact_match": 0.98765, "bleu": 98.765}) == {"exact_match": "0.9877", "bleu": "98.77"}


@pytest.mark.parametrize("page", ["docs/metrics.md", "docs/metrics.ko.md"])
def test_the_pages_explain_every_metric(page):
    text = (Path(__file__).resolve().parents[3] / page).read_text(encoding="utf-8")
    assert [name for name in METRICS if f"`{name}`" not in text] == []
