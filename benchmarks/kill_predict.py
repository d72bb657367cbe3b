"""Predictions that are killed again and again, on one to three processes, compared with those that nobody killed.

    python benchmarks/kill_predict.py -part kills -kills 20      SIGKILL of all or of one process, random restarts
    python benchmarks/kill_predict.py -part sizes                1, 2, 3 and 10,007 rows on 1, 2 and 3 processes
    python benchmarks/kill_predict.py -part memory -rows 1000000 peak memory, and rows a second at the start and the end

A small BART is trained first. Results are printed and, with -output, written as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.cli.command import ROOT, environment, train_ok
from tests.cli.tiny import BART, flag_list, letter_rows, write_config, write_tsv

KILLS_OF_A_RUN = 4
ROWS_OF_A_KILLED_RUN = 3000


def trained(folder: Path) -> Path:
    """A small BART that copies the first letter of a word."""
    write_tsv(folder / "train.tsv", letter_rows(200, 1))
    flags = {
        "train_data": folder / "train.tsv",
        "config_path": write_config(folder / "bart.json", BART),
        "save_path": folder / "run",
        "batch_size": 16,
        "max_epoch": 6,
        "learning_rate": 4e-3,
    }
    train_ok(*flag_list(flags))
    return folder / "run" / "last"


def command(model: Path, data: Path, output: Path, processes: int, batch_size: int = 16) -> list[str]:
    """JSON lines with scores, so that equal bytes mean equal scores as well."""
    flags = {
        "model": model,
        "test_data": data,
        "save_output": output,
        "batch_size": batch_size,
        "beam_size": 3,
        "num_return": 2,
        "cpu_processes": processes if processes > 1 else 0,
        "gpus": 0,
    }
    return [sys.executable, "inference.py", *flag_list(flags)]


def threads(arguments: list[str]) -> str:
    """Two of one process, one of each of several: the sums must not depend on it."""
    return "1" if int(arguments[arguments.index("-cpu_processes") + 1]) > 1 else "2"


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """The command in a process group of its own."""
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=environment(OMP_NUM_THREADS=threads(arguments)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill_somebody(process: subprocess.Popen[str], draw: random.Random) -> str:
    """SIGKILL to the whole group, to the parent, or to one of its workers."""
    import psutil

    workers = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    victims = ["group", "parent", *(["worker"] if workers else [])]
    victim = draw.choice(victims)
    if victim == "group":
        os.killpg(process.pid, signal.SIGKILL)
    elif victim == "parent":
        process.kill()
    else:
        draw.choice(workers).kill()
    return victim


def kills(options: argparse.Namespace) -> dict[str, Any]:
    """How many kills there were, and how many of the outputs were the bytes of the one that nobody killed."""
    draw = random.Random(options.seed)
    done, runs, identical = 0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = trained(folder)
        data = write_tsv(folder / "data.tsv", letter_rows(ROWS_OF_A_KILLED_RUN, 3))
        subprocess.run(command(model, data, folder / "whole.jsonl", 1), cwd=ROOT, env=environment(), check=True)
        whole = (folder / "whole.jsonl").read_bytes()
        while done < options.kills:
            runs += 1
            output = folder / f"killed{runs}.jsonl"
            parts = output.with_name(output.name + ".parts")
            for _ in range(min(KILLS_OF_A_RUN, options.kills - done)):
                process = start(command(model, data, output, draw.choice((1, 2, 3))))
                before, more = len(list(parts.glob("part-*"))), draw.randint(1, 30)
                while process.poll() is None and len(list(parts.glob("part-*"))) < before + more:
                    time.sleep(0.003)
                if process.poll() is not None:
                    break
                victim = kill_somebody(process, draw)
                process.communicate()
                done += 1
                print(f"kill {done}: {victim}, {len(list(parts.glob('part-*')))} parts finished", flush=True)
            if not output.exists():
                process = start(command(model, data, output, draw.choice((1, 2, 3))))
                printed, _ = process.communicate()
                if process.returncode:
                    print(printed)
            identical += output.exists() and output.read_bytes() == whole
            print(f"kills {done}, runs {runs}, byte-identical {identical}", flush=True)
    return {"kills": done, "runs": runs, "identical": identical}


def sizes(options: argparse.Namespace) -> dict[str, Any]:
    """Whether 1, 2 and 3 processes write the same bytes, for several numbers of rows."""
    del options
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = trained(folder)
        for rows in (1, 2, 3, 10_007):
            data = write_tsv(folder / f"{rows}.tsv", letter_rows(rows, 5))
            outputs = []
            for processes in (1, 2, 3):
                output = folder / f"{rows}-{processes}.jsonl"
                arguments = command(model, data, output, processes)
                environ = environment(OMP_NUM_THREADS=threads(arguments))
                subprocess.run(arguments, cwd=ROOT, env=environ, check=True, capture_output=True)
                outputs.append(output.read_bytes())
            found[f"{rows} rows"] = {
                "lines": outputs[0].count(b"\n"),
                "the same bytes": outputs[0] == outputs[1] == outputs[2],
            }
            print(rows, found[f"{rows} rows"], flush=True)
    return found


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory of the process, and its speed at the start and at the end (greedy, plain lines)."""
    import psutil

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = trained(folder)
        data = write_tsv(folder / "data.tsv", letter_rows(options.rows, 3))
        flags = {"model": model, "test_data": data, "save_output": folder / "out.txt", "batch_size": 256, "gpus": 0}
        with open(folder / "printed.txt", "w+", encoding="utf-8") as printed:
            process = subprocess.Popen(
                [sys.executable, "inference.py", *flag_list({**flags, "max_predict_length": 4})],
                cwd=ROOT,
                env=environment(),
                stdout=printed,
                stderr=subprocess.STDOUT,
            )
            watched = psutil.Process(process.pid)
            parts = folder / "out.txt.parts"
            times: list[tuple[float, int]] = []
            peak = {"predicting": 0, "writing and scoring": 0}
            while process.poll() is None:
                count = len(list(parts.glob("part-*"))) if parts.is_dir() else 0
                if count and (not times or times[-1][1] < count):
                    times.append((time.monotonic(), count))
                told = (folder / "printed.txt").read_text(encoding="utf-8")
                phase = "writing and scoring" if "rows predicted in" in told else "predicting"
                with contextlib.suppress(psutil.NoSuchProcess):
                    peak[phase] = max(peak[phase], watched.memory_info().rss)
                time.sleep(0.2)
        lines = (folder / "out.txt").read_bytes().count(b"\n")
        rows_of_a_part = options.rows / max(count for _, count in times)
        tenth = max(1, len(times) // 10)

        def rate(first: int, last: int) -> float:
            (start_time, start_count), (end_time, end_count) = times[first], times[last]
            return (end_count - start_count) * rows_of_a_part / (end_time - start_time)

        return {
            "rows": options.rows,
            "lines": lines,
            "peak_bytes": peak,
            "rows_per_second_first_tenth": rate(0, tenth),
            "rows_per_second_last_tenth": rate(-1 - tenth, -1),
            "told": re.findall(r".*rows predicted in.*", told),
        }


def main() -> None:
    parts = {"kills": kills, "sizes": sizes, "memory": memory}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-part", choices=sorted(parts), default="kills")
    parser.add_argument("-kills", type=int, default=20)
    parser.add_argument("-rows", type=int, default=1_000_000)
    parser.add_argument("-seed", type=int, default=1)
    parser.add_argument("-output", default="", help="JSON file of the results")
    options = parser.parse_args()
    found = parts[options.part](options)
    print(json.dumps(found, indent=2))
    if options.output:
        Path(options.output).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
