"""Write a model to deploy: flags -> checkpoints (or their mean) -> a from_pretrained or CTranslate2 folder.

The folder appears whole or not at all, and nothing but an earlier export is ever replaced. `-h` lists the flags.
"""

from __future__ import annotations

from checkpoints.model_paths import check_model_paths
from config.export_flags import ExportConfig
from config.parser import help_text, parse_flags, wants_help
from deploy.export import run
from utils.console import run_command
from utils.errors import raise_if_any

USAGE = "usage: python export.py -model CKPT_OR_FOLDER [-save_path FOLDER] [-format safetensors|ctranslate2] [flags]"


def main(argv: list[str]) -> int:
    if wants_help(argv):
        print(help_text(ExportConfig, USAGE))
        return 0
    config, given, problems = parse_flags(ExportConfig, argv)
    flags = config.export
    if not flags.model and not flags.average:
        problems.append("-model is required: a .ckpt file, a run's folder, or a from_pretrained folder")
    if not flags.average:
        check_model_paths(problems, {"-model": flags.model})
    if "compute_type" in given and flags.format != "ctranslate2":
        problems.append(f"-compute_type {flags.compute_type} goes with -format ctranslate2, not {flags.format}")
    raise_if_any(problems)
    return run(flags)


if __name__ == "__main__":
    run_command(main)
