"""Runs that are killed again and again, compared with runs that nobody killed; and what stopping and saving cost.

    python benchmarks/kill_resume.py -part kills -kills 100      SIGKILL at random events, inside writes as well
    python benchmarks/kill_resume.py -part pretraining -kills 50 the same with pretrain.py, its tokenizing too
    python benchmarks/kill_resume.py -part stop                  time from SIGTERM to the saved checkpoint and the exit
    python benchmarks/kill_resume.py -part save                  seconds that training waits for a checkpoint, and
                                                                 that its thread writes; the share of -save_every 100
    python benchmarks/kill_resume.py -part start -data F.txt     time to the first step: fresh, and at batch 10,000

The faults come from `tests/faults`: the product has no hook for them. Results are printed and, with -output, written
as JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.cli.command import ROOT, environment
from tests.cli.tiny import flag_list, letter_rows, write_config, write_mixture, write_tsv
from tests.faults.harness import Killed, assert_same_checkpoints, assert_same_end, events_of, run_flags, run_under_fire
from tests.small_configs import with_dropout

SAMPLE = ROOT / "samples" / "text_normalization"
# Model, optimizer, accumulation, ranks, loader processes, and the data: with or without validation rows, or a mixture
# of three tasks with class weights.
Case = tuple[str, str, int, int, int, bool | str]
MIXTURE = "mixture"
CASES: list[Case] = [
    *itertools.product(("t5-untied", "bart"), ("adam", "adafactor"), (1, 4), (1, 2), (0, 2), (True,)),
    ("t5-untied", "adam", 4, 1, 0, False),
    ("bart", "adafactor", 1, 2, 2, False),
    ("bart", "adam", 2, 1, 0, MIXTURE),
    ("t5-untied", "adafactor", 4, 2, 2, MIXTURE),
]
KILLS_OF_A_RUN = 6


def case_flags(folder: Path, case: Case, name: str, strategy: str) -> dict[str, Any]:
    """100 rows under the flags of a case."""
    model, optimizer, accumulate, ranks, workers, data = case
    write_tsv(folder / "train.tsv", letter_rows(100, 1))
    write_tsv(folder / "valid.tsv", letter_rows(40, 2))
    mixture = {"train_task": write_mixture(folder), "class_weights": "balanced"} if data == MIXTURE else {}
    return run_flags(
        folder,
        name,
        model,
        None if mixture else folder / "train.tsv",
        **mixture,
        valid_data=folder / "valid.tsv" if data is True else None,
        optim=optimizer,
        grad_acc=accumulate,
        num_workers=workers,
        cpu_processes=ranks if ranks > 1 else 0,
        strategy=strategy,
    )


def kills(options: argparse.Namespace) -> dict[str, Any]:
    """How many kills there were, and how many of the runs under fire ended bit for bit as the others."""
    draw = random.Random(options.seed)
    cases = [case for case in CASES if not options.mixture or case[-1] == MIXTURE]
    if options.strategy != "auto":
        cases = [case for case in cases if case[1] == "adam" and case[3] == 2]
    draw.shuffle(cases)
    return under_fire(options, itertools.cycle(cases), partial(case_flags, strategy=options.strategy), draw)


def under_fire(
    options: argparse.Namespace, cases: Iterable[Any], flags_of: Callable[[Path, Any, str], Any], draw: random.Random
) -> dict[str, Any]:
    """Runs of the cases, killed until -kills are done, and compared with those that nobody killed."""
    done, runs, identical, failures = 0, 0, 0, []
    for case in cases:
        if done >= options.kills:
            break
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            events = events_of(flags_of(folder, case, "whole"), folder / "events.txt")
            flags = flags_of(folder, case, "killed")
            wanted = min(KILLS_OF_A_RUN, options.kills - done)
            runs += 1
            result = Killed()
            try:
                run_under_fire(flags, events // 4, draw, wanted, result)
                assert_same_end(folder / "killed", folder / "whole")
                assert_same_checkpoints(folder / "killed", folder / "whole")
                identical += 1
            except Exception as error:  # also a file that is not there, and a process that does not end
                failures.append({"case": case, "error": f"{type(error).__name__}: {error}"[:2000]})
            done += result.kills
            print(f"{case}: kills so far {done}, runs {runs}, bit-identical {identical}", flush=True)
    return {"kills": done, "runs": runs, "identical": identical, "failures": failures}


PRETRAINING: list[dict[str, Any]] = [  # flags of each case, and the model
    {"model": "t5-untied", "optim": "adafactor", "cpu_processes": 2, "num_workers": 2},
    {"model": "t5-untied", "optim": "adam", "grad_acc": 4, "pack_documents": True},
    {"model": "t5", "optim": "adamwscale", "objective": "ul2", "cpu_processes": 2},
    {"model": "bart", "optim": "adam", "objective": "infilling", "valid_rows": 0},
    {"model": "t5", "optim": "adam", "grad_acc": 2, "cpu_processes": 2, "inverse_cloze_weight": 0.5},
    {"model": "bart", "optim": "adam", "objective": "encoder_mlm", "inverse_cloze_weight": 0.5, "num_workers": 1},
]


def pretraining_flags(folder: Path, case: dict[str, Any], name: str) -> dict[str, Any]:
    """Two texts that are mixed, under the flags of a case; each run tokenizes them itself."""
    draw = random.Random(1)
    for number in (1, 2):
        texts = (" ".join(letter for letter, _ in letter_rows(9, draw.randrange(10**6))) for _ in range(60))
        (folder / f"{number}.txt").write_text("\n".join(texts), encoding="utf-8")
    flags = {"config_path": write_config(folder / "model.json", with_dropout(case["model"], 0.2)), **case}
    del flags["model"]
    return {
        "corpus": f"{folder / '1.txt'}:0.7",
        "-corpus": f"{folder / '2.txt'}:0.3",
        "save_path": folder / name,
        "max_seq_length": 32,
        "batch_size": 4,
        "max_steps": 16,
        "valid_every": 8,
        "valid_rows": 12,
        "learning_rate": 2e-3,
        "save_every": 2,
        "log_every": 3,
        **flags,
    }


def pretraining(options: argparse.Namespace) -> dict[str, Any]:
    """As `kills`."""
    draw = random.Random(options.seed)
    return under_fire(options, itertools.cycle(PRETRAINING), pretraining_flags, draw)


def sample_flags(folder: Path) -> dict[str, Any]:
    """byt5-mini on the bundled sample, batches of 32 rows."""
    return {
        "train_data": SAMPLE / "train.tsv",
        "config_path": "byt5-mini",
        "save_path": folder / "run",
        "cache_dir": folder / "cache",
        "batch_size": 32,
        "max_epoch": 4,
        "log_every": 1,
        "gpus": 0,
    }


def stop(options: argparse.Namespace) -> dict[str, Any]:
    """From SIGTERM to the line that says the run is saved, in steps, and to the exit, in seconds."""
    draw = random.Random(options.seed)
    waits = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as name:
            flags = sample_flags(Path(name))
            process = subprocess.Popen(
                [sys.executable, "train.py", *flag_list(flags)],
                cwd=ROOT,
                env=environment(OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "2")),
                stdout=subprocess.PIPE,
                text=True,
            )
            assert process.stdout is not None
            times = []
            for line in process.stdout:
                if "[TRAIN]" in line:
                    times.append(time.monotonic())
                if len(times) == 12:
                    break
            time.sleep(draw.random())
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            saved = next(time.monotonic() for line in process.stdout if "and saved" in line)
            process.communicate()
            step = statistics.median(after - before for before, after in itertools.pairwise(times[2:]))
            waits.append({"step": step, "saved": saved - began, "exit": time.monotonic() - began})
            print(waits[-1], flush=True)
    return {
        "step_seconds": statistics.median(wait["step"] for wait in waits),
        "longest_to_saved_steps": max(wait["saved"] / wait["step"] for wait in waits),
        "longest_to_saved_seconds": max(wait["saved"] for wait in waits),
        "longest_to_exit_seconds": max(wait["exit"] for wait in waits),
    }


def save(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds that training waits for a step checkpoint, its share of the steps between, and seconds of its write."""
    import train
    from training.checkpointing import Checkpointer
    from training.strategies.replicated import Replicated

    seconds: dict[str, list[float]] = {"_save": [], "write": []}

    def time_calls(owner: type, name: str) -> None:
        call = getattr(owner, name)

        def timed(*arguments: Any, **settings: Any) -> Any:
            began = time.monotonic()
            result = call(*arguments, **settings)
            seconds[name].append(time.monotonic() - began)
            return result

        setattr(owner, name, timed)

    time_calls(Checkpointer, "_save")
    time_calls(Replicated, "write")
    every = options.every
    with tempfile.TemporaryDirectory() as name:
        flags = {**sample_flags(Path(name)), "save_every": every, "max_steps": 3 * every, "log_every": every}
        began = time.monotonic()
        train.main(flag_list({**flags, "config_path": options.config, "batch_size": options.rows}))
        checkpoint = max(path.stat().st_size for path in (Path(name) / "run" / "saved_checkpoints").iterdir())
        lines = [json.loads(line) for line in (Path(name) / "run" / "metrics.jsonl").read_text().splitlines()]
        between = statistics.median(every * options.rows / line["rows_per_second"] for line in lines)
    waited = statistics.mean(seconds["_save"])
    return {
        "checkpoint_bytes": checkpoint,
        "seconds_waited": waited,
        "seconds_written": statistics.mean(seconds["write"]),
        "seconds_of_the_steps": between,
        "share": waited / (waited + between),
        "whole_run_seconds": time.monotonic() - began,
    }


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds from the start of the process to its first optimizer step, the rows encoded before."""
    import torch

    def first_step(flags: dict[str, Any]) -> float:
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "train.py", *flag_list(flags)],
            cwd=ROOT,
            env=environment(OMP_NUM_THREADS="2"),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        seconds = next(time.monotonic() - began for line in process.stdout if "[TRAIN]" in line)
        process.communicate()
        return seconds

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = {
            "task": "nsmc-prompted",
            "train_data": options.data,
            "config_path": "byt5-mini",
            "cache_dir": folder / "cache",
            "batch_size": 8,
            "valid_data_proportions": 0.001,
            "log_every": 1,
            "gpus": 0,
        }
        first_step({**flags, "save_path": folder / "encoded", "max_steps": 1})
        path = folder / "encoded" / "saved_checkpoints" / "last.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        state = checkpoint["Seq2SeqDataModule"]
        state["batches"] = checkpoint["global_step"] = options.batch
        moved = folder / "moved.ckpt"
        torch.save(checkpoint, moved)
        fresh, resumed = [], []
        for repeat in range(options.repeats):
            fresh.append(first_step({**flags, "save_path": folder / f"fresh{repeat}", "max_steps": 1}))
            more = {"resume_checkpoint": moved, "max_steps": options.batch + 1}
            resumed.append(first_step({**flags, "save_path": folder / f"resumed{repeat}", **more}))
            print(f"fresh {fresh[-1]:.2f} s, resumed {resumed[-1]:.2f} s", flush=True)
    return {
        "batch": options.batch,
        "batches_per_epoch": state["batches_per_epoch"],
        "fresh_seconds": statistics.median(fresh),
        "resumed_seconds": statistics.median(resumed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = {"kills": kills, "pretraining": pretraining, "stop": stop, "save": save, "start": start}
    parser.add_argument("-part", choices=sorted(parts), default="kills")
    parser.add_argument("-kills", type=int, default=100)
    parser.add_argument("-mixture", action="store_true", help="only the cases of several tasks")
    sharded = ("fsdp", "deepspeed_1", "deepspeed_2", "deepspeed_2_optim_offload", "deepspeed_3", "deepspeed_3_full")
    told = "all but auto: two processes and adam only"
    parser.add_argument("-strategy", choices=("auto", *sharded), default="auto", help=told)
    parser.add_argument("-repeats", type=int, default=5)
    parser.add_argument("-batch", type=int, default=10_000, help="where in the epoch -part start resumes")
    parser.add_argument("-data", default="", help="NSMC's ratings_train.txt, for -part start")
    parser.add_argument("-config", default="byt5-mini", help="the model of -part save: a preset, or its JSON")
    parser.add_argument("-every", type=int, default=100, help="optimizer steps between the checkpoints of -part save")
    parser.add_argument("-rows", type=int, default=32, help="of a batch of -part save")
    parser.add_argument("-seed", type=int, default=1)
    parser.add_argument("-output", default="", help="JSON file of the results")
    options = parser.parse_args()
    if options.part == "start" and not options.data:
        parser.error("-part start needs -data")
    result = parts[options.part](options)
    print(json.dumps(result, indent=2))
    if options.output:
        Path(options.output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
