"""Train a tokenizer on raw text: flags -> a sample of the corpus -> pieces -> a folder that -tokenizer takes.

The folder appears whole or not at all. The same lines and flags give the same bytes. `-h` lists the flags.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # not there with PYTHONSAFEPATH

from utils.console import leave_on_signals, run_command

if __name__ == "__main__":
    leave_on_signals()

from config.checks import check_combinations, collect, is_too_long
from config.flags.train_tokenizer import PACKAGES, TokenizerConfig
from config.parser import information, parse_flags
from task_utils import get_task
from utils.errors import raise_if_any
from utils.libraries import missing_package

USAGE = """\
usage: python train_tokenizer.py -data FILE -save_path FOLDER
           [-vocab_size 32000] [-model unigram|bpe|byte_bpe] [flags]

  python train_tokenizer.py -data corpus/ -save_path tokenizer
  python train_tokenizer.py -data reviews.txt -data news.jsonl.gz \\
      -save_path tokenizer -morphemes mecab
"""


def main(argv: list[str]) -> int:
    if told := information(TokenizerConfig, USAGE, argv):
        print(told)
        return 0
    config, _, problems = parse_flags(TokenizerConfig, argv)
    check(config, problems)
    raise_if_any(problems)
    from training.tokenizer.run import check_target, run

    check_target(config.tokenizer, problems)
    raise_if_any(problems)
    run(config.tokenizer)
    return 0


def check(config: TokenizerConfig, problems: list[str]) -> None:
    """Problems that show before the corpus is read, appended to `problems`."""
    flags = config.tokenizer
    check_combinations(config, problems)
    for name in flags.task:
        collect(problems, lambda name=name: get_task(name))
    for package in PACKAGES.get(flags.morphemes, ()):
        problems += filter(None, [missing_package(package, f"-morphemes {flags.morphemes}")])
    if flags.model == "byte_bpe" and flags.normalization != "nfc":
        problems.append(f"-normalization {flags.normalization}: not with -model byte_bpe, which keeps every byte")
    if is_too_long(Path(flags.save_path)):
        problems.append(f"-save_path {flags.save_path}: the name is too long")


if __name__ == "__main__":
    run_command(main)
