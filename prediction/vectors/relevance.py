"""Which passages are relevant to which query: files of qrels, or a column of the queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from config.flags.data import DataFlags
from config.flags.retrieval.embed import EmbedConfig
from prediction.vectors.texts import NOTHING, Texts
from task_utils import override_task
from utils.errors import UserError, shortened
from utils.tables import counted

Grades = Mapping[str, Mapping[str, int]]  # of queries, the grades of passages by id


@dataclass(frozen=True)
class Queries:
    """The rows that are queries, and what they are to find; without judgements all rows, and nothing."""

    rows: Sequence[int]
    ids: Sequence[str]
    relevant: Sequence[Mapping[str, int]]
    lines: Sequence[str]  # what to tell


def queries_of(config: EmbedConfig, texts: Texts, ids: Sequence[str] | None) -> Queries:
    """The queries of -data, by -qrels or -relevant_column.

    Args:
        ids: of the rows; None = their numbers.

    Raises:
        UserError: qrels that cannot be read or name no query of -data; a column that is not there or empty; two rows
            with one id, where qrels name queries.
    """
    flags, rows = config.search, range(len(texts.split))
    names = [str(row) for row in rows] if ids is None else ids
    if flags.relevant_column:
        return _of_column(config, texts, ids)
    if not flags.qrels:
        return Queries(rows, names, [{}] * len(rows), [])
    grades = read_qrels(Path(flags.qrels), f"-qrels {flags.qrels}")
    twice = len(names) - len(set(names))
    if twice:
        raise UserError(
            f"-id_column: {counted(twice, 'row')} of -data have the id of an earlier one; qrels name queries"
        )
    kept = [row for row in rows if names[row] in grades]
    if not kept:
        raise UserError(
            f"-qrels {flags.qrels}: names no query of -data: there ids are {shortened(list(grades)[:5])}, here"
            f" {shortened(list(names[:5]))}; give -id_column"
        )
    lines = [f"-qrels: {len(kept):,} of {counted(len(names), 'row')} are queries of it, which has {len(grades):,}"]
    return Queries(kept, [names[row] for row in kept], [grades[names[row]] for row in kept], lines)


def _of_column(config: EmbedConfig, texts: Texts, ids: Sequence[str] | None) -> Queries:
    """The first row of each query, and the relevant passages of all its rows."""
    flag = f"-relevant_column {config.search.relevant_column}"
    encoder, split = texts.ready.encoder, texts.split
    task = replace(encoder.task, references="{{ target }}")
    task = override_task(task, DataFlags(target_column=config.search.relevant_column, input_template=NOTHING))
    other = replace(encoder, task=task).encode("-data", config.embed.data, keep_all=True)
    relevant: dict[str, dict[str, int]] = {}
    first: dict[str, int] = {}
    for row in range(len(split)):
        key = split.source_text(row) if ids is None else ids[row]
        first.setdefault(key, row)
        name = (other.reference(row) or "").strip()
        relevant.setdefault(key, {}).update({name: 1} if name else {})
    kept = [key for key in first if relevant[key]]
    if not kept:
        columns = next(iter(other.report.columns.values()), [])
        raise UserError(f"{flag}: no row of -data has one; columns there are: {shortened(columns)}")
    rows = [first[key] for key in kept]
    names = [str(row) for row in rows] if ids is None else kept
    lines = [f"{flag}: {counted(len(split), 'row')} are {len(kept):,} different queries with a relevant passage"]
    return Queries(rows, names, [relevant[key] for key in kept], lines)


def read_qrels(path: Path, place: str) -> dict[str, dict[str, int]]:
    """The grades of a file of TREC or BEIR.

    Raises:
        UserError: with file:line what is no judgement; nothing in it.
    """
    grades: dict[str, dict[str, int]] = {}
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                words = line.rstrip("\n").split("\t") if line.count("\t") == 2 else line.split()
                if not words or (number == 1 and len(words) == 3 and not _is_number(words[-1])):  # BEIR's header
                    continue
                if len(words) not in (3, 4) or not _is_number(words[-1]):
                    raise UserError(
                        f"{place}: line {number}: 'query 0 passage grade', or a query, a passage and a grade between"
                        f" tabs is expected, not {line.strip()[:80]!r}"
                    )
                grades.setdefault(words[0].strip(), {})[words[-2].strip()] = int(words[-1])
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{place}: cannot be read ({error})") from None
    if not grades:
        raise UserError(f"{place}: holds no judgement")
    return grades


def _is_number(word: str) -> bool:
    return word.strip().removeprefix("-").isdecimal()
