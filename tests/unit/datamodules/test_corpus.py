"""A corpus as token shards: the tokenizer's ids, written once, found again, and the documents that are left out."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.corpus import build, sources
from datamodules.corpus.corpus import Corpus, build_corpus, rated_values
from datamodules.corpus.encoders import DocumentEncoder, encoder_specs, reads_otherwise
from datamodules.corpus.selection import Selection
from datamodules.corpus.sources import DocumentOptions
from tests.small_models import KOREAN_CORPUS, bart_tokenizer, byte_tokenizer, unigram_tokenizer
from utils.errors import RunError, UserError

LINES = [f"{number} {text}" for number in range(40) for text in KOREAN_CORPUS]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By the name of the encoder that they get; `rebuilt` has no model file."""
    folder = tmp_path_factory.mktemp("tokenizers")
    spiece = sentencepiece_tokenizer(folder / "spiece", KOREAN_CORPUS)
    spiece.save_pretrained(folder / "rebuilt")
    from transformers import AutoTokenizer

    return {
        "sentencepiece": spiece,
        "rebuilt": AutoTokenizer.from_pretrained(folder / "rebuilt"),
        "tokenizers": bart_tokenizer(folder / "bart"),
        "bytes": byte_tokenizer(folder / "bytes"),
    }


def sentencepiece_tokenizer(folder: Path, corpus: tuple[str, ...]) -> Any:
    import sentencepiece
    from transformers import T5Tokenizer

    folder.mkdir()
    with open(folder / "spiece.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus * 3), model_writer=file, vocab_size=400, hard_vocab_limit=False,
            character_coverage=1.0, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
        )  # fmt: skip
    return T5Tokenizer.from_pretrained(folder)


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of several pieces."""
    monkeypatch.setattr(sources, "PIECE_BYTES", 1000)
    path = tmp_path / "text.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


Make = Callable[..., Corpus]


@pytest.fixture
def make(text: Path, tmp_path: Path, tokenizers: dict[str, Any]) -> Make:
    """The corpus of `text`, by the sentencepiece tokenizer unless another is given."""

    def made(*values: Path, selection: Selection = Selection(), tokenizer: Any = None, workers: int = 1) -> Corpus:  # noqa: B008
        used = tokenizer or tokenizers["sentencepiece"]
        paths = [*map(str, values or (text,))]
        return build_corpus(paths, DocumentOptions(), selection, used, tmp_path / "cache", workers)

    return made


def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the pieces that are encoded from here on."""
    numbers: list[int] = []
    before = build._encode_part

    def counted(*arguments: Any) -> None:
        numbers.append(arguments[1].start)
        before(*arguments)

    monkeypatch.setattr(build, "_encode_part", counted)
    return numbers


@pytest.mark.parametrize("name", ["sentencepiece", "rebuilt", "tokenizers", "bytes"])
def test_documents_and_stream_hold_the_ids_of_the_tokenizer(name: str, make: Make, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers[name]
    corpus = make(tokenizer=tokenizer)
    wanted = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in LINES]
    assert corpus.report.encoder == name.replace("rebuilt", "sentencepiece")
    assert corpus.num_documents == len(LINES)
    assert [corpus.document(number).tolist() for number in range(len(LINES))] == wanted
    stream = [token for ids in wanted for token in (*ids, tokenizer.eos_token_id)]
    assert corpus.num_tokens == len(stream)
    assert corpus.tokens(0, len(stream)).tolist() == stream
    there = pickle.loads(pickle.dumps(corpus))
    for start, stop in ((0, 1), (5, 5), (17, 1900), (len(stream) - 3, len(stream))):
        assert there.tokens(start, stop).tolist() == stream[start:stop]
    assert there.tokens(3, 9).dtype == np.int32
    for wrong in (lambda: corpus.tokens(0, len(stream) + 1), lambda: corpus.document(len(LINES))):
        with pytest.raises(IndexError):
            wrong()


