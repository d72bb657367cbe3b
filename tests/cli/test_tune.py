"""`tune.py` as a process: bad input before anything starts, and a search that is killed and goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import tune
from checkpoints.run_folder import checkpoints_of
from config.flags.tune import SearchFlags
from config.parser import without_flags
from tests.cli.command import ROOT, environment, run, train
from tests.cli.tiny import BART, flag_list, json_lines, letter_rows, write_config, write_tsv
from training.hyperparameter_search.search import Search
from training.hyperparameter_search.space import read_space
from training.hyperparameter_search.study import Study
from training.hyperparameter_search.trials import read_trial

pytest.importorskip("optuna")

SPACE = "learning_rate: {min: 1e-3, max: 1e-2, log: true}\nlr_scheduler: [linear, constant]\n"


def flags_of(folder: Path, **changes: Any) -> list[str]:
    flags = {
        "search_space": folder / "space.yaml",
        "train_data": write_tsv(folder / "train.tsv", letter_rows(48, seed=1)),
        "valid_data": write_tsv(folder / "valid.tsv", letter_rows(8, seed=2)),
        "config_path": write_config(folder / "bart.json", BART),
        "valid_generate_rows": 0,
        "batch_size": 8,
        "max_epoch": 20,
        "gpus": 0,
        "save_path": folder / "search",
        "trials": 1,
        "refit_seeds": 0,
    }
    return flag_list({**flags, **changes})


def test_all_problems_are_told_before_anything_starts(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(f"{SPACE}batch_size: [8, -1]\nlaerning_rate: [1]\n", encoding="utf-8")
    flags = flags_of(tmp_path, search_space=None, max_hours=1, gpus=2, prune="best", valid_data=None)
    done = run(sys.executable, "tune.py", space, *flags)
    assert done.code == 2
    assert done.errors == [
        "-prune best: one of asha, median, none expected",
        "-max_hours 1.0: is of a single run; leave it out",
        "a search needs validation rows: give -valid_data or -valid_data_proportions",
        "-gpus 2: each trial has one GPU; -jobs 1 gives a trial all of them",
        f"{space}:3: -batch_size -1: at least 0 expected",
        f"{space}:4: unknown flag 'laerning_rate' (did you mean learning_rate?)",
    ]
    assert not (tmp_path / "search").exists()


class Ended:
    """A train.py that ran to its end."""

    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int | None:
        return self.code

    def send_signal(self, sig: int, /) -> None:
        raise AssertionError(sig)

    def wait(self) -> int:
        return self.code


def test_trials_get_the_flags_of_a_run_file_without_those_of_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags_of(tmp_path)  # writes the rows and the model
    (tmp_path / "space.yaml").write_text("batch_size: [8, 16]\n", encoding="utf-8")
    (tmp_path / "run.yaml").write_text(
        "search: {search_space: ./space.yaml, trials: 1, refit_seeds: 0}\ndata: {train_data: train.tsv}\n"
        "valid_data: valid.tsv\nconfig_path: bart.json\nmax_epoch: 2\ngpus: 0\nsave_path: search\n",
        encoding="utf-8",
    )
    command = [str(tmp_path / "run.yaml"), "-search_space", str(tmp_path / "space.yaml")]
    assert tune.main([*command, "-max_epoch", "3", "-print_config"]) == 0
    assert {"  max_epoch: 3", "  trials: 1"} <= {*capsys.readouterr().out.splitlines()}
    begun: list[list[str]] = []

    def start(tokens: list[str], log: Path, share: dict[str, str]) -> Ended:
        del share
        begun.append(tokens)
        log.write_text("error: NaN in step 3\n", encoding="utf-8")
        return Ended(1)

    monkeypatch.setattr(tune, "start_training", start)
    assert tune.main(command) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "1 trial, 0 of them stopped early, 1 failed",
        "no trial ran to its end",
    ]
    ours = [f"-train_data={tmp_path}/train.tsv", f"-valid_data={tmp_path}/valid.tsv"]
    [words] = begun
    assert {word for word in words if not word.startswith("-batch_size=")} == {
        *ours,
        f"-config_path={tmp_path}/bart.json",
        "-max_epoch=2",
        "-gpus=0",
        f"-save_path={tmp_path}/search/trials/0000",
        "-resume_checkpoint=auto",
    }


@pytest.mark.slow
def test_a_killed_search_goes_on_where_its_run_was(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE, encoding="utf-8")
    command = [sys.executable, "-u", "tune.py", *flags_of(tmp_path)]  # no fork, whose child would not die with it
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        assert any("validation 1," in line for line in killed.stdout)
        killed.kill()
    begun = read_trial(tmp_path / "search", "trials/0000")
    assert begun is not None
    assert begun.state == "running"
    saved = bool(checkpoints_of(tmp_path / "search/trials/0000"))  # the kill may have come before the first save
    fixed = without_flags(flags_of(tmp_path), {"save_path", *SearchFlags.__dataclass_fields__})
    study = Study(read_space(str(tmp_path / "space.yaml")), fixed, SearchFlags(trials=1), False, seed=123456)
    told: list[str] = []

    def start(tokens: Sequence[str], log: Path, place: int) -> Ended:
        del log, place
        result = train(*tokens)  # a fork, which starts faster than a process of the search
        told.append(result.out)
        return Ended(result.code)

    search = Search(tmp_path / "search", study, "val_loss", 1, start)
    search.search()
    assert [(trial.flags, trial.state, len(trial.figures)) for trial in search.trials()] == [
        (begun.flags, "complete", 20)
    ]
    assert ["resuming from " in out for out in told] == [saved]
    steps = [line["step"] for line in json_lines(tmp_path / "search/trials/0000/metrics.jsonl") if "val_loss" in line]
    assert steps == list(range(6, 121, 6))
