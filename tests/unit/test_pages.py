"""What the pages say is so: tables of the code, commands that parse, files that exist, one term for one thing."""

from __future__ import annotations

import importlib.util
import re
import shlex
from typing import Any

import pytest

from checkpoints.run_folder import RUN_NAMES
from config.flags.analyze import AnalyzeConfig
from config.flags.export import ExportConfig
from config.flags.inference import InferenceConfig
from config.flags.pretrain import PretrainConfig
from config.flags.retrieval.embed import EmbedConfig
from config.flags.select_rows import SelectConfig
from config.flags.serve import ServeConfig
from config.flags.train import TrainConfig
from config.flags.train_tokenizer import TokenizerConfig
from config.flags.tune import TuneConfig
from config.parser import parse_flags
from metrics.registry import METRICS
from task_utils import task_keys, task_names
from tests.documents import DOCUMENTS, LANGUAGES, PAGES, ROOT, RUN, SHOWN, blocks, commands, text_of

COMMANDS = {
    "train.py": TrainConfig,
    "inference.py": InferenceConfig,
    "export.py": ExportConfig,
    "analyze.py": AnalyzeConfig,
    "tune.py": TuneConfig,
    "serve.py": ServeConfig,
    "select_rows.py": SelectConfig,
    "embed.py": EmbedConfig,
    "train_tokenizer.py": TokenizerConfig,
    "pretrain.py": PretrainConfig,
}
OTHER_PROGRAMS = {
    "python3.11",
    "source",
    "pip",
    "conda",
    "git",
    "cd",
    "tensorboard",
    "cat",
    "curl",
    "iconv",
    "docker",
    "srun",
    "apptainer",
    "openssl",
}
CODE_SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#]*)(?:#([^)]+))?\)")
FOLDERS = tuple(f"{path.name}/" for path in ROOT.iterdir() if path.is_dir() and path.name not in ("runs", "data"))
OUR_FILES = re.compile(r"[a-z_-]+\.(py|sh)|requirements.*\.txt|conda.*\.yaml")
OTHER_TERMS = {  # of Korean pages: what is not written -> the term for it
    "레이블": "라벨",
    "빔 탐색": "빔 서치",
    "머리글": "헤더",
    "원문": "소스",
    "거절": "거부",
    "목표 텍스트": "타깃",
    "부분 파일": "조각 파일",
    "명령줄": "명령행",
}


