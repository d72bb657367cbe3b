"""`-test_data -` with every way to decode: the lines that come out are those that a file of the same rows gives."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import ROOT, TIMEOUT, Result, environment, forked_commands, infer_ok, run_forked, talking
from tests.cli.tiny import letter_rows


def pipe(lines: bytes, place: Path, *flags: str | Path | int | float) -> Result:
    """`python inference.py -test_data - FLAGS` with these lines on standard input."""
    given = place / "lines"
    given.write_bytes(lines)
    return run_forked(["inference.py", "-test_data", "-", *map(str, flags)], environment(), given=given)


WAYS: dict[str, tuple[str | int | float, ...]] = {
    "sampling": ("-do_sample", "-temperature", 3, "-max_predict_length", 6, "-seed", 5),
    "constrained": ("-label_map", "a=ab,b=bb,c=cb,d=db,e=abb", "-label_decoding", "constrained", "-beam_size", 5),
    "score": ("-label_map", "a=ab,b=bb,c=cb,d=db,e=abb", "-label_decoding", "score"),
    "correction": ("-label_map", "a=aa,b=b,c=c,d=dd", "-label_max_distance", 1),
    "ctranslate2": ("-engine", "ctranslate2", "-beam_size", 2, "-early_stopping"),
}


@pytest.mark.parametrize("way", [*WAYS, "two models"])
def test_lines_are_answered_like_the_rows_of_a_file(copy_run: Path, tmp_path: Path, way: str) -> None:
    run = tmp_path / "run"  # a conversion lies beside the model, and the shared run stays as it is
    shutil.copytree(copy_run / "run", run)
    more: tuple[Any, ...] = WAYS.get(way, ("-model", run / "saved_checkpoints" / "last.ckpt", "-beam_size", 2))
    flags = ("-model", run / "best", "-gpus", 0, "-batch_size", 4, *more)
    words = [word for word, _ in letter_rows(11, 21)] + ["", "a\\tb"]
    (tmp_path / "rows.txt").write_text("".join(f"{word}\n" for word in words))
    rows = ("-test_data", tmp_path / "rows.txt", "-header", "false", "-save_output", tmp_path / "out.txt")
    infer_ok(*flags, *rows)
    expected = (tmp_path / "out.txt").read_text(encoding="utf-8")
    told = pipe((tmp_path / "rows.txt").read_bytes(), tmp_path, *flags)
    assert (told.code, told.out) == (0, expected)
    assert told.err.splitlines()[-1] == "13 lines predicted"
    if way in ("constrained", "score"):
        assert set(expected.split()) <= {"ab", "bb", "cb", "db", "abb"}


def test_what_became_of_the_lines_is_told_at_the_end(copy_run: Path, tmp_path: Path) -> None:
    """Predictions alone go to standard output; a prediction is one line whatever is in it."""
    lines = b"\xef\xbb\xbfcab\r\n" + b"d" * 200 + b"\nb\xff\n\na\\tb"
    told = pipe(lines, tmp_path, "-model", copy_run / "run" / "best", "-gpus", 0)
    assert told.code == 0
    answers = told.out.split("\n")
    assert (answers[0], answers[1], answers[4], len(answers)) == ("c", "d", "a", 6)
    assert told.err.splitlines()[-4:] == [
        "-test_data -: 1 lines with invalid UTF-8, read as U+FFFD, first at line 3",
        "-test_data -: 1 sources truncated, first at line 2",
        r"-test_data -: 1 escapes (\n \t \r \\ \uHHHH) were read; -tsv_escapes false keeps them",
        "5 lines predicted",
    ]


def test_a_reader_that_goes_ends_the_command(copy_run: Path, tmp_path: Path) -> None:
    words = ["inference.py", "-test_data", "-", "-model", str(copy_run / "run" / "best"), "-gpus", "0"]
    with talking(words, tmp_path / "streams") as (process, lines, answers):
        lines.write(b"cab\n")
        assert answers.readline() == b"c\n"
        answers.close()
        lines.write(b"b\n")
        assert forked_commands().wait(process, TIMEOUT) == 1
    assert "Traceback" not in (tmp_path / "streams" / "stderr").read_text()


def test_standard_streams_that_cannot_be_used_are_told_in_one_line(copy_run: Path) -> None:
    flags = ("-model", str(copy_run / "run" / "best"), "-gpus", "0")
    command = f"{shlex.join((sys.executable, 'inference.py', '-test_data', '-', *flags))}"
    for redirected, code, told in (
        ("<&-", 2, "error: -test_data -: standard input is closed; write lines to it, as in `cat FILE | python ...`"),
        ("> /dev/full", 1, "error: standard output cannot be written: No space left on device; 0 lines were"),
    ):
        line = f"{'echo cab | ' if code == 1 else ''}{command} {redirected}"
        done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment(), capture_output=True, text=True)
        assert done.returncode == code
        assert (done.stdout, done.stderr.splitlines()[-1]) == ("", told)
        assert "Traceback" not in done.stderr
