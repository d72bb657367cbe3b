"""Fine-tune an encoder-decoder: flags -> validate -> encode -> build -> fit -> tell.

Supports BART, mBART, T5, mT5, UMT5, ByT5 and what `AutoModelForSeq2SeqLM` loads; one or several GPUs or CPU processes
(DDP); resuming from a .ckpt. `python train.py -h` lists the flags.
"""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoints.run_folder import CACHE_FOLDER, TEST_REPORT, resume_candidates, run_lock
from config.flags import TrainConfig
from config.parser import flag_specs, help_text, wants_help, without_flags
from task_utils import Task
from training.checks import check_train
from training.run_flags import parse_training_flags
from training.signals import StopSignal
from utils.console import run_command, tell
from utils.errors import NotFiniteError, UserError, raise_if_any
from utils.launch import is_first_process, started_by_launcher

if TYPE_CHECKING:  # the heavy imports wait until the flags are known to be right
    from checkpoints.saved_run import SavedRun
    from datamodules.encoding.store import EncodedSplit
    from training.setup import Prepared
    from training.signals import TrainingStopped

USAGE = "usage: python train.py -train_data FILE (-init_model MODEL | -config_path PRESET) -save_path FOLDER [flags]"
SEED_VARIABLE = "S2S_SEED"  # the seed drawn for -seed -1, for the processes that Lightning starts


def main(argv: list[str]) -> int:
    if wants_help(argv):
        print(help_text(TrainConfig, USAGE))
        return 0
    config, given, lines, problems = parse_training_flags(argv)
    task = check_train(config, given, problems)
    raise_if_any(problems)
    if task is None:
        raise UserError("-task could not be resolved")
    say(*lines)
    stop = StopSignal(talk=is_first_process(), requeue=config.run.requeue)
    stop.watch_saves()
    if not is_first_process():
        stop.install()  # the first process decides when all of them stop, also while they start
    with run_lock(Path(config.run.save_path)) if is_first_process() else nullcontext():
        return run(config, task, argv, stop)


def with_seed(config: TrainConfig, resumed: SavedRun | None) -> TrainConfig:
    """The config with a seed below 0 replaced: by the resumed run's, or one drawn at random for every process."""
    if config.run.seed >= 0:
        return config
    if resumed:
        return replace(config, run=replace(config.run, seed=resumed.flags["seed"]))
    if SEED_VARIABLE not in os.environ:
        os.environ[SEED_VARIABLE] = str(secrets.randbelow(2**31))
    return replace(config, run=replace(config.run, seed=int(os.environ[SEED_VARIABLE])))


def say(*lines: str) -> None:
    """Print for the user, once whatever the number of processes."""
    if is_first_process():
        tell(*lines)


def run(config: TrainConfig, task: Task, argv: list[str], stop: StopSignal) -> int:
    """Prepare, fit, and predict the test rows; returns the exit code."""
    from utils.libraries import quiet_libraries

    quiet_libraries(training=True)
    from datamodules.splits import hub_test_rows
    from training.resuming import check_same, finished_words, flag_differences, limit_words, read_newest
    from training.run import complete_finished_run
    from training.setup import prepare
    from training.signals import TrainingStopped
    from utils.files import nothing_kept_on_user_error

    folder = Path(config.run.save_path)
    resumed = read_newest(resume_candidates(config), say)
    config = with_seed(config, resumed)
    finished = ""
    if resumed:
        check_same(flag_differences(resumed, config, task), config)
        finished = finished_words(resumed, config)
        ended = finished or limit_words(resumed, config)
        if ended:
            say(ended)
            if is_first_process():
                complete_finished_run(folder, resumed)
            data = config.data
            tested = data.test_data or data.test_data_proportions or hub_test_rows(data, task)
            if not finished or not tested or (folder / TEST_REPORT).exists():
                return 0
            if not (folder / "best").exists():
                say(f"no test rows are scored: there is no {folder / 'best'}; the finished run is {resumed.path}")
                return 0
    try:
        with nothing_kept_on_user_error(folder / CACHE_FOLDER) if is_first_process() else nullcontext():
            prepared = prepare(config, task, resumed, say)
        if not finished:
            fit(prepared, stop)
        if is_first_process() and prepared.splits.test is not None:
            with stop.ending_at_once("the training is complete, the test rows are not scored"):
                score_test_rows(prepared, prepared.splits.test)
    except TrainingStopped as stopped:
        return after_stop(stopped, config, argv)
    except NotFiniteError:
        if is_first_process():
            raise
    finally:
        stop.release()
    return 0


