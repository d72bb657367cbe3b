"""Label log-probabilities equal the sum of token log-probabilities of the library's model, label by label."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from generation.label_scoring import LabelScorer
from models.loading import from_config
from models.special_tokens import encoded_target
from tests.small_configs import config_of
from tests.small_models import bart_tokenizer
from tests.trained_models import TOKENIZER, encoded, half_trained, words

LABELS = ["긍정", "부정", "a", "ab", "abc", "중립입니다", "b"]
UNLIKELY = ["z" * 20, "아주 긴 라벨의 이름입니다"]  # a log-probability of some -500


def brute_force(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, target: list[int]) -> torch.Tensor:
    """fp64 (batch,) sum of log-probabilities of a target under the plain model."""
    labels = torch.tensor([target] * len(ids))
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, labels=labels).logits
    return logits.double().log_softmax(-1).gather(2, labels.unsqueeze(2)).squeeze(2).sum(1)


@pytest.mark.parametrize("name", ["t5", "t5-untied", "mt5", "umt5", "bart", "mbart"])
def test_scores_are_sums_of_token_log_probabilities(name: str) -> None:
    model = half_trained(name)
    ids, mask = encoded(words(9, seed=2))
    labels = [*LABELS, *UNLIKELY]
    scores = LabelScorer(model, TOKENIZER, labels)(ids, mask)
    assert scores.shape == (9, len(labels))
    assert scores.min() < -200
    for label, text in enumerate(labels):
        expected = brute_force(model, ids, mask, encoded_target(TOKENIZER, text))
        # Sums of 40 fp32 numbers in another order differ by two or three units of the last place (1.2e-7).
        torch.testing.assert_close(scores[:, label], expected, rtol=3e-7, atol=1e-5)


def test_the_probability_of_all_letters_is_that_of_one_token_and_the_end() -> None:
    """P(letter) * P(end | letter), summed over 95 labels that share nothing but the start."""
    model = half_trained("t5")
    ids, mask = encoded(["abc", "x"])
    letters = [chr(code) for code in range(32, 127)]
    found = LabelScorer(model, TOKENIZER, letters)(ids, mask).exp().sum(1)
    expected = sum(brute_force(model, ids, mask, encoded_target(TOKENIZER, letter)).exp() for letter in letters)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert bool((found < 1).all())


def test_the_pass_is_prepared_once_for_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = LabelScorer(half_trained("bart"), TOKENIZER, LABELS)
    prepared: list[torch.dtype] = []
    queries = scorer._queries
    monkeypatch.setattr(scorer, "_queries", lambda dtype: (prepared.append(dtype), queries(dtype))[1])
    for _ in range(3):
        scorer(*encoded(["abc", "x"]))
    with torch.autocast("cpu", torch.bfloat16):
        scorer(*encoded(["abc"]))
        scorer(*encoded(["abc"]))
    assert prepared == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("limit", ["LOGITS_AT_ONCE", "QUERIES_AT_ONCE"])
def test_a_large_batch_is_done_in_parts_without_a_difference(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    model = half_trained("bart")
    ids, mask = encoded(words(12, seed=6))
    whole = LabelScorer(model, TOKENIZER, LABELS)(ids, mask)
    monkeypatch.setattr(f"generation.label_scoring.{limit}", 1)
    torch.testing.assert_close(LabelScorer(model, TOKENIZER, LABELS)(ids, mask), whole, rtol=1e-6, atol=1e-5)


def test_a_fixed_first_token_counts_nothing(tmp_path: Path) -> None:
    tokenizer = bart_tokenizer(tmp_path / "bart")
    model = from_config(config_of("bart", vocab_size=500), seed=3).eval()
    ids, mask = encoded(["abc", "defgh"])
    texts = ["영화", "재미있었어요"]
    scores = LabelScorer(model, tokenizer, texts)(ids, mask)
    for label, text in enumerate(texts):
        target = encoded_target(tokenizer, text)
        assert target[0] == tokenizer.bos_token_id
        first = brute_force(model, ids, mask, target[:1])
        expected = brute_force(model, ids, mask, target) - first
        torch.testing.assert_close(scores[:, label], expected, rtol=0, atol=1e-5)


def test_the_pass_holds_each_shared_prefix_once() -> None:
    scorer = LabelScorer(half_trained("bart"), TOKENIZER, ["abcdef", "abcdeg", "abc"])
    tokens, positions, _ = scorer._queries(torch.float32)
    assert tokens.shape == (1, 8)  # the start token, a b c d e f, g
    assert positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 6]]


def test_scores_under_autocast_are_close() -> None:
    model = half_trained("t5-untied")
    ids, mask = encoded(words(9, seed=2))
    scorer = LabelScorer(model, TOKENIZER, LABELS)
    exact = scorer(ids, mask)
    with torch.autocast("cpu", torch.bfloat16):
        close = scorer(ids, mask)
    assert close.dtype == torch.float64
    torch.testing.assert_close(close, exact, rtol=0.05, atol=0.3)


def test_unknown_decoders_are_refused() -> None:
    from transformers import BlenderbotConfig, BlenderbotForConditionalGeneration

    config = BlenderbotConfig(
        vocab_size=384, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32,
    )  # fmt: skip
    with pytest.raises(ValueError, match="labels cannot be scored with BlenderbotForConditionalGeneration"):
        LabelScorer(BlenderbotForConditionalGeneration(config), TOKENIZER, ["a"])


def test_too_many_labels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generation.label_scoring.MOST_NODES", 4)
    with pytest.raises(ValueError, match=r"^the 3 labels have 6 beginnings, and at most 4 are scored; use -label_dec"):
        LabelScorer(half_trained("t5"), TOKENIZER, ["ab", "cd", "ae"])
