"""Checkpoints of earlier versions are loaded, predict the same texts, and are continued."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import train_ok
from tests.cli.tiny import flag_list
from tests.golden.make import FLAGS, losses, predicted

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.ckpt")))
def test_frozen_checkpoint_predicts_and_goes_on(name: str, tmp_path: Path) -> None:
    checkpoint = GOLDEN / f"{name}.ckpt"
    expected = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    assert predicted(checkpoint, tmp_path) == expected["predictions"]
    run = tmp_path / "run"
    train_ok(*flag_list({**FLAGS, "save_path": run, "resume_checkpoint": checkpoint}))
    measured = losses(run, expected["step"])
    assert [step for step, _ in measured] == [step for step, _ in expected["losses"]]
    # Another processor or library rounds sums in another way.
    assert [loss for _, loss in measured] == pytest.approx([loss for _, loss in expected["losses"]], rel=1e-3, abs=1e-4)
    assert predicted(run / "last", run) == expected["final_predictions"]
