"""Windows over a passage that is longer than the model reads: pieces that overlap, each with all else of its row.

a source over the limit -> the passage cut into pieces -> the templates filled with each piece -> token ids
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from config.templates import Template
from datamodules.encoding.arrays import Tokens, joined_tokens
from datamodules.encoding.tokens import TextEncoder
from datamodules.readers.rows import ANSWER_STARTS, TEXT
from postprocessors.answers import Answers
from task_utils import Task
from utils.errors import UserError

LEAST_ROOM = 4  # a piece has room for at least this part (1/4) of the longest source
LONGEST_WORD = 8  # a word is cut where it is longer than this part (1/8) of the room for a piece
MOST_KNOWN = 1 << 16  # words whose tokens are kept in mind
LOST = "the answer is in no window; the row does not train"
WORD = re.compile(r"\s*\S+|\s+\Z")
ZERO_WIDTH_JOINER = "\u200d"

TokenCounts = Callable[[Sequence[str]], np.ndarray]  # tokens of each text, without the special ones


@dataclass(frozen=True)
class Windows:
    """The windows of a chunk's rows, in their order; a row that fits is its own only window.

    `rows` are the positions of their rows, `cut` those of the rows that are several windows, `lost` those of them whose
    answer is in no window.
    """

    rows: np.ndarray
    source: Tokens
    targets: pa.Array
    cut: np.ndarray
    lost: np.ndarray

    def of_first(self, texts: pa.Array) -> pa.Array:
        """The texts of the rows at their first windows, empty at the others."""
        later = np.diff(self.rows, prepend=-1) == 0
        return texts.take(pa.array(self.rows, mask=later)).fill_null("")


@dataclass(frozen=True)
class PassageCutter:
    """Cuts the sources over `limit` tokens into windows whose pieces of the passage share `stride` tokens or more.

    `variables` are those of the input template that hold the passage.
    """

    variables: frozenset[str]
    input_template: Template
    target_template: Template
    encoder: TextEncoder
    answers: Answers
    limit: int
    stride: int
    known: dict[str, int] = field(default_factory=dict, repr=False, compare=False)  # tokens of words met before

    @classmethod
    def of(
        cls, task: Task, templates: tuple[Template, Template], encoder: TextEncoder, limit: int, stride: int
    ) -> PassageCutter | None:
        """That of -doc_stride; None where it is off.

        Raises:
            UserError: the task names no passage, the template does not hold it, or windows cannot overlap so far.
        """
        if not stride:
            return None
        place, template = f"-doc_stride {stride}", templates[0]
        if not task.passage or not isinstance(task.output, Answers):
            raise UserError(
                f"{place}: task {task.name} has no passage to cut; give 0, or a task file with the key `passage`, as"
                " squad, korquad-v1 and klue-mrc have it"
            )
        variables = task.passage_variables & template.variables
        if not variables:
            wanted = " or ".join(f"{{{{ {name} }}}}" for name in sorted(task.passage_variables))
            raise UserError(f"{place}: {template.name} {template.source!r} holds no {wanted}, the passage of the task")
        if not limit:
            raise UserError(f"{place}: no source is too long for this model; give 0, or a -max_seq_length")
        if stride > limit // 2:
            raise UserError(f"{place}: more than half of the longest source, {limit} tokens; at most {limit // 2}")
        return cls(variables, *templates, encoder, task.output, limit, stride)

    def windows(
        self, columns: Mapping[str, pa.Array], source: Tokens, targets: pa.Array, references: pa.Array
    ) -> Windows:
        """The windows of all rows of a chunk.

        A row that is too long even with a short piece of its passage stays as it is, cut at the limit. Windows without
        an answer are those of an unanswerable question (a no-answer option, Clark and Gardner 2018, section 3.2): where
        the task has no text for that, their target is empty. One that is null is not learnt.

        Args:
            columns: the variables of the templates.
            source: tokens of the whole rows.
            targets, references: texts of the rows, null where there is none.
        """
        names = [name for name in columns if name in self.input_template.variables | self.target_template.variables]
        counts = np.ones(len(source), dtype=np.int64)
        parts, target_parts, lost = [source], [targets], []
        for row in np.flatnonzero(source.full_lengths > self.limit).tolist():
            values = {name: columns[name][row].as_py() or "" for name in names}
            spans, tokens = self._pieces(values)
            if tokens is None:
                continue
            counts[row] = len(spans)
            parts.append(tokens)
            golds = self.answers.golds(references[row].as_py()) if references[row].is_valid else None
            starts = columns[ANSWER_STARTS][row].as_py() if ANSWER_STARTS in columns else None
            found = _answers_in(values[self.passage], spans, golds or (), json.loads(starts or "[]"))
            if golds and not any(found):
                lost.append(row)
                golds = None
            texts = [
                None if golds is None else _filled(self.target_template, values, {"target": gold}) for gold in found
            ]
            target_parts.append(pa.array(texts, TEXT))
        rows = np.repeat(np.arange(len(source)), counts)
        order = rows.copy()
        of_cut = counts[rows] > 1
        order[of_cut] = len(source) + np.arange(int(of_cut.sum()))
        taken = pa.concat_arrays(target_parts).take(pa.array(order))
        cut = np.flatnonzero(counts > 1)
        return Windows(rows, joined_tokens(parts).rows(order), taken, cut, np.array(lost, dtype=np.int64))

    @property
    def passage(self) -> str:
        """One of the variables: all of them have the same text."""
        return min(self.variables)

    def _pieces(self, values: Mapping[str, str]) -> tuple[list[tuple[int, int]], Tokens | None]:
        """Where the pieces of a row's passage are, and the tokens of its windows; None where it cannot be cut."""
        passage = values[self.passage]
        room = self.limit - int(self._tokens(values, [""]).full_lengths[0])
        while room * LEAST_ROOM >= self.limit:
            spans = overlapping_pieces(passage, room, min(self.stride, room // 2), self._counts)
            tokens = self._tokens(values, [passage[start:end] for start, end in spans])
            excess = int(tokens.full_lengths.max()) - self.limit  # of tokens that reach over the ends of a piece
            if excess <= 0:
                return spans, tokens if len(spans) > 1 else None
            room -= excess
        return [], None

    def _tokens(self, values: Mapping[str, str], pieces: Sequence[str]) -> Tokens:
        texts = [_filled(self.input_template, values, dict.fromkeys(self.variables, piece)) for piece in pieces]
        return self.encoder.encode(pa.array(texts, TEXT), self.limit, False)

    def _counts(self, texts: Sequence[str]) -> np.ndarray:
        counts = {text: self.known.get(text, -1) for text in texts}
        new = [text for text, count in counts.items() if count < 0]
        lengths = self.encoder.encode(pa.array(["", *new], TEXT), 0, False).full_lengths
        found = dict(zip(new, (lengths[1:] - lengths[0]).tolist(), strict=True))
        if len(self.known) > MOST_KNOWN:
            self.known.clear()  # other threads have what they need of it already
        self.known.update(found)
        counts |= found
        return np.array([counts[text] for text in texts], dtype=np.int64)


def _filled(template: Template, values: Mapping[str, str], own: Mapping[str, str]) -> str:
    """The text of a template; empty where it cannot be made of a piece, though it could of the whole row."""
    try:
        return template.render({**values, **own}).encode().decode()
    except ValueError:  # also of `encode`: half of a surrogate pair
        return ""


def _answers_in(
    passage: str, spans: Sequence[tuple[int, int]], golds: Sequence[str], starts: Sequence[int | None]
) -> list[str]:
    """The first of the right answers that each piece of a passage holds; empty where it holds none.

    Where the data tell where an answer begins (`starts`), the same letters at another place are none.
    """
    known = starts if len(starts) == len(golds) else [None] * len(golds)
    places = [
        start if start is not None and gold and passage[start : start + len(gold)] == gold else -1
        for gold, start in zip(golds, known, strict=True)
    ]

    def holds(start: int, end: int, gold: str, place: int) -> bool:
        return start <= place <= end - len(gold) if place >= 0 else bool(gold) and gold in passage[start:end]

    return [
        next((gold for gold, place in zip(golds, places, strict=True) if holds(*span, gold, place)), "")
        for span in spans
    ]


def overlapping_pieces(passage: str, room: int, overlap: int, counts: TokenCounts) -> list[tuple[int, int]]:
    """Where the pieces of a passage begin and end: words of up to `room` tokens together, all of them in their order.

    A piece begins with the last words of the one before that have `overlap` tokens or more together, where that leaves
    room for another word. Words are cut only where one takes more than a part of the room, and characters never.
    """
    words, of_words = _words(passage, max(1, room // LONGEST_WORD), counts)
    ends = np.cumsum([len(word) for word in words])  # characters
    tokens = np.concatenate(([0], np.cumsum(of_words)))
    pieces, first, covered = [], 0, 0
    while covered < len(passage):
        last = max(first + 1, int(np.searchsorted(tokens, tokens[first] + room, side="right")) - 1)
        start, end = int(ends[first]) - len(words[first]), int(ends[last - 1])
        if start < covered:  # white space in front of a word is in the piece before
            start += len(words[first]) - len(words[first].lstrip())
        pieces.append((start, end))
        covered = end
        first = max(first + 1, int(np.searchsorted(tokens, tokens[last] - overlap, side="right")) - 1)
    return pieces


def _words(passage: str, most: int, counts: TokenCounts) -> tuple[list[str], np.ndarray]:
    """The words of a passage, each with the white space before it, and their tokens; those of more than `most` in
    halves."""
    words: list[str] = WORD.findall(passage)
    while True:
        tokens = counts(words)
        pairs = zip(words, tokens.tolist(), strict=True)
        halves = [part for word, count in pairs for part in (_halved(word) if count > most else (word,))]
        if len(halves) == len(words):
            return words, tokens
        words = halves


def _halved(word: str) -> tuple[str, ...]:
    """Two parts of a word; one where it is a single character, marks that belong to it included."""
    middle = len(word) // 2
    while middle and _continues(word, middle):
        middle -= 1
    if not middle:
        middle = next((place for place in range(1, len(word)) if not _continues(word, place)), 0)
    return (word[:middle], word[middle:]) if middle else (word,)


def _continues(text: str, place: int) -> bool:
    """Whether the letter at a place belongs to the character before: a mark, a vowel or final of decomposed Hangul."""
    letter = text[place]
    joined = ZERO_WIDTH_JOINER in text[place - 1 : place + 1]
    return joined or unicodedata.category(letter)[0] == "M" or "\u1160" <= letter <= "\u11ff"
