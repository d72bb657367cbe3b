"""Nothing of the user's is deleted or replaced: run folders, outputs over inputs, leftovers, two runs in one folder."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.run_folder import clean_leftovers, run_lock
from config.flags.inference import InferenceConfig
from config.flags.train import TrainConfig
from config.parser import parse_flags
from prediction.checks import check_inference
from tests.cli.command import listing
from tests.cli.tiny import BART, letter_rows, write_config, write_tsv
from tests.saved_runs import saved_run
from training.checks import check_train
from training.run import open_run_folder
from utils.errors import RunError, UserError
from utils.files import temporary_sibling, write_failure, write_file

ROOT = Path(__file__).resolve().parents[3]
OURS = {"save_path": "x", "train_data": ["y"]}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with data and a model config."""
    monkeypatch.chdir(tmp_path)
    write_tsv(tmp_path / "good.tsv", letter_rows(20, 0))
    write_config(tmp_path / "bart.json", BART)
    return tmp_path


def make(place: Path, *names: str, **flags: Any) -> None:
    """Files (and folders, which end in /) below `place`; config.json is ours when `flags` are given."""
    for name in names:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_text("mine")
        if path.name == "config.json" and flags:
            path.write_text(json.dumps(flags))


def train_problems(*flags: str) -> list[str]:
    """The problems of `train.py` with good data and these flags; nothing is changed by looking."""
    base = [] if "-resume_checkpoint" in flags or "-init_model" in flags else ["-config_path", "bart.json"]
    config, given, problems = parse_flags(TrainConfig, ["-train_data", "good.tsv", *base, *flags])
    before = listing(Path())
    check_train(config, given, problems)
    assert listing(Path()) == before
    return problems


def inference_problems(*flags: str) -> list[str]:
    """The problems of `inference.py` with good data and these flags."""
    data = [] if "-test_data" in flags else ["-test_data", "good.tsv"]
    model = [] if "-model" in flags else ["-model", "owner/model"]
    config, _, problems = parse_flags(InferenceConfig, [*model, *data, *flags])
    check_inference(config, problems)
    return problems


# ---- -save_path


FOREIGN = {
    "config of another program": (["run/config.json"], "config.json"),
    "photos": (["run/best/photo.jpg"], "best"),
    "a model": (["run/config.json", "run/model.safetensors"], "config.json"),
    "several": (["run/last/x", "run/log.json", "run/notes.txt"], "last, log.json"),
    "a run over a model": (["run/config.json", "run/saved_checkpoints/"], "config.json"),
}


@pytest.mark.parametrize("overwrite", [[], ["-overwrite"]], ids=["plain", "overwrite"])
@pytest.mark.parametrize("what", FOREIGN)
def test_a_folder_of_somebody_else_is_never_overwritten(place: Path, what: str, overwrite: list[str]) -> None:
    names, told = FOREIGN[what]
    make(place, *names)
    assert train_problems("-save_path", "run", *overwrite) == [
        f"-save_path run: holds files that are not of a run ({told}); choose another folder"
    ]


def test_folders_without_a_run_are_taken(place: Path) -> None:
    make(place, "run/cache/rows.arrow", "run/notes.txt")
    assert train_problems("-save_path", "run") == []
    assert train_problems("-save_path", "new/deep") == []


HELD = "-save_path run: already holds a run; continue it with -resume_checkpoint {}, delete it with -overwrite, or"
EARLY = "-save_path run: holds a run that ended before its first checkpoint; -overwrite begins again"
MARKS = {
    "our config": (["run/config.json"], EARLY),
    "log of steps": (["run/metrics.jsonl"], EARLY),
    "empty checkpoints": (["run/saved_checkpoints/"], EARLY),
    "last checkpoint": (["run/config.json", "run/saved_checkpoints/last.ckpt"], HELD.format("last")),
    "no last checkpoint": (["run/saved_checkpoints/a.ckpt"], HELD.format("last")),
}


@pytest.mark.parametrize("mark", MARKS)
def test_a_run_is_known_by_its_marks_and_told_how_it_goes_on(place: Path, mark: str) -> None:
    names, told = MARKS[mark]
    make(place, *names, **OURS)
    problems = train_problems("-save_path", "run")
    assert len(problems) == 1
    assert problems[0].startswith(told)
    assert train_problems("-save_path", "run", "-overwrite") == []


