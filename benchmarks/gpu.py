"""Everything that only a GPU can tell, in one command of at most eight minutes: a table, as text and as JSON.

    bash benchmarks/gpu.sh                                 # one GPU; the first of several
    bash benchmarks/gpu.sh -device fake                    # the same steps on the counting device, tiny models
    bash benchmarks/gpu.sh -steps card,training-t5         # some of them

No network is needed. Missing packages are named first. Each step is a process of its own with a time limit; one that
fails is a line of the table, and the others go on. Steps of the first group run beside each other, since only their
results count; the others run alone. Exit code 0 when all steps ran, else 1.

On the counting device (`-device fake`, see tests/counting) operations are computed on the CPU with tiny models, and
commands run on the CPU: times mean nothing there, and no line of it is a measurement of a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MINUTES = 8.0
NEEDED = {  # package -> module, where that has another name
    **dict.fromkeys(("torch", "pytorch-lightning", "transformers", "tokenizers", "numpy", "pyarrow", "safetensors")),
    **dict.fromkeys(("tensorboard", "editdistance", "jinja2", "sacrebleu", "rouge-score", "rich", "tqdm")),
    **dict.fromkeys(("accelerate", "pytest", "pytest-timeout")),
    "PyYAML": "yaml",
    "scikit-learn": "sklearn",
}
NOTHING_WITHOUT = ("torch", "transformers", "pytorch-lightning")


@dataclass(frozen=True)
class Step:
    """A step of the plan: the function that measures it, its first argument, and how long it may take."""

    module: str
    function: str
    argument: str = ""
    seconds: float = 60
    alone: bool = True


STEPS = {
    "parity": Step("gpu_right", "parity", seconds=110, alone=False),
    "waits": Step("gpu_right", "waits", seconds=110, alone=False),
    "tests": Step("gpu_commands", "tests", seconds=120, alone=False),
    "resume": Step("gpu_commands", "resume", seconds=110, alone=False),
    "card": Step("gpu_fast", "card", seconds=30),
    "training-t5": Step("gpu_fast", "training", "t5-base", 80),
    "training-byt5": Step("gpu_fast", "training", "byt5-small", 50),
    "training-bart": Step("gpu_fast", "training", "bart-base", 50),
    "decoding-t5": Step("gpu_fast", "decoding", "t5-base", 45),
    "decoding-byt5": Step("gpu_fast", "decoding", "byt5-small", 35),
    "decoding-bart": Step("gpu_fast", "decoding", "bart-base", 35),
    "labels": Step("gpu_fast", "labels", seconds=40),
    "loss": Step("gpu_fast", "loss", seconds=30),
    "memory": Step("gpu_commands", "memory", seconds=70),
    "compiling-t5": Step("gpu_fast", "compiling", "t5-base", 150),  # last: it may need what is left of the time
}


@dataclass
class Line:
    """A line of the table."""

    step: str
    what: str
    value: str
    figure: float | None = None  # for the JSON


def missing_packages() -> list[str]:
    """The packages that are not installed."""
    modules = {package: module or package.replace("-", "_") for package, module in NEEDED.items()}
    return [package for package, module in modules.items() if importlib.util.find_spec(module) is None]


def install_command(packages: list[str]) -> str:
    """How to install them, in the versions of the requirements."""
    pinned = {}
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            if found := re.match(r"([\w-]+)==", line):
                pinned[found[1]] = line
    return "pip install " + " ".join(pinned.get(package, package) for package in packages)


class Running:
    """A step under way, in a process group of its own; its lines are kept although it fails or is ended."""

    def __init__(self, name: str, options: argparse.Namespace, seconds: float) -> None:
        self.name = name
        self.seconds = seconds
        self.log = Path(options.out) / "logs" / f"{name}.txt"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "-device", options.device, "-out", options.out, "-child", name]
        environment = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.began = time.monotonic()

    def lines(self) -> list[Line]:
        """Wait for its end, or end it; how it went is the last line."""
        try:
            code = self.process.wait(max(self.seconds - (time.monotonic() - self.began), 0.1))
            how = "ran" if code == 0 else f"FAILED (exit code {code})"
        except subprocess.TimeoutExpired:
            how = f"FAILED (ended after {self.seconds:.0f} s)"
        self.end()
        texts = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        lines = [Line(self.name, **json.loads(text[5:])) for text in texts if text.startswith("LINE ")]
        if how != "ran":
            told = [text for text in texts if text.strip() and not text.startswith("LINE ")]
            how += f": {told[-1].strip()[:150]}" if told else ""
        seconds = time.monotonic() - self.began
        return [*lines, Line(self.name, "step", f"{how}, {seconds:.0f} s", seconds)]

    def end(self) -> None:
        """End it, and what it left behind."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def run_steps(names: list[str], options: argparse.Namespace) -> list[Line]:
    """The lines of all steps: first those that may run beside each other, then one after the other."""
    deadline = time.monotonic() + 60 * options.minutes
    together = [name for name in names if not STEPS[name].alone]
    groups = [together, *([name] for name in names if STEPS[name].alone)]
    found: list[Line] = []
    limit = options.factor or (1.0 if options.device == "cuda" else 3.0)
    running: list[Running] = []
    try:
        for group in filter(None, groups):
            left = deadline - time.monotonic()
            if left < 5:
                found += [Line(name, "step", "FAILED (no time was left)") for name in group]
                continue
            running = []
            for name in group:
                running.append(Running(name, options, min(STEPS[name].seconds * limit, left)))
            for one in running:
                lines = one.lines()
                print("\n".join(text_of(lines)), flush=True)
                found += lines
    except KeyboardInterrupt:
        for one in running:
            one.end()
        found.append(Line("all", "steps", "FAILED (stopped)"))
    return found


