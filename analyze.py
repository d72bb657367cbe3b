"""Analyse reviews: flags -> keywords of each review -> sentiment of each keyword, with its words -> write -> score.

Two predictions, one behind the other; a command that was stopped goes on where it was. `-h` lists the flags.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))  # not there with PYTHONSAFEPATH

from utils.console import leave_on_signals, run_command, tell

if __name__ == "__main__":
    leave_on_signals()

from checkpoints.model_paths import check_model_paths
from config.checks import check_devices
from config.flags.analyze import AnalyzeConfig, AnalyzeFlags
from config.flags.inference import LabelFlags
from config.parser import information, parse_flags
from config.user_code import import_user_code
from datamodules.checks import data_file
from datamodules.readers.paths import check_data_paths
from prediction.checks import check_files, local_models
from utils.errors import errors_at, raise_if_any
from utils.files import write_json
from utils.launch import is_first_rank
from utils.tables import counted

if TYPE_CHECKING:
    from prediction.workers.ranks import Shared

USAGE = """\
usage: python analyze.py -keyword_model MODEL -sentiment_model MODEL
           -data FILE -save_output FILE.jsonl [flags]

  python analyze.py -keyword_model runs/keywords \\
      -sentiment_model runs/sentiments -data reviews.jsonl \\
      -thresholds valid.jsonl -save_output analysed.jsonl \\
      -save_report report.json -save_page page.html
"""


def main(argv: list[str]) -> int:
    if told := information(AnalyzeConfig, USAGE, argv):
        print(told)
        return 0
    config, given, problems = parse_flags(AnalyzeConfig, argv)
    import_user_code(config.review.user_code)
    if is_first_rank():
        check(config.review, problems)
    check_devices(config.device.gpus, config.device.cpu_processes, problems)
    raise_if_any(problems)
    from utils.libraries import fix_sums, quiet_libraries

    fix_sums()
    quiet_libraries()
    from prediction.workers.ranks import shared_temporary, work_for_first

    if not is_first_rank():
        work_for_first(config.review.save_output)
        return 0
    with shared_temporary(config.review.save_output) as shared:
        analyze(config, given, shared)
    return 0


def check(flags: AnalyzeFlags, problems: list[str]) -> None:
    """Problems of the models, the data and the files to write, appended to `problems`."""
    models = {"-keyword_model": flags.keyword_model, "-sentiment_model": flags.sentiment_model}
    check_model_paths(problems, models)
    data = [("-data", value) for value in flags.data] + [("-thresholds", flags.thresholds)] * bool(flags.thresholds)
    for flag, value in data:
        problems += check_data_paths(flag, (value,))
    inputs = [(flag, data_file(value)) for flag, value in data]
    for flag, value in models.items():
        inputs += local_models(flag, (value,))
    outputs = {name: getattr(flags, name) for name in ("save_output", "save_report", "save_page")}
    check_files(outputs, inputs, flags.overwrite, problems, [flags.sentiments_output])
    for name, ending in (("save_output", ".jsonl"), ("save_page", ".html")):
        if outputs[name] and not outputs[name].lower().endswith(ending):
            problems.append(f"-{name} {outputs[name]}: give a file that ends in {ending}")
    if outputs["save_report"].lower().endswith(".html"):
        problems.append(f"-save_report {outputs['save_report']}: is JSON here; give -save_page for a page")


def analyze(config: AnalyzeConfig, given: frozenset[str], shared: Shared) -> None:
    """Predict keywords, then sentiments; write both together, and score them."""
    from analysis.page import Examples
    from analysis.reviews import PairScores, Reviews, analyses, save_json_lines, write_pairs
    from analysis.stages import Stages, keyword_config, sentiment_config
    from datamodules.splits import report_lines
    from prediction.run import predicted, scored
    from prediction.setup import prepare

    flags, pairs = config.review, shared.folder / "pairs.jsonl"
    ready = []
    for name, stage in (("keyword", keyword_config(config)), ("sentiment", sentiment_config(config, pairs))):
        with errors_at(f"-{name}_model, -{name}_task"):
            ready.append(prepare(stage, given, shared.folder, shared.first))
    first, second = ready
    stages = Stages.of(flags, first.task, second.task)
    first = first.predicting(LabelFlags(label_decoding="score", thresholds=flags.thresholds))
    second = second.predicting(LabelFlags(label_decoding="score", highlight=True), **stages.columns)
    split = first.encoder.encode("-data", flags.data, keep_all=True)
    tell(*report_lines("-data", split.report))
    reviews = Reviews(flags, stages, first.config.data.tsv_escapes)
    reviews.check()
    with ExitStack() as opened:
        found = opened.enter_context(predicted(first, split))
        judged = None
        if count := write_pairs(pairs, reviews, found.predictions, stages):
            of_pairs = second.encoder.encode("keywords found", (str(pairs),), keep_all=True)
            tell(*report_lines("keywords found", of_pairs.report))
            judged = opened.enter_context(predicted(second, of_pairs, words_of=stages.review_column))
        examples, both = Examples(flags.page_examples), PairScores()
        rows = analyses(reviews, found.predictions, judged.predictions if judged else (), stages)
        save_json_lines(Path(flags.save_output), examples.seen(both.seen(rows)), flags.overwrite)
        tell(f"{counted(len(split), 'review')} with {counted(count, 'keyword')} written to {flags.save_output}", "")
        tell("keywords of the reviews")
        report = {"keywords": scored(found)[1]}
        if judged:
            tell("", "sentiments of the keywords found")
            report["sentiments"] = scored(judged)[1]
        tell("", *both.lines())
        if flags.save_report:
            write_json(Path(flags.save_report), {**report, "pairs": both.to_dict()}, flags.overwrite)
            tell(f"report written to {flags.save_report}")
        if flags.save_page:
            examples.save(Path(flags.save_page), flags.overwrite)
            tell(f"page written to {flags.save_page}")


if __name__ == "__main__":
    run_command(main)
