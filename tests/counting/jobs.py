"""What is counted on the device: steps of training and adafactor, a validation batch, all decoding, label scores."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from config.flags.inference import DecodeFlags
from datamodules.collate import collate
from generation.decoder import Decoder
from generation.incremental.decoder import StepState
from generation.label_scoring import LabelScorer
from models.forward import decode_teacher_forced
from models.kernels.accelerate import accelerate
from models.loading import describe, from_checkpoint, from_config
from models.losses.contrastive import Contrastive
from models.losses.cross_entropy import token_loss_and_correct
from models.meter import StepMeter
from models.optimizers.build import build_optimizer
from models.optimizers.settings import OptimSettings
from postprocessors.labels import LabelMap
from tests.counting.device import DEVICE, CountingTensor, Counts, counting, on_device
from tests.small_configs import config_of, with_dropout
from tests.trained_models import TOKENIZER, encoded, half_trained, label_map, words

PRECISIONS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "fp32": nullcontext,
    "bf16": partial(torch.autocast, "cuda", torch.bfloat16),
}
LENGTH = 8
RULES = DecodeFlags(max_predict_length=LENGTH, no_repeat_ngram_size=2, min_predict_length=3, repetition_penalty=1.2)
LABELS, JOINED = label_map(("ab", "abc", "d", "ef")), label_map(("ab", "abc", "d"), ", ")
DECODING: dict[str, tuple[DecodeFlags, LabelMap | None]] = {
    "greedy": (DecodeFlags(max_predict_length=LENGTH), None),
    "greedy with rules": (RULES, None),
    "beam 4": (DecodeFlags(beam_size=4, max_predict_length=LENGTH), None),
    "beam 4, 2 best, rules": (DecodeFlags(**{**vars(RULES), "beam_size": 4, "num_return": 2}), None),
    "samples": (DecodeFlags(do_sample=True, num_return=3, top_k=5, top_p=0.9, max_predict_length=LENGTH), None),
    "labels": (DecodeFlags(beam_size=2, max_predict_length=LENGTH), LABELS),
    "joined labels": (DecodeFlags(beam_size=2, max_predict_length=LENGTH), JOINED),
}
_OF_T5, _OF_BART = ("num_layers", "num_decoder_layers"), ("encoder_layers", "decoder_layers")
LAYERS = {"t5": _OF_T5, "mt5": _OF_T5, "umt5": _OF_T5, "bart": _OF_BART, "mbart": _OF_BART}
# Refused by `torch.use_deterministic_algorithms` on a GPU, of what text might need (`cumsum` not of whole numbers).
NO_DETERMINISTIC_FORM = {"cumsum", "put_", "histc", "bincount", "median", "nll_loss2d_forward", "_embedding_bag"}
OFTEN_USED = ("greedy", "beam 4")  # counted in bf16 too; the same steps are asked for in both


def counts_of(name: str) -> dict[str, dict[str, Any]]:
    """Precision -> job -> what was counted, of one architecture (`t5`, or `t5:12+4` with so many layers)."""
    kind, _, layers = name.partition(":")
    if layers:
        sides = {key: int(number) for key, number in zip(LAYERS[kind], layers.split("+"), strict=True)}
        training = _training(kind, PRECISIONS["bf16"], sides)
        return {"fp32": {"adafactor": _adafactor(kind, sides)}, "bf16": {"training": training}}
    found: dict[str, dict[str, Any]] = {}
    for precision, enter in PRECISIONS.items():
        jobs = {"training": _training(kind, enter), "validation": _validation(kind, enter)}
        jobs |= {
            job: _decoding(kind, enter, *how, precision == "fp32")
            for job, how in DECODING.items()
            if precision == "fp32" or job in OFTEN_USED
        }
        found[precision] = {**jobs, "label scores": _label_scores(kind, enter, precision == "fp32")}
        found[precision]["released"] = _released(kind, enter, precision == "fp32")
    found["fp32"]["resumed"] = _resumed(kind)
    found["fp32"] |= {"adafactor": _adafactor(kind)} if kind == "t5" else {}  # it knows shapes, no architectures
    for precision, enter in PRECISIONS.items() if kind in ("t5", "bart") else ():
        found[precision]["retrieval"] = _retrieval(kind, enter)
    return found


def loss_counts() -> dict[str, dict[str, Any]]:
    """Precision -> the loss over an odd vocabulary in two chunks, with its gradients beside those of fp64."""
    torch.manual_seed(1)
    hidden, weight = torch.randn(8, 5, 16, dtype=torch.float64), torch.randn(101, 16, dtype=torch.float64)
    bias, labels = torch.randn(101, dtype=torch.float64), torch.randint(101, (8, 5))
    hidden, weight, bias = hidden.bfloat16().double(), weight.bfloat16().double(), bias.bfloat16().double()

    def gradients(tensors: list[Tensor], labels: Tensor) -> tuple[Tensor, ...]:
        for tensor in tensors:
            tensor.requires_grad_()
        details = {"bias": tensors[2], "target_index": torch.arange(40, device=labels.device), "label_smoothing": 0.1}
        loss, _ = token_loss_and_correct(*tensors[:2], labels, max_logits=101 * 30, count_correct=False, **details)
        return loss.detach(), *torch.autograd.grad(loss * 2.0**-6, tensors)

    wanted = gradients([hidden.clone(), weight.clone(), bias.clone()], labels)
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        with counting() as counts, torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            tensors = [tensor.float().to(DEVICE) for tensor in (hidden, weight, bias)]
            there = labels.to(DEVICE)
            counts.reset()
            given = gradients(tensors, there)
            told = _told(counts)
            errors = [float(((a.cpu() - b).norm() / b.norm()).detach()) for a, b in zip(given, wanted, strict=True)]
        found[str(dtype).removeprefix("torch.")] = {**told, "errors": errors}
    return found


def _told(counts: Counts, **more: Any) -> dict[str, Any]:
    return {
        "syncs": dict(counts.syncs),
        "launches": counts.launches.total(),
        "casts": counts.casts.total(),
        "cast_elements": counts.cast_elements,
        "not deterministic": sorted(counts.launches.keys() & NO_DETERMINISTIC_FORM),
        **more,
    }


def _batch() -> dict[str, Any]:
    rows = [(_ids(word), _ids(word[:3])) for word in words(6, 1)]
    return {**collate(rows, 0, 8), "num_rows": 6, "num_source_tokens": 30}


def _ids(text: str) -> np.ndarray:
    return np.array(TOKENIZER(text).input_ids)


def _loss(model: PreTrainedModel, batch: dict[str, Any], count: bool) -> tuple[Tensor, Tensor]:
    output = decode_teacher_forced(model, batch["input_ids"], batch["attention_mask"], batch["labels"])
    details = {"target_index": batch["target_index"], "bias": output.bias, "scale": output.scale}
    return token_loss_and_correct(output.hidden, output.weight, batch["labels"], count_correct=count, **details)


def _moved(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value.to(DEVICE) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _with_layers(kind: str, layers: dict[str, int] | None) -> PreTrainedModel:
    return from_config({**with_dropout(kind), **(layers or {})}, seed=1)


def _training(kind: str, enter: Callable[[], Any], layers: dict[str, int] | None = None) -> dict[str, Any]:
    """A step: forward, backward, norm and clipping of the gradient, AdamW."""
    model = _with_layers(kind, layers).train()
    accelerate(model)
    on_device(model)
    optimizer = build_optimizer(model, OptimSettings("adam", 1e-3, "constant"))
    meter = StepMeter()
    with counting() as counts:
        batch = _moved(_batch())
        counts.reset()
        with enter():
            loss, _ = _loss(model, batch, False)
        meter.add_batch(batch, loss.detach())
        loss.backward()
        parameters = [part for part in model.parameters() if part.grad is not None]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return _told(counts)


def _retrieval(kind: str, enter: Callable[[], Any]) -> dict[str, Any]:
    """Both micro-batches of a step of retrieval, of each pooling."""
    keys = {"query_keys": torch.arange(6), "passage_keys": torch.arange(6), "answers": torch.arange(6)}
    with counting() as counts:
        for pooling in ("mean", "decoder"):
            model = on_device(_with_layers(kind, None).train())
            objective, made = Contrastive(pooling, 0.05), _batch()
            passages = {"passage_ids": made["input_ids"], "passage_mask": made["attention_mask"]}
            batch = _moved({**made, **passages, **keys, "most_passages": 0})
            counts.reset()
            for step in ({"step": [batch, batch]}, {}):
                with enter():
                    objective.begin_step(model, {**batch, **step}, lambda place: place)
                    loss = objective(model, batch)
                loss.backward()
    return _told(counts)


def _adafactor(kind: str, layers: dict[str, int] | None = None) -> dict[str, Any]:
    """The second step of adafactor with its own rate and weight decay, and how many parameters it moves."""
    models = _with_layers(kind, layers), on_device(_with_layers(kind, layers))
    settings = OptimSettings("adafactor", None, "constant", weight_decay=0.01)
    optimizers = [build_optimizer(model, settings) for model in models]
    for step in range(2):
        for of_cpu, of_device in zip(models[0].parameters(), models[1].parameters(), strict=True):
            of_cpu.grad = torch.randn(of_cpu.shape, generator=torch.Generator().manual_seed(step))
            of_device.grad = CountingTensor(of_cpu.grad)
        optimizers[0].step()
        with counting() as counts:
            optimizers[1].step()
    pairs = list(zip(models[0].parameters(), models[1].parameters(), strict=True))
    same = all(torch.allclose(one, other.detach().cpu(), rtol=1e-5, atol=1e-7) for one, other in pairs)
    return _told(counts, parameters=len(pairs), **{"as on the CPU": same})


def _resumed(kind: str) -> dict[str, Any]:
    """The building of a model from a checkpoint, on the device."""
    model = from_config(with_dropout(kind), seed=1)
    with counting() as counts, DEVICE:
        built = from_checkpoint(describe(model), model.state_dict())
    pairs = zip(model.state_dict().values(), built.state_dict().values(), strict=True)
    same = all(isinstance(there, CountingTensor) and torch.equal(here, there.held) for here, there in pairs)
    return _told(counts, **{"as on the CPU": same})


def _validation(kind: str, enter: Callable[[], Any]) -> dict[str, Any]:
    model = on_device(copy.deepcopy(half_trained(kind, 40)))
    with counting() as counts, torch.no_grad():
        batch = _moved(_batch())
        counts.reset()
        with enter():
            loss, correct = _loss(model, batch, True)  # type: ignore[arg-type]
        StepMeter().add_batch(batch, loss, correct)
    return _told(counts)


def _decoding(kind: str, enter: Callable[[], Any], flags: DecodeFlags, labels: Any, compare: bool) -> dict[str, Any]:
    model = half_trained(kind, 40)
    ids, mask = encoded(words(32, 1))
    steps = 0
    logits = StepState.logits

    def counted(state: StepState, tokens: Tensor, step: int) -> Tensor:
        nonlocal steps
        steps += 1
        return logits(state, tokens, step)

    with counting() as counts, enter():
        decoder = Decoder(on_device(copy.deepcopy(model)), TOKENIZER, flags, labels)  # type: ignore[arg-type]
        ids_there, mask_there = ids.to(DEVICE), mask.to(DEVICE)
        decoder.step_models()
        counts.reset()
        StepState.logits = counted  # type: ignore[method-assign]
        try:
            found = decoder.decode(ids_there, mask_there)
        finally:
            StepState.logits = logits  # type: ignore[method-assign]
    told = _told(counts, steps=steps)
    if compare:
        wanted = Decoder(model, TOKENIZER, flags, labels).decode(ids, mask)
        told["as on the CPU"] = [[one.text for one in row] for row in found] == [
            [one.text for one in row] for row in wanted
        ]
    return told


def _released(kind: str, enter: Callable[[], Any], compare: bool) -> dict[str, Any]:
    """Bytes a parameter before and after the weights that are not used were let go, of an odd vocabulary."""
    model = from_config(config_of(kind, vocab_size=389), seed=4).eval()
    ids, mask = encoded(words(8, 1))
    flags = DecodeFlags(beam_size=4, max_predict_length=LENGTH)
    wanted = Decoder(model, TOKENIZER, flags).decode(ids, mask)
    parameters, before = sum(part.numel() for part in model.parameters()), _bytes()
    with counting() as counts, enter():
        decoder = Decoder(on_device(copy.deepcopy(model)), TOKENIZER, flags)  # type: ignore[arg-type]
        (step_model,) = decoder.step_models()
        held = _bytes() - before
        decoder.release()
        left = _bytes() - before
        found = decoder.decode(ids.to(DEVICE), mask.to(DEVICE))
        logits = step_model.logits(torch.zeros(1, 32, dtype=step_model.dtype, device=DEVICE))
        beyond = bool((logits[:, 389:] == float("-inf")).all()) and logits.shape[1] == 448
    told = _told(counts, **{"bytes a parameter": [held / parameters, left / parameters], "no token beyond": beyond})
    texts = [[one.text for one in row] for row in found] == [[one.text for one in row] for row in wanted]
    return {**told, "as on the CPU": texts} if compare else told


def _bytes() -> int:
    """Of all tensors that are on the device now."""
    gc.collect()
    tensors = [one.held.untyped_storage() for one in gc.get_objects() if type(one) is CountingTensor]
    return sum({storage.data_ptr(): storage.nbytes() for storage in tensors}.values())


def _label_scores(kind: str, enter: Callable[[], Any], compare: bool) -> dict[str, Any]:
    model = half_trained(kind, 40)
    ids, mask = encoded(words(32, 1))
    with counting() as counts, enter():
        scorer = LabelScorer(on_device(copy.deepcopy(model)), TOKENIZER, LABELS.texts)  # type: ignore[arg-type]
        ids_there, mask_there = ids.to(DEVICE), mask.to(DEVICE)
        scorer._pass(DEVICE)
        counts.reset()
        found = scorer(ids_there, mask_there)
        told = _told(counts)
        scores = found.cpu()
    if compare:
        wanted = LabelScorer(model, TOKENIZER, LABELS.texts)(ids, mask)
        told["as on the CPU"] = bool((scores - wanted).abs().max() < 1e-5)
    return told
