"""One chunk of rows to token ids: template, labels, tokenizer, limits, and what is counted on the way."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from config.templates import Template
from datamodules.encoding.arrays import Tokens, tokens_of_lists
from datamodules.encoding.languages import RowLanguages
from datamodules.encoding.store import EncodedRows
from datamodules.encoding.templates import label_codes, render
from datamodules.encoding.tokens import TextEncoder, check_limit
from datamodules.encoding.windows import LOST, PassageCutter, Windows
from datamodules.readers.read import ReadOptions, RowChunk
from datamodules.readers.rows import ANSWER_STARTS, PLACES_KEPT, TEXT, blank_mask
from postprocessors.labels import LabelMap
from postprocessors.numbers import Number
from task_utils import LANGUAGES, Task, written_labels
from utils.errors import UserError, raise_if_any

MOST_EXAMPLES = 20  # letters


@dataclass(frozen=True)
class EncodeOptions:
    """How rows become tokens. Limits are tokens with the special ones; 0 = none.

    A row over a limit is cut when `truncate`, else marked `too_long`. `references` is the template of the text that
    predictions are scored against, "" for the target. With `doc_stride` tokens a longer source is cut into windows.
    """

    input_template: str
    target_template: str
    label_map: LabelMap | None
    max_source_length: int
    max_target_length: int
    truncate: bool
    references: str = ""
    doc_stride: int = 0


@dataclass
class Counts:
    """What one chunk adds to the report: reason or kind -> (count, places)."""

    failed: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    lengths: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    missing_targets: int = 0
    windows: int = 0  # of the rows that are several
    tokens: int = 0  # without the special ones
    unknown: int = 0  # of them
    unknown_texts: list[str] = field(default_factory=list)  # the first that hold any


@dataclass(frozen=True)
class Labels:
    """Target texts that a label map allows, and their tokens."""

    texts: pa.Array
    tokens: Tokens


class ChunkEncoder:
    """Everything that the threads need to encode a chunk. Immutable."""

    def __init__(
        self,
        flag: str,
        task: Task,
        read_options: ReadOptions,
        options: EncodeOptions,
        encoder: TextEncoder,
        tokenizer: Any,
    ) -> None:
        self.flag, self.task, self.options, self.encoder = flag, task, options, encoder
        self.input_template = Template(options.input_template, "-input_template")
        self.target_template = Template(options.target_template, "-target_template")
        self.reference_template = Template(options.references, "references") if options.references else None
        of_texts = self.input_template.variables | self.target_variables
        self.languages = RowLanguages(task, tokenizer, encoder)
        self.needed = (of_texts - self.languages.templates.keys()) | self.languages.variables  # columns
        of_target = self.target_variables - self.input_template.variables - {"source", "target"}
        of_target -= self.languages.templates.keys()
        templates = self.input_template, self.target_template
        if options.doc_stride and self.languages.templates:
            raise UserError(
                f"-doc_stride {options.doc_stride}: rows with languages of their own are not cut into windows; leave"
                " one of them out"
            )
        self.cutter = PassageCutter.of(task, templates, encoder, options.max_source_length, options.doc_stride)
        self.answer_starts = frozenset({ANSWER_STARTS} if self.cutter and not read_options.keep_all else ())
        self.needed |= self.answer_starts
        optional = tuple(sorted(of_target if read_options.keep_all else self.answer_starts))
        self.read_options = replace(read_options, optional=optional, blank_targets=bool(options.references))
        self.placeholders = frozenset(task.placeholders)
        self.target_column = read_options.target_column or task.target_column
        check_limit(encoder, "-max_seq_length", options.max_source_length)
        check_limit(encoder, "-max_target_length", options.max_target_length)
        if "target" in self.input_template.variables:
            raise UserError(f"-input_template {options.input_template!r}: the source may not hold {{{{ target }}}}")
        self.labels: Labels | None = None
        if options.label_map is not None:
            self.labels = self.encoded_labels(written_labels(options.label_map, self.target_template).texts)
        other_uses = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
        self.unknown = None if tokenizer.unk_token_id in other_uses else tokenizer.unk_token_id

    @property
    def target_variables(self) -> frozenset[str]:
        """Columns that the target and the reference are made of."""
        references = self.reference_template.variables if self.reference_template else frozenset()
        return self.target_template.variables | references

    def encoded_labels(self, texts: Sequence[str]) -> Labels:
        """Texts of labels, or of several joined; `UserError` for one that is too long."""
        array = pa.array(texts, TEXT)
        tokens = self.encoder.encode(array, 0, True)
        limit = self.options.max_target_length
        raise_if_any(
            f"-max_target_length {limit}: label {text!r} has {length} tokens, and labels are never cut"
            for text, length in zip(texts, tokens.full_lengths.tolist(), strict=True)
            if limit and length > limit
        )
        return Labels(array, tokens)

    def unknown_characters(self, text: str) -> str:
        """The first few letters of `text` that the tokenizer does not know."""
        letters = [letter for letter in dict.fromkeys(text) if not letter.isspace()]
        tokens = self.encoder.encode(pa.array(letters, TEXT), 0, False)
        found = (letter for row, letter in enumerate(letters) if self.unknown in tokens.row(row))
        return "".join(itertools.islice(found, MOST_EXAMPLES))


def unlearnable_labels(work: ChunkEncoder, tokenizer: Any) -> Iterator[str]:
    """Labels that the model could not write: two with the same tokens, one with the unknown or a special token."""
    if work.labels is None:
        return
    way_out = "choose other label texts, or a -tokenizer that knows them"
    specials = [token for token in tokenizer.all_special_tokens if token != tokenizer.unk_token]
    first: dict[bytes, str] = {}
    for row, text in enumerate(work.labels.texts.to_pylist()):
        ids = work.labels.tokens.row(row)
        special = next((token for token in specials if token in text), "")
        if special:
            yield f"-label_map: label {text!r} holds {special}, a special token of this tokenizer; {way_out}"
        if work.unknown is not None and work.unknown in ids:
            yield f"-label_map: label {text!r} holds the unknown token {tokenizer.unk_token}; {way_out}"
        same = first.setdefault(ids.tobytes(), text)
        if same != text:
            yield f"-label_map: labels {same!r} and {text!r} have the same tokens with this tokenizer; {way_out}"


Texts = tuple[pa.Array, dict[int, str]]  # of a template for every row, and why it has none


@dataclass(frozen=True)
class Rendered:
    """Texts of a chunk's rows; no targets where labels give them, no references where they are the targets.

    `languages` are the codes of the rows by the name of the side, for a side whose language the task gives.
    """

    sources: Texts
    languages: dict[str, pa.Array]
    targets: Texts | None = None
    references: Texts | None = None


def rendered_texts(chunk: RowChunk, work: ChunkEncoder) -> Rendered:
    """The texts that the templates make; not in a thread, which no signal stops."""
    languages, count = work.languages.of_rows(chunk), len(chunk)
    columns = {**chunk.columns, **languages}
    sources = render(work.input_template, columns, count)
    if work.labels:
        return Rendered(sources, languages)
    if work.reference_template is None:
        return Rendered(sources, languages, render(work.target_template, columns, count))
    # A row has a target where it has a reference; an empty column of it is then a text like any other.
    own = {name: columns[name] for name in ("target", *work.read_options.optional)}
    texts = {name: _where(~blank_mask(column), column) for name, column in own.items()}
    references = render(work.reference_template, {**columns, **texts}, count)
    has_target = ~blank_mask(references[0])
    texts = {name: _where(has_target, pc.fill_null(column, "")) for name, column in own.items()}
    return Rendered(sources, languages, render(work.target_template, {**columns, **texts}, count), references)


def _where(mask: np.ndarray, column: pa.Array) -> pa.Array:
    """The column with nulls where the mask is false."""
    return column if mask.all() else pc.if_else(pa.array(mask), column, pa.scalar(None, TEXT))


def encode_chunk(chunk: RowChunk, rendered: Rendered, work: ChunkEncoder) -> tuple[EncodedRows, Counts]:
    """The rows of a chunk that are kept, and what was counted; `rendered` is what `rendered_texts` gives."""
    counts = Counts()
    (sources, failures), languages = rendered.sources, rendered.languages
    labels, codes = work.labels, None
    if labels is not None and work.options.label_map is not None:
        texts, codes = label_codes(chunk, work.options.label_map, work.target_column)
        labels = work.encoded_labels(texts) if work.options.label_map.separator else labels
        targets = references = labels.texts.take(pa.array(codes, mask=codes < 0))
    else:
        assert rendered.targets is not None
        targets, target_failures = rendered.targets
        references, reference_failures = rendered.references or rendered.targets
        failures = {**reference_failures, **target_failures, **failures}
    unreadable = _unreadable(references, work)
    if work.read_options.keep_all:
        blank = blank_mask(references)
        blank[list(failures)] = False
        blank[list(unreadable)] = True
        references = _where(~blank, references)
        targets = references if rendered.references is None else _where(~blank_mask(targets), targets)
    else:
        failures = {**_empty_texts(sources, targets, references, work), **failures}
    failures = {**unreadable, **failures, **_without_text(chunk, work)}
    outside = {row: reason for row, reason in _out_of_bounds(references, work).items() if row not in failures}
    _count_failures(chunk, outside, work, counts)
    if failures:
        keep = _judge_failures(chunk, failures, work, counts)
        sources, targets, references = (texts.filter(pa.array(keep)) for texts in (sources, targets, references))
        languages = {name: texts.filter(pa.array(keep)) for name, texts in languages.items()}
        chunk = chunk.kept(keep)
        codes = None if codes is None else codes[keep]
    row_ids, lines = chunk.row_ids, chunk.lines
    of_source, of_target = (languages.get(name) for name in LANGUAGES)
    source = work.languages.encode(LANGUAGES[0], sources, of_source, work.options.max_source_length)
    counts.missing_targets = references.null_count
    if work.cutter:
        windows = work.cutter.windows(chunk.columns, source, targets, references)
        _count_windows(windows, chunk, work, counts)
        source, targets, sources = windows.source, windows.targets, windows.of_first(sources)
        references, row_ids, lines = references.take(windows.rows), row_ids[windows.rows], lines[windows.rows]
    target = _target_tokens(targets, labels, codes, of_target, work)
    _count_unknown(source, target, sources, work, counts)
    too_long = _judge_lengths(source, target, chunk.path, lines, row_ids, work, counts)
    return EncodedRows(source, target, sources, references, row_ids, too_long, languages), counts


def _count_windows(windows: Windows, chunk: RowChunk, work: ChunkEncoder, counts: Counts) -> None:
    if len(windows.cut):
        counts.lengths["windowed"] = len(windows.cut), [chunk.place(row) for row in windows.cut[:PLACES_KEPT].tolist()]
        counts.windows = len(windows.rows) - len(chunk) + len(windows.cut)
    if len(windows.lost) and not work.read_options.keep_all:
        _judge_failures(chunk, dict.fromkeys(windows.lost.tolist(), LOST), work, counts)


def _empty_texts(sources: pa.Array, targets: pa.Array, references: pa.Array, work: ChunkEncoder) -> dict[int, str]:
    """Why rows cannot be learnt whose texts are empty after the templates."""
    no_reference = "empty target" if work.reference_template else "empty target after -target_template"
    reasons = dict.fromkeys(np.flatnonzero(blank_mask(targets)).tolist(), "empty target after -target_template")
    reasons |= dict.fromkeys(np.flatnonzero(blank_mask(references)).tolist(), no_reference)
    empty = pc.binary_length(sources).to_numpy(zero_copy_only=False) == 0
    return reasons | dict.fromkeys(np.flatnonzero(empty).tolist(), "empty source after -input_template")


def _unreadable(references: pa.Array, work: ChunkEncoder) -> dict[int, str]:
    """Why nothing can be scored against the references of some rows, by the kind of the task's outputs."""
    if work.task.output is None:
        return {}
    texts = enumerate(references.to_pylist())
    found = {row: work.task.output.reference_problem(text) for row, text in texts if (text or "").strip()}
    return {row: problem for row, problem in found.items() if problem}


