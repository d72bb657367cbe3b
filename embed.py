"""Turn texts into vectors: flags -> model -> one vector a text, in input order -> .npy or Parquet, or a search.

With -corpus the texts are queries, and the passages nearest to each are found and scored. A command that was stopped
goes on where it was. `-h` lists the flags.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # not there with PYTHONSAFEPATH

from utils.console import leave_on_signals, run_command

if __name__ == "__main__":
    leave_on_signals()

from checkpoints.model_paths import check_model_paths
from config.checks import check_combinations, check_devices, column_problems
from config.flags.retrieval.embed import FOUND_FILES, VECTOR_FILES, EmbedConfig
from config.parser import information, parse_flags
from config.user_code import import_user_code
from datamodules.checks import data_file
from datamodules.readers.paths import check_data_paths
from prediction.checks import check_files, local_models
from prediction.parts_folder import has_parts, sidecars
from utils.errors import raise_if_any
from utils.launch import is_first_rank

USAGE = """\
usage: python embed.py -model MODEL -data FILE -save_output VECTORS.npy|.parquet
           [flags]
       python embed.py -model MODEL -data QUERIES -corpus VECTORS
           -save_output FOUND.jsonl|.trec [flags]

  python embed.py -model runs/retrieval -data passages.jsonl -id_column id \\
      -save_output passages.npy
  python embed.py -model runs/retrieval -data queries.jsonl -id_column id \\
      -corpus passages.npy -qrels test.tsv -save_output found.jsonl \\
      -save_report report.json
"""


def main(argv: list[str]) -> int:
    if told := information(EmbedConfig, USAGE, argv):
        print(told)
        return 0
    config, given, problems = parse_flags(EmbedConfig, argv)
    import_user_code(config.embed.user_code)
    if is_first_rank():
        check(config, problems)
    raise_if_any(problems)
    from utils.libraries import fix_sums, quiet_libraries

    fix_sums()
    quiet_libraries()
    from prediction.workers.ranks import shared_temporary, work_for_first

    if not is_first_rank():
        work_for_first(config.embed.save_output)
        return 0
    from prediction.vectors.run import run

    with shared_temporary(config.embed.save_output) as shared:
        run(config, given, shared)
    return 0


def check(config: EmbedConfig, problems: list[str]) -> None:
    """Problems of the model, the files to read and the files to write, appended to `problems`."""
    flags, search = config.embed, config.search
    check_combinations(config, problems)
    check_devices(config.device.gpus, config.device.cpu_processes, problems)
    check_model_paths(problems, {"-model": flags.model})
    problems += check_data_paths("-data", flags.data)
    read = [(f"-{name}", getattr(search, name)) for name in ("corpus", "qrels") if getattr(search, name)]
    problems += [f"{flag} {path}: no such file" for flag, path in read if not os.path.isfile(path)]
    inputs = [("-data", data_file(value)) for value in flags.data] + local_models("-model", (flags.model,)) + read
    outputs = {"save_output": flags.save_output, "save_report": search.save_report}
    check_files(outputs, inputs, flags.overwrite, problems, texts=False)
    if flags.save_output.lower().endswith(".npy") and not flags.overwrite and not has_parts(Path(flags.save_output)):
        beside = sidecars(Path(flags.save_output))
        problems += [f"-save_output: {path} exists; -overwrite replaces it" for path in beside if os.path.lexists(path)]
    wanted = FOUND_FILES if search.corpus else VECTOR_FILES
    if flags.save_output and Path(flags.save_output).suffix.lower() not in wanted:
        told = "for what is found in -corpus" if search.corpus else "for vectors"
        problems.append(f"-save_output {flags.save_output}: give a file that ends in {' or '.join(wanted)}, {told}")
    columns = {"source_column": flags.source_column, "id_column": flags.id_column}
    for name, column in {**columns, "relevant_column": search.relevant_column}.items():
        problems += column_problems(name, column)
    if search.save_report and not (search.qrels or search.relevant_column):
        problems.append(f"-save_report {search.save_report}: nothing is scored; give -qrels or -relevant_column")
    if search.save_report and Path(search.save_report).suffix.lower() != ".json":
        problems.append(f"-save_report {search.save_report}: give a file that ends in .json")


if __name__ == "__main__":
    run_command(main)
