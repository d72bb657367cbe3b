"""How the processes of a training run share its work."""

from __future__ import annotations

import os
from typing import Any

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.strategies import DDPStrategy
from transformers import PreTrainedConfig

from training.lightning_loop import _Launcher
from utils.devices import Devices
from utils.launch import in_job, step_tasks


def lightning_strategy(devices: Devices, strategy: str) -> Any:
    """Lightning's strategy for the word of -strategy; `auto` is plain on one device, DDP on several."""
    if strategy == "auto" and devices.world_size == 1:
        return "auto"
    backend = "gloo" if devices.accelerator == "cpu" else "nccl"
    # No buffer of an encoder-decoder changes in training: there is nothing to synchronise before a forward pass.
    return _DDPStrategy(process_group_backend=backend, forward_sync_buffers=False, gradient_as_bucket_view=True)


def cluster_environment(devices: Devices) -> ClusterEnvironment | None:
    """Who starts the processes in a SLURM job: srun, or else this process; None where Lightning finds that out itself.

    Lightning takes the number of tasks that the job asked for as that of the processes, whether srun started them or
    not: a run without srun would be a part of a run that never begins, or one process where several were asked for.
    """
    if not in_job() or "TORCHELASTIC_RUN_ID" in os.environ:
        return None
    if step_tasks() == 1:
        return LightningEnvironment()
    # check_launcher saw to it that there is a task for each device; Lightning wants it to be asked for in these words.
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(devices.count))
    return SLURMEnvironment(auto_requeue=False)


class _DDPStrategy(DDPStrategy):
    """DDP that does not wait for the gradients of parameters that a step leaves out, where the model does so."""

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def configure_ddp(self) -> None:
        module: Any = self.lightning_module
        if leaves_out_parameters(module.model.config):
            self._ddp_kwargs["find_unused_parameters"] = True
        super().configure_ddp()


def leaves_out_parameters(config: PreTrainedConfig) -> bool:
    """Whether a training step may use a part of the parameters only: layers dropped at random, or a BERT's pooler."""
    parts = (config, getattr(config, "encoder", None), getattr(config, "decoder", None))
    drops = any(getattr(part, f"{side}_layerdrop", 0) for part in parts for side in ("encoder", "decoder"))
    return drops or config.model_type == "encoder-decoder"
