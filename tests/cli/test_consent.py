"""Commands whose standard input would consent to run the code of a config or model: refused before a byte is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import ROOT, TIMEOUT, environment
from tests.unit.models.test_foreign_code import FOLDERS, TOLD, foreign_config, model_folder


@pytest.mark.parametrize("script", ["train.py", "inference.py"])
def test_consent_on_standard_input_is_data_and_stays_unread(script: str, tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("y\n1\nyes\n" * 20)
    if script == "train.py":
        (tmp_path / "bert.json").write_text(json.dumps(foreign_config(tmp_path / "evil")))
        flags = ["-config_path", tmp_path / "bert.json", "-tokenizer", "bytes", "-save_path", tmp_path / "run"]
        flags += ["-train_data", tmp_path / "rows.txt", "-header", "false", "-gpus", "0"]
        told = TOLD.format(f"-config_path {tmp_path}/bert.json", "config")
    else:
        part, config, tokenizer = FOLDERS["own kind"]
        flags = ["-model", model_folder(tmp_path / "model", tokenizer, **config), "-test_data", "-"]
        told = TOLD.format(f"-model {tmp_path}/model", part)
    command = [sys.executable, script, *map(str, flags)]
    env = environment(HF_MODULES_CACHE=str(tmp_path / "modules"))
    with open(tmp_path / "rows.txt", "rb") as rows:
        done = subprocess.run(command, stdin=rows, cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT)
        read = os.lseek(rows.fileno(), 0, os.SEEK_CUR)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {told}\n")
    assert read == 0
    assert not any((tmp_path / name).exists() for name in ("sentinel", "modules", "run"))
