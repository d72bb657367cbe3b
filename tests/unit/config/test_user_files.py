"""A user's file is imported by its path; what is wrong with it is one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.user_code import VARIABLE, import_inherited, import_user_code
from metrics.registry import METRICS
from metrics.score import score
from utils.errors import UserError


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in sys.modules.keys() - modules:
        del sys.modules[name]
    os.environ.pop(VARIABLE, None)


def test_files_are_imported_once_and_by_the_processes_that_are_started(tmp_path: Path) -> None:
    file = tmp_path / "extras_of_mine.py"
    file.write_text("count = 0\n")
    import_user_code([str(file)])
    sys.modules["extras_of_mine"].count = 5
    import_user_code([str(file)])
    assert sys.modules["extras_of_mine"].count == 5
    del sys.modules["extras_of_mine"]
    import_inherited()
    assert sys.modules["extras_of_mine"].count == 0


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("mine.txt", "", "-user_code {}: give a .py file"),
        ("metrics.py", "", "-user_code {}: a module named metrics is there already; choose another name"),
        ("json.py", "", "-user_code {}: a module named json is there already; choose another name"),
        ("my-own.py", "", "-user_code {}: the name must be one that Python can import: letters, digits and _"),
        ("raises_it.py", "\n\nint('x')\n", "-user_code {}:3: ValueError: invalid literal for int() with base 10: 'x'"),
        ("leaves_it.py", "import sys\nsys.exit(3)\n", "-user_code {}:2: SystemExit: 3"),
        ("half_typed.py", "\ndef f(\n", "-user_code {}:2: SyntaxError: '(' was never closed (half_typed.py, line 2)"),
        ("no_such_file.py", None, "-user_code {}: no such file"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, name: str, content: str | None, problem: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as refused:
        import_user_code([str(tmp_path / name)])
    assert refused.value.problems == (problem.format(tmp_path / name),)


METRIC = """import sys
from metrics.registry import TEXTS, Metric, register


class Broken:
    def add(self, block):
        pass

    def result(self):
        return {"broken": 1 / 0}, {}


register(Metric("broken", TEXTS, "none", lambda *_: Broken(), default=False))
"""


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        ('{"broken": 1 / 0}, {}', "-user_code {}:10: ZeroDivisionError: division by zero"),
        ("sys.exit(3)", "-user_code {}:10: SystemExit: 3"),
        ("None", "result() gives None, and not ({{name: figure}}, {{name: words}})"),
        ('{"broken": "x"}, {}', "its figure is 'x', and not a number"),
    ],
)
def test_a_metric_that_raises_or_gives_no_figure_is_named(tmp_path: Path, result: str, problem: str) -> None:
    file = tmp_path / "broken_metric.py"
    file.write_text(METRIC.replace('{"broken": 1 / 0}, {}', result))
    import_user_code([str(file)])
    try:
        with pytest.raises(UserError) as told:
            score(["a"], ["b"], names=["broken"])
    finally:
        del METRICS["broken"]
    assert told.value.problems == (f"metric broken: {problem.format(file)}",)
