"""Of `gpu.py`: what a GPU computes is what the CPU computes, and nothing waits for it without need."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.device import Place
from config.flags.inference import DecodeFlags
from datamodules.collate import collate
from generation.decoder import Decoder
from generation.label_scoring import LabelScorer
from models.kernels.accelerate import accelerate
from models.loading import from_config
from models.losses.objective import batch_loss
from models.optimizers.build import build_optimizer
from tests.small_configs import with_dropout
from tests.trained_models import TOKENIZER, encoded, half_trained, words

KINDS = ("t5", "mt5", "bart")
STEPS = 40  # of the training of the small models, on the CPU
LENGTH = 12  # tokens of an output
SEARCHES = {"greedy": 1, "beam 4": 4}
MOST_WAITS = LENGTH // 4 + 2  # a look in four steps, one copy of the outputs, and whether all scores were finite
LABELS = ("ab", "abc", "d", "ef")
CLOSE = 1e-5  # of scores (log-probabilities), and of the loss relative to its size
GRADIENTS_CLOSE = 1e-4  # relative to the largest
Tell = Callable[..., None]


def example() -> dict[str, Any]:
    """Six rows."""
    rows = [(np.array(TOKENIZER(word).input_ids), np.array(TOKENIZER(word[:3]).input_ids)) for word in words(6, 1)]
    return {**collate(rows, 0, 8)}


def there(batch: dict[str, Any], place: Place) -> dict[str, Any]:
    return {key: part.to(place.device) if isinstance(part, torch.Tensor) else part for key, part in batch.items()}


def loss_and_gradients(model: Any, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    loss, _ = batch_loss(model, batch)
    loss.backward()
    gradients = {name: part.grad.cpu() for name, part in model.named_parameters() if part.grad is not None}
    return float(loss.detach().cpu()), gradients


def verdict(difference: float, limit: float) -> str:
    return f"{difference:.1e} ({'within' if difference <= limit else 'ABOVE'} {limit:.0e})"


def parity(tell: Tell, place: Place, work: Path) -> None:
    """Loss, gradients, texts and scores in fp32 against the CPU's, small models."""
    del work
    place.arithmetic(ours=True)
    ids, mask = encoded(words(32, 1))
    for kind in KINDS:
        model = half_trained(kind, STEPS)
        loss, gradients = loss_and_gradients(copy.deepcopy(model), example())
        largest = max(float(gradient.abs().max()) for gradient in gradients.values())
        with place.working():
            found, other = loss_and_gradients(place.moved(model), there(example(), place))
            with torch.no_grad(), place.bf16():
                rounded = float(batch_loss(place.moved(model), there(example(), place))[0].cpu())
        apart = max(float((gradients[name] - other[name]).abs().max()) for name in gradients) / largest
        tell(f"{kind}: loss in fp32, relative difference", verdict(abs(found / loss - 1), CLOSE), abs(found / loss - 1))
        tell(f"{kind}: gradients in fp32, relative difference", verdict(apart, GRADIENTS_CLOSE), apart)
        tell(f"{kind}: loss in bf16, relative difference", f"{abs(rounded / loss - 1):.1e}", abs(rounded / loss - 1))
        for name, beams in SEARCHES.items():
            flags = DecodeFlags(beam_size=beams, max_predict_length=LENGTH)
            wanted = Decoder(copy.deepcopy(model), TOKENIZER, flags).decode(ids, mask)
            with place.working():
                got = Decoder(place.moved(model), TOKENIZER, flags).decode(ids.to(place.device), mask.to(place.device))
            same = sum(ours[0].text == theirs[0].text for ours, theirs in zip(got, wanted, strict=True))
            apart = max(abs(ours[0].score - theirs[0].score) for ours, theirs in zip(got, wanted, strict=True))
            tell(f"{kind}: {name}, texts as on the CPU", f"{same} of {len(wanted)}", same)
            tell(f"{kind}: {name}, scores, largest difference", verdict(apart, CLOSE), apart)
        labels = LabelScorer(copy.deepcopy(model), TOKENIZER, LABELS)(ids, mask)
        with place.working():
            scorer = LabelScorer(place.moved(model), TOKENIZER, LABELS)
            apart = float((scorer(ids.to(place.device), mask.to(place.device)).cpu() - labels).abs().max())
        tell(f"{kind}: label scores, largest difference", verdict(apart, CLOSE), apart)


@contextmanager
def waiting(place: Place, counts: Any) -> Iterator[dict[str, Any]]:
    """`waits` of the host for the device within, and on the counting device `launches` and `casts`."""
    found: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if place.name == "fake":
            counts.reset()
        if place.name == "cuda":
            place.synchronize()
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if place.name == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    if place.name == "fake":
        found |= {"waits": counts.syncs.total(), "launches": counts.launches.total(), "casts": counts.casts.total()}
    else:
        found["waits"] = sum("synchronizing" in str(warning.message) for warning in caught)


def words_of(found: dict[str, Any], steps: int = 0) -> str:
    counted = ", ".join(f"{value:,} {name}" for name, value in found.items())
    return counted + (f" in {steps} steps" if steps else "")


def waits(tell: Tell, place: Place, work: Path) -> None:
    """How often the host waits in a training step and in decoding, bf16 (`torch.cuda.set_sync_debug_mode`)."""
    del work
    if place.name == "cpu":
        tell("waits", "none: a CPU is not waited for")
        return
    place.arithmetic(ours=True)
    ids, mask = encoded(words(32, 1))
    for kind in KINDS:
        found = training_step(kind, place)
        tell(f"{kind}: training step (0 waits are right)", words_of(found), found["waits"])
        for name, beams in SEARCHES.items():
            flags = DecodeFlags(beam_size=beams, max_predict_length=LENGTH, min_predict_length=LENGTH)
            model = half_trained(kind, STEPS)
            with place.working() as counts, place.bf16():
                decoder = Decoder(place.moved(model), TOKENIZER, flags)
                there_ids, there_mask = ids.to(place.device), mask.to(place.device)
                decoder.decode(there_ids, there_mask)  # kernels are chosen
                with waiting(place, counts) as found:
                    decoder.decode(there_ids, there_mask)
            tell(f"{kind}: {name} (at most {MOST_WAITS} waits)", words_of(found, LENGTH), found["waits"])
        with place.working() as counts, place.bf16():
            scorer = LabelScorer(place.moved(half_trained(kind, STEPS)), TOKENIZER, LABELS)
            there_ids, there_mask = ids.to(place.device), mask.to(place.device)
            scorer(there_ids, there_mask)
            with waiting(place, counts) as found:
                scorer(there_ids, there_mask)
        tell(f"{kind}: label scores (1 wait is right)", words_of(found), found["waits"])


def training_step(kind: str, place: Place) -> dict[str, Any]:
    """Forward, backward, norm and clipping of the gradient, AdamW; the second of two."""
    model = from_config(with_dropout(kind), seed=1).train()
    accelerate(model)
    model = place.moved(model)
    optimizer = build_optimizer(model, "adam", 1e-3, 0.0)
    found: dict[str, Any] = {}
    with place.working() as counts:
        batch = there(example(), place)
        for _ in range(2):
            optimizer.zero_grad()
            with waiting(place, counts) as found:
                with place.bf16():
                    loss, _ = batch_loss(model, batch)
                loss.backward()
                torch.nn.utils.clip_grad_norm_([part for part in model.parameters() if part.grad is not None], 1.0)
                optimizer.step()
    return found
