"""Make the frozen checkpoint of the present format version, once, when the format is new.

    python -m tests.golden.make

`version1.ckpt` is a run that was stopped in the middle of its last epoch but one; `version1.json` holds what it
predicts and how it goes on. Every later version of the program must load it, predict the same texts, and continue it.
Files of older versions stay as they are.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from checkpoints.format import FORMAT_VERSION
from tests.cli.command import ROOT, infer_ok, train_ok
from tests.cli.tiny import BART, flag_list, json_lines, letter_rows, write_config, write_tsv

FOLDER = Path("tests/golden")  # relative: the checkpoint holds the flags it was made with
WORDS = ["a", "bd", "cab", "dddd", "bb", "cad"]
FLAGS: dict[str, Any] = {
    "train_data": FOLDER / "train.tsv",
    "valid_data": FOLDER / "valid.tsv",
    "batch_size": 8,
    "grad_acc": 2,
    "max_epoch": 8,
    "learning_rate": 8e-3,
    "lr_scheduler": "linear",
    "warmup_steps": 5,
    "valid_check_interval": 0.5,
    "log_every": 1,
    "gpus": 0,
}


def losses(run: Path, after: int) -> list[list[float]]:
    """(step, loss) of the training steps after `after`."""
    lines = json_lines(run / "metrics.jsonl")
    return [[line["step"], line["loss"]] for line in lines if line["phase"] == "train" and line["step"] > after]


def predicted(model: Path, folder: Path) -> list[str]:
    """What the model writes for WORDS."""
    write_tsv(folder / "words.tsv", [(word, "") for word in WORDS])
    output = folder / "predictions.txt"
    infer_ok("-model", model, "-test_data", folder / "words.tsv", "-beam_size", 4, "-save_output", output, "-gpus", 0)
    return output.read_text(encoding="utf-8").splitlines()


def main() -> None:
    target = ROOT / FOLDER / f"version{FORMAT_VERSION}.ckpt"
    if target.exists():
        sys.exit(f"{target} is there already; it is frozen")
    write_tsv(ROOT / FOLDER / "train.tsv", letter_rows(100, 1))
    write_tsv(ROOT / FOLDER / "valid.tsv", letter_rows(20, 2))
    with tempfile.TemporaryDirectory(dir=ROOT / "runs") as name:
        folder = Path(name).relative_to(ROOT)
        config = write_config(
            folder / "bart.json", BART, d_model=16, encoder_ffn_dim=32, decoder_ffn_dim=32, dropout=0.1
        )
        flags = {**FLAGS, "config_path": config, "save_path": folder / "run"}
        train_ok(*flag_list({**flags, "max_steps": 46}))
        shutil.copy(folder / "run" / "saved_checkpoints" / "last.ckpt", target)
        train_ok(*flag_list({**flags, "resume_checkpoint": "last"}))
        expected = {
            "step": 46,
            "predictions": predicted(target, folder),
            "losses": losses(folder / "run", 46),
            "final_predictions": predicted(folder / "run" / "last", folder / "run"),
        }
    target.with_suffix(".json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(expected, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
