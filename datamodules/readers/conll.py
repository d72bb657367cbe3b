"""KLUE's files of sentences, a token a line: named entities (2 columns) and dependencies (6 columns)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from datamodules.readers.arrow import Stored, stored_rows
from datamodules.readers.rows import LayoutRow
from datamodules.readers.tsv import numbered_lines
from postprocessors.dependencies import Arc, dependency_line
from postprocessors.spans import TaggedSentence, spans_of_tags, tagged_text
from utils.errors import UserError, shortened

EXPECTED = (
    "layout conll: expected sentences of lines 'character<TAB>tag', or of lines"
    " 'number<TAB>word<TAB>lemmas<TAB>tags<TAB>head<TAB>relation', with an empty line between sentences"
)
PLAIN = "sentences without tags come in the column 'sentence' of a .csv or .jsonl file"
ENTITIES, DEPENDENCIES = 2, 6  # columns
STORED = (("tokens", "ner_tags"), ("index", "word_form", "lemma", "pos", "head", "deprel"))  # in a hub data set
_TAG = re.compile(r"O|([BI])-(\S+)")


@dataclass
class Sentence:
    """One sentence of a file: its line `## id<TAB>text` without the mark, and the cells of its tokens.

    `lines` are the numbers of the tokens' lines.
    """

    line: int
    identity: str = ""
    text: str = ""
    tokens: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)


def file_rows(path: str) -> Iterator[LayoutRow]:
    """The sentences of a file. Raises `UserError` where the first token shows another layout."""
    width = 0
    for sentence in _sentences(path):
        width = width or _width(path, sentence)
        yield _row(sentence, width)


def table_rows(stored: Stored) -> Iterator[LayoutRow] | None:
    """The sentences of a hub data set, a row each; None where its columns are others."""
    lists = {
        field.name for field in stored.schema if pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
    }
    columns = next((names for names in STORED if set(names) <= lists), None)
    return None if columns is None else _table_rows(stored, columns)


def _table_rows(stored: Stored, columns: tuple[str, ...]) -> Iterator[LayoutRow]:
    for number, row in stored_rows(stored, ("guid", "sentence", *columns)):
        cells = [[str(cell) for cell in row[name] or ()] for name in columns]
        count = max(map(len, cells))
        tokens = [[column[at] for column in cells if at < len(column)] for at in range(count)]
        text = str(row.get("sentence") or "")
        yield _row(Sentence(number, str(row.get("guid") or ""), text, tokens, [number] * count), len(columns))


def _sentences(path: str) -> Iterator[Sentence]:
    """Sentences end at an empty line, or where the next begins; of marked lines the last is its own."""
    sentence = Sentence(0)
    for number, line in numbered_lines(path):
        if (not line and sentence.line) or (line.startswith("## ") and sentence.tokens):
            yield sentence
            sentence = Sentence(0)
        if line.startswith("## "):
            identity, _, text = line.removeprefix("## ").partition("\t")
            sentence = Sentence(number, identity, text)
        elif line:
            sentence.line = sentence.line or number
            sentence.tokens.append(line.split("\t"))
            sentence.lines.append(number)
    if sentence.line:
        yield sentence


def _width(path: str, sentence: Sentence) -> int:
    cells = sentence.tokens[0] if sentence.tokens else []
    if len(cells) == ENTITIES and len(cells[0]) == 1:
        return ENTITIES
    if len(cells) == DEPENDENCIES and cells[0].isdecimal():
        return DEPENDENCIES
    line = sentence.lines[0] if cells else sentence.line
    raise UserError(f"{path}:{line}: {EXPECTED}, not {shortened(cells)!r}; {PLAIN}")


def _row(sentence: Sentence, width: int) -> LayoutRow:
    """The columns of a sentence, with the line and the words of the first thing that is wrong in it."""
    uneven = ((line, "uneven number of columns") for line, cells in _numbered(sentence) if len(cells) != width)
    problem = next(uneven, None) if sentence.tokens else (sentence.line, "sentence without tokens")
    if width == ENTITIES:
        problem = problem or _entity_problem(sentence)
        values = _entity_columns(sentence, not problem)
    else:
        problem = problem or _dependency_problem(sentence)
        values = _dependency_columns(sentence, not problem)
    record = {"id": sentence.identity, "sentence": sentence.text, "tokens": sentence.tokens}
    line, words = problem or (sentence.line, "")
    return LayoutRow(line, values, words, record)


def _numbered(sentence: Sentence) -> Iterator[tuple[int, list[str]]]:
    return zip(sentence.lines, sentence.tokens, strict=True)


def _entity_problem(sentence: Sentence) -> tuple[int, str] | None:
    before = ""  # the type of the entity that is open
    for line, (character, tag) in _numbered(sentence):
        match = _TAG.fullmatch(tag)
        if len(character) != 1:
            return line, "more than one character on a line"
        if match is None:
            return line, "tag is none of O, B-TYPE and I-TYPE"
        if match[1] == "I" and match[2] != before:
            return line, "tag I-TYPE without its B-TYPE"
        before = match[2] or ""
    return None


def _entity_columns(sentence: Sentence, is_whole: bool) -> dict[str, str | None]:
    """`tagged` is rendered from the tags; the line of the sentence has it too, with brackets that nobody can read."""
    text = "".join(cells[0] for cells in sentence.tokens)
    tagged = None
    if is_whole:
        tagged = tagged_text(TaggedSentence(text, spans_of_tags(tag for _, tag in sentence.tokens)))
    return {"id": sentence.identity, "sentence": text, "tagged": tagged}


def _dependency_problem(sentence: Sentence) -> tuple[int, str] | None:
    count = len(sentence.tokens)
    for number, (line, cells) in enumerate(_numbered(sentence), 1):
        if cells[0] != str(number):
            return line, "words are not numbered 1, 2, 3, ..."
        head = cells[4]
        if not re.fullmatch(r"[0-9]{1,9}", head) or int(head) > count or int(head) == number:
            return line, "head is no other word of the sentence, nor 0"
    return None


def _dependency_columns(sentence: Sentence, is_whole: bool) -> dict[str, str | None]:
    """`table` has `1/나는/2/나 는/NP+JX/나:NP/는:JX` of each word, `parse` a line of `(1/2, 3, NP_SBJ)` and a count."""
    words = [cells[1] if len(cells) > 1 else "" for cells in sentence.tokens]
    columns: dict[str, str | None] = {
        "id": sentence.identity,
        "sentence": sentence.text or " ".join(words),
        "words": " ".join(words),
        "table": None,
        "parse": None,
    }
    if is_whole:
        arcs = [Arc(int(head), relation) for *_, head, relation in sentence.tokens]
        columns["table"] = "\n".join(map(_word_line, sentence.tokens))
        columns["parse"] = dependency_line(words, arcs)
    return columns


def _word_line(cells: list[str]) -> str:
    number, word, lemma, pos, *_ = cells
    lemmas, tags = lemma.split(" "), pos.split("+")
    last = f"{lemmas[-1]}:{tags[-1]}" if len(tags) > 1 else "NONE"
    return f"{number}/{word}/{len(word)}/{lemma}/{pos}/{lemmas[0]}:{tags[0]}/{last}"
