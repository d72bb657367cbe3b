"""Which ids are sentinels, which special tokens stand around a row, and what too few sentinels are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import ByT5Tokenizer, T5Tokenizer

from datamodules.objectives.frames import Frame, frames
from datamodules.objectives.pieces import Pieces
from datamodules.objectives.sentinels import check_sentinels, sentinel_ids
from datamodules.objectives.span_corruption import SpanCorruption
from tests.small_models import bart_tokenizer, kobart_tokenizer, unigram_tokenizer
from utils.errors import UserError


def test_t5_counts_down_from_its_last_piece(tmp_path: Path) -> None:
    tokenizer = unigram_tokenizer(tmp_path)
    assert sentinel_ids(tokenizer).tolist() == [*range(len(tokenizer) - 1, len(tokenizer) - 101, -1)]
    assert sentinel_ids(tokenizer)[0] == tokenizer.convert_tokens_to_ids("<extra_id_0>")


def test_pieces_of_the_model_file_come_before_names_added_twice() -> None:
    """mT5's and Kc-MoE's model files hold `▁<extra_id_N>`; the library adds its own behind them."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("a", -3.0)]
    pieces += [(f"▁<extra_id_{number}>", 0.0) for number in (2, 1, 0)]
    tokenizer = T5Tokenizer(vocab=pieces)
    assert len(tokenizer) == 108
    assert sentinel_ids(tokenizer).tolist() == [7, 6, 5]


def test_byt5_counts_down_the_bytes_that_are_in_no_text_then_up_behind_them() -> None:
    ids = sentinel_ids(ByT5Tokenizer())
    assert ids[:13].tolist() == [258, 257, 256, 255, 254, 253, 252, 251, 250, 249, 248, 259, 260]
    assert len(ids) == 11 + 125
    assert sentinel_ids(ByT5Tokenizer(extra_ids=0)).tolist() == [*range(258, 247, -1)]
    text = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)  # all there is
    assert max(text.encode()) + 3 == 247
    objective = SpanCorruption(ids, *frames(ByT5Tokenizer()), mean_length=20)
    assert objective.sentinels_needed(objective.raw_length(1024, 189)) == 9  # all of the recipe's are Google's


def test_the_frame_is_that_of_fine_tuning(tmp_path: Path) -> None:
    for name, make, source in (
        ("t5", unigram_tokenizer, ([], [1])),
        ("bart", bart_tokenizer, ([0], [2])),
        ("kobart", kobart_tokenizer, ([], [2])),
    ):
        tokenizer = make(tmp_path / name)
        assert tokenizer.eos_token_id == source[1][0]
        for frame in frames(tokenizer):
            assert (frame.before.tolist(), frame.behind.tolist()) == source


def test_too_few_sentinels_are_refused_with_the_number_and_the_ways_out() -> None:
    end = Frame.of([], [1])
    hundred = np.arange(32_099, 31_999, -1).astype(np.int32)
    objective = SpanCorruption(hundred, end, end)
    check_sentinels(objective, "span_corruption", 100, 1024, 229)
    check_sentinels(objective, "span_corruption", 100, 1809)
    with pytest.raises(UserError) as refused:
        check_sentinels(objective, "span_corruption", 100, 2048)
    assert str(refused.value) == (
        "-objective span_corruption: rows of -max_seq_length 2048 need 114 sentinels (<extra_id_0> to <extra_id_113>),"
        " the tokenizer has 100; train one with train_tokenizer.py -sentinels 114, or give a larger -mean_span_length,"
        " or -max_seq_length 1809 or less"
    )
    with pytest.raises(UserError, match="tokenizer has 100; give a larger -mean_span_length, or -max_seq_length 1809"):
        check_sentinels(objective, "span_corruption", 100, 10**6)  # more than train_tokenizer.py makes
    with pytest.raises(UserError) as refused:
        check_sentinels(objective, "span_corruption", 0, 512)
    assert str(refused.value) == (
        "-objective span_corruption: rows of -max_seq_length 512 need 28 sentinels (<extra_id_0> to <extra_id_27>),"
        " the tokenizer has none; train one with train_tokenizer.py -sentinels 28, or give an objective that needs none"
    )


def test_ids_without_a_token_are_never_drawn() -> None:
    """A tokenizer whose vocabulary has gaps."""

    class Gaps:
        eos_token_id = 1
        all_special_ids = (1,)

        def get_vocab(self) -> dict[str, int]:
            return {"</s>": 1, "▁a": 3, "b.": 6}

        def get_added_vocab(self) -> dict[str, int]:
            return {}

        def convert_tokens_to_string(self, tokens: list[str]) -> str:
            return "".join(tokens).replace("▁", " ")

    pieces = Pieces.of(Gaps())
    assert pieces.ordinary.tolist() == [3, 6]
    assert pieces.sentence_ends(np.array([3, 6, 3, 6, 1, 3], np.int32)).tolist() == [2, 5, 6]