INPUTS = {
    "model of the run": ["-init_model", "run/best"],
    "the folder itself": ["-init_model", "run"],
    "tokenizer": ["-tokenizer", "run/last"],
    "validation rows": ["-valid_data", "run/best/rows.tsv:2"],
    "through a link": ["-test_data", "link/rows.tsv"],
    "label map": ["-label_map", "run/last/map.json"],
    "task": ["-task", "run/last/task.yaml"],
    "config": ["-config_path", "run/config.json"],
}


@pytest.mark.parametrize("what", INPUTS)
def test_overwrite_never_deletes_an_input(place: Path, what: str) -> None:
    make(place, "run/config.json", **OURS, **BART)
    make(place, "run/last/task.yaml", "run/last/map.json", "run/best/rows.tsv")
    write_tsv(place / "run" / "best" / "rows.tsv", letter_rows(20, 0))
    (place / "run" / "last" / "task.yaml").write_text("source_column: 1\n")
    (place / "run" / "last" / "map.json").write_text('{"0": "a", "1": "b"}')
    (place / "link").symlink_to("run/best")
    flag, value = INPUTS[what]
    told = [f"{flag} {value.removesuffix(':2')}: -overwrite would delete it with the run in -save_path run"]
    assert train_problems("-save_path", "run", "-overwrite", flag, value) == told
    assert train_problems("-save_path", "other", "-overwrite", flag, value) == []


def test_overwrite_deletes_the_run_and_nothing_else(place: Path) -> None:
    make(place, "run/config.json", **OURS)
    make(place, "run/best/model", "run/saved_checkpoints/last.ckpt", "run/log.json", "run/metrics.jsonl", "run/notes")
    make(place, "run/cache/rows.arrow")
    config, _, _ = parse_flags(TrainConfig, ["-save_path", "run", "-overwrite"])
    open_run_folder(config, Path("run"), None, {})
    assert sorted(listing(Path("run"))) == ["cache", "cache/rows.arrow", "config.json", "notes"]
    assert json.loads(Path("run/config.json").read_text())["save_path"] == "run"


def test_a_run_that_goes_on_in_a_new_folder_takes_its_logs_along(place: Path) -> None:
    make(place, "old/saved_checkpoints/last.ckpt", "old/metrics.jsonl", "old/log.json", "old/best/model")
    (place / "old" / "metrics.jsonl").write_text('{"step": 20}\n')
    config, _, _ = parse_flags(TrainConfig, ["-save_path", "new", "-resume_checkpoint", "old"])
    open_run_folder(config, Path("new"), saved_run(Path("old/saved_checkpoints/last.ckpt")), {})
    assert sorted(listing(Path("new"))) == ["best", "best/model", "config.json", "log.json", "metrics.jsonl"]
    assert Path("new/metrics.jsonl").read_text() == '{"step": 20}\n'
    open_run_folder(config, Path("copied"), saved_run(Path("old/last.ckpt")), {})  # a checkpoint in no run's folder
    assert not Path("copied/metrics.jsonl").exists()


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_save_path_is_refused(value: str) -> None:
    assert train_problems("-save_path", value) == ["-save_path is empty"]


def test_a_save_path_below_a_file_is_named(place: Path) -> None:
    assert train_problems("-save_path", "good.tsv/x") == [f"-save_path good.tsv/x: {place}/good.tsv is no folder"]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("name", ["x" * 256, "가" * 90, "/".join(["x" * 200] * 21)], ids=["bytes", "letters", "path"])
def test_names_too_long_for_a_file_system_are_refused(name: str) -> None:
    words = "the name is too long for a file system; choose a shorter one"
    assert train_problems("-save_path", name) == [f"-save_path {name}: {words}"]
    assert inference_problems("-save_output", name) == [f"-save_output {name}: {words}"]


