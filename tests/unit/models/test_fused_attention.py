"""`-attention fused`: refused where it cannot be had; the kernel computes in Triton's interpreter what it should."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig

from config.flags.train import TrainConfig
from config.parser import parse_flags
from datamodules.collate import collate
from datamodules.mixture import mixture_of
from models.kernels.fused import check_fused_attention, use_fused_attention
from models.loading import from_config
from models.losses.objective import batch_loss
from tests.small_configs import CONFIGS, config_of
from training.setup import prepare
from utils.errors import UserError

FILE = Path(__file__).with_name("interpreted_attention.py")


@pytest.mark.skipif(
    not importlib.util.find_spec("triton"), reason="Triton is not installed; CUDA builds of torch bring it"
)
def test_the_kernel_in_the_interpreter() -> None:
    """A process of its own: Triton asks for the variable when it is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(FILE)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def config(kind: str, **changes: object) -> PreTrainedConfig:
    given = config_of(kind, **changes)
    return AutoConfig.for_model(given.pop("model_type"), **given)


@pytest.mark.parametrize("kind", ["t5", "umt5", "mbart", "pegasus", "m2m_100"])
def test_what_the_kernel_does_not_serve_is_computed_by_pytorch(kind: str) -> None:
    plain = from_config(config_of(kind) if kind in CONFIGS else config_of("bart", model_type=kind), seed=1).train()
    fused = copy.deepcopy(plain)
    use_fused_attention(fused)
    rows = collate([(np.arange(3, 20), np.arange(3, 9)), (np.arange(3, 12), np.arange(5, 7))], 0, 8)
    for model in (plain, fused):
        batch_loss(model, rows)[0].backward()  # type: ignore[no-untyped-call]
    for (name, part), other in zip(plain.named_parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(other.grad, part.grad, rtol=1e-4, atol=1e-5, msg=name)
    ids = torch.tensor([[5, 6, 7, 1]])
    tokens = [model.eval().generate(ids, max_new_tokens=6, num_beams=2).tolist() for model in (plain, fused)]
    assert tokens[0] == tokens[1]


def test_refused_before_rows_are_encoded(tmp_path: Path) -> None:
    argv = ["-train_data", "samples/text_normalization/train.tsv", "-config_path", "bart-mini", "-gpus", "0"]
    given, _, _ = parse_flags(TrainConfig, [*argv, "-save_path", str(tmp_path / "run"), "-attention", "fused"])
    with pytest.raises(UserError, match=r"^-attention fused: only on GPUs of NVIDIA; use -attention plain$"):
        prepare(given, mixture_of(given.task, given.data), None)
    assert list(tmp_path.iterdir()) == []


def test_refused_where_it_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    check_fused_attention(config("t5", d_kv=64), "cuda")
    check_fused_attention(config("bart", d_model=64), "cuda")
    refused = [
        (config("t5", d_kv=64), "cpu", "only on GPUs of NVIDIA"),
        (config("t5", d_kv=48), "cuda", "for heads of 16, 32, 64, 128 values, not 48"),
        (
            PreTrainedConfig(num_attention_heads=1, hidden_size=64),
            "cuda",
            "for t5, mt5, umt5, bart, mbart, pegasus, m2m_100, not ",
        ),
    ]
    for given, accelerator, words in refused:
        with pytest.raises(UserError, match=f"^-attention fused: {words}.*; use -attention plain$"):
            check_fused_attention(given, accelerator)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"triton is not installed \(it comes with PyTorch's CUDA build\)"):
        check_fused_attention(config("t5", d_kv=64), "cuda")
