"""What the READMEs say is so: tables of flags, commands that parse, files and folders that exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from checkpoints.run_folder import RUN_NAMES
from config.flags import ExportConfig, InferenceConfig, TrainConfig
from config.parser import parse_flags
from task_utils import Task, task_names

ROOT = Path(__file__).resolve().parents[2]
READMES = {"en": "README.md", "ko": "README.ko.md"}
COMMANDS = {"train.py": TrainConfig, "inference.py": InferenceConfig, "export.py": ExportConfig}
OTHER_PROGRAMS = {"python3.11", "source", "pip", "conda"}
CODE_SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#]+)\)")
OUR_FOLDERS = ("configs/", "docs/", "run_scripts/", "samples/", "tests/", "benchmarks/")
OUR_FILES = re.compile(r"[a-z_-]+\.(py|sh)|requirements.*\.txt|conda.*\.yaml")
DOCUMENTS = [*READMES.values(), "docs/benchmarks.md", "samples/README.md"] + [
    f"docs/{name}{language}.md" for name in ("flags", "export", "inference", "labels") for language in ("", ".ko")
]
WITHOUT_COMMANDS = ("samples/README.md", "docs/flags.md", "docs/flags.ko.md")


def load(name: str) -> Any:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def shell_commands(text: str) -> list[list[str]]:
    """The commands of all ```bash blocks as words; lines that end in a backslash are joined."""
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def without_settings(words: list[str]) -> list[str]:
    """A command without the `NAME=value` before it."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words


@pytest.mark.parametrize("place", load("flag_tables").DOCUMENTS, ids=lambda place: place[0])
def test_tables_are_those_of_the_code(place: tuple[str, str, tuple[str, ...]]) -> None:
    document, language, tables = place
    assert load("flag_tables").with_tables(text_of(document), language, tables) == text_of(document)


def test_a_changed_table_is_noticed() -> None:
    text = text_of("docs/flags.md").replace("Epochs to train.", "Weeks to train.")
    updated = load("flag_tables").with_tables(text, "en", load("flag_tables").FLAG_TABLES)
    assert updated != text
    assert updated == text_of("docs/flags.md")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_parse(document: str) -> None:
    commands = shell_commands(text_of(document))
    assert commands or document in WITHOUT_COMMANDS
    problems = []
    for words in map(without_settings, commands):
        script = next((word for word in words if word in COMMANDS), None)
        if script is not None:
            assert words[0] in ("python", "torchrun"), words
            _, _, found = parse_flags(COMMANDS[script], words[words.index(script) + 1 :])
            problems += [f"{script}: {problem}" for problem in found]
        elif words[0] in ("bash", "python"):
            if not (ROOT / words[1]).is_file():
                problems.append(f"{words[1]} is not there")
        elif words[0] not in OTHER_PROGRAMS:
            problems.append(f"unknown program {words[0]}")
    assert problems == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_files_exist(document: str) -> None:
    text = text_of(document)
    folder = (ROOT / document).parent
    missing = [link for link in LINK.findall(text) if "://" not in link and not (folder / link).exists()]
    outside_blocks = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for span in CODE_SPAN.findall(outside_blocks):
        ours = span.startswith(OUR_FOLDERS) and " " not in span and "{" not in span
        if (ours or OUR_FILES.fullmatch(span)) and not ((ROOT / span).exists() or (folder / span).exists()):
            missing.append(span)
    assert missing == []


@pytest.mark.parametrize("document", READMES.values())
def test_flags_named_in_the_text_exist(document: str) -> None:
    known = {
        name
        for command in load("flag_tables").COMMANDS
        for _, specs in load("flag_tables").command_groups(command)
        for spec in specs
        for name in (spec.name, *spec.aliases)
    }
    named = {
        match for span in CODE_SPAN.findall(text_of(document)) for match in re.findall(r"(?:^|\s)-([a-z_]+)", span)
    }
    assert named - known - {"h", "flag", "r"} == set()


@pytest.mark.parametrize("document", READMES.values())
def test_tasks_task_keys_and_run_files_are_named(document: str) -> None:
    text = text_of(document)
    assert [name for name in task_names() if f"`{name}`" not in text] == []
    assert [key for key in Task.__dataclass_fields__ if not re.search(rf"`{key}`|^{key}:", text, re.MULTILINE)] == []
    block = re.search(r"^```\n<save_path>/.*?^```", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    assert [name for name in RUN_NAMES if name not in block[0]] == []


@pytest.mark.parametrize("document", READMES.values())
def test_length_markers_and_private_paths(document: str) -> None:
    text = text_of(document)
    assert len(text.splitlines()) < 400
    assert re.findall(r"QUICKSTART_\w+|\.\./shared|/work/|/home/|/tmp/", text) == []


def test_both_languages_show_the_same_commands() -> None:
    assert shell_commands(text_of("README.md")) == shell_commands(text_of("README.ko.md"))
    assert shell_commands(text_of("docs/export.md")) == shell_commands(text_of("docs/export.ko.md"))