def test_a_run_is_not_continued_in_the_folder_of_another(place: Path) -> None:
    make(place, "a/saved_checkpoints/last.ckpt", "photos/best/photo.jpg")
    make(place, "b/config.json", "c/config.json", "c/saved_checkpoints/last.ckpt", **OURS)
    make(place, "retried/config.json", **OURS, resume_checkpoint="a")
    checkpoint = "a/saved_checkpoints/last.ckpt"
    for other in ("b", "c"):
        assert train_problems("-save_path", other, "-resume_checkpoint", "a") == [
            f"-save_path {other}: already holds another run than that of -resume_checkpoint {checkpoint}; choose"
            " another folder"
        ]
    assert train_problems("-save_path", "photos", "-resume_checkpoint", checkpoint) == [
        "-save_path photos: holds files that are not of a run (best); choose another folder"
    ]
    for good in ("a", "new", "retried"):
        assert train_problems("-save_path", good, "-resume_checkpoint", checkpoint) == []


def test_a_run_whose_checkpoints_lie_on_another_disk_is_continued(place: Path) -> None:
    make(place, "disk/last.ckpt", "run/config.json", **OURS)
    (place / "run" / "saved_checkpoints").symlink_to(place / "disk")
    assert train_problems("-save_path", "run", "-resume_checkpoint", "last") == []


@pytest.mark.usefixtures("place")
def test_what_needs_validation_rows_says_so_without_them() -> None:
    flags = ("-save_path", "run", "-early_stopping_patience", "2", "-monitor", "exact_match")
    told = "only with validation rows: give -valid_data or -valid_data_proportions"
    assert train_problems(*flags) == [f"-monitor exact_match, -early_stopping_patience 2: {told}"]
    assert train_problems(*flags, "-valid_data_proportions", "0.1") == []


