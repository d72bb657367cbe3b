"""When a run is saved, under which names, and what is kept: a callback that acts at optimizer-step boundaries only.

after each optimizer step:  do the ranks agree to stop or to save? -> save (after a validation that is due)
after each validation:      better than before? -> best/; checkpoint of the best five; last.ckpt and last/
at the end of an epoch without validation rows: the same with no score
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from errors import RunError
from flags import RunFlags
from models.durable import CONTENT_KEY, FORMAT_VERSION, link_file, write_folder, write_json
from models.loading import describe
from models.run_folder import CHECKPOINT_FOLDER, LAST_NAME, STATE_NAME
from models.seq2seq_module import Seq2SeqModule
from models.signals import StopSignal, TrainingStopped

KEEP_BEST = 5


def lower_is_better(monitor: str) -> bool:
    """Whether a smaller value of the monitored figure is better."""
    return "loss" in monitor


class Checkpointer(pl.Callback):
    """Saves the run; see the module's docstring.

    Args:
        folder: the run's `save_path`.
        description: what the checkpoints hold besides Lightning's state: task, label map, flags, packed tokenizer
            (plain values and tensors).
        stop: the pending signal, if any.
    """

    def __init__(self, flags: RunFlags, folder: Path, description: Mapping[str, Any], stop: StopSignal) -> None:
        self.flags = flags
        self.folder = folder
        self.checkpoints = folder / CHECKPOINT_FOLDER
        self.description = dict(description)
        self.stop = stop
        self.best_score: float | None = None
        self.best_step = 0
        self.validations_without_gain = 0
        self.kept: dict[str, list[tuple[float, str]]] = {"best": [], "step": [], "hour": []}
        self._pending = (0, False)
        self._saved_at = time.monotonic()
        self._control_group: Any = None

    # ---- hooks

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del pl_module
        if trainer.world_size > 1:
            # A group of its own on the CPU: agreeing on a stop never waits for the device.
            self._control_group = torch.distributed.new_group(backend="gloo")
        if trainer.is_global_zero:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After a resume: forget a best score whose weights are not in best/ (resumed from an older checkpoint)."""
        del pl_module
        known = self.best_score is None or trainer.strategy.broadcast(self._step_of_best()) == self.best_step
        if known:
            return
        if trainer.is_global_zero:
            print(f"best/ does not hold step {self.best_step}, the best so far: the next validation begins anew")
        self.best_score, self.best_step, self.validations_without_gain = None, 0, 0

    def _step_of_best(self) -> int | None:
        """The optimizer step whose weights lie in best/."""
        try:
            state = json.loads((self.folder / "best" / STATE_NAME).read_text(encoding="utf-8"))
            return int(state["global_step"])
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del outputs, batch
        if not at_step_boundary(trainer, batch_idx):
            return
        self._pending = self._agree()
        if not validation_due(trainer) and not _epoch_complete(trainer):
            self._act(trainer, _ours(pl_module))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        module = _ours(pl_module)
        score = module.validation.get(self.flags.monitor, math.nan)
        better = self._note_score(score, trainer.global_step)
        self._save_validated(trainer, module, better, module.validation["val_loss"])
        if self.flags.early_stopping_patience and self.validations_without_gain >= self.flags.early_stopping_patience:
            trainer.should_stop = True
        self._act(trainer, module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if _has_validation(trainer) or not _epoch_complete(trainer):
            return
        self._save_validated(trainer, _ours(pl_module), better=True, val_loss=None)
        self._act(trainer, _ours(pl_module))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        epoch, batches = trainer.datamodule.position()  # type: ignore[attr-defined]
        checkpoint["loops"] = {"fit_loop": canonical_loop_state(trainer, epoch, batches)}
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
            "kept": {kind: [list(entry) for entry in entries] for kind, entries in self.kept.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score = state_dict["best_score"]
        self.best_step = state_dict["best_step"]
        self.validations_without_gain = state_dict["validations_without_gain"]
        self.kept = {
            kind: [(score, name) for score, name in entries if (self.checkpoints / name).exists()]
            for kind, entries in state_dict["kept"].items()
        }

    # ---- decisions

    def _agree(self) -> tuple[int, bool]:
        """(signal to stop on or 0, timed save is due), the same on every rank; the first rank's clock counts."""
        hours = (time.monotonic() - self._saved_at) / 3600
        timed = bool(self.flags.save_every_hour) and hours >= self.flags.save_every_hour
        if self._control_group is None:
            return self.stop.received, timed
        mine = torch.tensor([self.stop.received, int(timed and torch.distributed.get_rank() == 0)])
        torch.distributed.all_reduce(mine, torch.distributed.ReduceOp.MAX, group=self._control_group)
        return int(mine[0]), bool(mine[1])

    def _note_score(self, score: float, step: int) -> bool:
        """Whether `score` is the best so far; remembers it."""
        if math.isnan(score):
            raise RunError(f"-monitor {self.flags.monitor}: the validation gave no such figure, or NaN")
        sign = -1 if lower_is_better(self.flags.monitor) else 1
        better = self.best_score is None or sign * score > sign * self.best_score
        if better:
            self.best_score, self.best_step = score, step
            self.validations_without_gain = 0
        else:
            self.validations_without_gain += 1
        return better

    def _act(self, trainer: pl.Trainer, pl_module: Seq2SeqModule) -> None:
        """Do what is due after this optimizer step: step save, timed save, stop."""
        signum, timed = self._pending
        self._pending = (0, False)
        step = trainer.global_step
        epoch, batches = trainer.datamodule.position()  # type: ignore[attr-defined]
        stem = f"epoch{epoch if batches else epoch - 1:02d}-global_step{step}"
        if self.flags.save_every and step % self.flags.save_every == 0:
            self._save(trainer, pl_module, f"{stem}.ckpt", "step")
        if timed:
            self._save(trainer, pl_module, f"{stem}-by-hour.ckpt", "hour")
            self._saved_at = time.monotonic()
        if signum:
            self._save_last(trainer, pl_module)
            raise TrainingStopped(signum)

    # ---- writing

    def _save_validated(
        self, trainer: pl.Trainer, pl_module: Seq2SeqModule, better: bool, val_loss: float | None
    ) -> None:
        """The checkpoint of this validation (or epoch), last.ckpt, last/, and best/ when it is the best."""
        epoch, batches = trainer.datamodule.position()  # type: ignore[attr-defined]
        ended = batches == 0
        shown_epoch = epoch - 1 if ended else epoch
        figure = "" if val_loss is None else f"-val_loss{val_loss:.4f}"
        ending = "_endofepoch" if ended else ""
        name = f"epoch{shown_epoch:02d}-global_step{trainer.global_step}{figure}{ending}.ckpt"
        order = trainer.global_step if val_loss is None else pl_module.validation[self.flags.monitor]
        if val_loss is not None and lower_is_better(self.flags.monitor):
            order = -order
        self._save(trainer, pl_module, name, "best", float(order))
        self._export(trainer, pl_module, "last")
        if better:
            self._export(trainer, pl_module, "best")

    def _save_last(self, trainer: pl.Trainer, pl_module: Seq2SeqModule) -> None:
        self._check_finite(pl_module)
        trainer.save_checkpoint(self.checkpoints / LAST_NAME)
        self._export(trainer, pl_module, "last")

    def _save(
        self, trainer: pl.Trainer, pl_module: Seq2SeqModule, name: str, kind: str, order: float | None = None
    ) -> None:
        """Write a checkpoint, make it `last.ckpt` as well, and remove what is no longer kept of its kind."""
        self._check_finite(pl_module)
        entry = (float(trainer.global_step) if order is None else order, name)
        entries = sorted([*(e for e in self.kept[kind] if e[1] != name), entry], key=lambda e: e[0])
        keep = KEEP_BEST if kind == "best" else self.flags.save_last_k
        removed, self.kept[kind] = entries[:-keep], entries[-keep:]
        trainer.save_checkpoint(self.checkpoints / name)
        if trainer.is_global_zero:
            link_file(self.checkpoints / name, self.checkpoints / LAST_NAME)
            for _, old in removed:
                (self.checkpoints / old).unlink(missing_ok=True)

    def _export(self, trainer: pl.Trainer, pl_module: Seq2SeqModule, name: str) -> None:
        """Write `best/` or `last/`: a from_pretrained folder with the state of the training beside it."""
        if not trainer.is_global_zero:
            return
        epoch, batches = trainer.datamodule.position()  # type: ignore[attr-defined]
        state = {
            "epoch": epoch,
            "micro_batches_of_epoch": batches,
            "global_step": trainer.global_step,
            "monitor": self.flags.monitor,
            "best_score": self.best_score,
            "best_step": self.best_step,
            "validation": pl_module.validation,
            **{key: self.description[key] for key in ("task", "label_map", "flags")},
        }

        def fill(folder: Path) -> None:
            pl_module.model.save_pretrained(folder)
            pl_module.tokenizer.save_pretrained(folder)
            write_json(folder / STATE_NAME, state)

        write_folder(self.folder / name, fill)

    @staticmethod
    def _check_finite(pl_module: Seq2SeqModule) -> None:
        """Never save weights that hold NaN or infinity."""
        pl_module.raise_if_not_finite()
        finite = torch.stack([torch.isfinite(p.detach()).all() for p in pl_module.parameters()]).all()
        if not bool(finite):
            raise RunError(
                f"the weights became NaN or infinite at optimizer step {pl_module.trainer.global_step}; nothing of it"
                " was saved. Likely causes: a learning rate that is too high, or fp16 arithmetic."
            )


def _ours(module: pl.LightningModule) -> Seq2SeqModule:
    assert isinstance(module, Seq2SeqModule)
    return module


# ---- the loop


def at_step_boundary(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether the optimizer stepped after this micro-batch."""
    done = batch_idx + 1
    return done % trainer.accumulate_grad_batches == 0 or done >= trainer.num_training_batches


def _has_validation(trainer: pl.Trainer) -> bool:
    return trainer.datamodule.valid is not None  # type: ignore[attr-defined]


def _epoch_complete(trainer: pl.Trainer) -> bool:
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready >= trainer.num_training_batches


def validation_due(trainer: pl.Trainer) -> bool:
    """Whether a validation follows the micro-batch just done: at the interval, and always at the epoch's end."""
    done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    if not _has_validation(trainer) or done == 0:
        return False
    return done >= trainer.num_training_batches or done % int(trainer.val_check_interval) == 0


def take_over_loop(trainer: pl.Trainer) -> None:
    """Put our rules in the place of three of Lightning's (2.6.6, pinned).

    Validation is due when `validation_due` says so (Lightning would skip the end of an epoch whose last step is
    short, and would validate once more when it is told to stop); signals are ours; and no flag is broadcast before
    each batch, since `Checkpointer` agrees on a stop once a step without waiting for the device.
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    epoch_loop._should_check_val_fx = lambda data_fetcher: validation_due(trainer)  # type: ignore[method-assign] # noqa: ARG005
    epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def canonical_loop_state(trainer: pl.Trainer, epoch: int, batches: int) -> dict[str, Any]:
    """Lightning's loop counters for 'epoch `epoch`, `batches` micro-batches done', however the save came about.

    Lightning guesses from its counters in which hook a checkpoint was written and corrects them on loading. Written
    this way there is nothing to guess: a whole number of batches is done, and validation, if due, is behind us.
    """
    state = trainer.fit_loop.state_dict()
    total = epoch * int(trainer.num_training_batches) + batches
    step = trainer.global_step

    def counters(value: int, *names: str) -> dict[str, int]:
        return dict.fromkeys(names or ("ready", "started", "processed", "completed"), value)

    begun = epoch + 1 if batches else epoch
    epochs = {**counters(epoch), "ready": begun, "started": begun}
    state["epoch_progress"] = {"total": dict(epochs), "current": dict(epochs)}
    state["epoch_loop.state_dict"] = {"_batches_that_stepped": step}
    state["epoch_loop.batch_progress"] = {
        "total": counters(total),
        "current": counters(batches),
        "is_last_batch": False,
    }
    state["epoch_loop.scheduler_progress"] = {
        "total": counters(step, "ready", "completed"),
        "current": counters(0, "ready", "completed"),
    }
    state["epoch_loop.val_loop.batch_progress"] = {
        "total": counters(0),
        "current": counters(0),
        "is_last_batch": False,
    }
    return state
