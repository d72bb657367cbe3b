"""When a run is saved, under which names, and what is kept: a callback that acts at optimizer-step boundaries only.

after each optimizer step:  do the ranks agree to stop or to save? -> save (after a validation that is due)
after each validation:      better than before? -> best/; checkpoint of the best five; last.ckpt and last/
at the end of an epoch without validation rows: the same with no score
a stop in a validation:     last.ckpt says that the validation is still to come; a resumed run begins with it

One state is written once, however many ask for it: the other names are links to the same file. Training waits only
while the state is copied, and a thread writes the copy. A save that is due meanwhile, a stop and the end of the run
wait until it is on the disk.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from checkpoints.background import BackgroundSaves
from checkpoints.format import CONTENT_KEY, FORMAT_VERSION
from checkpoints.model_folder import WEIGHTS_SUFFIX, Exported, write_export
from checkpoints.retention import DueCheckpoint, KeptCheckpoints
from checkpoints.run_folder import CHECKPOINT_FOLDER, LAST_NAME, exported_step
from config.flags.run import RunFlags
from metrics.registry import is_generated, metric_of
from models.loading import describe
from models.seq2seq_module import Seq2SeqModule
from training.lightning_loop import (
    at_step_boundary,
    control_group,
    data_module,
    epoch_complete,
    epoch_of,
    fit_loop_state,
    gathered,
    has_validation,
    ours,
    validation_due,
)
from training.signals import PROCESS_BEGAN, Request, StopSignal, TrainingStopped
from training.strategies.base import Strategy
from utils.console import tell
from utils.errors import NotFiniteError, RunError, SharedError
from utils.files import link_folder, link_path, remove_path, run_error


@dataclass(frozen=True)
class Validated:
    """What the validation just done (or the end of an epoch without one) came to."""

    better: bool  # than all before
    val_loss: float | None = None  # None: no validation rows


class Checkpointer(pl.Callback):
    """Saves the run; see the module's docstring.

    Args:
        folder: the run's `save_path`.
        description: what the checkpoints hold besides Lightning's state: task, label map, flags, packed tokenizer
            (plain values and tensors).
        stop: the pending signal, if any.
    """

    def __init__(
        self,
        flags: RunFlags,
        folder: Path,
        description: Mapping[str, Any],
        stop: StopSignal,
        strategy: Strategy,
    ) -> None:
        self.flags = flags
        self.folder = folder
        self.checkpoints = folder / CHECKPOINT_FOLDER
        self.description = dict(description)
        self.stop = stop
        self.strategy = strategy
        self.best_score: float | None = None
        self.best_step = 0
        self.validations_without_gain = 0
        self.kept = KeptCheckpoints(self.checkpoints, flags.save_last_k)
        self.validation: dict[str, float] = {}  # figures of the latest validation
        self.saves = BackgroundSaves()
        self._request = Request()
        self._saved_at = time.monotonic()
        self._began_at = 0  # the optimizer step that this process began with
        self._asked: tuple[Any, torch.Tensor] | None = None  # what the ranks tell each other since the latest boundary

    # ---- hooks

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module = ours(pl_module)
        module.between_batches = lambda: self._stop_in_validation(trainer, module)
        if trainer.is_global_zero:
            with run_error(self.checkpoints):
                self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After a resume: forget a best score whose weights are lost (resumed from an older checkpoint)."""
        self._began_at = trainer.global_step
        ours(pl_module).validation = dict(self.validation)
        held = exported_step(self.folder, "best") if trainer.is_global_zero else None
        if self.best_score is None or gathered(trainer, held)[0] == self.best_step:
            return
        if trainer.is_global_zero:
            tell(f"best/ does not hold step {self.best_step}, the best so far: the next validation begins anew")
        self.best_score, self.best_step, self.validations_without_gain = None, 0, 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del outputs, batch
        if not at_step_boundary(trainer, batch_idx):
            return
        self._request |= self._agree(trainer)
        if not validation_due(trainer) and not epoch_complete(trainer):
            self._act(trainer, ours(pl_module))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        module = ours(pl_module)
        self.validation = dict(module.validation)
        score = module.validation.get(self.flags.monitor, math.nan)
        better = self._note_score(score, trainer.global_step)
        module.note_validation(better)
        if math.isnan(score) and trainer.is_global_zero:
            tell(f"-monitor {self.flags.monitor}: undefined in this validation, which counts as no gain")
        if self.flags.early_stopping_patience and self.validations_without_gain >= self.flags.early_stopping_patience:
            trainer.should_stop = True
            if trainer.is_global_zero and data_module(trainer).position()[0] < (trainer.max_epochs or 0):
                tell(
                    f"stopping early: no validation was better than {self.flags.monitor} {self.best_score:.4f} of step"
                    f" {self.best_step} in the last {self.validations_without_gain} (-early_stopping_patience)"
                )
        self._act(trainer, module, Validated(better, module.validation["val_loss"]))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if has_validation(trainer) or not epoch_complete(trainer):
            return
        self.best_step = trainer.global_step
        self._act(trainer, ours(pl_module), Validated(better=True))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del pl_module
        self._settle(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Whatever ends the run, a save that is being written is completed."""
        del trainer, pl_module, exception
        if (error := self.saves.settle()) is not None:
            tell(f"error: {error}")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        epoch, batches = data_module(trainer).position()
        loop = fit_loop_state(epoch, batches, int(trainer.num_training_batches), trainer.global_step)
        checkpoint["loops"] = {"fit_loop": loop}
        checkpoint["epoch"] = epoch
        checkpoint[CONTENT_KEY] = {
            "format_version": FORMAT_VERSION,
            "model": describe(pl_module.model),
            **self.description,
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_score": self.best_score,
            "best_step": self.best_step,
            "validations_without_gain": self.validations_without_gain,
            "validation": self.validation,
            "kept": self.kept.state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score = state_dict["best_score"]
        self.best_step = state_dict["best_step"]
        self.validations_without_gain = state_dict["validations_without_gain"]
        self.validation = state_dict["validation"]
        self.kept.restore(state_dict["kept"])

    # ---- decisions

    def _agree(self, trainer: pl.Trainer) -> Request:
        """What is asked for, the same on every rank; the first rank's clock counts.

        Of several ranks it is what was asked for when they last came here, an optimizer step or a batch of a validation
        before: meanwhile they have told each other, and none waits for the slowest.
        """
        flags, now = self.flags, time.monotonic()
        timed = bool(flags.save_every_hour) and now - self._saved_at >= flags.save_every_hour * 3600
        out_of_time = bool(flags.max_hours) and now - PROCESS_BEGAN >= flags.max_hours * 3600
        self._saved_at = now if timed else self._saved_at
        save, self.stop.save_requested = self.stop.save_requested, False
        first, group = trainer.is_global_zero, control_group(trainer)
        mine = Request(self.stop.received, out_of_time and first, timed and first, save, self.saves.failed)
        if group is None:
            return mine
        earlier = self._answered()
        answers = torch.tensor(astuple(mine), dtype=torch.int64)
        largest = torch.distributed.ReduceOp.MAX
        self._asked = torch.distributed.all_reduce(answers, largest, group=group, async_op=True), answers
        return earlier

    def _answered(self) -> Request:
        """What the ranks have told each other since the latest boundary."""
        if self._asked is None:
            return Request()
        (work, answers), self._asked = self._asked, None
        work.wait()
        signum, *others = answers.tolist()
        return Request(signum, *map(bool, others))

    def _note_score(self, score: float, step: int) -> bool:
        """Whether `score` is the best so far; remembers it.

        A figure of generated rows may be undefined, NaN: any other is better, and until one comes the last is the best.
        """
        if math.isnan(score) and not is_generated(self.flags.monitor):
            raise NotFiniteError(f"-monitor {self.flags.monitor}: the validation gave no such figure, or NaN")
        if math.isnan(score):
            better = self.best_score is None
            self.best_step = step if better else self.best_step
            self.validations_without_gain = 0 if better else self.validations_without_gain + 1
            return better
        sign = 1 if metric_of(self.flags.monitor).higher_is_better else -1
        better = self.best_score is None or sign * score > sign * self.best_score
        if better:
            self.best_score, self.best_step = score, step
            self.validations_without_gain = 0
        else:
            self.validations_without_gain += 1
        return better

    def _act(self, trainer: pl.Trainer, pl_module: Seq2SeqModule, validated: Validated | None = None) -> None:
        """Do what is due after this optimizer step: save it under all its names, export it, stop."""
        request, self._request = self._request, Request()
        if validated:
            request |= self._answered()  # it may be the end of the run
        if request.failed:
            self._settle(trainer)
        epoch, _ = data_module(trainer).position()
        limit = self._limit(trainer, request)
        finished = trainer.should_stop or epoch >= (trainer.max_epochs or 0)
        stops = bool(request.signum or (limit and not finished))
        due = self._due(trainer, pl_module, request, validated)
        exported = bool(validated or stops or request.save)
        if due or exported:
            self._save(trainer, pl_module, due, exported, bool(validated and validated.better), request.save)
        if stops:
            self._stop(trainer, request.signum, limit)

    def _due(
        self, trainer: pl.Trainer, pl_module: Seq2SeqModule, request: Request, validated: Validated | None
    ) -> list[DueCheckpoint]:
        """The names, besides `last.ckpt`, under which this optimizer step is to be saved."""
        step = trainer.global_step
        epoch, batches = data_module(trainer).position()
        stem = f"epoch{epoch_of(epoch, batches):02d}-global_step{step}"
        due = []
        if validated:
            figure, order = "", float(step)
            if validated.val_loss is not None:
                figure, score = f"-val_loss{validated.val_loss:.4f}", pl_module.validation.get(self.flags.monitor)
                sign = 1 if metric_of(self.flags.monitor).higher_is_better else -1
                order = -math.inf if score is None else sign * float(score)
            ending = "" if batches else "_endofepoch"
            due.append(DueCheckpoint("best", f"{stem}{figure}{ending}.ckpt", order))
        if self.flags.save_every and step % self.flags.save_every == 0:
            due.append(DueCheckpoint("step", f"{stem}.ckpt", step))
        if request.timed_save:
            due.append(DueCheckpoint("hour", f"{stem}-by-hour.ckpt", step))
        return due

    def _limit(self, trainer: pl.Trainer, request: Request) -> str:
        """The flag whose limit is reached; empty when none is."""
        if 0 < self.flags.max_steps <= trainer.global_step:
            return f"-max_steps {self.flags.max_steps}"
        return f"-max_hours {self.flags.max_hours:g}" if request.out_of_time else ""

    def _stop_in_validation(self, trainer: pl.Trainer, pl_module: Seq2SeqModule) -> None:
        """Between two batches of a validation: stop at once if asked to; a resumed run begins it anew.

        A limit of hours waits for a validation that this process began with: else no resume might ever get beyond it.
        """
        self._request |= self._agree(trainer)
        if self._request.failed:
            self._settle(trainer)
        gained = trainer.global_step > self._began_at
        if self._request.signum or (self._request.out_of_time and gained):
            data_module(trainer).validation_pending = True
            limit = "" if self._request.signum else f"-max_hours {self.flags.max_hours:g}"
            self._save(trainer, pl_module, [], exported=True)
            self._stop(trainer, self._request.signum, limit)

    def _stop(self, trainer: pl.Trainer, signum: int, limit: str) -> None:
        self._settle(trainer)
        words = f"stopped at optimizer step {trainer.global_step} and saved"
        raise TrainingStopped(words, signum, "" if signum else limit)

    # ---- writing

    def _save(
        self,
        trainer: pl.Trainer,
        pl_module: Seq2SeqModule,
        due: Sequence[DueCheckpoint],
        exported: bool,
        better: bool = False,
        asked: bool = False,
    ) -> None:
        """Save this state as `last.ckpt` and under the names that are due, and remove what is kept no more.

        Args:
            exported: as `last/`, too.
            better: as `best/`, too.
            asked: by the user, who is told when it is saved.
        """
        self._check_finite(pl_module)
        self._settle(trainer)
        gone = self.kept.add(due, self.best_step)
        first, *others = [*(self.checkpoints / one.name for one in due), self.checkpoints / LAST_NAME]
        with pl_module.averaged():
            weights = self.strategy.full_state(pl_module.model) if exported else None
        state, weights = self.saves.copied((self.strategy.state(trainer), weights if trainer.is_global_zero else None))
        export = self._export(trainer, pl_module, weights) if weights is not None else None
        saved = f"saved at optimizer step {trainer.global_step}: {self.checkpoints / LAST_NAME}" if asked else ""

        def write() -> None:
            self.strategy.write(state, first)
            if not trainer.is_global_zero:
                return
            for path in others:  # last.ckpt comes last: what it counts is there
                link_path(first, path)
            for path in gone:
                remove_path(path)
            if export:
                export()
            if better:
                link_folder(self.folder / "last", self.folder / "best", WEIGHTS_SUFFIX)
            tell(*([saved] if saved else []))

        self.saves.start(write)

    def _settle(self, trainer: pl.Trainer) -> None:
        """Wait for the save that is being written; every process calls it.

        Raises:
            SharedError: it failed in one of the processes.
        """
        error = self.saves.settle()
        told = gathered(trainer, None if error is None else str(error))
        first = next((words for words in told if words is not None), None)
        if first is not None:
            if error is not None and not isinstance(error, RunError):
                raise error
            raise SharedError(first) from error

    def _export(self, trainer: pl.Trainer, pl_module: Seq2SeqModule, weights: Any) -> Callable[[], None]:
        """What writes `last/`."""
        epoch, batches = data_module(trainer).position()
        exported = Exported(
            epoch=epoch,
            micro_batches_of_epoch=batches,
            global_step=trainer.global_step,
            monitor=self.flags.monitor,
            best_score=self.best_score,
            best_step=self.best_step,
            validation=self.validation,
        )
        model, tokenizer = pl_module.model, pl_module.tokenizer
        return lambda: write_export(self.folder / "last", model, tokenizer, exported, self.description, weights)

    def _check_finite(self, pl_module: Seq2SeqModule) -> None:
        """Never save weights that hold NaN or infinity."""
        pl_module.raise_if_not_finite()
        if not self.strategy.all_finite(pl_module.parameters()):
            raise NotFiniteError(
                f"the weights became NaN or infinite at optimizer step {pl_module.trainer.global_step}; nothing of it"
                " was saved. Likely causes: a learning rate that is too high, or fp16 arithmetic."
            )
