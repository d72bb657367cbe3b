"""The languages of rows: from templates of a task to codes, and from codes to the tokens that a tokenizer puts beside
a text in a language."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from config.flags.data import DataFlags
from config.templates import Template
from datamodules.encoding.arrays import Tokens
from datamodules.encoding.templates import render
from datamodules.encoding.tokens import StockEncoder, TextEncoder, make_encoder
from datamodules.readers.rows import RowChunk
from models.languages import in_language, language_codes, unknown_language
from task_utils import LANGUAGES, Task
from utils.errors import UserError, raise_if_any

ATTRIBUTES = dict(zip(LANGUAGES, ("src_lang", "tgt_lang"), strict=True))


class RowLanguages:
    """The languages that a task gives its rows, `source_language` and `target_language`, as codes a row.

    Templates may read them under these names. Where the tokenizer has language codes, every text gets the tokens of
    its language.

    Args:
        encoder: of texts whose language no row says.

    Raises:
        UserError: a template that cannot be read.
    """

    def __init__(self, task: Task, tokenizer: Any, encoder: TextEncoder) -> None:
        given = {name: getattr(task, name) for name in LANGUAGES}
        self.templates = {name: Template(value, f"-{name}") for name, value in given.items() if value}
        self.codes = language_codes(tokenizer)
        self._tokenizer, self._default = tokenizer, encoder
        self._encoders: dict[tuple[str, str], TextEncoder] = {}

    @property
    def variables(self) -> frozenset[str]:
        """Columns that the templates of the languages read."""
        return frozenset[str]().union(*(template.variables for template in self.templates.values()))

    def of_rows(self, chunk: RowChunk) -> dict[str, pa.Array]:
        """The codes of a chunk's rows, and encoders for them; not for threads, as it switches the tokenizer.

        Raises:
            UserError: with file:line, a row without a code or with one that the tokenizer does not know.
        """
        found = {}
        for name, template in self.templates.items():
            texts, failures = render(template, chunk.columns, len(chunk))
            texts = pc.utf8_trim_whitespace(pc.fill_null(texts, ""))
            for row, reason in failures.items():
                raise UserError(f"{chunk.place(row)}: {reason}")
            for code in pc.unique(texts).to_pylist():
                if not code or (self.codes and code not in self.codes):
                    place = chunk.place(pc.index(texts, code).as_py())
                    raise UserError(f"{place}: -{name} {template.source!r} gives {code[:60]!r}: {self._problem(code)}")
                self._make(name, code)
            found[name] = texts
        return found

    def _problem(self, code: str) -> str:
        return unknown_language(self._tokenizer, code) if self.codes else "no language code"

    def _make(self, name: str, code: str) -> None:
        if not self.codes or (name, code) in self._encoders:
            return
        with in_language(self._tokenizer, ATTRIBUTES[name], code) as tokenizer:
            encoder = make_encoder(tokenizer)
            if isinstance(encoder, StockEncoder):  # which asks its tokenizer for every text
                encoder = make_encoder(copy.deepcopy(tokenizer))
        self._encoders[name, code] = encoder

    def encode(self, name: str, texts: pa.Array, languages: pa.Array | None, limit: int) -> Tokens:
        """Tokens of texts in the `languages`, as `TextEncoder.encode` gives them; `name` is that of their side."""
        as_target = name == LANGUAGES[1]
        if languages is None or not self.codes or not len(texts):
            return self._default.encode(texts, limit, as_target)
        codes = languages.dictionary_encode()
        numbers = codes.indices.to_numpy(zero_copy_only=False)
        rows = [np.flatnonzero(numbers == number) for number in range(len(codes.dictionary))]
        parts = [
            self._encoders[name, code].encode(texts.take(pa.array(of_code)), limit, as_target)
            for code, of_code in zip(codes.dictionary.to_pylist(), rows, strict=True)
        ]
        return functools.reduce(Tokens.followed_by, parts).rows(np.argsort(np.concatenate(rows)))


def check_languages(task: Task, data: DataFlags, tokenizer: Any) -> None:
    """Raise `UserError` for a language of a task or a flag that neither the tokenizer nor a template knows."""
    read = Template(task.input_template).variables | Template(task.target_template).variables
    given = {name: getattr(task, name) or getattr(data, name) for name in LANGUAGES}
    raise_if_any(
        f"-{name} {value}: this tokenizer has no language codes, and no template reads {{{{ {name} }}}}; leave it out,"
        " or name the language in -input_template"
        for name, value in given.items()
        if value and name not in read and not language_codes(tokenizer)
    )


def languages_of_lines(task: Task) -> dict[str, str]:
    """The codes that a task gives to rows without columns; `UserError` where it reads some."""
    templates = {name: Template(value, f"-{name}") for name in LANGUAGES if (value := getattr(task, name))}
    raise_if_any(
        f"-test_data -: a line of standard input is the source, and -{name} {template.source!r} reads columns; give"
        f" -{name} a code"
        for name, template in templates.items()
        if template.variables
    )
    return {name: template.source for name, template in templates.items()}
