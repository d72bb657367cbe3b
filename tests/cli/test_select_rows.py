"""`select_rows.py` as a command: what is written of the rows, training on them, a restart, and mistakes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import select_rows
from models.loading import from_config
from tests.cli.command import Result, listing, run, train_ok
from tests.cli.tiny import BART, T5, json_lines, write_config, write_tsv
from tests.small_models import byte_tokenizer


def command(folder: Path, output: Path, *more: str | Path | int) -> list[str]:
    flags = ("-model", folder / "run", "-data", folder / "train.tsv", "-save_output", output, "-gpus", 0)
    return [str(flag) for flag in (*flags, *more)]


def select(*flags: str) -> Result:
    return run("python", "select_rows.py", *flags)


def test_chosen_rows_are_labelled_and_trained_on_as_they_are(label_run: Path, tmp_path: Path) -> None:
    found = select(*command(label_run, tmp_path / "s.jsonl", "-n", 9, "-proportional_to", "label"))
    assert found.code == 0, found.out + found.err
    rows, given = json_lines(tmp_path / "s.jsonl"), (label_run / "train.tsv").read_text().splitlines()[1:]
    for row in rows:
        assert given[row["selection"]["row"]] == f"{row['document']}\t{row['label']}"
        first, second = sorted(row["selection"]["label_probabilities"].values(), reverse=True)
        assert abs(row["selection"]["score"] - (1 - first + second)) < 1e-5
        assert row["selection"]["reason"].startswith(f"margin {first - second:.4f}: {row['selection']['prediction']} ")
    scores = [row["selection"]["score"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    shares = Counter(line.split("\t")[1] for line in given)
    assert Counter(row["label"] for row in rows) == {label: round(9 * n / 160) for label, n in shares.items()}
    assert found.out.splitlines()[-1] == f"written to {tmp_path / 's.jsonl'}"
    assert not (tmp_path / "s.jsonl.parts").exists()
    train_ok(
        *("-train_data", str(label_run / "test.tsv"), "-train_data", str(tmp_path / "s.jsonl")),
        *("-source_column", "document", "-target_column", "label", "-label_map", "0=n,1=p", "-gpus", "0"),
        *("-config_path", str(write_config(tmp_path / "bart.json", BART)), "-save_path", str(tmp_path / "next")),
        *("-max_epoch", "1"),
    )


def test_a_stopped_choice_goes_on_whatever_the_strategy(
    label_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("-n", 200, "-strategy", "rare-class")
    assert select(*command(label_run, tmp_path / "whole.jsonl", *flags)).code == 0
    output = tmp_path / "out.jsonl"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("analysis.selection.choose.save", stop)
        with pytest.raises(KeyboardInterrupt):
            select_rows.main(command(label_run, output, "-n", 3))
    assert not output.exists()
    capsys.readouterr()
    assert select_rows.main(command(label_run, output, *flags)) == 0
    assert "160 of 160 rows were finished before" in capsys.readouterr().out
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert listing(tmp_path).keys() == {"out.jsonl", "whole.jsonl"}


@pytest.mark.parametrize("strategy", ["outliers", "diversity"])
def test_rows_by_their_vectors(label_run: Path, tmp_path: Path, strategy: str) -> None:
    """Twice the same; of equal words, which are one vector, `diversity` takes one."""
    for name in ("a.jsonl", "b.jsonl"):
        assert select_rows.main(command(label_run, tmp_path / name, "-n", 12, "-strategy", strategy)) == 0
    found = json_lines(tmp_path / "a.jsonl")
    assert len(found) == 12
    assert strategy == "outliers" or len({row["document"] for row in found}) == 12
    assert {*found[0]["selection"]} == {"row", "score", "reason"}
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert listing(tmp_path).keys() == {"a.jsonl", "b.jsonl"}


def test_broken_lines_are_chosen_as_what_was_read_of_them(label_run: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{broken\n{"document": "ab", "shop": 3}\n["c"]\n')
    flags = ("-model", label_run / "run", "-data", data, "-save_output", tmp_path / "out.jsonl", "-gpus", 0)
    assert select_rows.main([str(flag) for flag in (*flags, "-strategy", "random")]) == 0
    found = {row.pop("selection")["row"]: row for row in json_lines(tmp_path / "out.jsonl")}
    empty = {"source": "평가: ", "target": None}  # the template of the task around nothing
    assert found == {0: empty, 1: {"document": "ab", "shop": 3}, 2: empty}


def test_several_labels_a_row_by_their_thresholds(tmp_path: Path) -> None:
    from_config({**T5, "eos_token_id": 1}, 3).save_pretrained(tmp_path / "model")
    byte_tokenizer(tmp_path / "model")
    (tmp_path / "task.yaml").write_text('label_separator: ", "\nlabel_map: {p: A, d: B}\n')
    rows = write_tsv(tmp_path / "rows.tsv", [("ab", "p"), ("c", "p, d"), ("abc", "d"), ("d", "p")])
    flags = ("-model", tmp_path / "model", "-task", tmp_path / "task.yaml", "-data", rows, "-thresholds", rows)
    flags += ("-strategy", "threshold", "-n", 2, "-save_output", tmp_path / "out.jsonl", "-gpus", 0)
    assert select_rows.main([str(flag) for flag in flags]) == 0
    for row in json_lines(tmp_path / "out.jsonl"):
        why = row["selection"]
        label, share, _, threshold = why["reason"].replace(",", "").split()
        assert f"{why['label_probabilities'][label]:.4f}" == share
        assert why["score"] == pytest.approx(1 - abs(float(share) - float(threshold)), abs=2e-4)


def test_mistakes_are_told_at_once(label_run: Path, tmp_path: Path) -> None:
    flags = ("-strategy", "rare-pieces", "-thresholds", "missing.tsv", "-seed", 3)
    assert select(*command(label_run, tmp_path / "out.txt", *flags)).errors == [
        "-thresholds missing.tsv: only with -strategy threshold: no other one has thresholds",
        "-seed 3: only with -strategy random or outliers or diversity: no other one draws anything",
        "-thresholds: missing.tsv: no such file",
        f"-save_output {tmp_path / 'out.txt'}: give a file that ends in .jsonl",
        "-strategy rare-pieces: give the rows that -model was trained on as -train_data",
    ]
    assert select(*command(label_run, tmp_path / "out.jsonl", "-strategy", "threshold")).errors == [
        "-strategy threshold looks at probabilities of several labels a row, and the outputs of task seq2seq are"
        " 0=부정., 1=긍정.; for these there are: margin, entropy, rare-class, label-errors, rare-pieces,"
        " outliers, diversity, random"
    ]
    bare = write_tsv(tmp_path / "bare.tsv", [("abc", "")], ("document", "label"))
    flags = ("-model", label_run / "run", "-data", bare, "-strategy", "label-errors", "-gpus", 0)
    assert select(*map(str, flags), "-save_output", str(tmp_path / "out.jsonl")).errors == [
        "-strategy label-errors: no row of -data has a label; give labelled rows"
    ]
    assert listing(tmp_path).keys() == {"bare.tsv"}
