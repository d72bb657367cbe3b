"""Of `gpu.py`: the card, and the speed of training, decoding, label scoring and the loss against their peers."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.device import Place
from benchmarks.matmul_rate import large_rate, rate
from benchmarks.train_speed import byte_ids, made_rows, run_hf, run_ours
from config.flags.inference import DecodeFlags
from generation.decoder import Decoder, generation_config
from generation.label_scoring import LabelScorer
from models.flops import matmul_peak, model_flops
from models.loading import from_config
from models.losses.cross_entropy import token_loss_sum
from tests.small_configs import config_of
from tests.trained_models import TOKENIZER

Tell = Callable[..., None]
MADE_TOKENS = 32  # of every output: weights are random, so that nothing would end by itself
LABELS = tuple(f"label {letter}{letter * (number % 3)}" for number, letter in enumerate("abcdefghij"))
NO_TIMES = "ran; no GPU, so that its speed is not told"


@dataclass(frozen=True)
class Job:
    """A model from a config with random weights, and what is done with it."""

    config: dict[str, Any]
    lengths: str  # see `made_rows`
    rows: int  # of a batch in training
    decoded: int  # rows of a batch in decoding
    steps: int = 20
    repeats: int = 2


_T5_BASE = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_decoder_layers": 12, "num_heads": 12}
_BYT5_SMALL = {"d_model": 1472, "d_ff": 3584, "d_kv": 64, "num_layers": 12, "num_decoder_layers": 4, "num_heads": 6}
_SIDES = {"layers": 6, "ffn_dim": 3072, "attention_heads": 12}
_BART_BASE = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in _SIDES.items()}
_DROPOUT = {"dropout": 0.1, "activation_dropout": 0.0, "attention_dropout": 0.0, "init_std": 0.02}
JOBS = {
    "t5-base": Job(config_of("t5", **_T5_BASE, vocab_size=32128, dropout_rate=0.1), "512:64", 32, 128),
    "byt5-small": Job(config_of("t5-untied", **_BYT5_SMALL, dropout_rate=0.1), "nsmc", 48, 128),
    "bart-base": Job(
        config_of("bart", **_BART_BASE, **_DROPOUT, d_model=768, vocab_size=50265, max_position_embeddings=1024),
        "512:64", 32, 128,
    ),
}  # fmt: skip
SMALL = {
    "t5-base": Job(config_of("t5", dropout_rate=0.1), "32:8", 4, 8, 3, 1),
    "byt5-small": Job(config_of("t5-untied", dropout_rate=0.1), "nsmc", 4, 8, 3, 1),
    "bart-base": Job(config_of("bart", dropout=0.1), "32:8", 4, 8, 3, 1),
}


def job_of(name: str, place: Place) -> Job:
    return (JOBS if place.name == "cuda" else SMALL)[name]


def card(tell: Tell, place: Place, work: Path) -> None:
    """What the machine is, and what its matrix products reach."""
    del work
    tell("torch, transformers", f"{torch.__version__}, {transformers.__version__}")
    if place.name != "cuda":
        tell("card", "none")
        tell("matrix products, fp32, 2048 cubed, of the CPU", f"{large_rate(Place('cpu')):,.0f} GFLOP/s")
        return
    name = torch.cuda.get_device_name(place.device)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() or "not told"
    memory = torch.cuda.get_device_properties(place.device).total_memory / 1e9
    tell("card", f"{name}, {memory:.0f} GB")
    tell("driver, CUDA, cuDNN", f"{driver}, {torch.version.cuda}, {torch.backends.cudnn.version()}")
    for kind, dtype, precision in (
        ("bf16", torch.bfloat16, "highest"), ("tf32", torch.float32, "high"), ("fp32", torch.float32, "highest"),
    ):  # fmt: skip
        torch.set_float32_matmul_precision(precision)
        reached = rate(8192, 8192, 8192, dtype, place=place) / 1e3
        peak = matmul_peak(name, kind)
        share = f", {1e12 * reached / peak:.0%} of the data sheet" if peak else ""
        tell(f"matrix products, {kind}, 8192 cubed", f"{reached:,.1f} TFLOP/s{share}", reached)


@dataclass(frozen=True)
class Race:
    """Training runs of one model with random weights; `run` gives the figures of one."""

    tell: Tell
    place: Place
    name: str
    options: argparse.Namespace
    of_row: float  # FLOPs

    @classmethod
    def of(cls, tell: Tell, place: Place, work: Path, name: str) -> Race:
        """That of a job, its config written below `work`."""
        job = job_of(name, place)
        (work / "config.json").write_text(json.dumps(job.config), encoding="utf-8")
        options = argparse.Namespace(
            data="", lengths=job.lengths, rows=(job.steps + 8) * job.rows, config=str(work / "config.json"),
            work=str(work), batch_size=job.rows, steps=job.steps, warm_up=min(5, job.steps),
        )  # fmt: skip
        lengths = [(len(byte_ids(source)), len(byte_ids(target))) for source, target in made_rows(job.lengths, 500)]
        flops = model_flops(from_config(job.config, seed=1))
        assert flops is not None
        of_row = statistics.fmean(flops.training(1, source, target) for source, target in lengths)
        tell(f"{name}: matrix products of a row", f"{of_row / 1e9:,.2f} GFLOP, {job.lengths}, batches of {job.rows}")
        return cls(tell, place, name, options, of_row)

    def ours(self, *flags: str) -> dict[str, float]:
        return run_ours(self.options, self._where(), flags)

    def library(self, group_by_length: bool, compiled: bool = False) -> dict[str, float]:
        return run_hf(self.options, self._where(), group_by_length, compiled)

    def _where(self) -> Place:
        return self.place if self.place.name == "cuda" else Place("cpu")

    def measure(self, peers: dict[str, Callable[[], dict[str, float]]], repeats: int) -> dict[str, float]:
        return measure(self.tell, self.place, self.name, peers, repeats, self.of_row)

    def tell_ratios(self, medians: dict[str, float]) -> None:
        """The fastest of ours over each of the others."""
        fastest = max((speed for peer, speed in medians.items() if peer.startswith("ours")), default=0.0)
        for peer in medians if self.place.name == "cuda" else ():
            if peer.startswith("Seq2Seq"):
                ratio = fastest / medians[peer]
                self.tell(f"{self.name}: the best of ours / {peer}", f"{ratio:.2f} x", ratio)


def training(tell: Tell, place: Place, work: Path, name: str) -> None:
    """`train.py` against `Seq2SeqTrainer`, bf16: rows a second, MFU, peak memory; in turn, medians."""
    race = Race.of(tell, place, work, name)
    medians = race.measure(
        {
            "ours": race.ours,
            "Seq2SeqTrainer, as it comes": lambda: race.library(group_by_length=False),
            "Seq2SeqTrainer, group_by_length": lambda: race.library(group_by_length=True),
        },
        job_of(name, place).repeats,
    )
    if place.name == "cuda":
        medians |= race.measure({"ours, -attention fused": lambda: race.ours("-attention", "fused")}, 1)
    race.tell_ratios(medians)


def compiling(tell: Tell, place: Place, work: Path, name: str) -> None:
    """`-compile` of both commands, and `Seq2SeqTrainer` at its best settings: compilations take a minute or more."""
    if place.name != "cuda":
        tell("-compile", "left out: it is for GPUs; tests compile on the CPU")
        return
    race = Race.of(tell, place, work, name)
    medians = race.measure({"ours": race.ours}, 1)
    best = "Seq2SeqTrainer, group_by_length, torch_compile"
    medians |= race.measure({best: lambda: race.library(group_by_length=True, compiled=True)}, 1)
    medians |= race.measure({"ours, -compile": lambda: race.ours("-compile")}, 1)
    race.tell_ratios(medians)
    job = job_of(name, place)
    model = from_config(job.config, seed=1).eval()
    sources = [source for source, _ in made_rows(job.lengths, job.decoded)]
    padded = TOKENIZER.pad({"input_ids": [TOKENIZER(source).input_ids for source in sources]}, return_tensors="pt")
    ids, mask = padded.input_ids.to(place.device), padded.attention_mask.to(place.device)
    flags = DecodeFlags(beam_size=4, max_predict_length=MADE_TOKENS, min_predict_length=MADE_TOKENS)
    found = {"ours": flags, "ours, -compile": replace(flags, compile=True)}
    peers = {peer: search(model, flags, ids, mask, place) for peer, flags in found.items()}
    seconds, peaks = timed(peers, job.repeats, place)
    for peer, taken in seconds.items():
        tell(f"{name}: 4 beams, {peer}", f"{job.decoded / taken:,.1f} rows/s, {peaks[peer]:.2f} GB", taken)


def tell_speed(tell: Tell, place: Place, what: str, told: str, figure: float) -> None:
    """A line with a speed; where there is no GPU, that it ran."""
    tell(what, told, figure) if place.name == "cuda" else tell(what, NO_TIMES)


def measure(
    tell: Tell, place: Place, name: str, peers: dict[str, Callable[[], dict[str, float]]], repeats: int, of_row: float
) -> dict[str, float]:
    """Tell the medians of the peers, in turn, `repeats` times over, and which failed; returns their rows a second."""
    runs: dict[str, list[dict[str, float]]] = {peer: [] for peer in peers}
    for _ in range(repeats):
        for peer, run in list(peers.items()):
            try:
                runs[peer].append(run())
            except Exception as error:
                traceback.print_exc()
                tell(f"{name}: {peer}", f"FAILED: {type(error).__name__}: {str(error)[:150]}")
                del peers[peer]
    peak = matmul_peak(torch.cuda.get_device_name(0), "bf16") if place.name == "cuda" else None
    medians = {}
    for peer in peers:
        speed = medians[peer] = statistics.median(run["rows_per_second"] for run in runs[peer])
        told = f"{speed:,.1f} rows/s, {speed * of_row / 1e12:,.3g} TFLOP/s"
        told += f", MFU {speed * of_row / peak:.1%}" if peak else ""
        told += f", {max(run.get('peak_gb', 0.0) for run in runs[peer]):.2f} GB; {repeats} runs"
        tell_speed(tell, place, f"{name}: {peer}", told, speed)
    return medians


def decoding(tell: Tell, place: Place, work: Path, name: str) -> None:
    """Our search against `generate`, bf16, outputs of 32 tokens; in turn, medians."""
    del work
    job = job_of(name, place)
    model = from_config(job.config, seed=1).eval()
    sources = [source for source, _ in made_rows(job.lengths, job.decoded)]
    padded = TOKENIZER.pad({"input_ids": [TOKENIZER(source).input_ids for source in sources]}, return_tensors="pt")
    library = place.moved(model).to(torch.bfloat16) if place.name == "cuda" else model
    with place.working() as counts:
        ids, mask = padded.input_ids.to(place.device), padded.attention_mask.to(place.device)
        inputs = {"input_ids": ids, "attention_mask": mask} if place.name == "cuda" else padded
        for beams in (1, 4):
            made = {"max_predict_length": MADE_TOKENS, "min_predict_length": MADE_TOKENS}
            flags = DecodeFlags(beam_size=beams, **made)
            config = generation_config(library, TOKENIZER, flags)
            config.update(min_length=None, min_new_tokens=MADE_TOKENS)
            peers: dict[str, Callable[[], Any]] = {"ours": search(model, flags, ids, mask, place)}
            peers["generate"] = generating(library, inputs, config, place)
            if place.name == "cuda":
                peers["generate, cuDNN attention off"] = generating(library, inputs, config, place, ours=True)
            seconds, peaks = timed(peers, job.repeats, place)
            for peer, taken in seconds.items():
                speed = job.decoded / taken
                told = f"{speed:,.1f} rows/s, {seconds['generate'] / taken:.2f} x generate, {peaks[peer]:.2f} GB"
                tell_speed(tell, place, f"{name}: {beams} beams, {peer}", told, speed)
            if counts is not None:
                counts.reset()
                peers["ours"]()
                told = f"{counts.syncs.total()} waits, {counts.launches.total():,} launches"
                told += f", {counts.casts.total()} casts in {MADE_TOKENS} steps, small model"
                tell(f"{name}: {beams} beams, ours, counted", told)


def search(model: Any, flags: DecodeFlags, ids: Any, mask: Any, place: Place) -> Callable[[], Any]:
    """A batch decoded as `inference.py` does it."""
    decoder = place.made(lambda own: Decoder(own, TOKENIZER, flags), model)

    def run() -> Any:
        place.arithmetic(ours=True)
        with place.bf16():
            return decoder.decode(ids, mask, with_scores=False)

    return run


def generating(library: Any, inputs: Any, config: Any, place: Place, ours: bool = False) -> Callable[[], Any]:
    """The library's own search, as PyTorch comes, or with the settings of ours."""

    def run() -> Any:
        place.arithmetic(ours)
        return library.generate(**inputs, generation_config=config)

    return run


