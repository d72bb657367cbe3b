"""The folder of part files: whose it is, what is taken over, refused, and never touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from transformers import T5Config

from checkpoints.model_source import InferenceModel
from generation.engines.base import Prediction
from prediction.parts import part_path, write_part
from prediction.parts_folder import open_parts, parts_folder
from utils.errors import UserError

IDENTITY = {"rows": 3, "-beam_size": 4}


def stop_with_a_part(output: Path) -> Path:
    """Open the parts of an output, finish one, and be stopped; gives the folder."""
    with suppress(KeyboardInterrupt), open_parts(output, IDENTITY, overwrite=False) as folder:
        write_part(folder, 0, [0], [Prediction("a")])
        for name in (".part-000001.jsonl.77.tmp", "claim-000001", "worker-a-7-0", "claims"):  # of one that was killed
            (folder / name).touch()
        raise KeyboardInterrupt
    return folder


def test_parts_of_the_same_command_are_kept_and_others_refused(tmp_path: Path) -> None:
    output = tmp_path / "out.txt"
    folder = stop_with_a_part(output)
    assert folder == tmp_path / "out.txt.parts" == parts_folder(output)
    with suppress(KeyboardInterrupt), open_parts(output, IDENTITY, overwrite=False):
        assert sorted(path.name for path in folder.iterdir()) == [".lock", "manifest.json", "part-000000.jsonl"]
        raise KeyboardInterrupt
    other = {"rows": 3, "-beam_size": 5}
    with pytest.raises(UserError) as caught, open_parts(output, other, overwrite=False):
        pytest.fail("taken")
    assert str(caught.value) == (
        f"-save_output {output}: {folder} holds finished parts of another command; give its flags and input to complete"
        " it, or -overwrite to begin again\n"
        "  what        parts  now\n"
        "  -beam_size  4      5"
    )
    assert part_path(folder, 0).exists()
    with open_parts(output, other, overwrite=True):
        assert not part_path(folder, 0).exists()
        assert json.loads((folder / "manifest.json").read_text()) == other
        write_part(folder, 0, [0], [Prediction("a")])
    assert list(tmp_path.iterdir()) == []  # the block ended well: the output is whole


@pytest.mark.parametrize("content", ["{", "[1]", None], ids=["torn", "no object", "gone"])
def test_parts_are_not_thrown_away_for_a_manifest_that_cannot_be_read(tmp_path: Path, content: str | None) -> None:
    folder = stop_with_a_part(tmp_path / "out.txt")
    manifest = folder / "manifest.json"
    if content is None:
        manifest.unlink()
    else:
        manifest.write_text(content)
    with (
        pytest.raises(UserError, match=r"manifest\.json cannot be read \(.*\); -overwrite begins again$"),
        open_parts(tmp_path / "out.txt", IDENTITY, overwrite=False),
    ):
        pytest.fail("taken")
    assert part_path(folder, 0).exists()
    with open_parts(tmp_path / "out.txt", IDENTITY, overwrite=True):
        assert not part_path(folder, 0).exists()


def test_one_process_works_for_an_output(tmp_path: Path) -> None:
    output = tmp_path / "out.txt"
    code = (
        "import sys; from pathlib import Path; from prediction.parts_folder import open_parts\n"
        "with open_parts(Path(sys.argv[1]), {}, False): print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, output]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(UserError) as caught, open_parts(output, {}, overwrite=True):
            pytest.fail("taken")
        assert str(caught.value) == f"-save_output {output}: another process predicts for this output"
        other.kill()


def with_file(name: str) -> Callable[[Path], None]:
    """What makes a folder with a file of that name."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()

    return make


def linked(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    folder.symlink_to(folder.parent / "elsewhere")


FOREIGN = {
    "file": Path.touch,
    "link": linked,
    "another file": with_file("thesis.doc"),
    "parts of another program": with_file("part-00000.parquet"),
    "hidden": with_file(".git/HEAD"),
    "folder with a name of ours": with_file("part-000003.jsonl/notes.txt"),
    "folder for the claims": with_file("claims/notes.txt"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_ours_stays(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "out.txt"
    FOREIGN[kind](parts_folder(output))
    before = sorted(tmp_path.rglob("*"))
    with (
        pytest.raises(UserError, match=r"out.txt.parts is in the way and no folder of part files; choose another name"),
        open_parts(output, {}, overwrite=True),
    ):
        pytest.fail("taken")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_that_came_while_the_lock_was_waited_for_is_not_replaced(tmp_path: Path) -> None:
    """The flags were checked when another command still worked; now its output is there, and its parts are gone."""
    output = tmp_path / "out.txt"
    output.write_text("of another command\n")
    with pytest.raises(UserError) as caught, open_parts(output, IDENTITY, overwrite=False):
        pytest.fail("taken")
    assert str(caught.value) == f"-save_output {output}: exists; -overwrite replaces it"
    with open_parts(output, IDENTITY, overwrite=True) as folder:
        assert folder.is_dir()
    assert os.listdir(tmp_path) == ["out.txt"]


def test_a_flag_that_only_the_parts_have_is_a_difference(tmp_path: Path) -> None:
    """Samples are not completed by a search: its manifest has no temperature."""
    output = tmp_path / "out.txt"
    stop_with_a_part(output)
    with pytest.raises(UserError) as caught, open_parts(output, {"rows": 3}, overwrite=False):
        pytest.fail("taken")
    assert str(caught.value).splitlines()[1:] == ["  what        parts  now", "  -beam_size  4      None"]


def test_the_content_of_a_model_is_told_apart(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(text)
        (tmp_path / name / "config.json").write_text("{}")
    one, same, other = (InferenceModel(str(tmp_path / name)).identity() for name in "abc")
    assert one == same != other
    first, second = (InferenceModel(str(tmp_path / name / "model.safetensors")).identity() for name in "ab")
    assert first == second


def test_a_hub_model_is_told_apart_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    config = T5Config()
    config._commit_hash = "1a2b"
    monkeypatch.setattr(InferenceModel, "config_and_tokenizer", lambda _: (config, None))
    assert InferenceModel("google/byt5-small").identity() == "google/byt5-small at 1a2b"
