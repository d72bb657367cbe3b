"""Model folders: what others than `inference.py` must know of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from checkpoints.model_folder import fill_folder
from models.loading import from_config
from models.special_tokens import encoded_source
from tests.small_configs import config_of
from tests.small_models import bart_tokenizer, kobart_tokenizer


@pytest.mark.parametrize(("make", "told"), [(kobart_tokenizer, True), (bart_tokenizer, False)])
def test_a_folder_says_how_to_append_the_end_token_that_its_tokenizer_leaves_out(
    tmp_path: Path, make: object, told: bool
) -> None:
    tokenizer = make(tmp_path / "tokenizer")  # type: ignore[operator]
    (tmp_path / "best").mkdir()
    fill_folder(tmp_path / "best", from_config(config_of("bart", vocab_size=len(tokenizer)), 1), tokenizer, {})
    note = tmp_path / "best" / "end_token.txt"
    assert note.exists() == told
    if told:
        assert "tokenizer([text + tokenizer.eos_token for text in texts]" in note.read_text(encoding="utf-8")
        theirs = AutoTokenizer.from_pretrained(tmp_path / "best")
        assert theirs("한국어 문장" + theirs.eos_token)["input_ids"] == encoded_source(tokenizer, "한국어 문장")
