"""Rows of a request to token ids: they are read and encoded as the lines of a .jsonl file would be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from datamodules.encoding.chunks import ChunkEncoder, encode_chunk, rendered_texts
from datamodules.encoding.store import row_starts
from datamodules.encoding.tokens import make_encoder
from datamodules.readers.columns import wanted_columns
from datamodules.readers.csv_json import collect, json_record
from datamodules.readers.nested import MISSING, value_at
from datamodules.readers.rows import RowReport, finish_rows
from datamodules.splits import RowEncoder
from utils.errors import UserError

PLACE = "row"


@dataclass(frozen=True)
class EncodedRequest:
    """Token ids of the windows of each row, a single one without -doc_stride; `cut` says which rows were longer than
    the limit and are cut there, `languages` are those of their targets."""

    sources: list[list[np.ndarray]]
    cut: list[bool]
    languages: Sequence[str]


class JsonRowEncoder:
    """Encodes JSON objects, a row each. `columns` are the names that a row must have, the source's first.

    A source column that the task takes by its number is called `source`.
    """

    def __init__(self, encoder: RowEncoder) -> None:
        read, encode = encoder.options(PLACE, keep_all=True)
        task = replace(encoder.task, metrics=())
        self.work = ChunkEncoder(PLACE, task, read, encode, make_encoder(encoder.tokenizer), encoder.tokenizer)
        self.limit = encode.max_source_length
        wanted = wanted_columns(task, self.work.needed, self.work.read_options)
        by_name = isinstance(wanted.source, str)
        if not by_name and "source" not in self.work.input_template.variables | self.work.languages.variables:
            wanted = replace(wanted, may_lack=wanted.may_lack | {"source"})
        self.wanted = wanted
        self.keys = {"source": str(wanted.source) if by_name else "source", **{name: name for name in wanted.extra}}
        self.columns = tuple(dict.fromkeys(key for name, key in self.keys.items() if name not in wanted.may_lack))

    def missing(self, row: Mapping[str, Any]) -> list[str]:
        """The columns that a row has not."""
        return [name for name in self.columns if value_at(row, name) is MISSING]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> EncodedRequest:
        """Token ids of the windows of each row.

        Raises:
            UserError: a value is no text, holds half of a surrogate pair, or cannot be put into the template.
        """
        options, report = self.work.read_options, RowReport()
        keys = {**self.keys, "target": None}
        records = (json_record((number, row, ""), keys, self.wanted) for number, row in enumerate(rows, 1))
        sources: list[list[np.ndarray]] = []
        cut: list[bool] = []
        languages: list[str] = []
        for raw in collect(PLACE, records, list(keys), options):
            chunk = finish_rows(raw, options, report, len(sources))
            rendered = rendered_texts(chunk, self.work)
            for row, reason in rendered.sources[1].items():
                report.add(reason, 1, [chunk.place(row)])
            if report.malformed:
                raise UserError(
                    *(f"{places[0].replace(':', ' ')}: {reason}" for reason, (_, places) in report.malformed.items())
                )
            found, _ = encode_chunk(chunk, rendered, self.work)
            longest = self.limit or np.inf
            for windows in np.split(np.arange(len(found.row_ids)), row_starts(found.row_ids)[1:]):
                sources.append([found.source.row(window) for window in windows.tolist()])
                cut.append(bool((found.source.full_lengths[windows] > longest).any()))
            codes = found.languages.get("target_language")
            languages += [] if codes is None else [code or "" for code in codes.to_pylist()]
        return EncodedRequest(sources, cut, languages)
