"""Collating: exact tensors, padding that no loss counts, and the row that stands in for an empty batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from datamodules.collate import collate
from models.losses.cross_entropy import token_loss_sum

ids = st.lists(st.integers(0, 60_000), min_size=1, max_size=12)


def test_padding_masks_and_target_places():
    rows = [
        (np.array([5, 6, 1], np.uint16), np.array([9, 1], np.int32)),
        (np.array([7], np.int32), np.array([8, 3, 1])),
    ]
    batch = collate(rows, pad_token_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 1], [7, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[9, 1, -100], [8, 3, 1]]
    assert batch["target_index"].tolist() == [0, 1, 3, 4, 5]
    assert batch["num_target_tokens"] == 5
    assert type(batch["num_target_tokens"]) is int
    assert {value.dtype for value in batch.values() if isinstance(value, torch.Tensor)} == {torch.int64}


def test_lengths_are_rounded_up_and_the_pad_token_is_the_models():
    rows = [(np.arange(2, 11), np.array([4])), (np.array([3]), None)]
    batch = collate(rows, pad_token_id=1, pad_to_multiple_of=8)
    assert batch["input_ids"].shape == (2, 16)
    assert batch["input_ids"][1].tolist() == [3] + [1] * 15
    assert batch["labels"].tolist() == [[4] + [-100] * 7, [-100] * 8]
    assert batch["target_index"].tolist() == [0]


def test_a_token_equal_to_pad_is_attended_to():
    batch = collate([(np.array([0, 0, 1]), np.array([0, 1])), (np.array([1]), np.array([1]))], pad_token_id=0)
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["num_target_tokens"] == 3


def test_rows_without_any_target_have_only_ignored_labels():
    batch = collate([(np.array([5, 1]), None), (np.array([1]), None)], pad_token_id=0)
    assert batch["labels"].tolist() == [[-100], [-100]]
    assert batch["target_index"].tolist() == []
    assert batch["num_target_tokens"] == 0


@given(st.lists(st.tuples(ids, st.none() | ids), min_size=1, max_size=9), st.sampled_from([1, 8]))
def test_rows_can_be_read_back(rows, multiple):
    arrays = [(np.array(source), None if target is None else np.array(target)) for source, target in rows]
    batch = collate(arrays, pad_token_id=0, pad_to_multiple_of=multiple)
    for number, (source, target) in enumerate(rows):
        assert batch["input_ids"][number][batch["attention_mask"][number] == 1].tolist() == source
        labels = batch["labels"][number]
        assert labels[labels != -100].tolist() == (target or [])
    flat = batch["labels"].flatten()
    assert batch["target_index"].tolist() == (flat != -100).nonzero().flatten().tolist()
    assert batch["input_ids"].shape[1] % multiple == batch["labels"].shape[1] % multiple == 0


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_an_empty_batch_has_loss_zero_and_zero_gradients(architecture):
    torch.manual_seed(0)
    if architecture == "t5":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        model = T5ForConditionalGeneration(T5Config(vocab_size=40, decoder_start_token_id=0, **sizes))
    else:
        sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
        model = BartForConditionalGeneration(
            BartConfig(vocab_size=40, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, **sizes)
        )
    batch = collate([], pad_token_id=model.config.pad_token_id, pad_to_multiple_of=8)
    assert batch["attention_mask"].tolist() == [[1] + [0] * 7]
    assert batch["num_target_tokens"] == 0
    decoder_input_ids = model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
    outputs = model.model if architecture == "bart" else model
    hidden = outputs(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=decoder_input_ids,
        use_cache=False,
        output_hidden_states=True,
    ).decoder_hidden_states[-1]
    loss = token_loss_sum(hidden, model.lm_head.weight, batch["labels"], target_index=batch["target_index"])
    loss.backward()
    assert loss.item() == 0.0
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)