def test_what_was_made_of_an_overwritten_run_goes_and_the_rest_is_named(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(place, "run/config.json", "run/best/x", "run/cache/x", "run/saved_checkpoints/last.ckpt", **OURS)
    make(
        place, "run/best.ctranslate2-int8-0123456789abcdef/model.bin", "run/predictions.txt", "run/best.ctranslate2-x/y"
    )
    config, _, _ = parse_flags(TrainConfig, ["-train_data", "good.tsv", "-save_path", "run", "-overwrite"])
    open_run_folder(config, Path("run"), None, {})
    assert sorted(os.listdir("run")) == ["best.ctranslate2-x", "cache", "config.json", "predictions.txt"]
    told = "run: left there, since no training wrote it: best.ctranslate2-x, predictions.txt\n"
    assert capsys.readouterr().out == told


# ---- outputs of inference.py


def test_outputs_never_replace_an_input(place: Path) -> None:
    make(place, "model/config.json", "tokens/vocab.json", "m.ckpt", "map.json", "task.yaml")
    (place / "map.json").write_text('{"0": "a", "1": "b"}')
    (place / "task.yaml").write_text("source_column: 1\n")
    (place / "link.txt").symlink_to("good.tsv")
    os.link(place / "m.ckpt", place / "hard.ckpt")
    cases = {
        "good.tsv": ("-test_data", "good.tsv:2", "the same file as -test_data"),
        "link.txt": ("-test_data", "good.tsv", "the same file as -test_data"),
        "m.ckpt": ("-model", "m.ckpt", "the same file as -model"),
        "hard.ckpt": ("-model", "m.ckpt", "the same file as -model"),
        "model/config.json": ("-model", "model", "is a file of -model model; choose another place"),
        "tokens/../tokens/vocab.json": ("-tokenizer", "tokens", "is a file of -tokenizer tokens; choose another place"),
        "map.json": ("-label_map", "map.json", "the same file as -label_map"),
        "task.yaml": ("-task", "task.yaml", "the same file as -task"),
    }
    for output in ("-save_output", "-save_label", "-save_report"):
        for value, (flag, source, told) in cases.items():
            assert inference_problems("-overwrite", output, value, flag, source) == [f"{output} {value}: {told}"]
    assert inference_problems("-model", "model", "-save_output", "model/predictions.txt") == []


def test_two_outputs_are_two_files(place: Path) -> None:
    (place / "here").symlink_to(".")
    assert inference_problems("-save_output", "out", "-save_report", "here/out") == [
        "-save_report here/out: the same file as -save_output"
    ]


@pytest.mark.parametrize("overwrite", [[], ["-overwrite"]], ids=["plain", "overwrite"])
def test_outputs_are_regular_files(place: Path, overwrite: list[str]) -> None:
    os.mkfifo(place / "fifo")
    (place / "folder").mkdir()
    (place / "null").symlink_to("/dev/null")
    (place / "dangling").symlink_to("nowhere")
    (place / "out.txt").touch()
    (place / "linked").symlink_to("out.txt")
    device, nameless = (
        "is no regular file (a device or a pipe)",
        "is no name of a file; predictions go to standard output",
    )
    told = {
        "fifo": device,
        "/dev/null": device,
        "folder": "is a folder; give a file",
        ".": "is a folder; give a file",
        "null": "is a link to /dev/null; give the file itself",
        "dangling": "is a link to nowhere; give the file itself",
        "linked": "is a link to out.txt; give the file itself",
        "new/": f"{nameless} with -test_data - only",
        "-": f"{nameless} with -test_data - only",
        " ": f"{nameless} with -test_data - only",
    }
    for name, problem in told.items():
        assert inference_problems(*overwrite, "-save_output", name) == [f"-save_output {name}: {problem}"]


def test_the_folder_of_parts_is_no_place_for_other_outputs(place: Path) -> None:
    told = "out.parts is for the finished parts of -save_output; choose another place"
    assert inference_problems("-save_output", "out", "-save_label", "out.parts") == [f"-save_label out.parts: {told}"]
    make(place, "out.parts/manifest.json")
    name = "out.parts/report"
    assert inference_problems("-save_output", "out", "-save_report", name) == [f"-save_report {name}: {told}"]


def test_a_stopped_prediction_replaces_its_own_output_only(place: Path) -> None:
    """A folder without our manifest is no stopped prediction.

    Files beside one may be the user's or of this command: they are replaced by the same content only, when it ends.
    """
    make(place, "out", "label", "report")
    flags = ("-save_output", "out", "-save_label", "label", "-save_report", "report")
    told = [f"-save_{name}: exists; -overwrite replaces it" for name in ("output out", "label label", "report report")]
    assert inference_problems(*flags) == told
    make(place, "out.parts/")
    assert inference_problems(*flags) == told
    make(place, "out.parts/notes.txt")
    assert inference_problems(*flags) == told
    make(place, "out.parts/manifest.json")
    assert inference_problems(*flags) == []


def test_outputs_do_not_lie_where_a_training_replaces_files(place: Path) -> None:
    make(place, "run/config.json", "run/best/config.json", "run/saved_checkpoints/last.ckpt", "mine/best/config.json")
    for folder in ("best", "last", "saved_checkpoints"):
        told = f"lies in {place}/run/{folder}, which a training replaces; choose another place"
        name = f"run/{folder}/new/out.txt"
        assert inference_problems("-save_output", name) == [f"-save_output {name}: {told}"]
    for name in ("run/out.txt", "mine/best/out.txt", "new/deep/out.txt"):
        assert inference_problems("-save_output", name, "-model", "run") == []
    assert not (place / "new").exists()
    assert inference_problems("-save_label", "good.tsv/x") == [f"-save_label good.tsv/x: {place}/good.tsv is no folder"]


@pytest.mark.usefixtures("place")
def test_a_name_that_promises_another_form_is_refused() -> None:
    lines = "give .txt (or no ending) for plain lines"
    for ending in (".csv", ".JSON", ".parquet"):
        told = f"no {ending.lower()} file is written; {lines}, or .jsonl or .tsv with sources and scores"
        assert inference_problems("-save_output", f"out{ending}") == [f"-save_output out{ending}: {told}"]
    for name in ("out", "out.txt", "out.ko", "test.hyp", "v1.2", "out.tsv", "out.jsonl"):
        assert inference_problems("-save_output", name) == []
    assert inference_problems("-save_label", "l.jsonl", "-save_report", "r.json") == [
        f"-save_label l.jsonl: no .jsonl file is written; {lines}"
    ]


# ---- writing


@pytest.mark.parametrize("name", ["x" * 255, "가" * 85])
def test_the_longest_name_can_be_written(tmp_path: Path, name: str) -> None:
    write_file(tmp_path / name, lambda file: file.write(b"whole"))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(os.fsencode(temporary_sibling(tmp_path / name).name)) <= 255


def test_only_our_own_leftovers_are_cleaned(tmp_path: Path) -> None:
    others = [".notes.tmp", ".notes.12.tmp", ".best.x.tmp", ".my.best.12.old/", ".photos.12.old/", ".vimrc.77.tmp"]
    others += ["saved_checkpoints/.x.bin.12.tmp", "saved_checkpoints/a.ckpt", ".best.12.tmp.keep"]
    ours = [".best.12.tmp/", ".log.json.12.tmp", ".config.json.3.tmp", ".test_report.json.4.tmp", ".last.5.old/"]
    ours += [".metrics.jsonl.6.tmp", "saved_checkpoints/.last.ckpt.7.tmp", "saved_checkpoints/.a-b_0.1.ckpt.8.tmp"]
    make(tmp_path, *others, "last/")
    before = [*listing(tmp_path)]
    make(tmp_path, *ours)
    clean_leftovers(tmp_path)
    assert [*listing(tmp_path)] == before


def test_torch_s_words_for_a_full_disk_are_put_plainly(tmp_path: Path) -> None:
    content = {"a": torch.zeros(100_000), "b": torch.zeros(100)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(RunError) as caught:
            write_file(tmp_path / "a.ckpt", lambda file: torch.save(content, file))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    start = (
        f"{tmp_path}/a.ckpt could not be written: the disk is full, or a limit of file sizes or a quota is reached ("
    )
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(" bytes are free); earlier files are untouched")
    assert list(tmp_path.iterdir()) == []
    assert write_failure(RuntimeError("CUDA error"), tmp_path) == "CUDA error"


# ---- what a continued run cannot write


def test_names_of_a_run_that_are_taken_by_something_else(place: Path) -> None:
    make(place, "run/config.json", "run/saved_checkpoints/last.ckpt", "run/kept/config.json", **OURS)
    (place / "run" / "metrics.jsonl").symlink_to("/dev/zero")
    (place / "run" / "log.json").mkdir()
    (place / "run" / "last").touch()
    (place / "run" / "best").symlink_to("kept")
    (place / "run" / "profile").symlink_to("kept")
    assert train_problems("-save_path", "run", "-resume_checkpoint", "last") == [
        "-save_path run: best is a link, and is swapped as a whole folder; put a folder there, or nothing",
        "-save_path run: profile is a link, and is swapped as a whole folder; put a folder there, or nothing",
        "-save_path run: last is no folder, and the run needs one; move it away",
        "-save_path run: metrics.jsonl is a device or a pipe, and the run needs a file; move it away",
        "-save_path run: log.json is a folder, and the run needs a file; move it away",
    ]


# ---- two processes in one folder

HOLD = """
import sys, time
from pathlib import Path
from checkpoints.run_folder import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the lock of `folder` until its standard input is closed."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("more", [[], ["-overwrite"], ["-resume_checkpoint", "last"]], ids=["plain", "over", "resume"])
def test_a_folder_is_for_one_process(place: Path, more: list[str]) -> None:
    make(place, "run/config.json", "run/saved_checkpoints/last.ckpt", **OURS)
    told = "-save_path run: another process trains in this folder"
    with hold(place / "run") as process:
        before = listing(place)
        assert train_problems("-save_path", "run", *more) == [told]
        with pytest.raises(UserError) as caught, run_lock(Path("run")):
            pytest.fail("taken twice")
        assert caught.value.problems == (told,)
        assert listing(place) == before
        process.kill()
    assert (place / "run" / ".lock").exists()  # it is stale, and stops nobody
    with run_lock(Path("run")):
        pass
    assert not (place / "run" / ".lock").exists()


def test_the_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError), run_lock(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run" / ".lock").exists()
        raise UserError("no")
    assert list(tmp_path.iterdir()) == []
    with run_lock(tmp_path / "run"):
        (tmp_path / "run" / "result").write_text("x")
    assert [*listing(tmp_path)] == ["run", "run/result"]
