"""The passages of each row of a retrieval task: the one that answers its query, and hard negatives."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from datamodules.collate import collate
from datamodules.encoding.store import EncodedSplit
from datamodules.splits import RowEncoder
from utils.errors import UserError, shortened
from utils.padding import TokenIds, pad
from utils.tables import counted

NO_SOURCE = "-"  # of the rows that hard negatives are encoded as: the query stands in others
NO_KEY = -1  # of no text


@dataclass(frozen=True)
class Passages:
    """Rows with their passages.

    Args:
        split: query and passage, as source and target.
        negatives: hard negatives as targets, a split for each column, of all rows of the input of an encoded `split`.
    """

    split: Any  # EncodedSplit or TrainingRows
    negatives: tuple[EncodedSplit, ...] = ()

    @cached_property
    def places(self) -> np.ndarray:
        """(columns, rows) of each row in the splits of hard negatives."""
        found = [np.searchsorted(column.row_ids, self.split.row_ids) for column in self.negatives]
        return np.array(found, np.int64).reshape(len(self.negatives), len(self.split))

    def count(self, rows: np.ndarray) -> int:
        """Passages of some rows: their own, and the hard negatives that are there."""
        if not self.negatives:
            return len(rows)
        there = [usable(column, at[rows]) for column, at in zip(self.negatives, self.places, strict=True)]
        return len(rows) + int(np.sum(there))

    def fingerprint(self) -> str:
        """Changes with the hard negatives."""
        return " ".join(column.fingerprint for column in self.negatives)

    def batch(self, rows: np.ndarray, pad_token_id: int, pad_to_multiple_of: int) -> dict[str, Any]:
        """A batch of these rows: the queries as `input_ids`, their passages and then the hard negatives as
        `passage_ids`, and keys (`models.losses.contrastive.Vectors`) that say which texts are the same.

        No rows at all give a query and a passage that no query is compared with.
        """
        pairs = self.split.pairs(rows)
        queries: list[TokenIds] = [query for query, _ in pairs]
        passages: list[TokenIds] = [passage for _, passage in pairs]
        for column, places in zip(self.negatives, self.places if self.negatives else (), strict=True):
            of_rows = places[rows]
            passages += [column.target_ids(int(place)) for place in of_rows[usable(column, of_rows)]]
        made = collate([(ids, None) for ids in queries], pad_token_id, pad_to_multiple_of)
        padded, is_token = pad(passages or [np.array([pad_token_id])], pad_token_id, pad_to_multiple_of)
        query_keys, passage_keys = _keys(queries), _keys(passages)
        answers = query_keys + [NO_KEY] * (len(passage_keys) - len(query_keys))
        return {
            "input_ids": made["input_ids"],
            "attention_mask": made["attention_mask"],
            "passage_ids": torch.from_numpy(padded),
            "passage_mask": torch.from_numpy(is_token.astype(np.int64)),
            "query_keys": torch.tensor(query_keys),
            "passage_keys": torch.tensor(passage_keys),
            "answers": torch.tensor(answers),
            "num_rows": len(rows),
            "num_target_tokens": len(rows),  # what the loss is a mean over
            "num_source_tokens": sum(map(len, queries)),
            "num_passage_tokens": sum(map(len, passages)),
        }


@dataclass(frozen=True)
class Cloze:
    """The pairs of a joint loss, which stand beside the sources and targets of the same rows."""

    train: Passages
    valid: Passages | None  # None = there are no validation rows


def _keys(texts: Sequence[TokenIds]) -> list[int]:
    """A number for each text, the same for equal ones and else another one; `NO_KEY` where there is none at all."""
    digests = (hashlib.blake2b(ids.astype("<i4").tobytes(), digest_size=8).digest() for ids in texts)
    return [int.from_bytes(digest, "little") >> 1 for digest in digests] or [NO_KEY]


def encoded_negatives(encoder: RowEncoder, columns: Sequence[str]) -> tuple[tuple[EncodedSplit, ...], list[str]]:
    """The hard negatives of the training rows by column, written as passages are, and what to tell of them.

    Raises:
        UserError: a column that is not there, or holds nothing; and what encoding raises.
    """
    found, lines = [], []
    for name in columns:
        flag = f"-negative_column {name}"
        task = replace(encoder.task, input_template=NO_SOURCE, target_column=int(name) if name.isdecimal() else name)
        other = replace(encoder, data=replace(encoder.data, target_column=name), task=task)
        column = other.encode("-train_data", encoder.data.train_data, keep_all=True)
        filled = int(usable(column, np.arange(len(column))).sum())
        if not filled:
            of_first = shortened(next(iter(column.report.columns.values()), []))
            raise UserError(f"{flag}: no row of -train_data holds a text in such a column; its columns: {of_first}")
        cut = f", {column.report.truncated_targets:,} of them truncated" if column.report.truncated_targets else ""
        lines.append(f"{flag}: {filled:,} of {counted(len(column), 'row')} have a hard negative there{cut}")
        found.append(column)
    return tuple(found), lines


def usable(column: EncodedSplit, rows: np.ndarray) -> np.ndarray:
    """(rows,) whether some rows have a hard negative in this column that is within the length limits."""
    found: np.ndarray = (column.target_lengths[rows] > 0) & ~column.too_long[rows]
    return found
