"""The digest of texts by which a changed input is noticed, whatever of it is behind a cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from datamodules.encoding.arrays import Tokens
from datamodules.encoding.store import EncodedRows, EncodedSplit, EncodeReport, write_rows

SOURCES, REFERENCES = ["가", "", "b", "cd"], ["1", None, "", "4"]


def split_of(path: Path, sources: list[str], references: list[str | None], rows_of_a_chunk: int) -> EncodedSplit:
    """A file of these texts, all with the same tokens."""

    def chunk(start: int) -> EncodedRows:
        part = slice(start, start + rows_of_a_chunk)
        count = len(sources[part])
        ones = np.ones(count, dtype=np.uint16)
        tokens = Tokens(ones, np.arange(count + 1, dtype=np.int64), ones)
        texts = [pa.array(column[part], pa.large_string()) for column in (sources, references)]
        return EncodedRows(tokens, tokens, *texts, np.arange(count), np.zeros(count, dtype=bool))

    fingerprint = write_rows(path, map(chunk, range(0, len(sources), rows_of_a_chunk)), np.uint16)
    return EncodedSplit.open(path, EncodeReport(), fingerprint)


def test_it_is_that_of_the_texts_however_the_file_is_cut(tmp_path: Path) -> None:
    digests = {split_of(tmp_path / f"{rows}", SOURCES, REFERENCES, rows).text_digest() for rows in (1, 2, 3, 4)}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("sources", "references"),
    [
        (["가", "", "b", "cx"], REFERENCES),
        (["가", "", "bc", "d"], REFERENCES),
        (["가", "b", "", "cd"], REFERENCES),
        (SOURCES, ["1", "", None, "4"]),
        (SOURCES, ["1", None, "", "5"]),
    ],
)
def test_any_change_is_seen_where_the_tokens_are_the_same(
    tmp_path: Path, sources: list[str], references: list[str | None]
) -> None:
    one = split_of(tmp_path / "one", SOURCES, REFERENCES, 4)
    other = split_of(tmp_path / "other", sources, references, 4)
    assert one.fingerprint == other.fingerprint
    assert one.text_digest() != other.text_digest()


def test_other_rows_of_a_file_are_another_input(tmp_path: Path) -> None:
    split = split_of(tmp_path / "rows", SOURCES, REFERENCES, 4)
    first, second = (split.subset(np.array(rows)) for rows in ([0, 1], [0, 2]))
    assert len({split.text_digest(), first.text_digest(), second.text_digest()}) == 3
