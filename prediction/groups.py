"""Figures of groups of rows, by the values of columns of the input: language pairs, question types, sources."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from datamodules.encoding.store import EncodedSplit
from datamodules.readers.nested import MISSING, value_at
from datamodules.readers.records import InputRecords
from metrics.registry import METRICS
from metrics.score import Scores
from prediction.lazy_sequence import LazySequence
from task_utils import LANGUAGES
from utils.errors import UserError, shortened
from utils.tables import counted, format_table, visible

MOST_GROUPS = 200
NO_VALUE = "(none)"


@dataclass(frozen=True)
class Groups:
    """The rows of each group, in the order in which the groups first occur."""

    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[int]]

    @classmethod
    def of(cls, columns: tuple[str, ...], records: Iterable[str]) -> Groups:
        """Those of rows that are JSON objects, as `InputRecords` gives them.

        Raises:
            UserError: a column that the first row does not have, or one of very many values.
        """
        rows: dict[str, list[int]] = {}
        for number, record in enumerate(records):
            content = json.loads(record)
            values = [value_at(content, name) if isinstance(content, dict) else MISSING for name in columns]
            missing = [name for name, value in zip(columns, values, strict=True) if value is MISSING]
            if missing and not number:
                there = shortened(list(content)) if isinstance(content, dict) else "none"
                raise UserError(f"-group_by {missing[0]}: no such column in the first row; columns there are: {there}")
            rows.setdefault(", ".join(map(_text, values)), []).append(number)
            if len(rows) > MOST_GROUPS:
                raise UserError(
                    f"-group_by {' '.join(columns)}: more than {MOST_GROUPS} different values; give columns with fewer"
                )
        return cls(columns, rows)

    @classmethod
    def of_directions(cls, split: EncodedSplit) -> Groups | None:
        """Those of rows translated in several directions, such as `ko_KR -> en_XX`; None where there are no two."""
        rows: dict[str, list[int]] = {}
        for row in range(len(split) if split.has_languages else 0):
            codes = filter(None, (split.language(name, row) for name in LANGUAGES))
            rows.setdefault(" -> ".join(codes), []).append(row)
        return cls(("direction",), rows) if len(rows) > 1 else None

    def scores(
        self,
        references: Sequence[str | None],
        predictions: Sequence[str],
        score: Callable[[Sequence[str | None], Sequence[str]], Scores],
    ) -> dict[str, Scores]:
        """The result of `score` for the rows of each group."""
        return {name: score(_part(references, rows), _part(predictions, rows)) for name, rows in self.rows.items()}

    def lines(self, found: Mapping[str, Scores]) -> list[str]:
        """A table for the terminal, a line a group."""
        names = list(dict.fromkeys(name for scores in found.values() for name in scores.metrics))
        rows = [
            (
                visible(group, 40),
                f"{scores.scored_rows:,}",
                *(METRICS[name].text(scores.metrics[name]) if name in scores.metrics else "-" for name in names),
            )
            for group, scores in found.items()
        ]
        title = f"by {', '.join(self.columns)}: {counted(len(rows), 'group')}"
        return ["", title, *format_table((", ".join(self.columns), "rows", *names), rows)]


def groups_of(
    columns: tuple[str, ...], paths: Sequence[str], layout: str, headers: Mapping[str, str], escapes: bool
) -> Groups | None:
    """The groups of the rows of files; None where no column is given."""
    return Groups.of(columns, InputRecords(paths, layout).rows(headers, escapes)) if columns else None


def group_dict(found: Mapping[str, Scores]) -> dict[str, Any]:
    """The part of a JSON report; None where a figure is undefined."""
    return {
        name: {
            "rows": scores.scored_rows,
            "metrics": {metric: None if isnan(value) else value for metric, value in scores.metrics.items()},
        }
        for name, scores in found.items()
    }


def _part(texts: Sequence[Any], rows: Sequence[int]) -> LazySequence[Any]:
    return LazySequence(len(rows), lambda place: texts[rows[place]])


def _text(value: object) -> str:
    return value if isinstance(value, str) else NO_VALUE if value in (MISSING, None) else json.dumps(value)