def _out_of_bounds(references: pa.Array, work: ChunkEncoder) -> dict[int, str]:
    """The rows whose reference is a number outside the bounds of the task; they count as they stand."""
    output = work.task.output
    if not isinstance(output, Number):
        return {}
    reason = f"reference is not one of the {output.describe()}; the row is kept"
    texts = enumerate(references.to_pylist())
    return {row: reason for row, text in texts if text and output.is_outside(output.value(text))}


def _without_text(chunk: RowChunk, work: ChunkEncoder) -> dict[int, str]:
    """The rows in which a column of the source is empty or a placeholder, by the name of the column."""
    reasons: dict[int, str] = {}
    for name in sorted(work.input_template.variables) if work.placeholders else ():
        column = chunk.columns[name]
        values = pc.utf8_trim_whitespace(column)
        has_none = blank_mask(column) | pc.is_in(values, pa.array(work.placeholders, TEXT)).to_numpy(False)
        for index in np.flatnonzero(has_none).tolist():
            shown = work.task.source_column if name == "source" else name
            reasons.setdefault(index, f"no text in column {shown!r}: {values[index].as_py() or ''!r}")
    return reasons


def _target_tokens(
    targets: pa.Array,
    labels: Labels | None,
    codes: np.ndarray | None,
    languages: pa.Array | None,
    work: ChunkEncoder,
) -> Tokens:
    if targets.null_count == len(targets):
        return tokens_of_lists([[]] * len(targets), [0] * len(targets), work.encoder.dtype)
    if labels is not None and codes is not None:
        tokens = labels.tokens
    else:
        languages = languages.filter(targets.is_valid()) if languages is not None else None
        limit = work.options.max_target_length
        tokens = work.languages.encode(LANGUAGES[1], targets.drop_null(), languages, limit)
        if targets.null_count == 0:
            return tokens
        there = np.asarray(targets.is_valid().to_numpy(zero_copy_only=False))
        codes = np.where(there, np.cumsum(there) - 1, -1)
    # A row without a target gets the empty row that is put behind all others.
    offsets = np.append(tokens.offsets, tokens.offsets[-1])
    return Tokens(tokens.values, offsets, np.append(tokens.full_lengths, 0)).rows(codes)


