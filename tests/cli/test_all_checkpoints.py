"""All checkpoints of a run are scored as each of them is alone, also when the command is killed in between."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from tests.cli.command import infer, infer_ok
from tests.cli.test_inference_restart import ROWS, start_and_stop


def test_a_killed_command_ends_with_what_each_checkpoint_gives_alone(
    copy_run: Path, letters: Path, tmp_path: Path
) -> None:
    run, output, report = copy_run / "run", tmp_path / "out.jsonl", tmp_path / "report.json"
    common = ("-test_data", letters / "train.tsv", "-batch_size", 4, "-confidence", 0.9)
    command = [str(word) for word in ("-model", run, "-all_checkpoints", *common, "-save_output", output)]
    steps = sorted(int(path.name.split("global_step")[1].split("-")[0]) for path in run.glob("saved_*/epoch*.ckpt"))
    killed = tmp_path / f"out.checkpoint-{steps[1]}.jsonl.parts"
    start_and_stop(command, killed, 2, signal.SIGKILL)
    kept = len(list(killed.glob("part-*")))
    done = infer_ok(*command, "-save_report", report)
    first = f"{ROWS} of {ROWS} rows were finished before, in {tmp_path / f'out.checkpoint-{steps[0]}.jsonl.parts'}"
    assert f"\n{first}\n0 rows predicted in " in done.out
    assert f"\n{4 * kept} of {ROWS} rows were finished before, in {killed}\n" in done.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "report.json"]

    content = json.loads(report.read_text(encoding="utf-8"))
    found = content["checkpoints"]
    assert [one["step"] for one in found["scored"]] == steps
    figures = {one["step"]: one["metrics"]["exact_match"] for one in found["scored"]}
    assert (found["metric"], found["best"]) == ("exact_match", min(figures, key=lambda step: (-figures[step], step)))
    assert content["metrics"]["exact_match"] == max(figures.values()) > min(figures.values())
    best, worst = (next(one for one in found["scored"] if one["step"] == step) for step in (found["best"], steps[0]))
    assert f"\nbest by exact_match: step {best['step']} ({figures[best['step']]:.4f}), {best['path']}\n" in done.out
    assert content["settings"]["model"] == [best["path"]]
    for one in (best, worst):
        flags = ("-model", one["path"], *common, "-save_output", tmp_path / "one.jsonl", "-overwrite")
        infer_ok(*flags, "-save_report", tmp_path / "one.json")
        alone = json.loads((tmp_path / "one.json").read_text(encoding="utf-8"))
        assert (alone["metrics"], alone["confidence"]) == (one["metrics"], one["confidence"])
        assert ((tmp_path / "one.jsonl").read_bytes() == output.read_bytes()) == (one is best)


def test_rows_without_references_compare_nothing(copy_run: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("a\nb\n")
    refused = infer("-model", copy_run / "run", "-all_checkpoints", "-test_data", tmp_path / "rows.txt")
    assert (refused.code, refused.errors) == (
        2,
        ["-all_checkpoints: no row has a reference to compare the checkpoints by"],
    )
