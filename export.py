"""Write a model to deploy: flags -> checkpoints (or their mean) -> a folder for transformers, CTranslate2 or ONNX.

The folder appears whole or not at all, and nothing but an earlier export is ever replaced. `-h` lists the flags.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # not there with PYTHONSAFEPATH

from utils.console import leave_on_signals, run_command

if __name__ == "__main__":
    leave_on_signals()

from checkpoints.model_paths import check_model_paths
from config.checks import check_combinations
from config.flags.export import LICENSE, ExportConfig
from config.parser import information, parse_flags
from deploy.export import run
from utils.errors import raise_if_any

USAGE = """\
usage: python export.py -model CKPT_OR_FOLDER [-save_path FOLDER]
           [-format FORMAT] [flags]

  python export.py -model runs/mine -save_path mine
  python export.py -model runs/mine -average best:3 -format ctranslate2 \\
      -compute_type int8 -save_path mine
  python export.py -model runs/mine -push_to_hub mine -license apache-2.0
"""


def main(argv: list[str]) -> int:
    if told := information(ExportConfig, USAGE, argv):
        print(told)
        return 0
    config, given, problems = parse_flags(ExportConfig, argv)
    flags = config.export
    if not flags.model and not flags.average:
        problems.append("-model is required: a .ckpt file, a run's folder, or a from_pretrained folder")
    if not flags.average:
        check_model_paths(problems, {"-model": flags.model})
    if "compute_type" in given and flags.format != "ctranslate2":
        problems.append(f"-compute_type {flags.compute_type} goes with -format ctranslate2, not {flags.format}")
    if flags.license and not (flags.model_card or flags.push_to_hub):
        problems.append(f"-license {flags.license} goes with -model_card or -push_to_hub")
    if flags.license and not LICENSE.fullmatch(flags.license):
        problems.append(f"-license {flags.license}: no identifier of the hub, such as apache-2.0, cc-by-4.0 or other")
    check_combinations(config, problems)
    raise_if_any(problems)
    return run(flags)


if __name__ == "__main__":
    run_command(main)
