"""Where a run stands between two optimizer steps, in Lightning's loop counters, and our rules for its loop."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import CheckpointIO
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from transformers import PreTrainedConfig

from checkpoints.saved_run import SavedRun
from checkpoints.sharded import Rows
from datamodules.seq2seq_datamodule import Seq2SeqDataModule
from models.architectures import architecture
from models.seq2seq_module import Seq2SeqModule
from training.process_watch import PARENT_VARIABLE, ProcessWatch
from utils.errors import RunError, first_line
from utils.files import run_error, write_file


def ours(module: pl.LightningModule) -> Seq2SeqModule:
    """Our module, as Lightning hands it to a callback."""
    assert isinstance(module, Seq2SeqModule)
    return module


def data_module(trainer: pl.Trainer) -> Seq2SeqDataModule:
    """The data module of the run."""
    attached: Any = trainer  # its class declares no such attribute
    module: Seq2SeqDataModule = attached.datamodule
    return module


def in_precision(trainer: pl.Trainer) -> AbstractContextManager[Any]:
    """The context in which the training step computes; Lightning leaves it before a validation ends."""
    return trainer.precision_plugin.forward_context()


def at_step_boundary(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether the optimizer stepped after this micro-batch."""
    done = batch_idx + 1
    return done % trainer.accumulate_grad_batches == 0 or done >= trainer.num_training_batches


def has_validation(trainer: pl.Trainer) -> bool:
    """Whether the run has validation rows."""
    return bool(data_module(trainer).validated)


def batches_done(trainer: pl.Trainer) -> int:
    """Micro-batches of the epoch that are done, or under way."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def epoch_complete(trainer: pl.Trainer) -> bool:
    """Whether every micro-batch of the epoch is done."""
    return batches_done(trainer) >= trainer.num_training_batches


def validation_due(trainer: pl.Trainer) -> bool:
    """Whether a validation follows the micro-batch just done: at the interval, and always at the epoch's end."""
    done = batches_done(trainer)
    if not has_validation(trainer) or done == 0:
        return False
    return done >= trainer.num_training_batches or done % int(trainer.val_check_interval) == 0


def epoch_of(epoch: int, batches: int) -> int:
    """The epoch of the latest micro-batch, from a position of the run: the end of an epoch is (epoch + 1, 0)."""
    return epoch if batches else epoch - 1


