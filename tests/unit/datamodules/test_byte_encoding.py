"""Direct bytes give the ids of the stock ByT5 tokenizer, whatever the text."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.encoding.arrays import Tokens, gather_ranges
from datamodules.encoding.tokens import ByteEncoder, is_byte_tokenizer

SPECIAL = ["</s>", "<pad>", "<unk>", "<extra_id_0>", "<extra_id_12>", "<extra_id_124>", "<extra_id_125>", "<user>"]
PIECES = [*SPECIAL, "<", ">", "</s", "\0", " ", "\n", "\t", "\r\n", "영화", "é", "\u3000", "😀👨‍👩‍👧", "\u0301", "\x7f"]
TEXTS = st.lists(
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=6).map("".join), min_size=1, max_size=6
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


@pytest.fixture(scope="module")
def extended() -> Any:
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    tokenizer.add_tokens(["<user>", "영화"])
    return tokenizer


def stock(tokenizer: Any, texts: list[str], limit: int) -> list[list[int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options: dict[str, Any] = {"truncation": True, "max_length": limit} if limit else {}
        ids: list[list[int]] = tokenizer(texts, **options)["input_ids"]
        return ids


def direct(tokenizer: Any, texts: list[str], limit: int) -> tuple[list[list[int]], Tokens]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokens = ByteEncoder(tokenizer).encode(pa.array(texts, pa.large_string()), limit, False)
    return [row.tolist() for row in np.split(tokens.values, tokens.offsets[1:-1])], tokens


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS, limit=st.sampled_from([0, 2, 3, 5, 9, 30]))
def test_equal_to_the_stock_tokenizer(tokenizer: Any, texts: list[str], limit: int) -> None:
    ids, tokens = direct(tokenizer, texts, limit)
    assert ids == stock(tokenizer, texts, limit)
    assert tokens.full_lengths.tolist() == [len(row) for row in stock(tokenizer, texts, 0)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS)
def test_equal_with_tokens_added_by_the_user(extended: Any, texts: list[str]) -> None:
    assert is_byte_tokenizer(extended)
    assert direct(extended, texts, 0)[0] == stock(extended, texts, 0)


def test_slices_of_arrow_arrays_and_every_byte_value(tokenizer: Any) -> None:
    texts = ["drop", "".join(map(chr, range(0x20))), "\x80\xff", "", "가\0나"]
    sliced = pa.array(texts, pa.large_string()).slice(1, 4)
    tokens = ByteEncoder(tokenizer).encode(sliced, 0, False)
    rows = [row.tolist() for row in np.split(tokens.values, tokens.offsets[1:-1])]
    assert rows == stock(tokenizer, texts[1:], 0)
    assert rows[2] == [1]
    assert tokens.values.dtype == np.uint16


def test_a_cut_row_ends_with_the_end_token(tokenizer: Any) -> None:
    ids, tokens = direct(tokenizer, ["abcdef", "ab"], 4)
    assert ids == [[100, 101, 102, 1], [100, 101, 1]]
    assert tokens.full_lengths.tolist() == [7, 3]


def test_no_rows(tokenizer: Any) -> None:
    tokens = ByteEncoder(tokenizer).encode(pa.array([], pa.large_string()), 0, False)
    assert (len(tokens), tokens.values.tolist(), tokens.offsets.tolist()) == (0, [], [0])


def test_single_character_tokens_are_left_to_the_stock_tokenizer(tokenizer: Any) -> None:
    from transformers import ByT5Tokenizer

    other = ByT5Tokenizer()
    other.add_tokens(["é"])
    assert is_byte_tokenizer(tokenizer)
    assert not is_byte_tokenizer(other)


def test_rows_may_be_taken_in_any_order() -> None:
    tokens = Tokens(np.array([5, 6, 7, 8]), np.array([0, 1, 1, 4]), np.array([1, 0, 3]))
    taken = tokens.rows(np.array([2, 1, 0, 2]))
    assert taken.values.tolist() == [6, 7, 8, 5, 6, 7, 8]
    assert taken.offsets.tolist() == [0, 3, 3, 4, 7]
    values, offsets = gather_ranges(np.arange(10), np.array([7, 0]), np.array([2, 3]))
    assert (values.tolist(), offsets.tolist()) == ([7, 8, 0, 1, 2], [0, 2, 5])