def test_several_processes_write_the_same_shards_and_one_that_dies_loses_nothing(
    make: Make, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = build.wait

    def killing(*arguments: Any, **named: Any) -> Any:
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
        return wait(*arguments, **named)

    monkeypatch.setattr(build, "wait", killing)
    with pytest.raises(RunError, match=r"-corpus: a process that encodes was ended.*start again"):
        make(workers=2)
    monkeypatch.setattr(build, "wait", wait)
    assert not multiprocessing.active_children()
    [folder] = (tmp_path / "cache").iterdir()
    torn = folder / ".0123456789abcdef.bin.4711.tmp"
    torn.write_text("half a shard of a process that was killed")
    corpus = make(workers=2)
    assert not torn.exists()
    moved = text.rename(tmp_path / "moved.txt")
    (tmp_path / "cache").rename(tmp_path / "first cache")
    again = make(moved)
    assert again.fingerprint == corpus.fingerprint
    names = [{path.name for path in (tmp_path / place).rglob("*.bin")} for place in ("cache", "first cache")]
    assert len(names[0]) > 5
    assert names[0] == names[1]


def test_an_interrupted_build_goes_on_where_it_was(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build._encode_part
    done: list[int] = []

    def interrupted(*arguments: Any) -> None:
        done.append(arguments[1].start)
        if len(done) == 4:
            raise KeyboardInterrupt
        before(*arguments)

    monkeypatch.setattr(build, "_encode_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make()
    monkeypatch.setattr(build, "_encode_part", before)
    rest = encoded(monkeypatch)
    corpus = make()
    assert rest[0] == done[-1]
    assert not set(rest) & set(done[:3])
    rest.clear()
    assert make().fingerprint == corpus.fingerprint
    assert rest == []


def test_of_two_processes_that_come_at_once_the_second_takes_what_the_first_wrote(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Corpus] = []
    lock = build.file_lock

    def waits(path: Path) -> Any:
        monkeypatch.setattr(build, "file_lock", lock)
        built.append(make())
        return lock(path)

    monkeypatch.setattr(build, "file_lock", waits)
    assert make().fingerprint == built[0].fingerprint


def test_a_lost_or_torn_shard_is_written_anew_and_nothing_else(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make()
    shards = sorted(tmp_path.rglob("*.bin"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-2])
    shards[2].with_suffix(".idx").unlink()
    shards[3].with_suffix(".json").write_text("{")
    with pytest.raises(RunError, match=r"the token shard .*gone or damaged.*the next start writes it anew"):
        corpus.tokens(0, corpus.num_tokens)
    again = encoded(monkeypatch)
    restored = make()
    assert len(again) == 4
    assert restored.fingerprint == corpus.fingerprint
    assert restored.report.notes[0] == "-corpus: 4 token shards were missing or damaged and are written anew"
    assert len(restored.tokens(0, restored.num_tokens)) == corpus.num_tokens


def test_ids_of_zeros_are_written_anew_before_anything_is_trained_on(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, or those at the end. A shard of an earlier version, without a sample, is taken as it is."""
    corpus = make()
    first, second, third, *_ = sorted(tmp_path.rglob("*.bin"))
    first.write_bytes(bytes(first.stat().st_size))
    second.write_bytes(second.read_bytes()[:-2] + bytes(2))
    record = json.loads(third.with_suffix(".json").read_text())
    del record["sample"]
    third.with_suffix(".json").write_text(json.dumps(record))
    again = encoded(monkeypatch)
    restored = make()
    assert len(again) == 2
    assert restored.report.notes == ["-corpus: 2 token shards were missing or damaged and are written anew"]
    assert restored.fingerprint == corpus.fingerprint
    assert restored.tokens(0, restored.num_tokens).tolist() == make().tokens(0, corpus.num_tokens).tolist()


@pytest.mark.parametrize("selection", [Selection(), Selection(min_tokens=1)])
def test_an_index_of_zeros_is_written_anew_by_the_next_start(make: Make, tmp_path: Path, selection: Selection) -> None:
    corpus = make(selection=selection)
    index = min(tmp_path.rglob("selection-*/*.idx" if selection.min_tokens else "*.idx"))
    index.write_bytes(bytes(index.stat().st_size))
    with pytest.raises(RunError, match=r"damaged \(the index does not fit\); the next start writes it anew"):
        corpus.tokens(0, corpus.num_tokens)
    restored = make(selection=selection)
    assert restored.fingerprint == corpus.fingerprint


def test_ids_beyond_the_vocabulary_are_told_before_the_model_sees_them(make: Make, tmp_path: Path) -> None:
    corpus = make()
    for shard in tmp_path.rglob("*.bin"):
        shard.write_bytes(b"\xff" * shard.stat().st_size)
    with pytest.raises(RunError, match=r"a token shard beside .* is damaged; remove its folder"):
        corpus.tokens(0, 50)


def test_of_a_changed_corpus_the_changed_pieces_alone_are_encoded_again(
    make: Make, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make()
    again = encoded(monkeypatch)
    text.write_text(text.read_text(encoding="utf-8").replace("0 ", "0!", 1) + "angehängt\n", encoding="utf-8")
    changed = make()
    assert len(again) == 3  # the first, and the last, which has become two
    assert changed.num_documents == corpus.num_documents + 1
    assert changed.fingerprint != corpus.fingerprint


@pytest.mark.parametrize("when", ["_encode_part", "_check_unchanged"])  # while its piece is read, and after
def test_a_file_that_changes_during_the_build_is_told_and_read_again(
    when: str, make: Make, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = make(workers=1).num_documents
    for shard in (text.parent / "cache").rglob("*.bin"):
        shard.unlink()
    before, changed = getattr(build, when), []

    def changing(*arguments: Any) -> None:
        before(*arguments)
        if not changed:
            changed.append(text.write_bytes(text.read_bytes().replace(b"0 ", b"0\n", 1)))

    monkeypatch.setattr(build, when, changing)
    with pytest.raises(UserError, match=r"text.txt has changed while it was read; start again when it is complete"):
        make()
    assert make().num_documents == wanted + 1


def test_a_sentencepiece_model_with_other_ids_is_not_used_and_that_is_told(
    make: Make, text: Path, tmp_path: Path, tokenizers: dict[str, Any]
) -> None:
    tokenizer = sentencepiece_tokenizer(tmp_path / "other", tuple(text[::-1] for text in KOREAN_CORPUS))
    tokenizers["sentencepiece"].save_pretrained(tmp_path / "other")  # tokenizer.json beside the other's spiece.model
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "other")
    corpus = make(tokenizer=tokenizer)
    wanted = tokenizer(LINES[7], add_special_tokens=False)["input_ids"]
    assert corpus.document(7).tolist() == wanted
    assert corpus.report.encoder == "tokenizers"
    [note] = corpus.report.notes
    assert note.startswith(f"-corpus: {text}:1: sentencepiece gives other ids than the tokenizer; all is encoded by")


def test_letters_that_sentencepiece_reads_otherwise_get_the_ids_of_the_tokenizer(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["sentencepiece"]
    texts = ["영화ㄱㅏ 좋다", "e\u0301te\u0301", "영화\x85최고", "ㅋㅋㅋ ㅠㅠ 최고", "a </s> b <extra_id_0>"]
    encoder = DocumentEncoder(encoder_specs(tokenizer)[0])
    values, lengths = encoder.encode(texts)
    found = np.split(values, np.cumsum(lengths)[:-1])
    assert [ids.tolist() for ids in found[:4]] == tokenizer(texts[:4], add_special_tokens=False)["input_ids"]
    assert encoder.compared == 1
    decomposed = ["न\u093c", "ஒ\u0bd7", "か\u3099", "\u1112\u1161\u11ab", "e\u0301", "ㄱㅏ", "a\x85b"]
    assert [
        text for text in (*decomposed, "plain", "영화 ㅋㅋ ㅠㅠ", "é 한 हिन्दी") if reads_otherwise(text)
    ] == decomposed


def test_the_names_of_special_tokens_are_text_in_a_corpus(tokenizers: dict[str, Any]) -> None:
    for name in ("tokenizers", "bytes", "sentencepiece"):
        tokenizer = tokenizers[name]
        values, _ = DocumentEncoder(encoder_specs(tokenizer)[0]).encode(["a </s> <mask> <pad> b"])
        ids = set((values + 3 if name == "bytes" else values).tolist())
        assert not ids & set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


def test_short_long_and_repeated_documents_are_left_out_and_counted(
    make: Make, tmp_path: Path, tokenizers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from datamodules.corpus import selection

    monkeypatch.setattr(selection, "DIGESTS_AT_A_TIME", 50)  # so that duplicates are looked for in several parts
    extra = tmp_path / "extra.txt"
    extra.write_text("\n".join(["x", *LINES[:30], "긴 " * 500, LINES[3], "neu"]) + "\n", encoding="utf-8")
    values = (tmp_path / "text.txt", extra)
    tokenizer = tokenizers["bytes"]
    corpus = make(*values, tokenizer=tokenizer, selection=Selection(2, 1000, deduplicate=True))
    assert corpus.report.dropped == {"too short": 1, "too long": 1, "the same as an earlier one": 31}
    assert corpus.num_documents == len(LINES) + 1
    wanted = [token for line in (*LINES, "neu") for token in (*(byte + 3 for byte in line.encode()), 1)]
    assert corpus.tokens(0, corpus.num_tokens).tolist() == wanted
    assert corpus.tokens(777, 7777).tolist() == wanted[777:7777]
    assert (corpus.document(len(LINES)) - 3).tolist() == [*b"neu"]
    lines = corpus.report.lines()
    assert lines[0].startswith(f"-corpus: {len(LINES) + 1:,} documents, {len(wanted):,} tokens (")
    assert lines[1:] == [
        "-corpus: 1 document left out: too short",
        "-corpus: 1 document left out: too long",
        "-corpus: 31 documents left out: the same as an earlier one",
    ]
    assert corpus.fingerprint != make(*values, tokenizer=tokenizer).fingerprint
    with pytest.raises(UserError, match=r"every document is left out \(\d+ too short\)"):
        make(*values, selection=Selection(min_tokens=10_000))


def test_lines_that_were_skipped_have_their_numbers_in_the_whole_file(make: Make, text: Path, tmp_path: Path) -> None:
    lines = text.read_bytes().split(b"\n")
    lines[150:150] = [b"\xff", b"a\0b"]
    text.write_bytes(b"\n".join(lines))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n" + json.dumps({"text": "gut"}), encoding="utf-8")
    report = make(text, rows).report
    assert {reason.partition(" (")[0]: found for reason, found in report.skipped.items()} == {
        "line that is no UTF-8, skipped": (1, [f"{text}:151"]),
        "line with NUL bytes, skipped": (1, [f"{text}:152"]),
        "object without key 'text', skipped": (1, [f"{rows}:1"]),
    }
    assert report.lines()[1] == f"-corpus: 1 x line that is no UTF-8, skipped; first at {text}:151"


def test_a_tokenizer_in_python_and_one_without_an_end_token(make: Make, tmp_path: Path) -> None:
    unigram = unigram_tokenizer(tmp_path / "unigram")  # no precompiled normalisation: no model can be made of it
    assert make(tokenizer=unigram).report.encoder == "tokenizers"
    unigram.eos_token = None
    with pytest.raises(UserError, match="-tokenizer: has no end token, which separates the documents of -corpus"):
        make(tokenizer=unigram)


def test_rates_stand_behind_all_paths_or_none(tmp_path: Path) -> None:
    odd = tmp_path / "a:0.5"
    odd.write_text("x")
    assert rated_values(["a.txt", "name:config:train", str(odd)]) == (["a.txt", "name:config:train", str(odd)], [])
    assert rated_values(["a.txt:3", f"{odd}:0.5"]) == (["a.txt", str(odd)], [3.0, 0.5])
    with pytest.raises(UserError, match=r"-corpus a b:2: give every path a rate behind ':', or none"):
        rated_values(["a", "b:2"])
    for value in ("a:0", "a:-1", "a:inf", "a:nan"):
        with pytest.raises(UserError, match="must be a number above 0"):
            rated_values([value])
