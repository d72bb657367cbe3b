"""The floors of the house: a package imports from floors below its own only, never sideways; folders stay small."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import ROOT

FLOORS = {
    "utils": 1,
    "models": 2,
    "postprocessors": 2,
    "config": 2,
    "metrics": 3,
    "task_utils": 4,
    "reports": 4,
    "datamodules": 5,
    "checkpoints": 5,
    "generation": 6,
    "prediction": 7,
    "analysis": 7,
    "training": 8,
    "deploy": 8,
    "train": 9,
    "pretrain": 9,
    "inference": 9,
    "export": 9,
    "analyze": 9,
    "tune": 9,
    "serve": 9,
    "select_rows": 9,
    "train_tokenizer": 9,
    "embed": 9,
}
COMMANDS = sorted(name for name, floor in FLOORS.items() if floor == 9)
NO_PRODUCT = ("tests", "benchmarks", "docs", "samples", "examples")
MOST_FILES = 16  # of a folder
MOST_LINES = 400  # of a file


def product_files() -> Iterator[Path]:
    """Every Python file of the product, relative to its root."""
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        if relative.parts[0] not in NO_PRODUCT and not any(part.startswith(".") for part in relative.parts):
            yield relative


def imported(source: str) -> set[str]:
    """The top-level names of all modules that a source file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            names.add(str(node.module).split(".")[0])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
    return names


def test_every_package_imports_from_floors_below_only() -> None:
    wrong = set()
    for path in product_files():
        own = path.parts[0].removesuffix(".py")
        assert own in FLOORS, f"{path} lies on no floor"
        for name in imported((ROOT / path).read_text(encoding="utf-8")) & FLOORS.keys():
            if name != own and FLOORS[name] >= FLOORS[own]:
                wrong.add((str(path), name))
    assert wrong == set()


def test_the_root_holds_the_commands_and_the_tasks() -> None:
    assert sorted(path.stem for path in ROOT.glob("*.py")) == sorted([*COMMANDS, "task_utils"])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_ends_in_one_line_on_a_signal_while_it_imports(command: str) -> None:
    """Before anything of ours but what the handlers are made of."""
    text = (ROOT / f"{command}.py").read_text(encoding="utf-8")
    before, found, _ = text.partition('if __name__ == "__main__":\n    leave_on_signals()\n')
    assert found
    assert imported(before) & FLOORS.keys() == {"utils"}


def test_folders_and_files_are_small() -> None:
    files = list(product_files())
    folders: dict[Path, int] = {}
    for path in files:
        folders[path.parent] = folders.get(path.parent, 0) + 1
    assert {folder: count for folder, count in folders.items() if count > MOST_FILES} == {}
    lengths = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in files}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES} == {}


@pytest.mark.parametrize("package", sorted({path.parent for path in product_files()} - {Path(".")}), ids=str)
def test_every_folder_says_what_lives_there_and_what_it_may_import(package: Path) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8")))
    assert docstring is not None
    assert docstring.count("\n") == 0
    assert "import" in docstring.lower()


def test_no_function_waits_for_somebody_to_write_it() -> None:
    stubs = re.compile(r"\braise NotImplementedError\b")
    assert [path for path in product_files() if stubs.search((ROOT / path).read_text(encoding="utf-8"))] == []


def test_one_file_alone_syncs_renames_and_locks() -> None:
    calls = re.compile(r"\b(fsync|flock|lockf|os\.(replace|rename|link)|rename\()")
    having = {path for path in product_files() if calls.search((ROOT / path).read_text(encoding="utf-8"))}
    assert having == {Path("utils/files.py")}


def test_the_project_table_asks_for_what_requirements_txt_pins() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert project["project"]["dependencies"] == [line for line in lines if re.match(r"\w", line)]
    assert project["tool"]["uv"]["package"] is False


def private_touches(source: str) -> set[str]:
    """Names with a leading underscore that a file takes from Lightning's modules, or from an object not its own."""
    tree = ast.parse(source)
    touched: set[str] = set()
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    own |= {node.attr for node in attributes if isinstance(node.ctx, ast.Store) and _is_self(node.value)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(("pytorch_lightning", "lightning_fabric")):
            touched |= {alias.name for alias in node.names if alias.name.startswith("_")}
    for node in attributes:
        private = node.attr.startswith("_") and not node.attr.endswith("__") and node.attr != "_exit"
        if private and not (_is_self(node.value) and node.attr in own):
            touched.add(node.attr)
    return touched


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def test_what_is_private_to_lightning_is_touched_in_one_file() -> None:
    ours = [path for path in product_files() if path.parts[0] == "training" or path.name.startswith("seq2seq_")]
    touched = {str(path): private_touches((ROOT / path).read_text(encoding="utf-8")) for path in ours}
    assert "_call_children_scripts" in touched.pop("training/lightning_loop.py")
    assert {path: names for path, names in touched.items() if names} == {}
