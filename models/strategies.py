"""How the processes of a training run share its work."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.strategies import DDPStrategy
from transformers import PreTrainedConfig

from models.devices import Devices


def lightning_strategy(devices: Devices, strategy: str) -> Any:
    """Lightning's strategy for the word of -strategy; `auto` is plain on one device, DDP on several."""
    if strategy == "auto" and devices.world_size == 1:
        return "auto"
    backend = "gloo" if devices.accelerator == "cpu" else "nccl"
    # No buffer of an encoder-decoder changes in training: there is nothing to synchronise before a forward pass.
    return _DDPStrategy(process_group_backend=backend, forward_sync_buffers=False, gradient_as_bucket_view=True)


class _DDPStrategy(DDPStrategy):
    """DDP that does not wait for the gradients of parameters that a step leaves out, where the model does so."""

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
