"""Of `gpu.py`: the commands themselves on a GPU: the tests marked gpu, kill and resume, too little memory."""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.device import Place
from benchmarks.gpu_fast import job_of
from benchmarks.train_speed import made_rows
from models.loading import from_config
from tests.small_configs import config_of, with_dropout
from tests.trained_models import TOKENIZER

ROOT = Path(__file__).resolve().parent.parent
Tell = Callable[..., None]
KILLED_AT = 10  # optimizer steps
HOST_LIMIT = 12e9  # bytes of address space, in place of a GPU's memory where there is none
TOO_MANY = 16384  # rows of a batch
FEW = 64  # where there is no GPU to run out of memory


def gpus(place: Place) -> list[str]:
    return ["-gpus", str(int(place.name == "cuda"))]


def command(script: str, *flags: Any) -> list[str]:
    return [sys.executable, str(ROOT / script), *map(str, flags)]


def tests(tell: Tell, place: Place, work: Path) -> None:
    """`pytest -m gpu`."""
    del place, work
    words = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-rfE", "tests/gpu"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout[-6000:], done.stderr[-2000:])
    lines = done.stdout.splitlines()
    for line in lines:
        if line.startswith(("FAILED ", "ERROR ")):
            tell(line.split(" - ")[0].split("::")[-1][:44], line.split(" ")[0] + line.partition(" - ")[2][:120])
    ended = next((line for line in reversed(lines) if re.search(r"\d+ (passed|failed|skipped|error)", line)), "")
    tell("tests marked gpu", ended.strip("= ") or f"pytest ended with code {done.returncode}")


def resume(tell: Tell, place: Place, work: Path) -> None:
    """A run that is killed and goes on, against the run nobody killed, with -deterministic."""
    (work / "config.json").write_text(json.dumps(with_dropout("t5")), encoding="utf-8")
    text = "".join(f"{source}\t{target}\n" for source, target in made_rows("20:6", 256))
    (work / "rows.tsv").write_text(text, encoding="utf-8")
    flags = ["-train_data", work / "rows.tsv", "-header", "false", "-config_path", work / "config.json", *gpus(place)]
    flags += ["-max_epoch", 2, "-batch_size", 16, "-save_every", 5, "-save_last_k", 9, "-overwrite", "true"]
    flags.append("-deterministic")
    whole = subprocess.Popen(command("train.py", *flags, "-save_path", work / "whole"), cwd=ROOT)
    killed = subprocess.Popen(command("train.py", *flags, "-save_path", work / "killed"), cwd=ROOT)
    folder = work / "killed" / "saved_checkpoints"
    deadline = time.monotonic() + 90
    while killed.poll() is None and time.monotonic() < deadline:
        if list(folder.glob(f"*global_step{KILLED_AT}.ckpt")):
            killed.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    code = killed.wait()
    again = command("train.py", "-save_path", work / "killed", "-resume_checkpoint", "last")
    resumed = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, check=False)
    print(resumed.stdout[-3000:], resumed.stderr[-3000:])
    goes_on = next((line for line in resumed.stdout.splitlines() if line.startswith("resuming from")), "not resumed")
    tell("killed by", f"signal {-code}" if code < 0 else f"nothing: it ended with code {code} before")
    tell("resumed", goes_on.rpartition(": ")[2])
    if whole.wait() or resumed.returncode:
        raise SystemExit(f"the runs ended with codes {whole.returncode} and {resumed.returncode}")
    apart = differing(*(saved(work / name) for name in ("whole", "killed")))
    told = "bit-identical" if not apart else f"NOT identical: {len(apart)} tensors differ, the first {apart[0]}"
    tell("weights and optimizer, with -deterministic", told, len(apart))


def saved(run: Path) -> dict[str, torch.Tensor]:
    """The tensors of a run's last checkpoint, by place."""
    content = torch.load(run / "saved_checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")
    states = content["optimizer_states"][0]["state"]
    found = {f"optimizer {number} {key}": value for number, state in states.items() for key, value in state.items()}
    return {**content["state_dict"], **{name: torch.as_tensor(value) for name, value in found.items()}}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, value in one.items() if not torch.equal(value, other[name])]


def little_memory() -> None:
    """In a child: the address space ends early, as the memory of a GPU does."""
    resource.setrlimit(resource.RLIMIT_AS, (int(HOST_LIMIT), int(HOST_LIMIT)))


def memory(tell: Tell, place: Place, work: Path) -> None:
    """What both commands make of a batch that does not fit."""
    on_gpu = place.name == "cuda"
    limit = None if on_gpu else little_memory
    tell("memory of", "the GPU" if on_gpu else f"this process, cut at {HOST_LIMIT / 1e9:.0f} GB; no GPU")
    config = job_of("t5-base", place).config if on_gpu else config_of("t5", num_heads=8)
    (work / "config.json").write_text(json.dumps(config), encoding="utf-8")
    text = "".join(f"{source}\t{target}\n" for source, target in made_rows("512:16", TOO_MANY))
    (work / "rows.tsv").write_text(text, encoding="utf-8")
    flags = ["-train_data", work / "rows.tsv", "-header", "false", "-config_path", work / "config.json", *gpus(place)]
    flags += ["-batch_size", TOO_MANY, "-save_path", work / "run", "-overwrite", "true"]
    began = time.monotonic()
    done = subprocess.run(
        command("train.py", *flags), cwd=ROOT, capture_output=True, text=True, check=False, preexec_fn=limit
    )
    print(done.stdout[-3000:], done.stderr[-3000:])
    told = next((line for line in done.stderr.splitlines() if "memory" in line), done.stderr[-200:])
    tell("train.py, exit code (1 is right)", done.returncode, done.returncode)
    tell("train.py, says", told)
    tell("train.py, seconds until then", f"{time.monotonic() - began:.0f}", time.monotonic() - began)
    folder = work / "model"
    from_config(config, seed=1).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    rows = TOO_MANY if on_gpu else FEW
    flags = ["-model", folder, "-test_data", f"{work / 'rows.tsv'}:{TOO_MANY // rows}", "-header", "false"]
    flags += [*gpus(place), "-batch_size", TOO_MANY, "-max_predict_length", 4, "-overwrite", "true"]
    flags += ["-save_output", work / "output.jsonl"]
    done = subprocess.run(command("inference.py", *flags), cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout[-3000:], done.stderr[-3000:])
    said = [line for line in (done.stdout + done.stderr).splitlines() if re.search("memory (of|is)|halved", line)]
    output = work / "output.jsonl"
    written = len(output.read_text(encoding="utf-8").splitlines()) if not done.returncode else 0
    tell("inference.py, exit code (0 is right)", done.returncode, done.returncode)
    nothing = "nothing of memory" if on_gpu else "nothing: no GPU, no memory that lacks"
    tell("inference.py, says", said[0] if said else nothing)
    tell("inference.py, rows written", f"{written:,} of {rows:,}", written)
