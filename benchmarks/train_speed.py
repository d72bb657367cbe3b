"""Training speed against transformers' `Seq2SeqTrainer`: same model, rows, batch size, precision; alternating runs.

    python benchmarks/train_speed.py -data ratings_train.txt -rows 20000 -steps 200 -repeats 3

Each run is a process of its own and trains a fixed number of optimizer steps spread over the whole epoch's mixture of
lengths; the rate is rows a second of the training loop, start-up, tokenizing and saving left out for both sides.
`bare_loop` is a plain PyTorch loop over our plan, model, loss and optimizer: what Lightning and our callbacks cost.
Figures are medians; ratios are of medians. The machine's matmul rate, measured in the same run, stands beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PEERS = ("ours", "bare_loop", "hf_group_by_length", "hf_default")


def read_rows(path: str, count: int) -> list[tuple[str, str]]:
    """(document, label text) of the first `count` NSMC rows."""
    labels = {"0": "negative", "1": "positive"}
    rows = []
    with open(path, encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            _, document, label = line.rstrip("\n").split("\t")
            if document.strip():
                rows.append((document, labels[label]))
            if len(rows) == count:
                break
    return rows


def fresh_model(config: str) -> Any:
    from models.loading import from_config
    from models.presets import read_config

    return from_config(read_config(config), seed=1).train()


def run_hf(options: argparse.Namespace, group_by_length: bool) -> dict[str, float]:
    """`Seq2SeqTrainer` on rows tokenized beforehand; timed from the first to the last optimizer step."""
    from datasets import Dataset
    from transformers import (
        ByT5Tokenizer,
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        TrainerCallback,
    )

    rows = read_rows(options.data, options.rows)
    tokenizer = ByT5Tokenizer()
    prefix = "nsmc sentiment classification: "
    sources = [[*(byte + 3 for byte in (prefix + text).encode()), 1] for text, _ in rows]
    targets = [[*(byte + 3 for byte in text.encode()), 1] for _, text in rows]
    lengths = [len(source) for source in sources]
    data = Dataset.from_dict({"input_ids": sources, "labels": targets, "length": lengths})
    model = fresh_model(options.config)

    class Clock(TrainerCallback):
        times: list[float] = []  # noqa: RUF012 (one run a process)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

    arguments = Seq2SeqTrainingArguments(
        output_dir=options.work,
        per_device_train_batch_size=options.batch_size,
        max_steps=options.steps + options.warm_up,
        learning_rate=1e-3,
        train_sampling_strategy="group_by_length" if group_by_length else "random",
        length_column_name="length",
        report_to=[],
        save_strategy="no",
        logging_steps=20,
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
    )
    trainer = Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        callbacks=[Clock()],
    )
    trainer.train()
    seconds = Clock.times[-1] - Clock.times[options.warm_up - 1]
    return {"rows_per_second": options.steps * options.batch_size / seconds}


def run_ours(options: argparse.Namespace) -> dict[str, float]:
    """`train.py` itself, stopped after the same number of optimizer steps."""
    import train
    from benchmarks.matmul_rate import rate
    from models.flops import model_flops
    from training.checkpointing import Checkpointer
    from training.signals import TrainingStopped

    class Clock:
        times: list[float] = []  # noqa: RUF012
        flops: list[float] = []  # noqa: RUF012

    plain = Checkpointer.on_train_batch_end

    def timed(self: Any, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        plain(self, trainer, module, outputs, batch, batch_idx)
        rows, length = batch["input_ids"].shape
        Clock.flops.append(model_flops(module.model).training(rows, rows * length, batch["labels"].numel()))  # type: ignore[union-attr]
        Clock.times.append(time.perf_counter())
        if len(Clock.times) == options.steps + options.warm_up:
            raise TrainingStopped("timed", 0)

    Checkpointer.on_train_batch_end = timed  # type: ignore[method-assign]
    shard = Path(options.work) / "rows.tsv"
    shard.parent.mkdir(parents=True, exist_ok=True)
    rows = read_rows(options.data, options.rows)
    text = "".join(f"{document}\t{label}\n" for document, label in rows)
    shard.write_text(text, encoding="utf-8")
    arguments = ["-train_data", str(shard), "-config_path", options.config, "-tsv_escapes", "false", "-gpus", "0"]
    arguments += ["-input_template", "nsmc sentiment classification: {{ source }}", "-learning_rate", "1e-3"]
    arguments += ["-save_path", str(Path(options.work) / "run"), "-batch_size", str(options.batch_size)]
    arguments += ["-overwrite", "-save_every_hour", "0", "-header", "false"]
    train.main(arguments)
    seconds = Clock.times[-1] - Clock.times[options.warm_up - 1]
    reached = sum(Clock.flops[options.warm_up :]) / seconds / 1e9
    possible = rate(2048, 2048, 2048)
    return {"rows_per_second": options.steps * options.batch_size / seconds, "matmul_share": reached / possible}


def run_bare(options: argparse.Namespace) -> dict[str, float]:
    """The same batches, model, loss, clipping, optimizer and schedule in a loop of twelve lines."""
    import torch

    from datamodules.batching import BatchOptions, training_plan
    from datamodules.collate import collate
    from models.forward import decode_teacher_forced
    from models.kernels.accelerate import accelerate
    from models.loss import token_loss_sum
    from models.optim import OptimSettings, build_optimizer, build_scheduler

    rows = read_rows(options.data, options.rows)
    prefix = "nsmc sentiment classification: "
    encode = torch.frombuffer
    encoded = [
        tuple(
            (encode(bytearray(text.encode()), dtype=torch.uint8).int() + 3).numpy() for text in (prefix + source, label)
        )
        for source, label in rows
    ]
    encoded = [tuple(np.append(ids, 1) for ids in row) for row in encoded]
    lengths = [np.array([len(row[side]) for row in encoded]) for side in (0, 1)]
    plan = training_plan(lengths[0], lengths[1], BatchOptions(batch_size=options.batch_size), 123456, 0, 1)
    model = fresh_model(options.config)
    accelerate(model)
    optimizer = build_optimizer(model, "adam", 1e-3, 0.0)
    schedule = build_scheduler(
        optimizer, OptimSettings("adam", 1e-3, "cosanneal", 0, 0.75, 4, 1e-7, 0.0, 0.0, 0.0), plan.num_steps * 4
    )
    times = []
    for step in range(plan.batches_per_rank):
        chosen = plan.batch(0, step)
        batch = collate([encoded[row] for row in chosen], 0)
        output = decode_teacher_forced(model, batch["input_ids"], batch["attention_mask"], batch["labels"])
        loss = token_loss_sum(
            output.hidden, output.weight, batch["labels"], target_index=batch["target_index"], bias=output.bias,
            scale=output.scale,
        )  # fmt: skip
        (loss / int(plan.step_target_tokens[step])).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        times.append(time.perf_counter())
        if len(times) == options.steps + options.warm_up:
            break
    return {"rows_per_second": options.steps * options.batch_size / (times[-1] - times[options.warm_up - 1])}


def child(options: argparse.Namespace) -> None:
    if options.child == "ours":
        result = run_ours(options)
    elif options.child == "bare_loop":
        result = run_bare(options)
    else:
        result = run_hf(options, options.child == "hf_group_by_length")
    print("RESULT " + json.dumps(result))


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {peer: [] for peer in PEERS}
    for repeat in range(options.repeats):
        for peer in PEERS:
            work = Path(options.work) / f"{peer}{repeat}"
            command = [sys.executable, __file__, *sys.argv[1:], "-child", peer, "-work", str(work)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
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
    parser.add_argument("-data", required=True, help="NSMC's ratings_train.txt")
    parser.add_argument("-rows", type=int, default=20000)
    parser.add_argument("-config", default="byt5-mini", help="preset or config file")
    parser.add_argument("-batch_size", type=int, default=32)
    parser.add_argument("-steps", type=int, default=200, help="timed optimizer steps of each run")
    parser.add_argument("-warm_up", type=int, default=5, help="steps before the clock starts")
    parser.add_argument("-repeats", type=int, default=3)
    parser.add_argument("-work", default="runs/benchmark_train_speed")
    parser.add_argument("-child", choices=PEERS, help=argparse.SUPPRESS)
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
