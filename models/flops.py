"""How much a training step computes, and what share of a GPU's matrix products that is (MFU)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from models.architectures import architecture
from models.meter import Totals

# Dense TFLOP/s of matrix products, bf16 (fp16 alike) and TF32, by the name that CUDA gives a card; NVIDIA's data sheets
# and white papers (where those give the rate with sparsity, half of it).
PEAKS = {
    "NVIDIA B200": (2250.0, 1125.0),
    "NVIDIA H200": (989.4, 494.7),
    "NVIDIA H200 NVL": (835.5, 417.5),
    "NVIDIA H100 80GB HBM3": (989.4, 494.7),
    "NVIDIA H100 NVL": (835.5, 417.5),
    "NVIDIA H100 PCIe": (756.0, 378.0),
    "NVIDIA A100-SXM4-40GB": (312.0, 156.0),
    "NVIDIA A100-SXM4-80GB": (312.0, 156.0),
    "NVIDIA A100-PCIE-40GB": (312.0, 156.0),
    "NVIDIA A100 80GB PCIe": (312.0, 156.0),
    "NVIDIA A40": (149.7, 74.8),
    "NVIDIA A30": (165.0, 82.0),
    "NVIDIA A10": (125.0, 62.5),
    "NVIDIA L40S": (362.0, 183.0),
    "NVIDIA L4": (121.0, 60.0),
    "NVIDIA RTX A6000": (154.8, 77.4),
    "NVIDIA GeForce RTX 4090": (165.2, 82.6),
    "NVIDIA GeForce RTX 3090": (71.0, 35.6),
}


def matmul_peak(card: str, arithmetic: str) -> float | None:
    """FLOP/s of a card's matrix products in bf16, fp16 or tf32; None where the data sheet is not known."""
    if card not in PEAKS or arithmetic not in ("bf16", "fp16", "tf32"):
        return None
    return PEAKS[card][arithmetic == "tf32"] * 1e12


@dataclass(frozen=True)
class ModelFlops:
    """The matrix products of a T5 or BART; a multiply-add is two FLOPs.

    Each weight of a linear layer is used once a token: those of the encoder and of the cross-attention's keys and
    values once a source token, those of the decoder and of the output layer once a target token. Attention costs
    4 * inner * keys a query and layer. Embeddings, norms and the softmax are not counted.
    """

    source_weights: int
    target_weights: int
    inner: int  # width of all heads of an attention together
    encoder_layers: int
    decoder_layers: int

    def training(self, rows: int, source_tokens: int, target_tokens: int) -> float:
        """FLOPs of forward and backward (twice the forward) on so many tokens, attention by their mean lengths."""
        linear = 2 * (self.source_weights * source_tokens + self.target_weights * target_tokens)
        source, target = source_tokens / max(rows, 1), target_tokens / max(rows, 1)
        keys = self.encoder_layers * source * source_tokens + self.decoder_layers * (source + target) * target_tokens
        return 3 * (linear + 4 * self.inner * keys)


def model_flops(model: PreTrainedModel) -> ModelFlops | None:
    """What a model costs a token; None of an architecture that is built otherwise."""
    row, config = architecture(model.config.model_type), model.config
    if not row.own_search or row.experts:
        return None
    source_weights = target_weights = 0
    of_source = ("EncDecAttention.k", "EncDecAttention.v", "encoder_attn.k_proj", "encoder_attn.v_proj")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            on_source = name.startswith(("encoder.", "model.encoder.")) or name.endswith(of_source)
            source_weights += module.weight.numel() if on_source else 0
            target_weights += 0 if on_source else module.weight.numel()
    if row.like_t5:
        inner, layers = config.d_kv * config.num_heads, (config.num_layers, config.num_decoder_layers)
    else:
        inner, layers = config.d_model, (config.encoder_layers, config.decoder_layers)
    return ModelFlops(source_weights, target_weights, inner, *layers)


class Utilization:
    """The share of the peak of all GPUs of a run that its useful matrix products make up (MFU).

    Padding, and what gradient checkpointing computes again, are not useful. There is none on a CPU, in plain fp32, on a
    card that is not in `PEAKS`, of an architecture that is not counted, and where a part is frozen.
    """

    def __init__(self, model: PreTrainedModel, arithmetic: str, devices: int) -> None:
        self.flops, self.peak = None, None
        if model.device.type == "cuda" and all(parameter.requires_grad for parameter in model.parameters()):
            self.flops = model_flops(model)
            card = matmul_peak(torch.cuda.get_device_name(model.device), arithmetic)
            self.peak = card and card * devices

    def share(self, totals: Totals) -> float | None:
        """MFU, 0 to 1, of what was measured."""
        if self.flops is None or self.peak is None or not totals.seconds:
            return None
        computed = self.flops.training(totals.rows, totals.tokens - totals.target_tokens, totals.target_tokens)
        return computed / totals.seconds / self.peak
