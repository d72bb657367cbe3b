"""Lines -> a tokenizer: SentencePiece's Unigram and BPE, and byte-level BPE.

The same lines give the same bytes, on any number of processors: SentencePiece shares out its work to a fixed number of
threads, and adds up in their order.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from config.flags.train_tokenizer import TokenizerFlags
from models.sentencepiece_models.fast_tokenizer import (
    END,
    MASK,
    PAD,
    SPECIAL_TOKENS,
    UNKNOWN,
    parsed_model,
    with_special_tokens,
)
from training.tokenizer.alphabet import coverage_with
from training.tokenizer.morphemes import BOUNDARY
from utils.errors import UserError

THREADS = 16  # they decide how sums are rounded
LONGEST_LINE = 1 << 16  # bytes; ours are shorter
GRAIN = 256  # scores are multiples of 1/256, so that a sum of them is exact in single precision


def train_sentencepiece(lines: Sequence[str], required: str, flags: TokenizerFlags) -> Any:
    """A SentencePiece `ModelProto` of exactly `-vocab_size` pieces.

    Args:
        lines: normalized; words may have `BOUNDARY` where no piece is to cross.
        required: characters that get a piece.

    Raises:
        UserError: the text supports no vocabulary of this size, with the sizes that it does.
    """
    from sentencepiece import SentencePieceTrainer

    coverage, more_lines = coverage_with(required, lines, flags.character_coverage)
    written = io.BytesIO()

    def train() -> None:
        SentencePieceTrainer.train(
            sentence_iterator=iter([*more_lines, *lines]),
            model_writer=written,
            model_type=flags.model,
            vocab_size=flags.vocab_size,
            character_coverage=coverage,
            required_chars=required,
            byte_fallback=flags.byte_fallback,
            normalization_rule_name="identity" if flags.normalization == "nfc" else flags.normalization,
            pretokenization_delimiter=BOUNDARY,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            pad_piece=PAD,
            eos_piece=END,
            unk_piece=UNKNOWN,
            control_symbols=[MASK],
            num_threads=THREADS,
            max_sentence_length=LONGEST_LINE,
            minloglevel=2,
        )

    try:
        in_background(train)
    except RuntimeError as error:
        raise UserError(_size_problem(str(error), flags.vocab_size)) from error
    model = parsed_model(written.getvalue())
    for piece in model.pieces:
        piece.score = round(piece.score * GRAIN) / GRAIN
    return model


def _size_problem(told: str, size: int) -> str:
    """What SentencePiece says of a size that does not fit, in our words."""
    if found := re.search(r"value <= (\d+)", told):
        return (
            f"-vocab_size {size}: the sample supports {found[1]} pieces at most; give {found[1]} or less, or more text"
        )
    if found := re.search(r"required_chars\. \d+ vs (\d+)", told):
        return (
            f"-vocab_size {size}: the characters of the text, those that are required, bytes and special tokens alone"
            f" take {found[1]} pieces; give more, or a lower -character_coverage"
        )
    return f"-vocab_size {size}: SentencePiece could not be trained: {told.strip().splitlines()[0]}"


def train_byte_bpe(lines: Iterable[str], flags: TokenizerFlags) -> Any:
    """A tokenizer of `transformers` that joins bytes, of exactly `-vocab_size` pieces.

    Raises `UserError` as `train_sentencepiece` does.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(BOUNDARY, "removed"), words])
    trainer = trainers.BpeTrainer(
        vocab_size=flags.vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    in_background(lambda: tokenizer.train_from_iterator(lines, trainer))
    found = tokenizer.get_vocab_size()
    if found < flags.vocab_size:
        raise UserError(
            f"-vocab_size {flags.vocab_size}: the sample supports {found} pieces at most; give {found} or less, or more"
            " text"
        )
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    return with_special_tokens(tokenizer, flags.sentinels)


def in_background(work: Callable[[], None]) -> None:
    """Do `work`, which holds no lock of the interpreter, in a thread: so Ctrl-C and SIGTERM end the command at once."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