def _count_unknown(source: Tokens, target: Tokens, sources: pa.Array, work: ChunkEncoder, counts: Counts) -> None:
    if work.unknown is None:
        return
    for side in (source, target):
        filled = int((side.full_lengths > 0).sum())
        counts.tokens += max(len(side.values) - filled * work.encoder.special_tokens, 0)
    counts.unknown = sum(int((side.values == work.unknown).sum()) for side in (source, target))
    places = np.flatnonzero(source.values == work.unknown)[: PLACES_KEPT if counts.unknown else 0]
    rows = np.unique(np.searchsorted(source.offsets, places, side="right") - 1)
    counts.unknown_texts = [sources[int(row)].as_py()[:MOST_EXAMPLES] for row in rows]


def _judge_failures(chunk: RowChunk, failures: dict[int, str], work: ChunkEncoder, counts: Counts) -> np.ndarray:
    """Mask of the rows to keep: training drops a row that a template cannot render, prediction keeps it empty."""
    _count_failures(chunk, failures, work, counts)
    keep = np.ones(len(chunk), dtype=bool)
    keep[list(failures)] = work.read_options.keep_all
    return keep


def _count_failures(chunk: RowChunk, failures: dict[int, str], work: ChunkEncoder, counts: Counts) -> None:
    for index in sorted(failures):
        if work.read_options.strict:
            raise UserError(f"{chunk.place(index)}: {failures[index].partition(';')[0]} (-strict_data)")
        count, places = counts.failed.get(failures[index], (0, []))
        counts.failed[failures[index]] = (count + 1, [*places, chunk.place(index)][:PLACES_KEPT])


def _judge_lengths(
    source: Tokens,
    target: Tokens,
    path: str,
    lines: np.ndarray,
    row_ids: np.ndarray,
    work: ChunkEncoder,
    counts: Counts,
) -> np.ndarray:
    """Count the rows over a limit; mask of the windows of those that are too long (only when truncation is off)."""

    def add(kind: str, mask: np.ndarray) -> None:
        if mask.any():
            rows, first = np.unique(row_ids[mask], return_index=True)
            places = [f"{path}:{line}" for line in lines[mask][first][:PLACES_KEPT]]
            counts.lengths[kind] = (len(rows), places)

    options = work.options
    long_source = (source.full_lengths > options.max_source_length) & (options.max_source_length > 0)
    long_target = (target.full_lengths > options.max_target_length) & (options.max_target_length > 0)
    too_long: np.ndarray = np.isin(row_ids, row_ids[long_source | long_target]) & (not options.truncate)
    if options.truncate or work.read_options.keep_all:
        add("truncated_sources", long_source)
        add("truncated_targets", long_target)
    else:
        add("discarded", too_long)
    return too_long
