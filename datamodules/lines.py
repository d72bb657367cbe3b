"""Single texts to token ids, one line a source: for rows that come from a pipe and not from a file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from config.templates import Template
from datamodules.encoding.arrays import Tokens
from datamodules.encoding.languages import languages_of_lines
from datamodules.encoding.templates import render
from datamodules.encoding.tokens import check_limit, make_encoder
from datamodules.readers.csv_json import replaced
from datamodules.readers.encodings import BYTE_ORDER_MARK
from datamodules.readers.requests import line_request, text_columns
from datamodules.readers.rows import PLACES_KEPT, text_array
from datamodules.splits import RowEncoder
from utils.errors import UserError
from utils.escapes import ESCAPES, printable, unescape_cell


class LineEncoder:
    """Encodes lines as a file with one column would be: escapes read, template filled, cut at the limit.

    With the `requests` of `encoder` a line is a request of a batch file, and its last user turn is the source.

    What was changed on the way is counted with the first line numbers, from 1; `report` tells it.

    Raises:
        UserError: the template reads a column besides the source, or the limit holds no token.
    """

    def __init__(self, encoder: RowEncoder) -> None:
        self.escapes, self.requests = encoder.data.tsv_escapes, encoder.requests
        self.template = Template(encoder.task.input_template, "-input_template")
        self.languages = languages_of_lines(encoder.task)
        read = self.template.variables - self.languages.keys()
        self.columns = text_columns(read, encoder.task.source_column) if self.requests else frozenset({"source"})
        others = sorted(read - self.columns)
        if others:
            raise UserError(
                f"-test_data -: a line of standard input is the source, and -input_template reads {', '.join(others)}"
                " as well; give a file, or -input_template '{{ source }}' and lines that are filled in already"
            )
        self.tokens = make_encoder(encoder.tokenizer)
        self.limit = encoder.source_limit
        check_limit(self.tokens, "-max_seq_length", self.limit)
        self.lines = 0
        self.escapes_seen = 0
        self._changed: dict[str, tuple[int, list[int]]] = {}  # what happened -> how often, and the first lines

    def __call__(self, lines: Sequence[bytes]) -> list[np.ndarray]:
        """Token ids of each of the next lines (without its end); bytes that are no UTF-8 become U+FFFD."""
        first = self.lines + 1
        texts = [self._text(number, line) for number, line in enumerate(lines, first)]
        self.lines += len(lines)
        tokens, failures = self._encoded(texts)
        for row, reason in failures.items():
            self._count(f"lines with an empty source ({reason})", first + row)
        if self.limit:
            for row in np.flatnonzero(tokens.full_lengths > self.limit).tolist():
                self._count("sources truncated", first + row)
        return [tokens.row(row) for row in range(len(texts))]

    def examples(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of texts that are no lines of the input: nothing is counted."""
        tokens, _ = self._encoded(texts)
        return [tokens.row(row) for row in range(len(texts))]

    def report(self) -> list[str]:
        """What happened to the lines so far, a sentence for each kind of change; empty when nothing did."""
        told = []
        for what, (count, numbers) in self._changed.items():
            told.append(f"-test_data -: {count:,} {what}, first at line {', '.join(map(str, numbers))}")
        if self.escapes_seen:
            told.append(
                f"-test_data -: {self.escapes_seen:,} escapes ({ESCAPES}) were read; -tsv_escapes false keeps them"
            )
        return told

    def _text(self, number: int, line: bytes) -> str:
        line = line.removesuffix(b"\r")
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            text = line.decode("utf-8", errors="replace")
            self._count("lines with invalid UTF-8, read as U+FFFD", number)
        if self.requests:
            return self._request_text(number, text)
        if self.escapes and "\\" in text:
            text, count = unescape_cell(text)
            self.escapes_seen += count
        return text

    def _request_text(self, number: int, line: str) -> str:
        try:
            request = line_request(line)
        except ValueError as error:
            self._count(f"lines that are no request ({error})", number)
            return ""
        if request.problem:
            self._count(f"requests without an answer ({request.problem})", number)
        for field in request.unread:
            self._count(f"requests with {printable(field)} (not read: the model and the flags decide)", number)
        return replaced(request.text)

    def _encoded(self, texts: Sequence[str]) -> tuple[Tokens, dict[int, str]]:
        codes = {name: text_array([code] * len(texts)) for name, code in self.languages.items()}
        rendered, failures = render(
            self.template, {**dict.fromkeys(self.columns, text_array(texts)), **codes}, len(texts)
        )
        return self.tokens.encode(rendered, self.limit, False), failures

    def _count(self, what: str, number: int) -> None:
        count, numbers = self._changed.get(what, (0, []))
        self._changed[what] = (count + 1, [*numbers, number][:PLACES_KEPT])
