"""What -model, -init_model and -tokenizer stand for; a path where nothing is, is never asked of the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints.model_paths import check_model_paths, model_path
from utils.errors import UserError

NO_FOLDER = "no such folder; a hub name is NAME or OWNER/NAME"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a run with best/ and last/, one that was never validated, and one without a model."""
    for folder in ("run/best", "run/last", "run/saved_checkpoints", "short/last", "short/saved_checkpoints"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "new" / "saved_checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["t5-small", "google/byt5-small", "e9t/x_1.0", "bytes", "run/best", "short/last"])
def test_names_that_stand_for_themselves(name: str) -> None:
    assert model_path("-model", name) == name


def test_a_run_stands_for_its_best_model_or_its_last() -> None:
    assert model_path("-model", "run") == "run/best"
    assert model_path("-model", "short/") == "short/last"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("./byt5-tinyy", NO_FOLDER),
        ("../x", NO_FOLDER),
        ("~/x", NO_FOLDER),
        ("/tmp/no/folder", NO_FOLDER),
        ("a/b/c", NO_FOLDER),
        ("runs/typo", NO_FOLDER),
        ("typo/best", NO_FOLDER),
        ("last", NO_FOLDER),
        ("m" * 300, NO_FOLDER),
        ("run/bset", "no such folder; run is a folder here, so that this is no OWNER/NAME of the hub"),
        ("short/best", "no such folder: a run has one from its first validation on; its latest state is short/last"),
        ("run/x.ckpt", "no such file"),
        ("new", "this run has no best/ or last/ yet; give a .ckpt of saved_checkpoints/"),
        ("run/saved_checkpoints/", "the checkpoints of a run; give one of its .ckpt files, or the run: {place}/run"),
        ("https://x/y", "a file, a folder or a hub name is expected, not a URL"),
    ],
)
def test_paths_where_no_model_is(place: Path, name: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        model_path("-init_model", name)
    assert refused.value.problems == (f"-init_model {name}: {told.format(place=place)}",)


def test_an_empty_name_is_refused_where_one_is_needed() -> None:
    problems: list[str] = []
    check_model_paths(problems, {"-model": ("", " "), "-tokenizer": ""})
    words = "a file, a folder or a hub name is expected, not an empty text"
    assert problems == [f"-model '': {words}", f"-model ' ': {words}"]
