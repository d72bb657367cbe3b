"""What run_scripts/bench_ko.sh does: trains every Korean task whose files are there, and writes one table.

A run whose test_report.json is there is not done again; one that was stopped goes on (`-resume_checkpoint auto`).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from metrics.registry import FRACTION, METRICS  # noqa: E402
from task_utils import get_task  # noqa: E402
from utils.console import run_command  # noqa: E402
from utils.differences import difference_table, differences_of  # noqa: E402
from utils.errors import UserError, closest  # noqa: E402
from utils.files import whole_file, write_json  # noqa: E402

USAGE = """\
usage: bash run_scripts/bench_ko.sh MODEL DATA_FOLDER [flags of train.py]

  MODEL        a folder or hub name (-init_model), a preset of configs/ or a .json config (-config_path)
  DATA_FOLDER  the published files of the corpora, in any folders below it
"""
REPORT, COMMAND = "test_report.json", "bench_command.json"


@dataclass(frozen=True)
class Benchmark:
    """A task, the names of its published files, and figures that others published (points of 100)."""

    task: str
    train: tuple[str, ...]
    test: str
    valid: str = ""  # else 2 % of the training rows
    published: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """The names of all of them."""
        return [*self.train, self.test, *filter(None, (self.valid,))]


def _klue(task: str, name: str, suffix: str = "json", **published: str) -> Benchmark:
    return Benchmark(task, (f"{name}-v1.1_train.{suffix}",), f"{name}-v1.1_dev.{suffix}", published=published)


# Figures: KLUE's own README (RoBERTa-large), the READMEs of pko-t5 (large), KoBART and KoELECTRA-v3.
BENCHMARKS = (
    _klue("klue-ynat", "ynat", klue_macro_f1="pko-t5 87.12, RoBERTa 85.69"),
    _klue("klue-sts", "klue-sts", pearson="pko-t5 92.05, RoBERTa 93.35", sts_f1="pko-t5 85.24, RoBERTa 86.63"),
    _klue("klue-nli", "klue-nli", accuracy_corrected="pko-t5 84.96, RoBERTa 89.17"),
    _klue("klue-ner", "klue-ner", "tsv", entity_macro_f1="RoBERTa 85.00", character_macro_f1="RoBERTa 91.86"),
    _klue("klue-re", "klue-re", klue_re_f1="RoBERTa 71.13"),
    _klue("klue-dp", "klue-dp", "tsv", uas_macro_f1="RoBERTa 93.48", las_macro_f1="RoBERTa 88.36"),
    _klue("klue-mrc", "klue-mrc", klue_em="RoBERTa 75.58", rouge_w="RoBERTa 80.59"),
    Benchmark(
        "nsmc-prompted",
        ("ratings_train.txt",),
        "ratings_test.txt",
        published={"accuracy_corrected": "KoBART 90.24, KoELECTRA 90.63"},
    ),
    Benchmark(
        "kornli",
        ("snli_1.0_train.ko.tsv", "multinli.train.ko.tsv"),
        "xnli.test.ko.tsv",
        "xnli.dev.ko.tsv",
        {"accuracy_corrected": "KoELECTRA 82.24"},
    ),
    Benchmark(
        "korsts", ("sts-train.tsv",), "sts-test.tsv", "sts-dev.tsv", {"spearman": "KoBART 81.66, KoELECTRA 85.53"}
    ),
    Benchmark(
        "paws-x-kor",
        ("translated_train.tsv",),
        "test_2k.tsv",
        "dev_2k.tsv",
        {"accuracy_corrected": "KoELECTRA 84.45"},
    ),
    Benchmark(
        "korquad-v1",
        ("KorQuAD_v1.0_train.json",),
        "KorQuAD_v1.0_dev.json",
        published={"korquad_em": "KoELECTRA 84.83", "korquad_f1": "KoELECTRA 93.45"},
    ),
)


def main(argv: list[str]) -> int:
    if len(argv) < 2 or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    model, data, *flags = argv
    if not Path(data).is_dir():
        raise UserError(f"DATA_FOLDER {data}: no such folder")
    out = Path(os.environ.get("OUT") or Path("runs") / "bench_ko" / Path(model).name)
    seeds, every = _seeds(os.environ.get("SEEDS", "1 2 3")), _every(os.environ.get("EVERY", "1"))
    known = [benchmark.task for benchmark in BENCHMARKS]
    wanted = os.environ.get("TASKS", "").split() or known
    for task in wanted:
        if task not in known:
            raise UserError(f"TASKS: no such task {task!r}{closest(task, known)}; known: {', '.join(known)}")
    files = _files(Path(data), {name for benchmark in BENCHMARKS for name in benchmark.files})
    _check_same(out / COMMAND, {"model": model, "flags": flags, "EVERY": every})
    found: dict[str, list[dict[str, Any]]] = {}
    for benchmark in BENCHMARKS:
        missing = [name for name in benchmark.files if name not in files]
        if benchmark.task not in wanted:
            continue
        if missing:
            print(f"{benchmark.task}: left out, {data} does not hold {', '.join(missing)}", flush=True)
            continue
        for seed in seeds:
            run = out / f"{benchmark.task}-seed{seed}"
            if not (run / REPORT).exists():
                _train(benchmark, files, model, run, seed, every, flags)
            found.setdefault(benchmark.task, []).append(json.loads((run / REPORT).read_text(encoding="utf-8")))
            _write(out, model, seeds, found)
    if not found:
        raise UserError(f"DATA_FOLDER {data}: holds the files of no task; the file names are those that were published")
    print((out / "bench.md").read_text(encoding="utf-8"), end="")
    print(f"written to {out / 'bench.md'} and {out / 'bench.json'}")
    return 0


def _seeds(value: str) -> list[str]:
    seeds = value.split()
    if not seeds or len(set(seeds)) < len(seeds) or not all(seed.isdecimal() for seed in seeds):
        raise UserError(f"SEEDS {value!r}: give different whole numbers, for example SEEDS='1 2 3'")
    return seeds


def _every(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"EVERY {value!r}: give a whole number from 1; N scores every N-th test row")
    return int(value)


def _files(folder: Path, names: set[str]) -> dict[str, Path]:
    """The files of these names below a folder; of one name there may be one."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.name in names and path.is_file() and found.setdefault(path.name, path) != path:
            raise UserError(f"DATA_FOLDER {folder}: {found[path.name]} and {path} have one name; keep one of them")
    return found


