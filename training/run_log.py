"""What a run tells: progress lines, its loggers, metrics.jsonl (steps) and log.json (epochs)."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import pytorch_lightning as pl

from checkpoints.entries import LOG_KEY
from checkpoints.run_folder import EPOCH_LOG, STEP_LOG
from config.flags.run import logger_names
from config.flags.train import TrainConfig
from config.parser import to_dict
from metrics.registry import figure_texts, metric_of
from models.flops import Utilization
from models.loading import OF_ANOTHER_KIND
from models.losses.objective import Objective
from models.meter import OWN_SUMS, Totals, first_loss_lines, peak_memory
from models.optimizers.build import current_rate
from models.seq2seq_module import Seq2SeqModule
from training.lightning_loop import (
    at_step_boundary,
    batches_done,
    data_module,
    epoch_of,
    gathered,
    has_validation,
    ours,
)
from training.loggers.registry import TENSORBOARD, Loggers
from utils.console import duration, tell
from utils.errors import UserError
from utils.files import run_error, sync_path, write_file, write_json
from utils.json_files import parse_json, read_json
from utils.launch import is_first_process
from utils.progress import ProgressLine

Line: TypeAlias = dict[str, Any]  # of metrics.jsonl


class RunLog(pl.Callback):
    """Reads the meters every `log_every` optimizer steps and writes what they say; the first rank writes."""

    def __init__(
        self,
        folder: Path,
        log_every: int,
        total_steps: int,
        monitor: str = "val_loss",
        arithmetic: str = "32",
        loggers: Loggers | None = None,
        drawn: bool = False,
    ) -> None:
        self.folder = folder
        self.monitor = monitor
        self.arithmetic = arithmetic  # a value of -float_precision
        self.utilization: Utilization | None = None
        self.totals = Totals()  # of what this process trained
        self.validations: list[dict[str, Any]] = []  # their lines of metrics.jsonl
        self.total_steps = total_steps  # of the whole run
        self._began = time.monotonic()
        self._began_at = 0  # the optimizer step that this process began with
        self.log_every = log_every
        self.loggers = loggers or Loggers([TENSORBOARD], folder, {})
        self.progress: ProgressLine | None = None
        self.validation_progress: ProgressLine | None = None
        self.epochs: list[dict[str, Any]] = []
        self._epoch_totals = Totals()
        self._epoch_began = time.monotonic()
        self._resumed: dict[str, Any] | None = None
        self._drawn = drawn  # the next loss to be logged is the first of random weights

    # ---- training

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del pl_module
        if trainer.is_global_zero:
            with run_error(self.folder):
                self._continue_logs(trainer.global_step, data_module(trainer).validation_pending)
        self._began, self._began_at = time.monotonic(), trainer.global_step

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._resumed = None  # an epoch that begins has nothing to take up
        self._begin_epoch(trainer, ours(pl_module), 0)

    def _begin_epoch(self, trainer: pl.Trainer, module: Seq2SeqModule, done: int) -> None:
        module.meter.reset()
        of_targets = isinstance(module.objective, Objective) and not module.objective.encoder_alone
        self.utilization = Utilization(module.model, self.arithmetic, trainer.world_size) if of_targets else None
        self._epoch_totals = Totals()
        self._epoch_began = time.monotonic()
        total = -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
        title = f"[Epoch {trainer.current_epoch}] [TRAIN]"
        self.progress = ProgressLine(title, total, done, enabled=trainer.is_global_zero)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        del batch
        self._begin_resumed(trainer, pl_module, batch_idx)

    def _begin_resumed(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batches: int) -> None:
        """Resumed in the middle of an epoch, its start is not announced again."""
        if self.progress is not None:
            return
        module = ours(pl_module)
        self._begin_epoch(trainer, module, -(-batches // trainer.accumulate_grad_batches))
        self._take_up(trainer, module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del outputs, batch
        if not at_step_boundary(trainer, batch_idx):
            return
        module = ours(pl_module)
        assert self.progress is not None
        step = trainer.global_step
        module.meter.watch(step)
        self.progress.advance_to(batch_idx // trainer.accumulate_grad_batches + 1)
        ended = batch_idx + 1 >= trainer.num_training_batches
        if step % self.log_every == 0 or ended:
            self._log_step(trainer, module, step)
        if ended:
            self.progress.close()

    def _log_step(self, trainer: pl.Trainer, module: Seq2SeqModule, step: int) -> None:
        module.raise_if_not_finite()
        totals = module.meter.totals(module.device, trainer.world_size)
        row_sums = module.meter.row_sums(trainer.world_size)
        norm = module.meter.gradient_norm
        module.meter.reset()
        self._epoch_totals += totals
        self.totals += totals
        rate = step_rate(trainer, module)
        if self.progress is not None:
            self.progress.report(loss=f"{totals.loss_per_token:.4g}", lr=f"{rate:.2g}")
            self.progress.note(*(first_loss_lines(totals, module.model.config) if self._drawn else ()))
        self._drawn = False
        figures = {
            "loss": totals.loss_per_token,
            "learning_rate": rate,
            "tokens_per_second": totals.tokens_per_second,
            "rows_per_second": totals.rows / max(totals.seconds, 1e-9),
            "padding_share": totals.padding_share,
            **self._of_device(totals),
            "peak_memory_gb": peak_memory(module.device),
        }
        if norm is not None:
            figures["gradient_norm"] = float(norm)
        if row_sums:
            figures |= module.row_figures(row_sums, totals.rows)
        self._write(trainer, step, "train", figures)

    def _of_device(self, totals: Totals) -> dict[str, float]:
        """The share of the GPU's matrix products that was used, where its peak is known."""
        share = self.utilization.share(totals) if self.utilization else None
        return {} if share is None else {"mfu": share}

    def speed(self) -> str:
        """How fast this process trained, in words."""
        if not self.totals.tokens:
            return "no step was left to train"
        words = (
            f"{self.totals.tokens_per_second:,.0f} tokens/s without padding, padding {self.totals.padding_share:.1%}"
        )
        return words + "".join(f", MFU {share:.1%}" for share in self._of_device(self.totals).values())

    # ---- checkpoints

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Everything logged so far reaches the disk before the checkpoint that counts on it."""
        self.loggers.flush()
        with run_error(self.folder):
            if trainer.is_global_zero and (self.folder / STEP_LOG).exists():
                sync_path(self.folder / STEP_LOG)
        module = ours(pl_module)
        checkpoint[LOG_KEY] = {
            "meters": gathered(trainer, module.meter.state()),  # by rank
            "epoch_totals": [asdict(self._epoch_totals)],  # a list: once there was one entry for each log line
            "epoch_seconds": time.monotonic() - self._epoch_began,
            "learning_rate": module.step_learning_rate,
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        del trainer, pl_module
        self._resumed = checkpoint.get(LOG_KEY)

    def _take_up(self, trainer: pl.Trainer, module: Seq2SeqModule) -> None:
        """Go on measuring where the resumed checkpoint was: its next log lines say what they would have said."""
        if self._resumed is None or len(self._resumed["meters"]) != trainer.world_size:
            return
        state = self._resumed["meters"][trainer.global_rank]
        if len(state) - OWN_SUMS not in (0, module.num_row_sums):
            raise UserError(f"{OF_ANOTHER_KIND}: {LOG_KEY}.meters is not of this model's losses")
        module.meter.restore(state, module.device)
        self._epoch_totals = sum((Totals(**totals) for totals in self._resumed["epoch_totals"]), Totals())
        self._epoch_began = time.monotonic() - self._resumed["epoch_seconds"]
        module.step_learning_rate = self._resumed["learning_rate"]
        self._resumed = None

    # ---- validation

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module = ours(pl_module)
        self._begin_resumed(trainer, module, batches_done(trainer))
        if module.meter.has_batches:
            self._log_step(trainer, module, trainer.global_step)
        total = sum(int(count) for count in trainer.num_val_batches)
        title = f"[Epoch {trainer.current_epoch}] [VALID]"
        self.validation_progress = ProgressLine(title, total, enabled=trainer.is_global_zero)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        del pl_module, outputs, batch
        if self.validation_progress is not None:
            before = sum(int(count) for count in trainer.num_val_batches[:dataloader_idx])  # of the tasks before
            self.validation_progress.advance_to(before + batch_idx + 1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module = ours(pl_module)
        figures = module.validation
        if self.validation_progress is not None:
            (_, shown), *of_tasks = by_task(figures).items()
            self.validation_progress.conclude(**figure_texts(shown))
            self.validation_progress = None
            for task, own in of_tasks if trainer.is_global_zero else ():
                tell(f"  {task}: {', '.join(f'{name}={text}' for name, text in figure_texts(own).items())}")
            self._say_time_left(trainer)
        step = trainer.global_step
        self._write(trainer, step, "valid", figures)
        for name, samples in module.samples.items():
            self.loggers.samples(step, name, samples)
        self._close_epoch(trainer, figures)
        module.meter.reset()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del pl_module
        if not has_validation(trainer):
            self._close_epoch(trainer, {})
            self._say_time_left(trainer)
        self.progress = None

    def _say_time_left(self, trainer: pl.Trainer) -> None:
        """As the steps of this process went, validations and saves included."""
        done, left = trainer.global_step - self._began_at, self.total_steps - trainer.global_step
        if trainer.is_global_zero and done > 0 and left > 0:
            seconds = (time.monotonic() - self._began) / done * left
            tell(f"about {duration(seconds)} left for the whole run")

    def _close_epoch(self, trainer: pl.Trainer, figures: dict[str, float]) -> None:
        """Add this epoch (so far) to log.json; a later validation of the same epoch replaces the entry."""
        if not trainer.is_global_zero:
            return
        seconds = time.monotonic() - self._epoch_began
        epoch, batches = data_module(trainer).position()
        number = epoch_of(epoch, batches)
        entry = {
            "epoch": number,
            "global_step": trainer.global_step,
            "complete": batches == 0,
            "train_loss": self._epoch_totals.loss_per_token,
            **figures,
            "learning_rate": step_rate(trainer, trainer.lightning_module),
            "rows": self._epoch_totals.rows,
            "seconds": round(seconds, 3),
            **({"best": best} if (best := self.best_of_tasks()) else {}),
        }
        self.epochs = [kept for kept in self.epochs if kept["epoch"] != number]
        self.epochs.append(entry)
        write_json(self.folder / EPOCH_LOG, self.epochs)

    def best_of_tasks(self) -> dict[str, dict[str, Any]]:
        """For each of several tasks the best value of the monitored figure, or of its loss where it has no such."""
        best: dict[str, dict[str, Any]] = {}
        metric, lines = metric_of(self.monitor), self.validations
        figures = dict.fromkeys(name for line in lines for name in line if "/" in name)
        for task in dict.fromkeys(name.rpartition("/")[0] for name in figures):
            name = metric.name if f"{task}/{metric.name}" in figures else "val_loss"
            figure = f"{task}/{name}"
            pick = max if metric_of(name).higher_is_better else min
            line = pick((line for line in lines if figure in line), key=lambda line: line[figure])
            best[task] = {"figure": name, "value": line[figure], "global_step": line["step"]}
        return best

    # ---- files

    def _write(self, trainer: pl.Trainer, step: int, phase: str, figures: dict[str, float]) -> None:
        if not trainer.is_global_zero:
            return
        line = {"step": step, "epoch": trainer.current_epoch, "phase": phase, **figures}
        self.validations += [line] if phase == "valid" else []
        with run_error(self.folder / STEP_LOG), open(self.folder / STEP_LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.loggers.scalars(step, phase, figures)

    def _continue_logs(self, step: int, validation_pending: bool) -> None:
        """Go on in the logs of an interrupted run, without what it logged after `step`, from which it is resumed."""
        lines, dropped = self._cut_logs(step, validation_pending)
        self.validations = [line for line in lines if line.get("phase") == "valid"]
        self.loggers.start(step if validation_pending else step + 1, lines, dropped)

    def _cut_logs(self, step: int, validation_pending: bool = False) -> tuple[list[Line], list[Line]]:
        """Drop what was logged after `step`; returns the lines of metrics.jsonl that stay, and those that go.

        Args:
            validation_pending: the validation at `step` goes too, since it comes again.
        """
        step_log, epoch_log = self.folder / STEP_LOG, self.folder / EPOCH_LOG
        kept: dict[bytes, Line] = {}  # line -> its content
        dropped: list[Line] = []
        if step_log.exists():
            entries = [(line + b"\n", _entry(line)) for line in step_log.read_bytes().split(b"\n")]
            kept = {line: entry for line, entry in entries if entry and _stays(entry, step, validation_pending)}
            dropped = [entry for line, entry in entries if entry and line not in kept]
            write_file(step_log, lambda file: file.writelines(kept))
        if epoch_log.exists():
            try:
                epochs = read_json(epoch_log)
                last = step - 1 if validation_pending else step
                self.epochs = [entry for entry in epochs if entry["global_step"] <= last and entry["epoch"] >= 0]
            except (OSError, ValueError, TypeError, KeyError) as error:
                tell(f"{epoch_log} could not be read ({error}): it is begun anew")
        return list(kept.values()), dropped

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """What is said of the end stands on a line of its own."""
        del trainer, pl_module, exception
        for progress in (self.progress, self.validation_progress):
            if progress is not None:
                progress.close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        del trainer, pl_module, stage
        self.loggers.close_tensorboard()


def reopened_trackers(config: TrainConfig, left_open: bool = False) -> Loggers:
    """The trackers of a run whose training was complete in an earlier process: they go on with it, for its files.

    Args:
        left_open: only those that no process has ended.
    """
    folder = Path(config.run.save_path)
    loggers = Loggers([name for name in logger_names(config.run) if name != TENSORBOARD], folder, to_dict(config))
    loggers = loggers.left_open() if left_open else loggers
    if is_first_process() and loggers.names:
        content = (folder / STEP_LOG).read_bytes() if (folder / STEP_LOG).exists() else b""
        lines = [entry for line in content.split(b"\n") if (entry := _entry(line))]
        loggers.start(max((line["step"] for line in lines), default=0) + 1, lines, ())
    return loggers


def step_rate(trainer: pl.Trainer, module: Any) -> float:
    """The learning rate of the latest optimizer step."""
    rate = module.step_learning_rate
    return current_rate(trainer.optimizers[0]) if rate is None else rate


def _entry(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None when it cannot be read: it counts as never logged."""
    try:
        entry = parse_json(line)
        return entry if isinstance(entry["step"], int) and entry["step"] >= 0 else None
    except (ValueError, KeyError, TypeError):
        return None


def _stays(entry: Mapping[str, Any], step: int, validation_pending: bool) -> bool:
    """Whether a line belongs to the run up to `step`, without the validation there if it is still to come."""
    last = step - 1 if validation_pending and entry.get("phase") == "valid" else step
    return bool(entry["step"] <= last)


def by_task(figures: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The figures of each task by their own names, those without a task first, under ""."""
    tasks: dict[str, dict[str, float]] = {"": {}}
    for named, value in figures.items():
        task, _, name = named.rpartition("/")
        tasks.setdefault(task, {})[name] = value
    return tasks
