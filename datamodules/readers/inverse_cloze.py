"""Raw text as rows of retrieval: a sentence asks for the passage that it stands in (inverse cloze task).

Lee, Chang and Toutanova 2019, "Latent Retrieval for Weakly Supervised Open Domain Question Answering", section 4. Which
sentence asks is drawn by the place in the file, so that a file always gives the same rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from datamodules.objectives.noise import as_fractions, random_bits
from datamodules.objectives.pieces import CLOSING, SENTENCE_ENDS
from datamodules.readers.arrow import Stored, stored_rows
from datamodules.readers.rows import LayoutRow
from datamodules.readers.tsv import numbered_lines

COLUMN = "text"  # key of a document in JSON lines, column of one in a table
LONGEST = 1000  # characters of a passage, about the 288 tokens of the paper
SHORTEST = 20  # characters of a query; a shorter sentence says too little
KEPT = 0.1  # of the passages keep their query, as in the paper: else words in common would never help
SEED = 0
SINGLE = "passage without a second sentence, or a long one"
_SENTENCE = re.compile(
    rf"\S[^\n]*?(?:[{re.escape(''.join(SENTENCE_ENDS))}]+[{re.escape(CLOSING)}]*(?=\s|\Z)|(?=\n|\Z))"
)


def file_rows(path: str) -> Iterator[LayoutRow]:
    """The passages of a file, a row each: a document is a line of text, or the key `text` of a line of JSON."""
    is_json = path.lower().endswith(".jsonl")
    for line, text in numbered_lines(path):
        document, problem = _json_text(text) if is_json else (text, "")
        yield from [_without(line, problem)] if problem else document_rows(line, document)


def table_rows(stored: Stored) -> Iterator[LayoutRow] | None:
    """The same of a data set with the column `text`; None where it has none."""
    if COLUMN not in stored.schema.names:
        return None
    return (
        row
        for number, record in stored_rows(stored, (COLUMN,))
        for row in document_rows(number, str(record.get(COLUMN) or ""))
    )


def document_rows(line: int, document: str) -> Iterator[LayoutRow]:
    """The passages of a document, each with its query; one that no sentence can ask for is malformed."""
    if not document.strip():
        yield _without(line, "empty line")
    for number, sentences in enumerate(passages(document)):
        asking = [place for place, sentence in enumerate(sentences) if len(sentence) >= SHORTEST]
        if len(sentences) < 2 or not asking:
            yield _without(line, SINGLE)
            continue
        bits = random_bits(SEED, line, number, 2)
        place = asking[int(bits[0] % len(asking))]
        kept = as_fractions(bits)[1] < KEPT
        rest = sentences if kept else [*sentences[:place], *sentences[place + 1 :]]
        yield LayoutRow(line, {"query": sentences[place], "passage": " ".join(rest)})


def _without(line: int, problem: str) -> LayoutRow:
    return LayoutRow(line, {"query": None, "passage": None}, problem)


def passages(document: str) -> Iterator[list[str]]:
    """The sentences of a document, so many at a time as have `LONGEST` characters together, or one that has more."""
    found: list[str] = []
    size = 0
    for match in _SENTENCE.finditer(document):
        sentence = match[0].strip()
        if found and size + len(sentence) > LONGEST:
            yield found
            found, size = [], 0
        found.append(sentence)
        size += len(sentence) + 1
    if found:
        yield found


def _json_text(line: str) -> tuple[str, str]:
    """The document in a line of JSON, or why there is none."""
    if not line.strip():
        return "", "empty line"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return "", "broken JSON"
    if not isinstance(record, dict):
        return "", "not a JSON object"
    text = record.get(COLUMN)
    if text is None:
        return "", "missing column"
    return (text, "") if isinstance(text, str) else ("", "value is not text")