def _check_same(path: Path, command: Mapping[str, Any]) -> None:
    """Refuse to put figures of another command into the table; remember this one."""
    if path.exists():
        differing = differences_of(json.loads(path.read_text(encoding="utf-8")), command)
        if differing:
            raise UserError(
                f"OUT {path.parent}: holds the runs of another command; choose another folder, or delete it\n"
                f"{difference_table(differing, 'before')}"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, dict(command))


def _train(
    benchmark: Benchmark,
    files: Mapping[str, Path],
    model: str,
    run: Path,
    seed: str,
    every: int,
    flags: Sequence[str],
) -> None:
    preset = model.endswith(".json") or (ROOT / "configs" / f"{model}.json").exists()
    valid = ["-valid_data", str(files[benchmark.valid])] if benchmark.valid else ["-valid_data_proportions", "0.02"]
    command = [sys.executable, str(ROOT / "train.py"), "-task", benchmark.task]
    command += [part for name in benchmark.train for part in ("-train_data", str(files[name]))]
    command += [
        *valid,
        "-test_data",
        f"{files[benchmark.test]}:{every}",
        "-config_path" if preset else "-init_model",
        model,
    ]
    command += ["-save_path", str(run), "-seed", seed, "-resume_checkpoint", "auto", *flags]
    print(f"{benchmark.task}, seed {seed}:", flush=True)
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    if not (run / REPORT).exists():
        raise SystemExit(f"{run} was stopped before its test rows were scored; the same command goes on")


def _write(out: Path, model: str, seeds: Sequence[str], found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    rows = [row for benchmark in BENCHMARKS for row in _rows(benchmark, found.get(benchmark.task, ()))]
    content = json.dumps({"model": model, "seeds": list(seeds), "figures": rows}, ensure_ascii=False, indent=2)
    lines = [f"# {model}", "", "| task | rows | metric | mean | 95 % | seeds | published |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        half = "" if row["interval"] is None else f"± {row['interval']:.2f}"
        mean = "undefined" if row["mean"] is None else f"{row['mean']:.2f}"
        cells = (row["task"], f"{row['rows']:,}", row["metric"], mean, half, str(len(row["values"])), row["published"])
        lines.append(f"| {' | '.join(cells)} |")
    for name, text in (("bench.json", content), ("bench.md", "\n".join(lines))):
        with whole_file(out / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def _rows(benchmark: Benchmark, reports: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row a metric: all in points of 100; the interval is Student's over the seeds."""
    for name in get_task(benchmark.task).metrics if reports else ():
        factor = 100 if METRICS[name].scale == FRACTION else 1
        values = [report["metrics"].get(name) for report in reports]
        points = [factor * value for value in values if value is not None]
        whole = len(points) == len(values)
        yield {
            "task": benchmark.task,
            "rows": reports[0]["scored_rows"],
            "metric": name,
            "values": [None if value is None else factor * value for value in values],
            "mean": statistics.fmean(points) if whole and points else None,
            "interval": _half_interval(points) if whole and len(points) > 1 else None,
            "published": benchmark.published.get(name, ""),
        }


def _half_interval(values: Sequence[float]) -> float:
    """Half of the 95 % confidence interval of the mean (Student's t)."""
    from scipy import stats

    return float(stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5)


if __name__ == "__main__":
    run_command(main)
