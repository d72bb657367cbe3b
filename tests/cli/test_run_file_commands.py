"""Commands whose flags stand in a file, run for real."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.cli.command import ROOT, infer_ok, printed_command, run, train_ok
from tests.cli.tiny import BART, flag_list, write_config
from tests.cli.whole import flags_of
from tests.faults.harness import assert_same_end


def test_a_run_of_a_file_that_was_changed_after_it_stopped_ends_the_same(
    whole_run: Path, letters: Path, tmp_path: Path
) -> None:
    """The command that it printed holds the flags; the config.json that it leaves can be given back."""
    flags = {**flags_of(whole_run, letters), "save_path": "../run", "max_steps": 5, "overwrite": True}
    flags["valid_data"] = os.path.relpath(letters / "valid.tsv", tmp_path / "exp")
    (tmp_path / "exp").mkdir()
    run_file = tmp_path / "exp" / "run.yaml"
    run_file.write_text("".join(f"{name}: {json.dumps(value, default=str)}\n" for name, value in flags.items()))
    stopped = train_ok(run_file)
    run_file.write_text("max_epoch: 7\n")
    resumed = run(*printed_command(stopped.out))
    assert resumed.code == 0, resumed.err
    assert_same_end(tmp_path / "run", whole_run / "run")
    printed = train_ok(tmp_path / "run" / "config.json", "-save_path", tmp_path / "again", "-print_config").out
    assert f'\n  train_data: ["{letters / "train.tsv"}:2"]\n' in printed
    assert f"\n  save_path: {tmp_path / 'again'}\n" in printed
    assert "\n  # resume_checkpoint: " in printed


def test_an_example_trains_and_its_model_predicts(letters: Path, tmp_path: Path) -> None:
    small = {"config_path": write_config(tmp_path / "bart.json", BART), "save_path": tmp_path / "run", "max_steps": 2}
    data = {f"{name}_data": letters / f"{name}.tsv" for name in ("train", "valid", "test")}
    train_ok(ROOT / "examples" / "text-normalisation.yaml", *flag_list({**data, **small, "valid_generate_rows": 2}))
    saved = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert (saved["learning_rate"], saved["batch_size"], saved["max_steps"]) == (1.5e-3, 8, 2)
    predicting = tmp_path / "predict.yaml"
    rows = letters / "test.tsv"
    predicting.write_text(f"model: {{model: ./run}}\ndata:\n  test_data: {rows}\nsave_output: out.txt\n")
    infer_ok(predicting, "-max_predict_length", 3)
    assert len((tmp_path / "out.txt").read_text(encoding="utf-8").splitlines()) == 30
