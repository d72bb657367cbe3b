"""One model of three tasks: what is written of each is what a prediction of that task alone gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from checkpoints.model_source import InferenceModel, check_same_texts
from deploy.export import saved_state
from tests.cli.command import infer, infer_ok, train, train_ok
from tests.cli.tiny import BART, json_lines, write_config, write_mixture

TASKS = ("letter", "has", "length")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, with its data in the folder above."""
    folder = tmp_path_factory.mktemp("mixture")
    mixture, model = write_mixture(folder), write_config(folder / "bart.json", BART)
    flags = ("-config_path", model, "-tokenizer", "bytes", "-batch_size", 8, "-max_epoch", 2, "-learning_rate", 5e-3)
    flags += ("-class_weights", "balanced", "-monitor", "length/exact_match", "-gpus", 0)
    result = train_ok("-train_task", mixture, "-save_path", folder / "run", *flags)
    assert "length: 45 of the 90 rows of an epoch (50.0%), each of its 20 rows 2.25 times\n" in result.out
    return folder / "run"


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def predicted(run: Path, task: str, split: str, name: str) -> dict[str, Any]:
    """The metrics of a greedy prediction of one task."""
    report = run.parent / f"{task}-{split}-{name}.json"
    data = run.parent / f"{task}-{split}.tsv"
    infer_ok("-model", run / name, "-task", task, "-test_data", data, "-save_report", report, "-gpus", 0)
    metrics: dict[str, Any] = read(report)["metrics"]
    return metrics


def test_figures_of_each_task_are_those_of_its_rows_alone(mixed: Path) -> None:
    test, last = read(mixed / "test_report.json"), read(mixed / "log.json")[-1]
    valid = json_lines(mixed / "metrics.jsonl")[-1]
    for task in TASKS:
        alone = predicted(mixed, task, "test", "best")
        assert test["tasks"][task]["metrics"] == alone
        assert (test["tasks"][task]["rows"], test["tasks"][task]["scored_rows"]) == (9, 9)
    for name, value in predicted(mixed, "has", "valid", "last").items():
        assert last[f"has/{name}"] == valid[f"has/{name}"] == value
    assert last["val_loss"] == pytest.approx(sum(last[f"{task}/val_loss"] for task in TASKS) / 3)
    assert last["accuracy"] == last["has/accuracy"]
    assert last["rows"] == 90
    both = [test["tasks"][task]["metrics"].get("macro_f1") for task in TASKS]
    assert test["metrics"]["macro_f1"] == both[1]


def test_best_follows_one_figure_and_each_task_knows_its_own(mixed: Path) -> None:
    log, state = read(mixed / "log.json"), read(mixed / "best" / "training_state.json")
    scores = [entry["length/exact_match"] for entry in log]
    assert (state["monitor"], state["best_score"]) == ("length/exact_match", max(scores))
    assert state["global_step"] == log[scores.index(max(scores))]["global_step"]
    assert [task["name"] for task in state["tasks"]] == list(TASKS)
    best = log[-1]["best"]
    assert {task: found["figure"] for task, found in best.items()} == dict.fromkeys(TASKS, "exact_match")
    assert best["has"]["value"] == max(entry["has/exact_match"] for entry in log)


def test_a_prediction_picks_one_of_the_tasks(mixed: Path) -> None:
    data = ("-test_data", mixed.parent / "has-test.tsv", "-gpus", 0)
    none = infer("-model", mixed / "last", *data)
    assert (none.code, none.errors) == (
        2,
        [f"-model {mixed / 'last'}: was trained on several tasks; give one as -task: letter, has, length"],
    )
    other = infer("-model", mixed, "-task", "lenght", *data)
    assert other.code == 2
    assert other.errors[0].startswith("-task lenght: no such task (did you mean length?); -model ")
    file = mixed / "saved_checkpoints" / "last.ckpt"
    output = mixed.parent / "numbers.txt"
    infer_ok("-model", file, "-task", "length", "-label_decoding", "constrained", "-save_output", output, *data)
    assert set(output.read_text(encoding="utf-8").split()) <= set("1234")


@pytest.mark.parametrize("name", ["best", "saved_checkpoints/last.ckpt"])
def test_an_export_knows_all_tasks(mixed: Path, name: str) -> None:
    tasks = saved_state([str(mixed / name)], "-model")["tasks"]
    assert [task["name"] for task in tasks] == list(TASKS)
    assert tasks[1]["label_map"] == {"0": "no", "1": "yes"}
    check_same_texts([InferenceModel(str(mixed / name)), InferenceModel(str(mixed / "last"))])


def test_other_rates_or_tasks_are_no_resume(mixed: Path) -> None:
    mixture = mixed.parent / "mixture.yaml"
    text = mixture.read_text(encoding="utf-8")
    for old, new, told in (
        ("rate: 2", "rate: 1", "  tasks and rates  letter 15, has 30, length 45  letter 18, has 18, length 54"),
        ("has.yaml", "has.yaml, name: other", "  -train_task  letter, has, length  letter, other, length"),
    ):
        changed = mixed.parent / "changed.yaml"
        changed.write_text(text.replace(old, new), encoding="utf-8")
        flags = ("-save_path", mixed, "-resume_checkpoint", "last", "-train_task", changed, "-max_epoch", 3)
        result = train(*flags)
        assert result.code == 2
        assert result.err.splitlines()[-1] == told
