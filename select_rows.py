"""Choose the rows that are worth a label: flags -> predict -> choose -> write, each with its reason.

A command that was stopped goes on with its prediction where it was. `-h` lists the flags.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))  # not there with PYTHONSAFEPATH

from utils.console import leave_on_signals, run_command, tell

if __name__ == "__main__":
    leave_on_signals()

from checkpoints.model_paths import check_model_paths
from config.checks import check_combinations, check_devices
from config.flags.select_rows import SelectConfig, SelectFlags
from config.parser import information, parse_flags
from config.user_code import import_user_code
from datamodules.checks import data_file
from datamodules.readers.paths import WITH_RECORDS, check_data_paths, parse_data_path
from prediction.checks import check_files, local_models
from utils.errors import raise_if_any
from utils.launch import is_first_rank

if TYPE_CHECKING:
    from prediction.workers.ranks import Shared

USAGE = """\
usage: python select_rows.py -model MODEL -data FILE -save_output FILE.jsonl
           [-n 500] [-strategy NAME] [flags]

  python select_rows.py -model runs/mine -data unlabelled.tsv -n 500 \\
      -save_output to_label.jsonl
  python select_rows.py -model runs/mine -data labelled.tsv \\
      -strategy label-errors -save_output to_check.jsonl
"""


def main(argv: list[str]) -> int:
    if told := information(SelectConfig, USAGE, argv):
        print(told)
        return 0
    config, given, problems = parse_flags(SelectConfig, argv)
    import_user_code(config.select.user_code)
    if is_first_rank():
        check(config, problems)
    raise_if_any(problems)
    from utils.libraries import fix_sums, quiet_libraries

    fix_sums()
    quiet_libraries()
    from prediction.workers.ranks import shared_temporary, work_for_first

    if not is_first_rank():
        work_for_first(config.select.save_output)
        return 0
    with shared_temporary(config.select.save_output) as shared:
        select(config, given, shared)
    return 0


def check(config: SelectConfig, problems: list[str]) -> None:
    """Problems of the model, the data and the file to write, appended to `problems`."""
    flags = config.select
    check_combinations(config, problems)
    check_devices(config.device.gpus, config.device.cpu_processes, problems)
    check_model_paths(problems, {"-model": flags.model})
    data = [("-data", value) for value in flags.data] + [("-train_data", value) for value in flags.train_data]
    data += [("-thresholds", flags.thresholds)] * bool(flags.thresholds)
    for flag, value in data:
        problems += check_data_paths(flag, (value,))
    inputs = [(flag, data_file(value)) for flag, value in data] + local_models("-model", (flags.model,))
    check_files({"save_output": flags.save_output}, inputs, flags.overwrite, problems)
    if flags.save_output and not flags.save_output.lower().endswith(".jsonl"):
        problems.append(f"-save_output {flags.save_output}: give a file that ends in .jsonl")
    if flags.strategy == "rare-pieces" and not flags.train_data:
        problems.append("-strategy rare-pieces: give the rows that -model was trained on as -train_data")
    if flags.proportional_to and not problems and not has_records(flags):
        problems.append("-proportional_to: give -data .tsv, .csv, .jsonl or .json files; others are not read again")


def has_records(flags: SelectFlags) -> bool:
    """Whether the rows of the input can be read again as they stand there."""
    return {parse_data_path(value).kind for value in flags.data} <= set(WITH_RECORDS)


def select(config: SelectConfig, given: frozenset[str], shared: Shared) -> None:
    """Predict what the strategy looks at, choose, and write."""
    from analysis.selection.choose import (
        Groups,
        check_rows,
        check_strategy,
        choose,
        inference_config,
        input_records,
        label_flags,
        lines,
        rows_of,
        save,
    )
    from analysis.selection.registry import TOKENS, VECTORS
    from analysis.selection.strategies import STRATEGIES
    from datamodules.splits import report_lines
    from prediction.run import predicted
    from prediction.setup import prepare
    from prediction.vectors.embed import embedded

    flags, strategy = config.select, STRATEGIES[config.select.strategy]
    ready = prepare(inference_config(config), given, shared.folder, shared.first)
    check_strategy(strategy, ready.task)
    ready = replace(ready, encoder=replace(ready.encoder, lengths=replace(ready.encoder.lengths, doc_stride=0)))
    escapes = ready.config.data.tsv_escapes
    split = ready.encoder.encode("-data", flags.data, keep_all=True)
    tell(*report_lines("-data", split.report))
    check_rows(strategy, split)
    groups = None
    if flags.proportional_to:
        groups = Groups.of(flags.proportional_to, input_records(flags, ready.task, split, escapes))
    with ExitStack() as opened:
        found = vectors = None
        if strategy.takes == VECTORS:
            vectors = opened.enter_context(embedded(ready, split, shared.folder))
        elif strategy.takes != TOKENS:
            found = opened.enter_context(predicted(ready.predicting(label_flags(flags)), split))
        predictions = found.predictions if found else ()
        thresholds = found.decoding.thresholds if found and found.decoding else ()
        rows = rows_of(ready.encoder, split, flags, predictions, thresholds, vectors)
        chosen = choose(strategy, rows, flags.n, groups)
        records = input_records(flags, ready.task, split, escapes) if has_records(flags) else None
        save(Path(flags.save_output), chosen, split, predictions, rows.texts, records, flags.overwrite)
        tell(*lines(chosen, len(split), flags, groups), f"written to {flags.save_output}")


if __name__ == "__main__":
    run_command(main)
