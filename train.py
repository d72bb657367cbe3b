"""Fine-tune an encoder-decoder: flags -> validate -> encode -> build -> fit -> tell.

Supports BART, mBART, T5, mT5, UMT5, ByT5 and what `AutoModelForSeq2SeqLM` loads; one or several GPUs or CPU processes
(DDP); resuming from a .ckpt. `python train.py -h` lists the flags.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # not there with PYTHONSAFEPATH

from utils.console import leave_on_signals, run_command, say

if __name__ == "__main__":
    leave_on_signals()

from checkpoints.run_folder import CACHE_FOLDER, resume_candidates, run_lock
from config.flags.train import TrainConfig
from config.parser import information, without_run_file
from config.user_code import import_user_code
from datamodules.mixture import Mixture
from task_utils import task_table
from training.checks import check_train, parse_training_flags
from training.process_watch import die_with_the_first
from training.signals import StopSignal, TrainingStopped, after_stop
from utils.errors import SharedError, nothing_kept_on_user_error, raise_if_any
from utils.launch import is_first_process

USAGE = """\
usage: python train.py -train_data FILE (-init_model MODEL |
           -config_path PRESET) -save_path FOLDER [flags]

  python train.py -train_data train.tsv -valid_data valid.tsv \\
      -init_model google/byt5-small -save_path runs/mine
  python train.py -train_data train.tsv -valid_data_proportions 0.1 \\
      -config_path bart-mini -save_path runs/mine
  python train.py -save_path runs/mine -resume_checkpoint last
  python train.py run.yaml -max_epoch 3
  python train.py -list_tasks
  python train.py -show_examples 3 -task klue-nli -train_data train.json \\
      -init_model google/byt5-small
"""


def main(argv: list[str]) -> int:
    if told := information(TrainConfig, USAGE, argv):
        print(told)
        return 0
    die_with_the_first()
    config, given, lines, problems = parse_training_flags(TrainConfig, argv)
    if config.task.list_tasks:
        raise_if_any(problems)
        say(*task_table())
        return 0
    import_user_code(config.task.user_code)
    mixture = check_train(config, given, problems)
    raise_if_any(problems)
    say(*lines)
    if config.task.show_examples:
        return show_examples(config, mixture)
    stop = StopSignal(talk=is_first_process(), requeue=config.run.requeue)
    stop.watch_saves()
    if not is_first_process():
        stop.install()  # the first process decides when all of them stop, also while they start
    with run_lock(Path(config.run.save_path)) if is_first_process() else nullcontext():
        return run(config, mixture, without_run_file(argv, config, given), stop)


def show_examples(config: TrainConfig, mixture: Mixture) -> int:
    """Show some training rows; returns the exit code."""
    from utils.libraries import quiet_libraries

    quiet_libraries(training=True)
    from training.resuming import read_newest
    from training.setup import example_lines
    from training.strategies.registry import STRATEGIES

    resumed = read_newest(resume_candidates(config), STRATEGIES[config.device.strategy].load, say)
    say(*example_lines(config, mixture, resumed))
    return 0


def run(config: TrainConfig, mixture: Mixture, argv: list[str], stop: StopSignal) -> int:
    """Prepare, fit, and predict the test rows; returns the exit code."""
    from utils.libraries import quiet_libraries

    quiet_libraries(training=True)
    from training.evaluate import report_test_splits
    from training.fit import fit
    from training.resuming import check_same, finished_words, flag_differences, limit_words, read_newest, with_found
    from training.run import end_finished_run, shown_in_trackers
    from training.run_log import reopened_trackers
    from training.setup import prepare
    from training.strategies.registry import STRATEGIES

    resumed = read_newest(resume_candidates(config), STRATEGIES[config.device.strategy].load, say)
    config = with_found(config, resumed)
    finished = ""
    if resumed:
        check_same(flag_differences(resumed, config, mixture.tasks), config)
        finished = finished_words(resumed, config)
        ended = finished or limit_words(resumed, config)
        if ended and end_finished_run(config, mixture, resumed, ended, test_too=bool(finished)):
            return 0
    cache = Path(config.run.save_path) / CACHE_FOLDER
    try:
        with nothing_kept_on_user_error(cache) if is_first_process() else nullcontext():
            prepared = prepare(config, mixture, resumed)
        prepared, trackers = (prepared, reopened_trackers(config)) if finished else fit(prepared, stop)
        with shown_in_trackers(trackers, cache.parent):
            if is_first_process() and any(part.test for part in prepared.data.parts):
                with stop.ending_at_once("the training is complete, the test rows are not scored"):
                    say(*report_test_splits(prepared))
    except TrainingStopped as stopped:
        return after_stop(stopped, config, argv)
    except SharedError:
        if is_first_process():
            raise
    finally:
        stop.release()
    return 0


if __name__ == "__main__":
    run_command(main)
