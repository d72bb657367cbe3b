"""Ids of single texts with their special tokens, as the encoding of data and the decoder take them. No torch."""

from __future__ import annotations

from typing import Any


def encoded_source(tokenizer: Any, text: str) -> list[int]:
    """Ids of a source as the data encoding makes them: special tokens included, the end token at the end."""
    return _ended(tokenizer, tokenizer(text)["input_ids"])


def encoded_target(tokenizer: Any, text: str) -> list[int]:
    """Ids of a target, as `encoded_source`."""
    return _ended(tokenizer, tokenizer(text_target=text)["input_ids"])


def _ended(tokenizer: Any, ids: list[int]) -> list[int]:
    eos = tokenizer.eos_token_id
    return ids if eos is None or eos in ids else [*ids, eos]


def adds_no_end(tokenizer: Any) -> bool:
    """Whether the tokenizer puts no end token behind a source by itself, so that the data encoding does."""
    return len(encoded_source(tokenizer, "a")) > len(tokenizer("a")["input_ids"])


def example_target(tokenizer: Any) -> list[int]:
    """Ids of a one-letter target."""
    return encoded_target(tokenizer, "a")


def fixed_first_token(tokenizer: Any) -> int | None:
    """The special token that every target begins with (BART's `<s>`, mBART's language), None where there is none."""
    target = example_target(tokenizer)
    bare = tokenizer(text_target="a", add_special_tokens=False)["input_ids"]
    return target[0] if len(target) > 1 and target[: len(bare)] != bare else None