def take_over_loop(trainer: pl.Trainer) -> None:
    """Put our rules in the place of five of Lightning's (2.6.6, pinned).

    Validation is due when `validation_due` says so (Lightning would skip the end of an epoch whose last step is
    short, and would validate once more when it is told to stop); a resumed run first does the validation that it was
    stopped in; signals are ours; no flag is broadcast before each batch, since `Checkpointer` agrees on a stop once a
    step without waiting for the device; and gradients and the state of the optimizer, which nobody needs after the fit,
    are dropped at its end, where Lightning would move those of every process from its device to the memory of the host.
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    train_batch = epoch_loop.advance
    taken_up = False  # the validation that the run was stopped in is next, whatever the interval is now

    def advance(data_fetcher: Any) -> None:
        nonlocal taken_up
        taken_up = data_module(trainer).validation_pending
        if taken_up:
            data_module(trainer).validation_pending = False
            epoch_loop.val_loop.restarting = False
        else:
            train_batch(data_fetcher)

    def should_validate(_: Any) -> bool:
        return (taken_up and has_validation(trainer)) or validation_due(trainer)

    epoch_loop.advance = advance  # type: ignore[method-assign]
    epoch_loop._should_check_val_fx = should_validate  # type: ignore[method-assign, assignment]
    epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    strategy = trainer.strategy
    tear_down = strategy.teardown

    def drop_and_tear_down() -> None:
        for optimizer in strategy.optimizers:
            optimizer.zero_grad()
            optimizer.state.clear()
        tear_down()

    strategy.teardown = drop_and_tear_down  # type: ignore[method-assign]


def fit_loop_state(epoch: int, batches: int, batches_per_epoch: int, step: int) -> dict[str, Any]:
    """The state of Lightning's fit loop when `batches` micro-batches of `epoch` are done, and `step` steps in all.

    Lightning guesses from its counters in which hook a checkpoint was written and corrects them on loading. Written
    this way there is nothing to guess: a whole number of batches is done, and validation, if due, is behind us.
    """
    total = epoch * batches_per_epoch + batches

    def counters(value: int, *names: str) -> dict[str, int]:
        return dict.fromkeys(names or ("ready", "started", "processed", "completed"), value)

    def progress(in_all: int, now: int, *names: str) -> dict[str, Any]:
        return {"total": counters(in_all, *names), "current": counters(now, *names)}

    begun = epoch + 1 if batches else epoch
    epochs = {**counters(epoch), "ready": begun, "started": begun}
    automatic, manual = "epoch_loop.automatic_optimization", "epoch_loop.manual_optimization"
    two, three = ("ready", "completed"), ("ready", "completed", "started")
    return {
        "state_dict": {},
        "epoch_progress": {"total": dict(epochs), "current": dict(epochs)},
        "epoch_loop.state_dict": {"_batches_that_stepped": step},
        "epoch_loop.batch_progress": {**progress(total, batches), "is_last_batch": False},
        "epoch_loop.scheduler_progress": progress(step, 0, *two),
        f"{automatic}.state_dict": {},
        f"{automatic}.optim_progress": {
            "optimizer": {"step": progress(step, 0, *two), "zero_grad": progress(step, 0, *three)}
        },
        f"{manual}.state_dict": {},
        f"{manual}.optim_step_progress": progress(0, 0, *two),
        "epoch_loop.val_loop.state_dict": {},
        "epoch_loop.val_loop.batch_progress": {**progress(0, 0), "is_last_batch": False},
    }


def checkpoint_of(trainer: pl.Trainer) -> dict[str, Any]:
    """What Lightning, the data module and the callbacks put into a checkpoint now; every process calls it."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint file durably."""
    write_file(path, lambda file: torch.save(checkpoint, file), needed=_tensor_bytes(checkpoint))


class DurableCheckpointIO(CheckpointIO):
    """Lightning's checkpoint files, written durably.

    Args:
        resumed: the run that is continued, as it was read and checked; nothing else can be loaded. Its tensors are
            handed over once, so that they do not stay in memory for the whole run.
        on_cpu: the state of the optimizer stays there: it is copied, so that no page of the file is in use any more.
        sharded: the strategy takes its part of the tensors by itself.
    """

    def __init__(self, resumed: SavedRun | None = None, on_cpu: bool = False, sharded: bool = False) -> None:
        self.resumed = resumed
        self.on_cpu = on_cpu
        self.sharded = sharded

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        del storage_options
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        del map_location, weights_only
        if self.resumed is None:
            raise RuntimeError(f"{path}: this run continues no checkpoint, or has loaded it")
        resumed, self.resumed = self.resumed, None
        position = resumed.position
        loop = fit_loop_state(position.epoch, position.batches, position.batches_per_epoch, resumed.global_step)
        loaded = resumed.for_lightning(loop, version("pytorch-lightning"))
        resumed.model.tensors.release()
        if not self.sharded:
            loaded["optimizer_states"] = [_whole_state(state, self.on_cpu) for state in loaded["optimizer_states"]]
        return loaded

    def remove_checkpoint(self, path: Any) -> None:
        with run_error(Path(path)):
            Path(path).unlink(missing_ok=True)


def _whole_state(saved: Mapping[str, Any], copied: bool) -> dict[str, Any]:
    """The state of an optimizer with whole tensors, wherever they come from."""
    kept = {number: dict(one) if isinstance(one, Rows) else one for number, one in saved["state"].items()}
    state = {**saved, "state": kept}
    return copy.deepcopy(state) if copied else state


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(_tensor_bytes, value.values()))
    return sum(map(_tensor_bytes, value)) if isinstance(value, list | tuple) else 0


