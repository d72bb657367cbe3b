"""Trains a tokenizer and writes its folder, with a report: read -> sample -> train -> measure -> write."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from config.flags.train_tokenizer import TokenizerFlags
from datamodules.corpus.documents import read_documents
from datamodules.corpus.sources import DocumentOptions
from datamodules.readers.rows import RowReport
from models.sentencepiece_models.fast_tokenizer import BLANK, SPECIAL_TOKENS, Form, fast_tokenizer
from training.tokenizer.alphabet import required_characters
from training.tokenizer.line_sample import CorpusSample, lines_of
from training.tokenizer.morphemes import splitter
from training.tokenizer.report import measured
from training.tokenizer.trainers import train_byte_bpe, train_sentencepiece
from utils.console import tell
from utils.errors import UserError
from utils.escapes import printable
from utils.files import clean_folder_leftovers, write_folder, write_json
from utils.tables import counted

MODEL_FILE = "spiece.model"
REPORT_FILE = "tokenizer_report.json"
OWN_FILES = {MODEL_FILE, REPORT_FILE, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
OF_FILES = ("data", "corpus_format", "corpus_column", "save_path", "overwrite")  # flags that decide no piece
FORMS: dict[str, Form] = {"nfc": "NFC", "nmt_nfkc": "NFKC"}
KINDS = {"bytes": "single bytes", "characters": "characters", "starting_a_word": "that start a word"}
ROWS = 128  # embeddings of a model are a multiple of it


def check_target(flags: TokenizerFlags, problems: list[str]) -> None:
    """Refuse a folder that holds anything but a tokenizer of ours, and one of ours without -overwrite."""
    target = Path(flags.save_path)
    place = f"-save_path {flags.save_path}"
    if not os.path.lexists(target):
        parent = next(path for path in target.absolute().parents if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            problems.append(f"{place}: {parent} is {'not writable' if parent.is_dir() else 'no folder'}")
        return
    if target.is_symlink() or not target.is_dir():
        problems.append(f"{place}: exists and is {'a link' if target.is_symlink() else 'no folder'}; choose another")
        return
    names = set(os.listdir(target))
    if foreign := sorted(names - OWN_FILES):
        problems.append(f"{place}: holds what is no part of a tokenizer ({foreign[0]}); choose another folder")
    elif names and not flags.overwrite:
        problems.append(f"{place}: a tokenizer is there; -overwrite replaces it")


def run(flags: TokenizerFlags) -> None:
    """Train and write."""
    form = FORMS[flags.normalization]
    required = required_characters(flags.required_chars, flags.task, form)
    split = splitter(flags.morphemes) if flags.morphemes != "none" else None
    report = RowReport()
    sample = read_sample(flags, form, report)
    lines, held_back = sample.training_lines(), sample.held_back_lines()
    if not lines:  # of a handful of lines all may be held back
        lines, held_back = held_back, []
    tell(*sample_lines(report, sample, len(lines)))
    if split:
        tell(f"finding morphemes with {flags.morphemes}")
    to_train = list(split(lines)) if split else lines
    tell(f"training {flags.vocab_size:,} pieces ({flags.model})")
    model = None
    if flags.model == "byte_bpe":
        tokenizer = train_byte_bpe(to_train, flags)
    else:
        model = train_sentencepiece(to_train, required, flags)
        tokenizer = fast_tokenizer(model, flags.sentinels)
    found = measured(tokenizer, held_back or lines, model)
    pieces = pieces_of(tokenizer, model, flags)
    content = {
        "flags": {name: value for name, value in asdict(flags).items() if name not in OF_FILES},
        "corpus": {"lines": sample.lines_read, "bytes": sample.bytes_read},
        "sample": {"lines": len(lines), "bytes": sum(len(line.encode()) for line in lines)},
        "vocabulary": pieces,
        "measured": {"held_back": bool(held_back), **found.to_dict()},
    }
    write(Path(flags.save_path), tokenizer, model, content)
    tell(*piece_lines(pieces))
    tell(f"on {counted(found.all.lines, 'line')} that were {'not ' * bool(held_back)}trained on:", *found.table())
    tell(f"written to {flags.save_path}")


def read_sample(flags: TokenizerFlags, form: Form, report: RowReport) -> CorpusSample:
    """The sample of all lines of the corpus."""
    options = DocumentOptions(flags.corpus_format, column=flags.corpus_column, flag="-data")
    sample = CorpusSample(flags.sample_mb * 1_000_000, flags.seed)
    for document in read_documents(flags.data, options, report):
        for line in lines_of(document.text, form):
            sample.add(line)
    if not sample.lines_read:
        raise UserError(f"-data {' '.join(flags.data)}: no line of text")
    return sample


def sample_lines(report: RowReport, sample: CorpusSample, kept: int) -> list[str]:
    """What was read and skipped, and how much of it is trained on."""
    told = [
        f"-data: {counted(report.rows_read, 'document')}, {counted(sample.lines_read, 'line')},"
        f" {sample.bytes_read / 1e6:,.1f} MB"
    ]
    told += [
        f"-data: {count:,} of {reason}, first at {', '.join(places)}"
        for reason, (count, places) in sorted(report.malformed.items())
    ]
    part = "all" if sample.is_whole else "a sample"
    return [*map(printable, told), f"{counted(kept, 'different line')} to train on: {part}"]


def pieces_of(tokenizer: Any, model: Any, flags: TokenizerFlags) -> dict[str, Any]:
    """What the vocabulary is made of."""
    content: dict[str, Any] = {
        "pieces": flags.vocab_size,
        "special": list(SPECIAL_TOKENS),
        "sentinels": flags.sentinels,
    }
    if flags.sentinels:
        content["first_sentinel_id"] = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    if model is not None:
        normal = [piece.piece for piece in model.pieces if piece.type == piece.NORMAL]
        content["characters"] = sum(len(piece) == 1 for piece in normal)
        content["bytes"] = sum(piece.type == piece.BYTE for piece in model.pieces)
        content["starting_a_word"] = sum(piece.startswith(BLANK) for piece in normal)
    content["embedding_rows"] = -(-len(tokenizer) // ROWS) * ROWS
    return content


def piece_lines(pieces: dict[str, Any]) -> list[str]:
    kinds = [f"{pieces[kind]:,} {words}" for kind, words in KINDS.items() if kind in pieces]
    made_of = f" ({', '.join(kinds)})" if kinds else ""
    rows = f"a model needs {pieces['embedding_rows']:,} embeddings (a multiple of {ROWS})"
    return [f"{pieces['pieces']:,} pieces{made_of} and {counted(pieces['sentinels'], 'sentinel')}: {rows}"]


def write(folder: Path, tokenizer: Any, model: Any, content: dict[str, Any]) -> None:
    """Put the folder of the tokenizer in its place, whole."""
    clean_folder_leftovers(folder)

    def fill(temporary: Path) -> None:
        tokenizer.save_pretrained(temporary)
        if model is not None:
            (temporary / MODEL_FILE).write_bytes(model.SerializeToString())
        write_json(temporary / REPORT_FILE, content)

    write_folder(folder, fill)