def timed(peers: dict[str, Callable[[], Any]], repeats: int, place: Place) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of every peer after one run that does not count, and on a GPU its peak memory in GB."""
    seconds: dict[str, list[float]] = {peer: [] for peer in peers}
    peaks = {}
    with torch.no_grad():
        for turn in range(repeats + 1):
            for peer, run in peers.items():
                place.fresh()
                taken = place.seconds(run)
                seconds[peer] += [taken] if turn else []
                peaks[peer] = place.peak_gb() or 0.0
    return {peer: statistics.median(values) for peer, values in seconds.items()}, peaks


def labels(tell: Tell, place: Place, work: Path) -> None:
    """Scoring 2 and 10 labels against searching with 4 beams, and greedily with `generate`; ByT5-small, NSMC."""
    del work
    job = job_of("byt5-small", place)
    sources = [source for source, _ in made_rows(job.lengths, job.decoded)]
    padded = TOKENIZER.pad({"input_ids": [TOKENIZER(source).input_ids for source in sources]}, return_tensors="pt")
    model = from_config(job.config, seed=1).eval()
    library = from_config(job.config, seed=1).eval()
    library = library.to(place.device, torch.bfloat16) if place.name == "cuda" else library
    longest = max(len(byte_ids(label)) for label in LABELS)
    with place.working():
        ids, mask = padded.input_ids.to(place.device), padded.attention_mask.to(place.device)
        flags = DecodeFlags(beam_size=4, max_predict_length=longest, min_predict_length=longest)
        config = generation_config(library, TOKENIZER, DecodeFlags(max_predict_length=longest))
        config.update(min_length=None, min_new_tokens=longest)
        inputs = {"input_ids": ids, "attention_mask": mask} if place.name == "cuda" else padded
        peers: dict[str, Callable[[], Any]] = {
            "2 labels scored": scored(model, LABELS[:2], ids, mask, place),
            "10 labels scored": scored(model, LABELS, ids, mask, place),
            "ours, 4 beams": search(model, flags, ids, mask, place),
            "generate, greedy": generating(library, inputs, config, place),
        }
        seconds, peaks = timed(peers, job.repeats, place)
    for peer, taken in seconds.items():
        told = f"{job.decoded / taken:,.1f} rows/s, {seconds['ours, 4 beams'] / taken:.2f} x 4 beams"
        tell_speed(tell, place, peer, f"{told}, {peaks[peer]:.2f} GB", job.decoded / taken)


def scored(model: Any, texts: tuple[str, ...], ids: Any, mask: Any, place: Place) -> Callable[[], Any]:
    scorer = place.made(lambda own: LabelScorer(own, TOKENIZER, texts), model)

    def run() -> Any:
        place.arithmetic(ours=True)
        with place.bf16():
            return scorer(ids, mask).argmax(1).tolist()

    return run


def loss(tell: Tell, place: Place, work: Path) -> None:
    """Our loss and the library's, forward and backward: 8 rows of 64 targets, mT5's vocabulary."""
    del work
    where = place if place.name == "cuda" else Place("cpu")
    rows, length, width = 8, 64, 768
    vocabulary = 250_112 if place.name == "cuda" else 32_128
    torch.manual_seed(1)
    hidden = torch.randn(rows, length, width, device=where.device, requires_grad=True)
    weight = (torch.randn(vocabulary, width, device=where.device) * 0.05).requires_grad_()
    targets = torch.randint(3, vocabulary, (rows, length), device=where.device)
    index = torch.arange(rows * length, device=where.device)
    weight.grad = torch.zeros_like(weight)  # it is there in every training, and counts for neither

    def ours() -> torch.Tensor:
        return token_loss_sum(hidden, weight, targets, target_index=index)

    def library() -> torch.Tensor:
        logits = torch.nn.functional.linear(hidden, weight)
        return torch.nn.functional.cross_entropy(logits.float().view(-1, vocabulary), targets.view(-1), reduction="sum")

    values = {}
    for name, compute in {"ours": ours, "the library's": library}.items():

        def step(name: str = name, compute: Callable[[], torch.Tensor] = compute) -> None:
            hidden.grad = None
            with where.precision():
                found = compute()
            found.backward()
            values[name] = found.detach()

        step()
        where.fresh()
        held = torch.cuda.memory_allocated() if place.name == "cuda" else 0
        seconds = statistics.median(where.seconds(step) for _ in range(5 if place.name == "cuda" else 1))
        grown = (where.peak_gb() or 0.0) - held / 1e9
        told = f"{1e3 * seconds:,.1f} ms, {grown:.2f} GB beside weights and their gradient"
        tell_speed(tell, place, f"{vocabulary:,} tokens, {name}", told, grown)
    apart = abs(float(values["ours"]) / float(values["the library's"]) - 1)
    tell("relative difference of the losses", f"{apart:.1e}", apart)
