"""Search the flags of train.py: flags and space -> check -> trials, each an ordinary run -> refit the best -> tell.

A search that was stopped, also by SIGKILL, goes on with the same command. `python tune.py -h` lists the flags.
"""

from __future__ import annotations

import sys
from itertools import takewhile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # not there with PYTHONSAFEPATH

from utils.console import leave_on_signals, run_command, tell

if __name__ == "__main__":
    leave_on_signals()

from config.checks import collect
from config.flags.train import TrainConfig
from config.flags.tune import SearchConfig, SearchFlags, TuneConfig
from config.parser import (
    flag_specs,
    information,
    names_flag,
    parse_flags,
    shown,
    to_dict,
    without_flags,
    without_run_file,
)
from config.user_code import import_user_code
from metrics.registry import metric_of
from training.checks import check_train
from training.hyperparameter_search.outcome import best_of, refit_flags, save_outcome
from training.hyperparameter_search.processes import share_of_gpus, start_training, visible_gpus
from training.hyperparameter_search.search import Search
from training.hyperparameter_search.space import Dimension, check_space, read_space
from training.hyperparameter_search.study import Study
from training.hyperparameter_search.trials import keep_settings
from utils.errors import EXIT_RUN_ERROR, raise_if_any
from utils.libraries import missing_package
from utils.tables import counted

USAGE = """\
usage: python tune.py [RUN.yaml] SPACE.yaml -save_path FOLDER
           [flags of train.py] [flags]

  python tune.py space.yaml -task nsmc -train_data train.tsv \\
      -valid_data valid.tsv -init_model google/byt5-small -monitor accuracy \\
      -save_path runs/search -trials 30
  python tune.py run.yaml space.yaml -save_path runs/search

All flags of train.py (see its -h) may be given and hold for all trials;
-save_path is the folder of the search.
"""


def main(argv: list[str]) -> int:
    files = [*takewhile(lambda word: not word.startswith("-"), argv)]
    if files and not any(names_flag(word, "search_space") for word in argv):
        argv = [*files[:-1], "-search_space", files[-1], *argv[len(files) :]]
    prints_all = any(names_flag(word, "print_config") for word in argv)
    if told := information(TuneConfig if prints_all else SearchConfig, USAGE, argv):
        print(told)
        return 0
    config, given, problems = parse_flags(TuneConfig, argv)
    import_user_code(config.task.user_code)
    own = {"save_path", *SearchFlags.__dataclass_fields__}
    fixed = without_flags(without_run_file(argv, config, given), own)
    space = check(config, given, fixed, problems)
    raise_if_any(problems)
    folder, flags = Path(config.run.save_path), config.search
    values = to_dict(config)
    shared = [spec.name for spec in flag_specs(TrainConfig) if spec.name in given - own and spec.resume != "process"]
    keep_settings(folder, space, {name: values[name] for name in shared})
    gpus = [] if config.device.gpus == 0 or flags.jobs == 1 else visible_gpus()
    jobs = flags.jobs or max(1, len(gpus))
    higher = metric_of(config.run.monitor).higher_is_better
    study = Study(space, fixed, flags, higher, config.run.seed)
    tell(f"{counted(flags.trials, 'trial')}, {jobs} at the same time; everything goes to {folder}")
    search = Search(
        folder,
        study,
        config.run.monitor,
        jobs,
        start=lambda tokens, log, place: start_training(tokens, log, share_of_gpus(place, gpus if jobs > 1 else [])),
    )
    search.search()
    trials, best = search.trials(), best_of(search.trials(), higher)
    refits = search.train(refit_flags(best, config.run.seed, flags.refit_seeds)) if best else []
    importance, images = study.importance(trials), config.run.report_images
    tell("", *save_outcome(folder, trials, refits, config.run.monitor, higher, importance, images))
    return 0 if best else EXIT_RUN_ERROR


def check(config: TuneConfig, given: frozenset[str], fixed: list[str], problems: list[str]) -> list[Dimension]:
    """Every problem of the flags and of the space, appended to `problems`; returns the space."""
    mixture = check_train(config, given, problems)
    for spec in flag_specs(TrainConfig):
        if spec.name in given and (spec.resume == "once" or spec.name == "max_hours"):
            problems.append(f"{shown(spec.name, to_dict(config)[spec.name])}: is of a single run; leave it out")
    if mixture.tasks and not any(member.validates for member in mixture.members):
        problems.append("a search needs validation rows: give -valid_data or -valid_data_proportions")
    if config.run.seed < 0:
        problems.append(f"-seed {config.run.seed}: the trials share one; give it, 0 or above")
    if config.device.gpus > 1 and config.search.jobs != 1:
        problems.append(f"-gpus {config.device.gpus}: each trial has one GPU; -jobs 1 gives a trial all of them")
    problems += filter(None, [missing_package("optuna", "tune.py")])
    space: list[Dimension] = collect(problems, lambda: read_space(config.search.search_space)) or []
    if not problems:
        check_space(space, [*fixed, f"-save_path={config.run.save_path}"], problems)
    return space


if __name__ == "__main__":
    run_command(main)