class OurDDP(DDPStrategy):
    """DDP that does not wait for the gradients of parameters that a step leaves out, where the model does so.

    Its processes have a second group, on the CPU and over TCP: what they tell each other there waits for no device.

    Args:
        compressed: gradients are sent in bf16.
    """

    control_group: Any = None  # None: there is one process only

    def __init__(self, compressed: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.compressed = compressed

    def setup_environment(self) -> None:
        with meeting():
            super().setup_environment()
        if self.world_size > 1:
            self.control_group = tcp_group()

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def configure_ddp(self) -> None:
        module: Any = self.lightning_module
        if leaves_out_parameters(module.model.config):
            self._ddp_kwargs["find_unused_parameters"] = True
        with meeting():  # NCCL connects when it is used first
            super().configure_ddp()
        if self.compressed:
            wrapped: Any = self.model
            # torch refuses it by its name on a CPU, where gloo sums bf16 as well.
            wrapped.register_comm_hook(None, lambda group, bucket: bf16_compress_hook(group, bucket))


@contextmanager
def meeting() -> Iterator[None]:
    """Raise `RunError`, with what to look at, where the processes do not find each other in the time of torch."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error).lower():
            raise
        place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise RunError(
            f"the processes do not find each other at {place} ({first_line(error)}): start all of them, with an address"
            " of the first machine that the others reach; where machines have several networks, set GLOO_SOCKET_IFNAME"
            " and with GPUs NCCL_SOCKET_IFNAME to the interface that they share, e.g. eth0; `ip -brief address` lists"
            " them"
        ) from error


def tcp_group() -> Any:
    """Another group of all processes, on the CPU; every process calls it. `RunError` where they cannot talk."""
    try:
        return torch.distributed.new_group(backend="gloo")
    except RuntimeError as error:
        raise RunError(
            f"the processes cannot reach each other over TCP (gloo: {first_line(error)}): set GLOO_SOCKET_IFNAME to the"
            " network interface that the machines share, e.g. GLOO_SOCKET_IFNAME=eth0; `ip -brief address` lists them"
        ) from error


def control_group(trainer: pl.Trainer) -> Any:
    """The group of the processes on the CPU; None where there is one process only."""
    return getattr(trainer.strategy, "control_group", None)


def tcp_gather(trainer: pl.Trainer) -> Callable[[Any], list[Any]]:
    """What gives a value of every process, by rank, over TCP and beside the training; every process calls it."""
    group = getattr(trainer.strategy, "save_group", None)

    def gather(value: Any) -> list[Any]:
        found = [value] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(found, value, group=group)
        return found

    return gather


def gathered(trainer: pl.Trainer, value: Any) -> list[Any]:
    """`value` of every process, by rank; every process calls it."""
    if trainer.world_size == 1:
        return [value]
    found = [value] * trainer.world_size
    torch.distributed.all_gather_object(found, value, group=control_group(trainer))
    return found


def leaves_out_parameters(config: PreTrainedConfig) -> bool:
    """Whether a training step may use a part of the parameters only: layers dropped at random, or what its row says."""
    parts = (config, getattr(config, "encoder", None), getattr(config, "decoder", None))
    drops = any(getattr(part, f"{side}_layerdrop", 0) for part in parts for side in ("encoder", "decoder"))
    return drops or architecture(config.model_type).leaves_out_parameters


class _Launcher(_SubprocessScriptLauncher):
    """Starts the other processes of this machine and watches them; the threads stay as they were shared out."""

    watch: ProcessWatch | None = None

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        del trainer
        if not self.cluster_environment.creates_processes_externally:
            os.environ[PARENT_VARIABLE] = str(os.getpid())
            self._call_children_scripts()
            self.watch = ProcessWatch(self.procs)
            self.watch.start()
        return function(*args, **kwargs)
