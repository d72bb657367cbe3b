"""Pretrain an encoder-decoder on raw text: flags -> validate -> tokenize -> build -> fit -> tell.

The loop, the checkpoints, resuming, strategies and logs are those of train.py, which fine-tunes best/ of the run by
-init_model. `python pretrain.py -h` lists the flags.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # not there with PYTHONSAFEPATH

from utils.console import leave_on_signals, run_command, say

if __name__ == "__main__":
    leave_on_signals()

from checkpoints.run_folder import resume_candidates, run_lock
from config.flags.pretrain import PretrainConfig
from config.parser import information, without_run_file
from config.user_code import import_user_code
from datamodules.mixture import Mixture
from training.checks import parse_training_flags
from training.pretraining.checks import check_pretrain
from training.process_watch import die_with_the_first
from training.signals import StopSignal, TrainingStopped, after_stop
from utils.errors import SharedError, raise_if_any
from utils.launch import is_first_process

USAGE = """\
usage: python pretrain.py -corpus TEXTS (-config_path PRESET |
           -init_model MODEL) -max_steps N -save_path FOLDER [flags]

  python pretrain.py -corpus reviews.txt -config_path byt5-mini \\
      -max_steps 2000 -save_path runs/pretrained -optim adamwscale \\
      -learning_rate 1e-2 -lr_scheduler cosine -warmup_steps 0.05 -dropout 0
  python pretrain.py -corpus texts/ -config_path t5-small \\
      -tokenizer tokenizers/ko -max_steps 100000 -save_path runs/t5
  python pretrain.py -corpus texts/ -init_model google/byt5-small \\
      -max_steps 10000 -save_path runs/more
  python pretrain.py -save_path runs/t5 -resume_checkpoint last
  python train.py -task nsmc-naive -train_data ratings_train.txt \\
      -init_model runs/t5/best -save_path runs/nsmc
"""


def main(argv: list[str]) -> int:
    if told := information(PretrainConfig, USAGE, argv):
        print(told)
        return 0
    die_with_the_first()
    config, given, lines, problems = parse_training_flags(PretrainConfig, argv)
    import_user_code(config.task.user_code)
    mixture = check_pretrain(config, given, problems)
    raise_if_any(problems)
    say(*lines)
    stop = StopSignal(talk=is_first_process(), requeue=config.run.requeue)
    stop.watch_saves()
    if not is_first_process():
        stop.install()  # the first process decides when all of them stop, also while they start
    with run_lock(Path(config.run.save_path)) if is_first_process() else nullcontext():
        return run(config, mixture, without_run_file(argv, config, given), stop)


def run(config: PretrainConfig, mixture: Mixture, argv: list[str], stop: StopSignal) -> int:
    """Prepare and fit; returns the exit code."""
    from utils.libraries import quiet_libraries

    quiet_libraries(training=True)
    from training.fit import fit
    from training.pretraining.setup import prepare_pretraining
    from training.resuming import check_same, finished_words, flag_differences, read_newest, with_found
    from training.run import end_finished_run, end_trackers
    from training.strategies.registry import STRATEGIES

    resumed = read_newest(resume_candidates(config), STRATEGIES[config.device.strategy].load, say)
    config = with_found(config, resumed)
    if resumed:
        check_same(flag_differences(resumed, config, mixture.tasks), config)
        if ended := finished_words(resumed, config):
            end_finished_run(config, mixture, resumed, ended, test_too=True)
            return 0
    try:
        _, trackers = fit(prepare_pretraining(config, mixture, resumed), stop)  # a corpus that is tokenized stays so
        end_trackers(trackers, Path(config.run.save_path))
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
