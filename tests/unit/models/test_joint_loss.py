"""Pairs beside texts: a step of micro-batches has the gradient of both losses in one graph, with the same dropout."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from config.flags.optim import OptimFlags
from datamodules.batching import BatchOptions
from datamodules.corpus_rows import ClozeRows, CorpusRows, Member
from datamodules.objectives.frames import Frame
from datamodules.objectives.prefix_lm import PrefixLM
from datamodules.objectives.span_corruption import SpanCorruption
from datamodules.retrieval.passages import Passages
from datamodules.seq2seq_datamodule import MicroBatches
from models.loading import from_config
from models.losses.contrastive import Contrastive, Vectors
from models.losses.joint import Joint
from models.losses.objective import Objective
from models.seq2seq_module import ModuleOptions, Seq2SeqModule, micro_batch_seed
from tests.small_configs import with_dropout
from training.trainer import optim_settings

SEED, STEP, WEIGHT, TEMPERATURE = 3, 3, 0.7, 0.1
FRAME = Frame.of([], [1])
SPANS = SpanCorruption(np.arange(383, 373, -1, dtype=np.int32), FRAME, FRAME)


class Texts:
    """A corpus of random letters."""

    num_tokens, fingerprint = 900, "texts"

    def tokens(self, start: int, stop: int) -> np.ndarray:
        return np.random.default_rng(1).integers(3, 259, self.num_tokens)[start:stop]


def micro_batches() -> list[dict[str, Any]]:
    """The first step: three of two rows, each of which is a prefix and its rest beside what is denoised."""
    rows = CorpusRows([Member(Texts(), 900, 1.0, "a")], 24, SPANS, SEED, 1, np.array([1]))
    batches = MicroBatches(rows, 0, 1, cloze=Passages(ClozeRows(rows, PrefixLM(FRAME, FRAME))))
    batches.follow(rows.plan(BatchOptions(batch_size=2, accumulate=STEP), SEED, 0, 1), 0)
    return [batches[place] for place in range(STEP)]


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([part.grad.flatten() for part in model.parameters() if part.grad is not None]).double()


@pytest.mark.parametrize(("kind", "pooling"), [("t5", "mean"), ("bart", "decoder")])
def test_a_step_has_the_gradient_of_both_losses_over_all_of_its_rows(kind: str, pooling: str) -> None:
    model = from_config(with_dropout(kind), seed=3).train()
    step, written = micro_batches(), Objective()
    objective = Joint(written, Contrastive(pooling, TEMPERATURE), WEIGHT)
    settings, options = optim_settings(OptimFlags()), ModuleOptions(SEED, 1, accumulate=STEP, log_every=1)
    module = Seq2SeqModule(model, None, settings, options, None, objective).train()  # type: ignore[arg-type]
    module._trainer = SimpleNamespace(world_size=1, global_rank=0, current_epoch=0)  # type: ignore[assignment]
    for place, batch in enumerate(step):
        (module.training_step(batch, place) / STEP).backward()  # type: ignore[no-untyped-call]
    found = gradient(model)

    model.zero_grad()
    vectors, of_texts = [], []
    for place, batch in enumerate(step):
        torch.manual_seed(micro_batch_seed(SEED, 0, place, 0))
        vectors.append(Vectors.of(model, batch["cloze"], pooling))
        of_texts.append(written(model, batch))
    of_pairs = Vectors.joined(vectors).losses(TEMPERATURE).mean()
    of_text = torch.stack(of_texts).sum() / sum(batch["num_target_tokens"] for batch in step)
    (of_text + WEIGHT * of_pairs).backward()  # type: ignore[no-untyped-call]
    expected = gradient(model)
    assert float((found - expected).norm() / expected.norm()) < 1e-6
    totals = module.meter.totals(torch.device("cpu"), 1)
    assert totals.loss_per_token == pytest.approx(float(of_text.detach()), rel=1e-6)
    logged = module.row_figures(module.meter.row_sums(1), totals.rows)
    assert logged == {"contrastive_loss": pytest.approx(float(of_pairs.detach()), rel=1e-6)}
