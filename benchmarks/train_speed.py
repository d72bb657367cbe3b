"""Training speed against transformers' `Seq2SeqTrainer`: same model, rows, batch size, precision; alternating runs.

    python benchmarks/train_speed.py -data ratings_train.txt -rows 20000 -steps 200 -repeats 3
    python benchmarks/train_speed.py -device cuda -lengths 512:64 -config t5-base.json -steps 20 -repeats 3

Each run is a process of its own and trains a fixed number of optimizer steps spread over the whole epoch's mixture of
lengths; the rate is rows a second of the training loop, start-up, tokenizing and saving left out for both sides.
`bare_loop` is a plain PyTorch loop over our plan, model, loss and optimizer: what Lightning and our callbacks cost.
On a GPU all compute in bf16, the clock waits for the device, and `hf_best` is `Seq2SeqTrainer` with group_by_length and
torch_compile. Figures are medians; ratios are of medians. The machine's matmul rate, measured in the same run, stands
beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.device import Place, StepClock  # noqa: E402

PEERS = ("ours", "bare_loop", "hf_group_by_length", "hf_default")
COMPILED = "hf_best"  # on a GPU
PREFIX = "nsmc sentiment classification: "
LEARNING_RATE = 1e-3


def read_rows(path: str, count: int) -> list[tuple[str, str]]:
    """(source, label text) of the first `count` NSMC rows."""
    labels = {"0": "negative", "1": "positive"}
    rows: list[tuple[str, str]] = []
    with open(path, encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            _, document, label = line.rstrip("\n").split("\t")
            if document.strip():
                rows.append((PREFIX + document, labels[label]))
            if len(rows) == count:
                break
    return rows


def made_rows(lengths: str, count: int) -> list[tuple[str, str]]:
    """Rows of random letters: `S:T` for so many source and target tokens (bytes and an end token), `nsmc` for lengths
    about as those of NSMC, 104 tokens in the mean."""
    draw = np.random.default_rng(1)
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz ", np.uint8)

    def text(length: int) -> str:
        return bytes([97, *draw.choice(letters, max(length - 2, 0)), 97][:length]).decode()

    if lengths == "nsmc":
        long = np.clip(draw.lognormal(4.0, 0.65, count), 5, 400).astype(int)
        return [(PREFIX + text(int(length)), "positive") for length in long]
    source, target = map(int, lengths.split(":"))
    return [(text(source - 1), text(target - 1)) for _ in range(count)]


def rows_of(options: argparse.Namespace) -> list[tuple[str, str]]:
    return read_rows(options.data, options.rows) if options.data else made_rows(options.lengths, options.rows)


def byte_ids(text: str) -> list[int]:
    return [*(byte + 3 for byte in text.encode()), 1]


def fresh_model(config: str) -> Any:
    from models.loading import from_config
    from models.presets import read_config

    return from_config(read_config(config), seed=1).train()


def run_hf(
    options: argparse.Namespace, place: Place, group_by_length: bool, compiled: bool = False
) -> dict[str, float]:
    """`Seq2SeqTrainer` on rows tokenized beforehand; timed from the first to the last optimizer step."""
    from transformers import (
        ByT5Tokenizer,
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        TrainerCallback,
    )

    data = [{"input_ids": byte_ids(source), "labels": byte_ids(target)} for source, target in rows_of(options)]
    model = fresh_model(options.config)
    place.arithmetic(ours=False)
    place.fresh()
    clock = StepClock(place, options.steps, options.warm_up)

    class Ticks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    arguments = Seq2SeqTrainingArguments(
        output_dir=options.work,
        per_device_train_batch_size=options.batch_size,
        max_steps=options.steps + options.warm_up,
        learning_rate=LEARNING_RATE,
        train_sampling_strategy="group_by_length" if group_by_length else "random",
        report_to=[],
        save_strategy="no",
        logging_steps=20,
        disable_tqdm=True,
        use_cpu=place.name != "cuda",
        bf16=place.name == "cuda",
        torch_compile=compiled,
        seed=1,
    )
    trainer = Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(ByT5Tokenizer(), model),
        callbacks=[Ticks()],
    )
    trainer.train()
    return clock.figures(options.batch_size)


def run_ours(options: argparse.Namespace, place: Place, flags: tuple[str, ...] = ()) -> dict[str, float]:
    """`train.py` itself, stopped after the same number of optimizer steps; `flags` are more of its flags."""
    import train
    from models.flops import model_flops
    from training.checkpointing import Checkpointer
    from training.signals import TrainingStopped

    clock = StepClock(place, options.steps, options.warm_up)
    flops: list[float] = []
    plain = Checkpointer.on_train_batch_end

    def timed(self: Any, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        plain(self, trainer, module, outputs, batch, batch_idx)
        rows, length = batch["input_ids"].shape
        if clock.running:
            counted = model_flops(module.model)
            flops.append(counted.training(rows, rows * length, batch["labels"].numel()) if counted else 0.0)
        if clock.tick():
            raise TrainingStopped("timed", 0)

    shard = Path(options.work) / "rows.tsv"
    shard.parent.mkdir(parents=True, exist_ok=True)
    shard.write_text("".join(f"{source}\t{target}\n" for source, target in rows_of(options)), encoding="utf-8")
    arguments = ["-train_data", str(shard), "-config_path", options.config, "-tsv_escapes", "false", "-header", "false"]
    arguments += ["-gpus", str(int(place.name == "cuda")), "-learning_rate", str(LEARNING_RATE), "-overwrite"]
    arguments += ["-save_path", str(Path(options.work) / "run"), "-batch_size", str(options.batch_size)]
    arguments += ["-save_every_hour", "0", *flags]
    place.fresh()
    with patch.object(Checkpointer, "on_train_batch_end", timed):
        train.main(arguments)
    return {**clock.figures(options.batch_size), "padded_gflops": sum(flops) / (clock.times[-1] - clock.times[0]) / 1e9}


def run_bare(options: argparse.Namespace, place: Place) -> dict[str, float]:
    """The same batches, model, loss, clipping, optimizer and schedule in a loop of twelve lines."""
    import torch

    from datamodules.batching import BatchOptions, training_plan
    from datamodules.collate import collate
    from models.kernels.accelerate import accelerate
    from models.losses.objective import batch_loss
    from models.optimizers.build import build_optimizer
    from models.optimizers.schedules import build_scheduler
    from models.optimizers.settings import OptimSettings

    encoded = [tuple(np.array(byte_ids(text), np.int32) for text in row) for row in rows_of(options)]
    lengths = [np.array([len(row[side]) for row in encoded]) for side in (0, 1)]
    batching = BatchOptions(batch_size=options.batch_size, pad_to_multiple_of=8 if place.name == "cuda" else 1)
    plan = training_plan(lengths[0], lengths[1], batching, 123456, 0, 1)
    model = fresh_model(options.config)
    accelerate(model)
    model.to(place.device)
    place.arithmetic(ours=True)
    place.fresh()
    optimizer = build_optimizer(model, "adam", LEARNING_RATE, 0.0)
    schedule = build_scheduler(
        optimizer,
        OptimSettings("adam", LEARNING_RATE, "cosanneal", 0, 0.75, 4, 1e-7, 0.0, 0.0, 0.0),
        plan.num_steps * 4,
    )
    clock = StepClock(place, options.steps, options.warm_up)
    for step in range(plan.batches_per_rank):
        made = collate([encoded[row] for row in plan.batch(0, step)], 0, batching.pad_to_multiple_of)
        batch = {key: part.to(place.device) if isinstance(part, torch.Tensor) else part for key, part in made.items()}
        with place.precision():
            loss, _ = batch_loss(model, batch, 0.0, False)
        (loss / int(plan.step_target_tokens[step])).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if clock.tick():
            break
    return clock.figures(options.batch_size)


def run_peer(peer: str, options: argparse.Namespace, place: Place) -> dict[str, float]:
    if peer == "ours":
        return run_ours(options, place)
    if peer == "bare_loop":
        return run_bare(options, place)
    return run_hf(options, place, peer != "hf_default", compiled=peer == COMPILED)


def child(options: argparse.Namespace) -> None:
    from benchmarks.matmul_rate import large_rate

    place = Place(options.device)
    result = run_peer(options.child, options, place)
    if "padded_gflops" in result:
        result["matmul_share"] = result.pop("padded_gflops") / large_rate(place)
    print("RESULT " + json.dumps(result))


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    peers = [*PEERS, *([COMPILED] if options.device == "cuda" else [])]
    rates: dict[str, list[float]] = {peer: [] for peer in peers}
    for repeat in range(options.repeats):
        for peer in peers:
            work = Path(options.work) / f"{peer}{repeat}"
            command = [sys.executable, __file__, *sys.argv[1:], "-child", peer, "-work", str(work)]
            one_gpu = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
            environment = {**os.environ, **one_gpu}  # `Seq2SeqTrainer` would take all of them
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            if not found:
                sys.exit(f"{peer} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
            figures = json.loads(found[0][7:])
            rates[peer].append(figures.pop("rows_per_second"))
            others = "".join(f", {name} {value:.3f}" for name, value in figures.items())
            print(f"run {repeat + 1} {peer}: {rates[peer][-1]:.1f} rows/s{others}", flush=True)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-data", default="", help="NSMC's ratings_train.txt")
    parser.add_argument("-lengths", default="nsmc", help="without -data: rows of random letters, S:T tokens, or nsmc")
    parser.add_argument("-device", choices=("cpu", "cuda"), default="cpu", help="fp32 on the CPU, bf16 on a GPU")
    parser.add_argument("-rows", type=int, default=20000)
    parser.add_argument("-config", default="byt5-mini", help="preset or config file")
    parser.add_argument("-batch_size", type=int, default=32)
    parser.add_argument("-steps", type=int, default=200, help="timed optimizer steps of each run")
    parser.add_argument("-warm_up", type=int, default=5, help="steps before the clock starts")
    parser.add_argument("-repeats", type=int, default=3)
    parser.add_argument("-work", default="runs/benchmark_train_speed")
    parser.add_argument("-child", choices=(*PEERS, COMPILED), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    rates = measure(options)
    medians = {peer: statistics.median(values) for peer, values in rates.items()}
    for peer, median in medians.items():
        print(f"{peer:20} {median:8.1f} rows/s   ours is {medians['ours'] / median:.2f} x")


if __name__ == "__main__":
    main()