def load(name: str) -> Any:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchor(heading: str) -> str:
    """The name by which a link finds a heading."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("place", load("flag_tables").DOCUMENTS, ids=lambda place: place[0])
def test_tables_are_those_of_the_code(place: tuple[str, str, tuple[str, ...]]) -> None:
    document, language, tables = place
    assert load("flag_tables").with_tables(text_of(document), language, tables) == text_of(document)


def test_a_changed_table_is_noticed() -> None:
    text = text_of("docs/flags.md").replace("Epochs to train.", "Weeks to train.")
    updated = load("flag_tables").with_tables(text, "en", load("flag_tables").FLAG_TABLES)
    assert updated != text
    assert updated == text_of("docs/flags.md")


def test_every_page_is_known_in_both_languages() -> None:
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")}
    assert pages == set(DOCUMENTS) - {"README.md", "README.ko.md"}


@pytest.mark.parametrize("page", PAGES)
def test_both_languages_show_the_same_commands(page: str) -> None:
    english, korean = (text_of(page + ending) for ending in LANGUAGES.values())
    for fence in (RUN, SHOWN):
        assert commands(english, fence) == commands(korean, fence)


@pytest.mark.parametrize("page", PAGES)
def test_both_languages_have_the_same_headings_and_figures(page: str) -> None:
    english, korean = (text_of(page + ending) for ending in LANGUAGES.values())
    levels = [re.findall(r"^#+ ", text, re.MULTILINE) for text in (english, korean)]
    assert levels[0] == levels[1]
    figures = [
        re.findall(r"\d[\d.,]*\d", "".join(re.findall(r"^\|.*\n", text, re.MULTILINE))) for text in (english, korean)
    ]
    assert sorted(figures[0]) == sorted(figures[1])


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page: str) -> None:
    """Those that no test runs too: those that it runs have to be known to this one."""
    problems = []
    for command in (command for fence in (RUN, SHOWN) for command in commands(text_of(f"{page}.md"), fence)):
        words = re.split(r" (?:&&|\||>) ", re.sub(r"^([A-Z_]+=\S+ )+", "", command))
        problems += [problem for part in words for problem in problems_of(shlex.split(part))]
    assert problems == []


def problems_of(words: list[str]) -> list[str]:
    """What is wrong with one command, its redirections and settings of variables taken off."""
    script = next((word for word in words if word in COMMANDS), None)
    if script is not None:
        assert words[0] in ("python", "torchrun", "srun", "uv", "docker"), words
        if words[-1] in ("-h", "-print_config"):
            return []
        _, _, found = parse_flags(COMMANDS[script], words[words.index(script) + 1 :])
        return [f"{script}: {problem}" for problem in found]
    if words[0] in ("bash", "python"):
        return [] if (ROOT / words[1]).is_file() else [f"{words[1]} is not there"]
    known = words[0] in OTHER_PROGRAMS or "." in words[0]  # a file that > writes, or `cat` reads
    return [] if known else [f"unknown program {words[0]}"]


@pytest.mark.parametrize("document", [*DOCUMENTS, "samples/README.md"])
def test_named_files_and_linked_headings_exist(document: str) -> None:
    text = text_of(document)
    outside_blocks = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    folder = (ROOT / document).parent
    missing = []
    for link, heading in LINK.findall(outside_blocks):
        target = folder / link if link else ROOT / document
        if "://" in link or (target.exists() and not heading):
            continue
        headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8") if target.exists() else "", re.MULTILINE)
        if heading not in map(anchor, headings):
            missing.append(f"{link}#{heading}")
    for span in CODE_SPAN.findall(outside_blocks):
        ours = span.startswith(FOLDERS) and " " not in span and "{" not in span
        if (ours or OUR_FILES.fullmatch(span)) and not ((ROOT / span).exists() or (folder / span).exists()):
            missing.append(span)
    assert missing == []


def test_flags_named_in_the_text_exist() -> None:
    known = {
        name
        for command in load("flag_tables").COMMANDS
        for _, specs in load("flag_tables").command_groups(command)
        for spec in specs
        for name in (spec.name, *spec.aliases)
    }
    for document in DOCUMENTS:
        spans = CODE_SPAN.findall(re.sub(r"^```.*?^```", "", text_of(document), flags=re.MULTILINE | re.DOTALL))
        named = {
            match for span in spans if "benchmarks/" not in span for match in re.findall(r"(?:^|\s)-([a-z_]+\d?)", span)
        }
        assert named - known - {"h", "flag", "r", "part", "c", "print_config"} == set(), document


@pytest.mark.parametrize("ending", LANGUAGES.values())
def test_tasks_task_keys_metrics_and_run_files_are_named(ending: str) -> None:
    tasks, metrics = text_of(f"docs/tasks{ending}"), text_of(f"docs/metrics{ending}")
    assert [name for name in task_names() if f"`{name}`" not in tasks] == []
    assert [key for key in task_keys() if not re.search(rf"`{key}`|^{key}:", tasks, re.MULTILINE)] == []
    assert [name for name in METRICS if f"`{name}`" not in metrics] == []
    files = blocks(text_of(f"docs/run-files{ending}"), "text")[0]
    assert [name for name in RUN_NAMES if name not in files] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_length_beginning_and_private_paths(document: str) -> None:
    lines = text_of(document).splitlines()
    assert len(lines) <= (160 if document.startswith("README") else 400)
    assert lines[0].startswith("# ")
    assert len(lines[2]) > 30 or document.startswith("README"), "a page opens with what it is for"
    assert re.findall(r"\.\./shared|/work/|/home/|/tmp/", "\n".join(lines)) == []


@pytest.mark.parametrize("document", [f"{page}.ko.md" for page in PAGES] + ["docs/flags_ko.yaml"])
def test_korean_keeps_one_term_for_one_thing(document: str) -> None:
    text = text_of(document)
    assert {other: term for other, term in OTHER_TERMS.items() if other in text} == {}


@pytest.mark.parametrize("ending", LANGUAGES.values())
def test_text_and_figures_are_of_one_run(ending: str) -> None:
    image = pytest.importorskip("PIL.Image")
    shown = dict(re.findall(r"^  (\w+) +(\d[\d.]*)$", blocks(text_of(f"README{ending}"), "text")[0], re.MULTILINE))
    for name in ("training_curve.png", "report.png"):
        drawn = dict(
            pair.split() for pair in image.open(ROOT / "docs" / "images" / name).text["Description"].split(", ")
        )
        assert shown.items() <= drawn.items()
        assert "exact_match" in shown


@pytest.mark.parametrize("ending", LANGUAGES.values())
def test_the_tree_has_every_folder(ending: str) -> None:
    tree = blocks(text_of(f"README{ending}"), "text")[-1]
    code = {f"{path.parent.name}/" for path in ROOT.glob("*/*.py")} - {"runs/"}
    named = set(re.findall(r"^(\w+/)", tree, re.MULTILINE))
    assert named == code | {"configs/", "run_scripts/"}
