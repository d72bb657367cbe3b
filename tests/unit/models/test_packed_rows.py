"""Several documents in a row give the loss and the gradients that they give in rows of their own."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from transformers import BartConfig, T5Config

from datamodules.collate import Batch, collate
from models.forward import decode_batch, takes_packed
from models.kernels.accelerate import accelerate
from models.losses.objective import Objective, Teacher, batch_loss
from tests.unit.models.test_acceleration import assert_close, build

EOS = 1
DOCUMENTS = [(9, 3), (1, 2), (14, 6), (5, 4), (22, 1), (3, 7)]  # tokens of source and target, without EOS
ROWS = [[0, 1, 2], [3], [4, 5]]  # packed: three documents in a row, one, and two


def documents() -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [
        tuple(np.append(generator.integers(3, 64, length), EOS) for length in lengths)  # type: ignore[misc]
        for lengths in DOCUMENTS
    ]


def packed_batch(of_documents: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
    rows = [tuple(map(np.concatenate, zip(*(of_documents[number] for number in row), strict=True))) for row in ROWS]
    return collate(rows, 0, 8, separator=EOS)  # type: ignore[arg-type]


def test_segments_are_numbered_by_their_last_tokens() -> None:
    rows = [(np.array([5, 6, EOS, 7, EOS]), np.array([8, EOS, EOS])), (np.array([5, EOS]), np.array([9, EOS]))]
    batch = collate(rows, 0, separator=EOS)
    assert batch["source_segments"].tolist() == [[1, 1, 1, 2, 2], [1, 1, 0, 0, 0]]
    assert batch["target_segments"].tolist() == [[1, 1, 2], [1, 1, 0]]
    assert "source_segments" not in collate(rows, 0)


@pytest.mark.parametrize("arithmetic", ["plain", "fast", "bf16"])
@pytest.mark.parametrize("kind", ["t5-gated-gelu", "mt5", "umt5"])
def test_loss_and_gradients_are_those_of_rows_of_their_own(kind: str, arithmetic: str) -> None:
    model = build(kind)
    if arithmetic != "plain":
        accelerate(model)
    results = []
    for batch in (collate(documents(), 0, 8), packed_batch(documents())):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if arithmetic == "bf16" else nullcontext():
            loss = batch_loss(model, batch)[0]  # type: ignore[arg-type]
        loss.backward()
        results.append((loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    (loss, wanted), (packed_loss, got) = results
    if arithmetic == "bf16":  # rounded at other places
        assert packed_loss.item() == pytest.approx(loss.item(), rel=2e-3)
        return
    assert packed_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    for name in wanted:
        assert_close(got[name], wanted[name], name)


def test_r_drop_and_a_teacher_keep_documents_apart_as_well() -> None:
    model, teacher = build("t5-gated-gelu"), build("t5-gated-gelu")
    for objective in (Objective(rdrop_alpha=1.0), Objective(teacher=Teacher(teacher, 2.0, 0.5))):
        alone, packed = (
            objective(model, batch).item()  # type: ignore[arg-type]
            for batch in (collate(documents(), 0, 8), packed_batch(documents()))
        )
        assert packed == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("fast", [False, True])
def test_no_document_sees_another(fast: bool) -> None:
    """Other text in one document changes the states of no other one by a single bit."""
    model = build("t5-gated-gelu")
    if fast:
        accelerate(model)
    texts, changed = documents(), documents()
    changed[1] = (np.array([33, EOS]), np.array([40, 41, EOS]))  # in the middle of the first row
    states, others = (decode_batch(model, packed_batch(part)).hidden for part in (texts, changed))  # type: ignore[arg-type]
    mine = packed_batch(texts)["target_segments"][0] == 2
    assert torch.equal(states[0][~mine], others[0][~mine])
    assert not torch.equal(states[0][mine], others[0][mine])
    assert torch.equal(states[1:], others[1:])


def test_a_batch_without_rows_and_rows_without_target_are_finite() -> None:
    model = copy.deepcopy(build("t5-gated-gelu"))
    for rows in ([], [(np.array([5, 6, EOS]), None), (np.array([5, EOS]), np.array([9, EOS]))]):
        model.zero_grad()
        loss = batch_loss(model, collate(rows, 0, 8, separator=EOS))[0]  # type: ignore[arg-type]
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_only_positions_that_are_differences_can_be_packed() -> None:
    assert takes_packed(T5Config())
    assert not takes_packed(BartConfig())