def text_of(lines: list[Line]) -> list[str]:
    """The table as text."""
    return [f"{line.step:14} {line.what:44} {line.value}" for line in lines]


def child(name: str, options: argparse.Namespace) -> None:
    """One step, in a process of its own: prints `LINE` and an object for each line of the table."""
    from benchmarks.device import Place

    step = STEPS[name]
    place = Place(options.device)
    from transformers.utils import logging

    logging.set_verbosity_error()
    module = importlib.import_module(f"benchmarks.{step.module}")
    measure: Callable[..., None] = getattr(module, step.function)
    work = Path(options.out) / "work" / name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)

    def tell(what: str, value: Any, figure: float | None = None) -> None:
        print("LINE " + json.dumps({"what": what, "value": str(value), "figure": figure}), flush=True)

    measure(tell, place, work, *([step.argument] if step.argument else []))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-device", choices=("cuda", "cpu", "fake"), default="cuda")
    parser.add_argument("-steps", default=",".join(STEPS), help="names, with commas")
    parser.add_argument("-minutes", type=float, default=MINUTES, help="after which no step begins or goes on")
    parser.add_argument("-factor", type=float, help="on the time limits of the steps; by default 3 without a GPU")
    parser.add_argument("-out", default="runs/gpu", help="folder of the table, the logs and the work")
    parser.add_argument("-child", choices=tuple(STEPS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.steps.split(",")
    if unknown := [name for name in names if name not in STEPS]:
        parser.error(f"no such step: {', '.join(unknown)}; there are {', '.join(STEPS)}")
    if options.child:
        child(options.child, options)
        return 0
    for flag, value in (("-minutes", options.minutes), ("-factor", options.factor)):
        if value is not None and not value > 0:
            parser.error(f"{flag} {value:g}: more than 0 expected")
    options.out = str(Path(options.out).absolute())
    try:
        Path(options.out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"-out {options.out}: {error.strerror}")
    lacking = missing_packages()
    if lacking:
        print(f"missing packages: {', '.join(lacking)}; {install_command(lacking)}", flush=True)
    if any(package in NOTHING_WITHOUT for package in lacking):
        return 1
    if options.device == "cuda" and not importlib.import_module("torch").cuda.is_available():
        parser.error("-device cuda: PyTorch sees no GPU here; -device fake shows that the steps work")
    began = time.time()
    lines = [Line("machine", "device", options.device), Line("machine", "python", platform.python_version())]
    lines.append(Line("machine", "time", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(began))))
    print("\n".join(text_of(lines)), flush=True)
    lines += run_steps([name for name in STEPS if name in names], options)
    whole = Line("all", "minutes", f"{(time.time() - began) / 60:.1f}", (time.time() - began) / 60)
    print("\n".join(text_of([whole])))
    out = Path(options.out)
    (out / "table.txt").write_text("\n".join(text_of([*lines, whole])) + "\n", encoding="utf-8")
    content = json.dumps([asdict(line) for line in [*lines, whole]], ensure_ascii=False, indent=1)
    (out / "table.json").write_text(content + "\n", encoding="utf-8")
    print(f"saved in {out / 'table.txt'} and table.json")
    return int(any(line.value.startswith("FAILED") for line in lines))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the steps end, and what there is is saved
    sys.exit(main())