def score_test_rows(prepared: Prepared, test: EncodedSplit) -> None:
    """Predict the test rows with best/ and print their report."""
    from training.evaluate import report_test_split

    config = prepared.config
    folder = Path(config.run.save_path)
    say(*report_test_split(folder, test, prepared.task, prepared.labels, config, prepared.devices))


def after_stop(stopped: TrainingStopped, config: TrainConfig, argv: list[str]) -> int:
    """Say how to go on, or put the job into the queue again; returns the exit code."""
    if not is_first_process():
        return 0
    command = resume_command(argv, config.run.seed, stopped.steps_are_done)
    if started_by_launcher():
        say(f"{stopped}; started as before with these flags it goes on:", "  " + shlex.join(command[2:]))
    else:
        say(f"{stopped}; this resumes it:", "  " + shlex.join(command))
    if config.run.requeue and stopped.out_of_time:
        from utils.launch import requeue

        say(requeue())
    return stopped.exit_code


def fit(prepared: Prepared, stop: StopSignal) -> None:
    """Train to the end.

    Raises:
        TrainingStopped: a signal or a limit; the run was saved at a step boundary.
        RunError: a NaN, or the disk refused.
    """
    from models.tokenizers import pack_tokenizer
    from training.checkpointing import Checkpointer
    from training.resuming import adapt, environment, kept_flags
    from training.run import closing_lines, open_run_folder, resolved_settings, summary_lines
    from training.run_log import RunLog
    from training.signals import TrainingStopped
    from training.trainer import build_module, build_trainer, process_watch
    from training.validation import GeneratedValidation

    config, resumed, labels = prepared.config, prepared.resumed, prepared.labels
    folder = Path(config.run.save_path)
    data = prepared.data_module()
    plan = data.plan(0, prepared.devices.world_size)
    total_steps = plan.num_steps * config.optim.max_epoch
    if resumed:
        adapted = adapt(resumed, prepared.differences, config, plan)
        resumed, total_steps = adapted.run, adapted.total_steps
        say(*adapted.lines)
    module = build_module(config, prepared.model, prepared.tokenizer, total_steps)
    description = {
        "task": prepared.task.to_dict(),
        "label_map": labels.to_dict() if labels else None,
        "flags": kept_flags(resumed, config),
        "tokenizer": resumed.model.tokenizer_files if resumed else pack_tokenizer(prepared.tokenizer),
        "monitor": config.run.monitor,
        "environment": environment(prepared.devices),
    }
    checkpointer = Checkpointer(config.run, folder, description, stop)
    generated = GeneratedValidation(
        config.run.valid_generate_rows, labels, prepared.task.generated_metrics(config.run.monitor)
    )
    callbacks = [generated, RunLog(folder, config.run.log_every), checkpointer]
    trainer = build_trainer(config, prepared.devices, plan, data.valid is not None, callbacks, resumed)
    resolved = resolved_settings(config, prepared.task, prepared.devices, plan, prepared.model, total_steps)
    if is_first_process():
        open_run_folder(config, folder, resumed, resolved)
    say(*summary_lines(config, prepared.task, resolved))
    stop.install()
    try:
        trainer.fit(module, datamodule=data, ckpt_path=str(resumed.path) if resumed else None, weights_only=True)
    except TrainingStopped:
        raise  # on every rank alike
    except BaseException as error:
        process_watch(trainer).end_all(error)
        raise
    finally:
        process_watch(trainer).switch_off()
        stop.talk = False  # no optimizer step is left to stop after
    say(*closing_lines(folder, checkpointer, trainer.global_step))


def resume_command(argv: list[str], seed: int, steps_are_done: bool = False) -> list[str]:
    """The words of the command line that continues this run.

    Args:
        seed: the one in force where -seed below 0 drew one.
        steps_are_done: switches off -max_steps, which would end the run at once, also that of config.json.
    """
    once = [spec.name for spec in flag_specs(TrainConfig) if spec.resume == "once"]
    kept = without_flags(argv, [*once, "seed", *(["max_steps"] if steps_are_done else [])])
    more = ["-max_steps", "0"] if steps_are_done else []
    return ["python", sys.argv[0], *kept, *more, "-seed", str(seed), "-resume_checkpoint", "last"]


if __name__ == "__main__":
    run_command(main)
