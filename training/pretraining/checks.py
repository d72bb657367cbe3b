"""The checks of `pretrain.py`: all problems are told at once, before anything heavy is imported."""

from __future__ import annotations

import os
from dataclasses import replace

from config.checks import collect, used_flags
from config.flags.corpus import CorpusFlags
from config.flags.data import NOT_TRIED
from config.flags.pretrain import PretrainConfig
from config.flags.run import SHARDED_STRATEGIES
from config.parser import shown
from datamodules.mixture import Mixture, mixture_of
from datamodules.retrieval.checks import retrieval_problems
from metrics.registry import DENOISED, PAIRS, PASSAGES, TEACHER_FORCED, metric_names
from training.checks import check_origin, check_save_path, check_training
from utils.errors import closest

OF_VECTORS = {"pooling", "contrastive_temperature"}
NO_VECTORS = "only with -objective inverse_cloze or -inverse_cloze_weight: the others make no vectors"


def check_pretrain(config: PretrainConfig, given: frozenset[str], problems: list[str]) -> Mixture:
    """Every problem of a `pretrain.py` command line, appended to `problems`; returns the task that texts are for."""
    problems += _corpus_problems(config.corpus)
    resuming, wrong_run = check_origin(config, problems)
    if config.run.resume_checkpoint and not wrong_run:  # else the parser says so
        needed = {"-corpus": config.corpus.corpus, "-max_steps": config.run.max_steps}
        problems += [f"{flag} is required: give that of the run" for flag, value in needed.items() if not value]
    _check_steps(config, problems)
    check_training(config, given, resuming, problems)
    finds = config.objective.objective == "inverse_cloze"
    task = replace(config.task, task="retrieval") if finds else config.task
    mixture: Mixture = collect(problems, lambda: mixture_of(task, config.data)) or Mixture(())
    problems += retrieval_problems(config, mixture) if finds else ()
    if not (finds or config.cloze_weight):
        used = used_flags(config)
        problems += [f"{shown(name, used[name])}: {NO_VECTORS}" for name in sorted(used.keys() & OF_VECTORS)]
    strategy = config.device.strategy
    if config.encoder_alone and strategy in SHARDED_STRATEGIES:
        problems.append(f"-objective encoder_mlm: not with -strategy {strategy}: {NOT_TRIED}; give ddp")
    of_pairs = (PAIRS, PASSAGES) if config.cloze_weight else ()
    monitors = mixture.monitors if finds else metric_names(TEACHER_FORCED, DENOISED, *of_pairs)
    _check_monitor(config, monitors, problems)
    check_save_path(config, given, _inputs(config), problems)
    return mixture


def _corpus_problems(flags: CorpusFlags) -> list[str]:
    """Problems of the corpora that show without reading them."""
    from datamodules.corpus.corpus import rated_values
    from datamodules.corpus.sources import DocumentOptions, corpus_problems

    problems: list[str] = []
    paths, _ = collect(problems, lambda: rated_values(flags.corpus)) or ([], [])
    for flag, values in (("-corpus", paths), ("-valid_corpus", flags.valid_corpus)):
        options = DocumentOptions(flags.corpus_format, flags.corpus_documents, flags.corpus_column, flag)
        problems += corpus_problems(values, options)
    return problems


def _check_steps(config: PretrainConfig, problems: list[str]) -> None:
    steps, every = config.run.max_steps, config.pretraining.valid_every
    if steps % every:
        below = steps // every * every
        divisor = next(number for number in range(min(steps, every), 0, -1) if steps % number == 0)
        ways = [f"-max_steps {number}" for number in (below, below + every) if number]
        problems.append(
            f"-max_steps {steps}: not a multiple of -valid_every {every}; give {' or '.join(ways)}, or -valid_every"
            f" {divisor}"
        )


def _check_monitor(config: PretrainConfig, choices: tuple[str, ...], problems: list[str]) -> None:
    run = config.run
    if run.monitor not in choices:
        problems.append(f"-monitor {run.monitor}: one of {', '.join(choices)} expected{closest(run.monitor, choices)}")
    if not config.pretraining.valid_rows:
        needing = {"monitor": run.monitor != "val_loss", "early_stopping_patience": run.early_stopping_patience}
        flags = [shown(name, getattr(run, name)) for name, needed in needing.items() if needed]
        flags += ["-lr_scheduler plateau"] if config.optim.lr_scheduler == "plateau" else []
        problems += [f"{', '.join(flags)}: only with validation rows: -valid_rows above 0"] if flags else []


def _inputs(config: PretrainConfig) -> list[tuple[str, str]]:
    """(flag, path) of the files and folders on this machine that are read."""
    corpus, model = config.corpus, config.model
    values = [(f"-{name}", path) for name in ("corpus", "valid_corpus") for path in getattr(corpus, name)]
    values += [(f"-{name}", getattr(model, name)) for name in ("init_model", "config_path", "tokenizer")]
    return [
        (flag, path) for flag, value in values for path in (value, value.rpartition(":")[0]) if os.path.exists(path)
    ]
