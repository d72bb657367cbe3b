"""Which checkpoints stay, and what a run that goes on in its folder removes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from checkpoints.retention import DueCheckpoint, KeptCheckpoints, continue_from, kept_problem, remove_uncounted
from checkpoints.saved_run import SavedRun
from tests.saved_runs import saved_run


def validated(step: int, order: float) -> DueCheckpoint:
    return DueCheckpoint("best", f"epoch00-global_step{step}-val_loss1.0000.ckpt", order)


def steps_left(kept: KeptCheckpoints) -> list[int]:
    return sorted(int(name.split("step")[1].split("-")[0].removesuffix(".ckpt")) for _, name in kept.entries["best"])


def test_of_equal_scores_the_earlier_is_kept() -> None:
    """The first of them is the one called best."""
    kept = KeptCheckpoints(Path(), 2)
    for step in range(1, 8):
        gone = kept.add([validated(step, 0.0)], best_step=1)
        assert [path.name for path in gone] == ([validated(step, 0.0).name] if step > 5 else [])
    assert steps_left(kept) == [1, 2, 3, 4, 5]


def test_the_best_stays_whatever_older_scores_say() -> None:
    """After -resume_force the scores of before are of another measure."""
    kept = KeptCheckpoints(Path(), 2)
    for step in range(1, 6):
        kept.add([validated(step, 10.0 + step)], best_step=step)
    gone = kept.add([validated(6, 0.5)], best_step=6)
    assert [path.name for path in gone] == [validated(1, 0.0).name]
    assert steps_left(kept) == [2, 3, 4, 5, 6]


def test_one_state_is_counted_under_each_of_its_names(tmp_path: Path) -> None:
    kept = KeptCheckpoints(tmp_path, 2)
    for step in (2, 4, 6):
        due = [DueCheckpoint(kind, f"epoch00-global_step{step}{end}.ckpt", step) for kind, end in KINDS]
        gone = kept.add(due, best_step=0)
    assert [path.name for path in gone] == ["epoch00-global_step2.ckpt", "epoch00-global_step2-by-hour.ckpt"]
    for name in ("epoch00-global_step4.ckpt", "epoch00-global_step6.ckpt"):
        (tmp_path / name).touch()
    again = KeptCheckpoints(tmp_path, 2)
    again.restore(kept.state())
    assert again.entries["step"] == [(4, "epoch00-global_step4.ckpt"), (6, "epoch00-global_step6.ckpt")]
    assert again.entries["hour"] == []


KINDS = (("step", ""), ("hour", "-by-hour"))


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, SavedRun]:
    """A run that is resumed at step 4, its folder as a kill and a later course left it."""
    folder = tmp_path / "saved_checkpoints"
    folder.mkdir()
    for name in (
        *("epoch00-global_step2.ckpt", "epoch00-global_step3-val_loss0.5000.ckpt", "epoch00-global_step4.ckpt"),
        *("epoch00-global_step1.ckpt", "epoch00-global_step2-by-hour.ckpt"),  # not counted
        *("epoch00-global_step6.ckpt", "epoch01-global_step7-val_loss0.2500_endofepoch.ckpt", "last.ckpt"),  # later
        *("mine.ckpt", "epoch00-global_step1 copy.ckpt"),
    ):
        (folder / name).write_text(name)
    kept = {"step": [[2, "epoch00-global_step2.ckpt"]], "hour": []}
    kept["best"] = [[-0.5, "epoch00-global_step3-val_loss0.5000.ckpt"]]
    path = folder / "epoch00-global_step4.ckpt"
    return tmp_path, saved_run(path, global_step=4, kept=kept)


OF_ITS_COURSE = [
    "epoch00-global_step1 copy.ckpt",
    "epoch00-global_step2.ckpt",
    "epoch00-global_step3-val_loss0.5000.ckpt",
    "epoch00-global_step4.ckpt",
]


def test_a_run_goes_on_with_the_checkpoints_of_its_own_course(
    run: tuple[Path, SavedRun], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, resumed = run
    monkeypatch.chdir(folder)
    resumed = replace(resumed, path=Path("saved_checkpoints/epoch00-global_step4.ckpt"))  # the same file
    continue_from(folder, resumed)
    left = sorted(path.name for path in (folder / "saved_checkpoints").iterdir())
    assert left == [*OF_ITS_COURSE, "last.ckpt", "mine.ckpt"]
    assert (folder / "saved_checkpoints" / "last.ckpt").samefile(resumed.path)
    told = capsys.readouterr().out.splitlines()
    assert told == [
        f"the run goes on from optimizer step 4: {folder}/saved_checkpoints/{name}, of a later step, is removed"
        for name in ("epoch00-global_step6.ckpt", "epoch01-global_step7-val_loss0.2500_endofepoch.ckpt")
    ]


def test_a_finished_run_is_rid_of_what_a_kill_left_and_of_nothing_later(run: tuple[Path, SavedRun]) -> None:
    folder, resumed = run
    remove_uncounted(folder, resumed, later=False)
    left = sorted(path.name for path in (folder / "saved_checkpoints").iterdir())
    later = ["epoch00-global_step6.ckpt", "epoch01-global_step7-val_loss0.2500_endofepoch.ckpt", "last.ckpt"]
    assert left == [*OF_ITS_COURSE, *later, "mine.ckpt"]
    assert (folder / "saved_checkpoints" / "last.ckpt").read_text() == "last.ckpt"


NAME = "epoch00-global_step2-val_loss0.5000.ckpt"
FORGED: dict[str, Any] = {
    "an absolute name": [[-9.0, "/home/me/thesis.ckpt"]],
    "a name outside": [[-9.0, f"../{NAME}"]],
    "a name of a folder below": [[-9.0, f"epoch00-global_step2/{NAME}"]],
    "a name of somebody else": [[-9.0, "mine.ckpt"]],
    "a name with a line break": [[-9.0, f"{NAME}\n"]],
    "a name too long": [[-9.0, f"epoch00-global_step{'1' * 300}.ckpt"]],
    "a name that is a number": [[-9.0, 7]],
    "an order that is a text": [["first", NAME]],
    "an order that is NaN": [[float("nan"), NAME]],
    "an order that is true": [[True, NAME]],
    "an entry of three": [[-9.0, NAME, NAME]],
    "no entries": 5,
    "a text": NAME,
}


@pytest.mark.parametrize("forged", FORGED)
@pytest.mark.parametrize("kind", ["best", "step", "hour"])
def test_only_names_of_the_run_s_own_are_taken_from_a_checkpoint(forged: str, kind: str) -> None:
    """They are deleted one day."""
    kept: dict[str, Any] = {"best": [], "step": [[2, "epoch00-global_step2.ckpt"]], "hour": []}
    assert kept_problem(kept) == ""
    problem = kept_problem(kept | {kind: FORGED[forged]})
    assert problem.endswith(f" as {kind}, which is no checkpoint of a run")


def test_only_known_kinds_are_taken_from_a_checkpoint() -> None:
    told = "it counts {}, not best, step, hour"
    assert kept_problem({"best": [], "step": []}) == told.format("'best', 'step'")
    assert kept_problem({"best": [], "step": [], "hour": [], "day": []}).startswith(told[:10])
    assert kept_problem({}) == told.format("nothing")


@pytest.mark.parametrize("figure", ["0.2500", "-1.5000", "inf", "nan"])
def test_every_name_that_a_run_writes_is_taken(figure: str) -> None:
    best = [
        [-0.25, f"epoch01-global_step7-val_loss{figure}_endofepoch.ckpt"],
        [7.0, "epoch02-global_step9_endofepoch.ckpt"],
    ]
    hour = [[3, "epoch00-global_step3-by-hour.ckpt"]]
    assert kept_problem({"best": best, "step": [[3, "epoch00-global_step3.ckpt"]], "hour": hour}) == ""
