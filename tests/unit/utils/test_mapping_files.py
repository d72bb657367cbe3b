"""Label maps and task files that would never end, or take all memory, are refused in a line."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.mapping_files import MOST_BYTES, read_mapping_file

LEVELS = "abcdefghi"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise(LEVELS)
)


def problem(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_mapping_file("-task", str(path))
    (line,) = caught.value.problems
    return line


@pytest.mark.parametrize("content", [BOMB, "a: &a x\nb: *a\n", "a: &a [*a]\n"])
def test_yaml_aliases_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(content)
    assert problem(file) == f"-task {file}:1: aliases (*name) are not read; write it out"


@pytest.mark.parametrize("content", ["a: b\nc: {{ source }}\n", "a: b\nc: {{ source }}!\n"])
def test_a_template_without_quotes_is_explained(tmp_path: Path, content: str) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(content)
    line = problem(file)
    assert line.startswith(f"-task {file}:2: ")
    assert line.endswith('YAML reads {{ as the start of a mapping: put a template in quotes, "{{ source }}"')


def test_yaml_that_breaks_off_is_told_with_the_line_behind_it(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [\n")
    assert f"{tmp_path / 'broken.yaml'}:2: " in problem(tmp_path / "broken.yaml")


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "large.json").write_bytes(b" " * (MOST_BYTES + 1))
    assert problem(tmp_path / "pipe.yaml").endswith("pipe.yaml: is no regular file")
    assert problem(tmp_path / "zero.json").endswith("zero.json: is no regular file")
    assert problem(tmp_path / "large.json").endswith("large.json: above 1,048,576 bytes, the most that is read")


def test_many_keys_take_no_time_that_grows_with_their_square(tmp_path: Path) -> None:
    file = tmp_path / "many.json"
    file.write_text("{" + ",".join(f'"{number}":1' for number in range(90_000)) + "}")
    assert len(read_mapping_file("-label_map", str(file))) == 90_000  # type: ignore[arg-type]
