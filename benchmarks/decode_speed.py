"""Decoding speed against `generate` of transformers: same model, rows, batch size and threads; alternating runs.

    python benchmarks/decode_speed.py                         # bart-mini, trained here on the sample first
    python benchmarks/decode_speed.py -config t5-mini -batch_size 64 -repeats 5
    python benchmarks/decode_speed.py -part labels -nsmc data/nsmc -config byt5-mini
    python benchmarks/decode_speed.py -device cuda -batch_size 128

Text normalisation: the test rows of the bundled sample, greedy and with 4 beams, in file order and length-sorted; with
`pip install ctranslate2` also by our engine of CTranslate2, float32 and int8, whose beam search stops early, and by
bare CTranslate2: one `translate_batch` of all rows, without scores.

Labels: scoring them, and searching among them only, against generating them; on NSMC (the folder of its two files), or
else on the question whether a sentence of the sample holds a digit.

All models are trained once under -work. A run decodes all rows in this process, ours and the peer's in turn; figures
are medians, ratios are of medians, "same" is the share of rows with the very same text. The matmul rate of the machine,
measured in the same run, stands beside them. On a GPU all compute in bf16 (`generate` with weights in bf16), the clock
waits for the device, and the peak memory of each is told; CTranslate2 stays out.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.device import Place  # noqa: E402

SAMPLE = ROOT / "samples" / "text_normalization"
LABELS = ("숫자 없음", "숫자 있음")
NSMC_TRAINING_ROWS = 6000
Batch = tuple[Any, Any]  # ids, mask


def read_rows(path: Path) -> list[tuple[str, str]]:
    return [tuple(line.split("\t")[:2]) for line in path.read_text(encoding="utf-8").splitlines()]  # type: ignore[misc]


def trained(options: argparse.Namespace, name: str, data: Path, *flags: str, task: str = "seq2seq") -> Path:
    """The folder of the best model of a short training run, trained now if it is not there."""
    best = Path(options.work) / f"{options.config}_{name}" / "best"
    if not (best / "config.json").exists():
        print(f"training {options.config} on {data} ...", flush=True)
        command = [sys.executable, str(ROOT / "train.py"), "-task", task, "-config_path", options.config]
        command += ["-train_data", str(data), "-valid_data_proportions", "0.04", "-save_path", str(best.parent)]
        command += ["-overwrite", "-gpus", "0", "-batch_size", "16", "-learning_rate", "1e-3", "-warmup_steps", "0.1"]
        command += ["-lr_scheduler", "linear", *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return best


def label_rows(options: argparse.Namespace) -> Path:
    """The training rows with the answer to "does the source hold a digit?" as their label."""
    path = Path(options.work) / "labels.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(source, str(int(any(map(str.isdigit, source))))) for source, _ in read_rows(SAMPLE / "train.tsv")]
    path.write_text("".join(f"{source}\t{label}\n" for source, label in rows), encoding="utf-8")
    return path


def batches(
    tokenizer: Any, sources: list[str], size: int, by_length: bool, place: Place
) -> tuple[list[Batch], list[int]]:
    """Padded batches on the device, and the row of each of their rows."""
    encoded = [tokenizer(source).input_ids for source in sources]
    order = list(range(len(encoded)))
    if by_length:
        order.sort(key=lambda row: -len(encoded[row]))
    made = []
    for start in range(0, len(order), size):
        rows = [encoded[row] for row in order[start : start + size]]
        padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        made.append((padded.input_ids.to(place.device), padded.attention_mask.to(place.device)))
    return made, order


@dataclass
class Measured:
    """Of every peer: median seconds, texts, and on a GPU the most memory in GB."""

    seconds: dict[str, float]
    texts: dict[str, list[str]]
    memory: dict[str, float]


def measure(peers: dict[str, Callable[[], list[str]]], repeats: int, place: Place) -> Measured:
    """All peers, one after the other, `repeats` times over."""
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    texts, memory = {}, {}
    if place.name != "cpu":
        for run in peers.values():  # kernels are chosen, memory is found
            run()
    for _ in range(repeats):
        for name, run in peers.items():
            place.fresh()
            seconds[name].append(place.seconds(lambda run=run, name=name: texts.update({name: run()})))  # type: ignore[misc]
            peak = place.peak_gb()
            memory |= {} if peak is None else {name: peak}
    return Measured({name: statistics.median(values) for name, values in seconds.items()}, texts, memory)


def library_model(folder: Path, place: Place) -> Any:
    """The model as transformers alone loads it, untouched by us; on a GPU in bf16."""
    import torch
    from transformers import AutoModelForSeq2SeqLM

    dtype = torch.float32 if place.name == "cpu" else torch.bfloat16
    return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype).eval().to(place.device)


def our_model(folder: Path) -> tuple[Any, Any]:
    from checkpoints.model_source import InferenceModel

    model, tokenizer = InferenceModel(str(folder))()
    return model.eval(), tokenizer


def in_precision(decode: Callable[[Any, Any], list[str]], place: Place) -> Callable[[Any, Any], list[str]]:
    """Ours, as `inference.py` calls it."""

    def decoded(ids: Any, mask: Any) -> list[str]:
        place.arithmetic(ours=True)
        with place.precision():
            return decode(ids, mask)

    return decoded


def decode_all(decode: Callable[[Any, Any], list[str]], made: list[Batch], order: list[int]) -> list[str]:
    texts = [""] * len(order)
    decoded = [text for batch in made for text in decode(*batch)]
    for row, text in zip(order, decoded, strict=True):
        texts[row] = text
    return texts


def library_decode(
    model: Any, tokenizer: Any, beams: int, max_length: int, place: Place
) -> Callable[[Any, Any], list[str]]:
    import torch

    from config.flags.inference import DecodeFlags
    from generation.decoder import decode_texts, generation_config

    config = generation_config(model, tokenizer, DecodeFlags(beam_size=beams, max_predict_length=max_length))

    def decode(ids: Any, mask: Any) -> list[str]:
        place.arithmetic(ours=False)
        with torch.inference_mode():
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        return decode_texts(tokenizer, output)

    return decode


def print_table(title: str, rows: int, measured: Measured, peer: str) -> None:
    width = max(24, len(peer) + 2)
    memory = f"{'GB':>7}" if measured.memory else ""
    print(f"\n{title}\n{'':34} {'rows/s':>8} {'x ' + peer:>{width}} {'same':>8}{memory}")
    for name, value in measured.seconds.items():
        same = sum(a == b for a, b in zip(measured.texts[name], measured.texts[peer], strict=True)) / rows
        memory = f"{measured.memory[name]:7.2f}" if measured.memory else ""
        ratio = measured.seconds[peer] / value
        print(f"{name:34} {rows / value:8.1f} {ratio:{width}.2f} {same:8.1%}{memory}", flush=True)


def ctranslate2_decoders(
    options: argparse.Namespace, folder: Path, model: Any, tokenizer: Any, beams: int
) -> dict[str, Callable[[Any, Any], list[str]]]:
    """CTranslate2 by compute type, with early stopping; empty when the package is not installed."""
    if importlib.util.find_spec("ctranslate2") is None:
        print("CTranslate2 is not installed: left out")
        return {}
    import torch

    from config.flags.inference import DecodeFlags
    from generation.decoder import generation_config
    from generation.engines.conversion import cached_conversion
    from generation.engines.ctranslate2 import CTranslate2Engine

    settings = DecodeFlags(beam_size=beams, max_predict_length=options.max_length, early_stopping=True)
    config = generation_config(model, tokenizer, settings)

    def decoder(compute_type: str) -> Callable[[Any, Any], list[str]]:
        converted = cached_conversion(str(folder), model, tokenizer, compute_type)
        engine = CTranslate2Engine(
            converted,
            tokenizer,
            replace(settings, compute_type=compute_type),
            config,
            threads=torch.get_num_threads(),
            with_scores=False,
        )

        def decode(ids: Any, mask: Any) -> list[str]:
            sources = [row[: int(length)].numpy() for row, length in zip(ids, mask.sum(1), strict=True)]
            return [prediction.text for prediction in engine(range(len(sources)), sources)]

        return decode

    return {f"CTranslate2 {compute_type}": decoder(compute_type) for compute_type in ("float32", "int8")}


def bare_ctranslate2(
    options: argparse.Namespace, folder: Path, tokenizer: Any, beams: int, sources: list[str]
) -> dict[str, Callable[[], list[str]]]:
    """CTranslate2 without anything of ours but the conversion, by compute type: it sorts by length itself."""
    if importlib.util.find_spec("ctranslate2") is None:
        return {}
    import ctranslate2
    import torch

    from checkpoints.model_source import InferenceModel
    from generation.engines.conversion import cached_conversion

    def runner(compute_type: str) -> Callable[[], list[str]]:
        converted = cached_conversion(str(folder), *InferenceModel(str(folder))(), compute_type)
        threads = torch.get_num_threads()
        translator = ctranslate2.Translator(str(converted), "cpu", compute_type=compute_type, intra_threads=threads)
        rows = [tokenizer.convert_ids_to_tokens(tokenizer(source).input_ids) for source in sources]
        first = tokenizer.convert_ids_to_tokens(tokenizer(text_target="a").input_ids)[0]
        prefix = [[first]] * len(rows) if tokenizer.bos_token == first else None

        def run() -> list[str]:
            results = translator.translate_batch(
                rows, target_prefix=prefix, beam_size=beams, max_batch_size=options.batch_size, max_input_length=0,
                max_decoding_length=options.max_length, min_decoding_length=0, return_end_token=True,
            )  # fmt: skip
            ids = [tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in results]
            return tokenizer.batch_decode(ids, skip_special_tokens=True)  # type: ignore[no-any-return]

        return run

    return {f"bare CTranslate2 {compute_type}": runner(compute_type) for compute_type in ("float32", "int8")}


def text_normalisation(options: argparse.Namespace, place: Place) -> None:
    from config.flags.inference import DecodeFlags
    from generation.decoder import Decoder

    folder = trained(options, "text", SAMPLE / "train.tsv", "-max_epoch", "3", "-header", "false")
    sources = [source for source, _ in read_rows(SAMPLE / "test.tsv")][: options.rows]
    model, tokenizer = our_model(folder)
    plain = library_model(folder, place)

    def decoder(settings: DecodeFlags) -> Any:
        return place.made(lambda own: Decoder(own, tokenizer, settings), model)

    for beams in (4, 1):
        settings = DecodeFlags(beam_size=beams, max_predict_length=options.max_length)
        others = ctranslate2_decoders(options, folder, model, tokenizer, beams) if place.name == "cpu" else {}
        decoders = {
            "ours": in_precision(decoder(settings), place),
            **others,
            "generate": library_decode(plain, tokenizer, beams, options.max_length, place),
        }
        if beams > 1:
            early = DecodeFlags(beam_size=beams, max_predict_length=options.max_length, early_stopping=True)
            decoders["ours, early stopping"] = in_precision(decoder(early), place)
        peers: dict[str, Callable[[], list[str]]] = {}
        for order_name, by_length in (("file order", False), ("length-sorted", True)):
            made, order = batches(tokenizer, sources, options.batch_size, by_length, place)
            for name, decode in decoders.items():
                peers[f"{name}, {order_name}"] = lambda decode=decode, made=made, order=order: decode_all(
                    decode, made, order
                )
        if place.name == "cpu":
            peers |= bare_ctranslate2(options, folder, tokenizer, beams, sources)
        measured = measure(peers, options.repeats, place)
        for peer in ("generate, file order", "generate, length-sorted", "bare CTranslate2 float32"):
            if peer not in peers:
                continue
            print_table(f"text normalisation, {beams} beams", len(sources), measured, peer)


def label_task(options: argparse.Namespace, place: Place) -> None:
    from config.flags.inference import DecodeFlags
    from generation.decoder import Decoder
    from generation.label_scoring import LabelScorer
    from postprocessors.labels import LabelMap

    folder, sources, labels = nsmc_task(options) if options.nsmc else digit_task(options)
    model, tokenizer = our_model(folder)
    plain = library_model(folder, place)
    scorer = place.made(lambda own: LabelScorer(own, tokenizer, labels), model)
    label_map = LabelMap(tuple((str(number), text) for number, text in enumerate(labels)))
    greedy = DecodeFlags(max_predict_length=options.max_length)
    ours = {
        "labels scored": lambda ids, mask: [labels[best] for best in scorer(ids, mask).argmax(1).tolist()],
        "greedy among labels": place.made(lambda own: Decoder(own, tokenizer, DecodeFlags(), label_map), model),
        "greedy": place.made(lambda own: Decoder(own, tokenizer, greedy), model),
    }
    decoders = {
        **{f"ours: {name}": in_precision(decode, place) for name, decode in ours.items()},
        "generate, greedy": library_decode(plain, tokenizer, 1, options.max_length, place),
        "generate, 4 beams": library_decode(plain, tokenizer, 4, options.max_length, place),
    }
    peers: dict[str, Callable[[], list[str]]] = {}
    for order_name, by_length in (("file order", False), ("length-sorted", True)):
        made, order = batches(tokenizer, sources, options.batch_size, by_length, place)
        for name, decode in decoders.items():
            peers[f"{name}, {order_name}"] = lambda decode=decode, made=made, order=order: decode_all(  # type: ignore[misc]
                decode, made, order
            )
    measured = measure(peers, options.repeats, place)
    for peer in peers:
        if peer.startswith("generate"):
            print_table(f"labels {', '.join(labels)}", len(sources), measured, peer)


def digit_task(options: argparse.Namespace) -> tuple[Path, list[str], tuple[str, ...]]:
    """Model, sources and labels of the question whether a sentence holds a digit."""
    label_map = ",".join(f"{number}={text}" for number, text in enumerate(LABELS))
    flags = ("-label_map", label_map, "-max_epoch", "1", "-header", "false")
    folder = trained(options, "label", label_rows(options), *flags)
    return folder, [source for source, _ in read_rows(SAMPLE / "test.tsv")][: options.rows], LABELS


def nsmc_task(options: argparse.Namespace) -> tuple[Path, list[str], tuple[str, ...]]:
    """The same of NSMC, on its first training rows."""
    from task_utils import Template, get_task

    task = get_task("nsmc-prompted")
    lines = (Path(options.nsmc) / "ratings_train.txt").read_text(encoding="utf-8").split("\n")
    part = Path(options.work) / "nsmc_train.txt"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_text("\n".join(lines[: NSMC_TRAINING_ROWS + 1]) + "\n", encoding="utf-8")
    folder = trained(options, "nsmc", part, "-max_epoch", "1", task="nsmc-prompted")
    lines = (Path(options.nsmc) / "ratings_test.txt").read_text(encoding="utf-8").split("\n")
    template = Template(task.input_template, "the task's input_template")
    reviews = [line.split("\t")[1] for line in lines[1 : options.rows + 1]]
    labels = task.label_map.texts if task.label_map else ()
    return folder, [template.render({"source": text, "document": text}) for text in reviews], labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-config", default="bart-mini", help="preset or config file to train")
    parser.add_argument("-batch_size", type=int, default=32)
    parser.add_argument("-rows", type=int, default=500, help="of the test split")
    parser.add_argument("-max_length", type=int, default=300, help="tokens of an output at most")
    parser.add_argument("-repeats", type=int, default=3)
    parser.add_argument("-device", choices=("cpu", "cuda"), default="cpu", help="fp32 on the CPU, bf16 on a GPU")
    parser.add_argument("-threads", type=int, default=0, help="0 = PyTorch's choice")
    parser.add_argument("-work", default="runs/benchmark_decode_speed")
    parser.add_argument("-part", choices=("all", "text", "labels"), default="all")
    parser.add_argument("-nsmc", default="", help="folder of ratings_train.txt and ratings_test.txt")
    options = parser.parse_args()

    import torch

    from benchmarks.matmul_rate import large_rate
    from utils.libraries import fix_sums, quiet_libraries

    fix_sums()
    quiet_libraries()
    if options.threads:
        torch.set_num_threads(options.threads)
    place = Place(options.device)
    print(f"{place.device}, threads {torch.get_num_threads()}, matmul {large_rate(place):.0f} GFLOP/s (large squares)")
    if options.part != "labels":
        text_normalisation(options, place)
    if options.part != "text":
        label_task(options, place)


if __name__ == "__main__":
    main()
