"""Every command of the README and of docs/, in order, in one folder that looks like a clone, on small data."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from config.flags.inference import InferenceConfig
from config.flags.train import TrainConfig
from config.parser import parse_flags
from tests.cli.command import ROOT, TIMEOUT, environment, forked_commands, make_environment
from tests.cli.tiny import T5
from tests.documents import PAGES, RUN, blocks, commands, text_of
from tests.small_models import byte_tokenizer

SAMPLE = "samples/text_normalization"
REVIEWS = (("최고의 영화입니다", 1), ("지루하다", 0), ("다시 보고 싶어요!", 1), ("돈이 아깝다...", 0))
PARAGRAPH = {
    "context": "회의는 3일 서울에서 열린다.",
    "qas": [
        {"id": "1", "question": "언제인가?", "answers": [{"text": "3일", "answer_start": 4}], "is_impossible": False},
        {"id": "2", "question": "누가 오는가?", "answers": [], "is_impossible": True},
    ],
}
SCRIPTS = ("train.py", "inference.py", "export.py", "select_rows.py", "docs/make_images.py")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The project, a ready .venv, the model that the pages fine-tune, and the data they name, a few rows each."""
    for name in (*SCRIPTS, "run_scripts", "requirements.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name)
    make_environment(tmp_path / ".venv")
    make_model(tmp_path / "google" / "byt5-small")
    make_data(tmp_path)
    return tmp_path


def make_model(folder: Path) -> None:
    from models.loading import from_config

    from_config({**T5, "eos_token_id": 1}, 1).save_pretrained(folder)
    byte_tokenizer(folder)


def make_data(folder: Path) -> None:
    """Every file that a command names, with a few rows."""
    train, valid, test = (
        (ROOT / SAMPLE / f"{name}.tsv").read_text(encoding="utf-8").splitlines(keepends=True)[:60]
        for name in ("train", "valid", "test")
    )
    reviews = [f"{text}\t{label}\n" for text, label in REVIEWS * 15]
    scored = ["review,score\n", *(f'"{text}",{label}\n' for text, label in REVIEWS * 15)]
    rated = ["id\tdocument\tlabel\n", *(f"{number}\t{review}" for number, review in enumerate(reviews))]
    nli = ["sentence1\tsentence2\tgold_label\n", *["비가 온다.\t날씨가 흐리다.\tneutral\n"] * 8]
    files = {
        f"{SAMPLE}/train.tsv": train[:40],
        f"{SAMPLE}/valid.tsv": valid[:8],
        f"{SAMPLE}/test.tsv": test[:8],
        "train.tsv": train,
        "test.tsv": test[:8],
        "requests.jsonl": blocks(text_of("docs/inference.md"), "json")[0],
        "sources.txt": [row.split("\t")[0] + "\n" for row in test[:5]],
        "reviews.tsv": ["document\tlabel\n", *reviews],
        **dict.fromkeys(("reviews.csv", "new_reviews.csv", "valid_reviews.csv"), scored),
        **dict(
            zip(
                ("reviews.yaml", "nli.yaml", "products.yaml", "pairs.yaml"),
                blocks(text_of("docs/tasks.md"), "yaml"),
                strict=True,
            )
        ),
        "mixture.yaml": blocks(text_of("docs/mixtures.md"), "yaml")[0],
        "reviews-tagged.tsv": [f"{blocks(text_of('docs/tasks.md'), 'text')[0]}\n"] * 8,
        "questions.json": json.dumps({"data": [{"title": "회의", "paragraphs": [PARAGRAPH] * 4}]}),
        **dict.fromkeys(("nli.tsv", "valid_nli.tsv"), nli),
        "pairs.tsv": ["src\ttgt\ttext\ttranslation\n", *["ko\ten\t비\train\n", "en\tko\train\t비\n"] * 8],
        "moods.tsv": ["좋아!\tjoy\n", "무섭고 화난다\t2,1\n"] * 8,
        "new_moods.tsv": ["신난다\n", "싫다\n"],
        **dict.fromkeys(("data/nsmc/ratings_train.txt", "data/nsmc/ratings_test.txt"), rated),
    }
    for name, lines in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(lines), encoding="utf-8")


@pytest.mark.slow
def test_every_command_runs_in_order(clone: Path) -> None:
    output = clone / "output"
    for page in PAGES:
        for command in commands(text_of(f"{page}.md"), RUN):
            before = output.stat().st_size if output.exists() else 0
            code = run(command, clone, output)
            assert code == 0, f"{page}.md: {command}\n{output.read_bytes()[before:].decode()}"
            if command.endswith("quickstart.sh"):
                check_quickstart(output.read_text(encoding="utf-8"))
    assert len((clone / "predictions.txt").read_text(encoding="utf-8").splitlines()) == 8
    assert json.loads((clone / "report.json").read_text(encoding="utf-8"))["scored_rows"] == 8
    assert len((clone / "runs/mine/piped.txt").read_text(encoding="utf-8").splitlines()) == 5


def run(command: str, folder: Path, output: Path) -> int:
    """A command of ours as a fork; anything else, and what needs a shell, in bash."""
    words = shlex.split(command)
    if words[0] == "python" and words[1] in SCRIPTS and not {"|", ">", "&&"} & set(words):
        process = forked_commands().start(words[1:], folder, output, output, environment())
        return forked_commands().wait(process, TIMEOUT)
    path = f"{folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    with open(output, "a") as file:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=folder,
            env=environment(PATH=path, PYTHON=sys.executable, VENV=".venv"),
            stdout=file,
            stderr=file,
        ).returncode


def check_quickstart(printed: str) -> None:
    """The README shows lines of that shape, and the commands at the end are ones that parse."""
    shown = set(blocks(text_of("README.md"), "text")[0].splitlines()) - {"..."}
    assert {shape(line) for line in shown} - {shape(line) for line in printed.splitlines()} == set()
    advised = [shlex.split(line) for line in printed.splitlines() if line.startswith("  python ")]
    for (_, script, *flags), config in zip(advised, (TrainConfig, InferenceConfig), strict=True):
        assert parse_flags(config, flags)[2] == [], script


def shape(line: str) -> str:
    """A line without figures and blanks; of one with the text of a row, the word before it."""
    if line.startswith(("  source  ", "  reference  ", "  prediction  ")):
        return line.split()[0]
    return re.sub(r"[\d.,:]+", "#", " ".join(line.split()))
