"""The mean of checkpoints is exact, of one architecture only, and of the checkpoints that were meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from checkpoints.averaging import (
    WeightSource,
    average_into,
    averaged,
    best_checkpoints,
    chosen_checkpoints,
    newest_checkpoints,
    weight_source,
)
from checkpoints.model_source import InferenceModel
from checkpoints.run_folder import step_of
from checkpoints.saved_run import read_model, read_run
from models.loading import from_config
from tests.small_configs import config_of
from utils.errors import UserError


def source(place: str, weights: dict[str, Tensor]) -> WeightSource:
    return WeightSource(place, weights.keys(), weights.__getitem__)


def cloned(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_mean_is_taken_in_float64_and_buffers_stay() -> None:
    model = from_config(config_of("bart"), seed=1)
    name = "model.encoder.layers.0.fc1.bias"
    parts = [cloned(model) for _ in range(3)]
    for weights, value in zip(parts, (2.0**24, 1.0, 1.0), strict=True):  # their sum is no float32
        weights[name].fill_(value)
    average_into(model, [source(f"part {number}", weights) for number, weights in enumerate(parts)])
    expected = torch.tensor((2**24 + 2) / 3, dtype=torch.float64).to(torch.float32)
    assert model.state_dict()[name].tolist() == [expected.item()] * 48
    assert torch.equal(model.state_dict()["model.shared.weight"], parts[0]["model.shared.weight"])


def test_another_architecture_is_refused_with_the_tensor() -> None:
    model = from_config(config_of("t5-untied"), seed=1)
    own = cloned(model)
    name = "encoder.block.0.layer.1.DenseReluDense.wo.weight"

    def refused(**changes: Tensor | None) -> str:
        other = {key: value for key, value in {**own, **changes}.items() if value is not None}
        with pytest.raises(UserError) as error:
            average_into(model, [source("one.ckpt", own), source("two.ckpt", other)])
        return str(error.value)

    assert refused(**{name: None}) == f"two.ckpt: another architecture: the tensor {name} is missing"
    assert refused(more=torch.ones(1)) == "two.ckpt: another architecture: one.ckpt has no tensor more"
    assert refused(**{name: torch.ones(2, 3)}) == f"two.ckpt: another architecture: {name} is [2, 3], not [32, 48]"
    changed = refused(**{"shared.weight": own["shared.weight"] + 1})  # the encoder's own name for it stays behind
    assert changed == "two.ckpt: another architecture: shared.weight and encoder.embed_tokens.weight are not one matrix"


def test_buffers_that_differ_have_no_mean() -> None:
    model = from_config(config_of("bart"), seed=1)
    one, two = cloned(model), cloned(model)
    two["final_logits_bias"][0, 3] = 1.0
    with pytest.raises(UserError, match=r"^two: final_logits_bias differs from that of one: it has no mean$"):
        average_into(model, [source("one", one), source("two", two)])


def test_best_and_last_checkpoints_of_a_run(copy_run: Path) -> None:
    run = copy_run / "run"
    steps = [step_of(path) for path in newest_checkpoints(run) if path.name != "last.ckpt"]
    assert len(newest_checkpoints(run)) == 5  # one an epoch of 13 steps; the worst of six is gone, last.ckpt a 2nd name
    assert steps == sorted(steps, reverse=True)
    best = best_checkpoints(run)
    scores = []
    for path in best:
        scores.append(read_run(path).scores.validation["exact_match"])
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    assert chosen_checkpoints("best:2", run) == [str(path) for path in best[:2]]
    assert chosen_checkpoints("last:2", run) == [str(path) for path in newest_checkpoints(run)[:2]]
    with pytest.raises(
        UserError, match=r"^-average last:6: .* has 5 checkpoints of different steps; train with -save_"
    ):
        chosen_checkpoints("last:6", run)
    with pytest.raises(UserError, match=r"^-average best:9: .* has 5 checkpoints of validations; a run keeps those"):
        chosen_checkpoints("best:9", run)
    with pytest.raises(UserError, match=r"^-average last:x: a whole number of 2 or more expected after last:$"):
        chosen_checkpoints("last:x", run)
    with pytest.raises(UserError, match=r"^-average a.ckpt: last:N, best:N, or two or more files joined by commas"):
        chosen_checkpoints("a.ckpt", run)


def test_files_and_folders_are_averaged(copy_run: Path) -> None:
    run = copy_run / "run"
    newest, older = newest_checkpoints(run)[:2]
    parts = [read_model(path).tensors.weights for path in (newest, older)]
    expected = {name: ((value.double() + parts[1][name].double()) / 2).float() for name, value in parts[0].items()}
    model, _ = averaged([str(newest), str(older)])
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    from_folder, _ = averaged([str(run / "last"), str(older)])  # last/ holds the weights of the newest
    assert all(torch.equal(value, expected[name]) for name, value in from_folder.state_dict().items())
    with pytest.raises(UserError, match=r"no \.safetensors file in this folder"):
        weight_source(str(run))


def test_another_config_or_tokenizer_is_refused(copy_run: Path, tmp_path: Path) -> None:
    best = copy_run / "run" / "best"
    model, tokenizer = InferenceModel(str(best))()
    model.config.decoder_attention_heads = 1
    model.save_pretrained(tmp_path / "heads")
    tokenizer.save_pretrained(tmp_path / "heads")
    with pytest.raises(UserError, match=r"another architecture than .*: decoder_attention_heads is 1, not 2$"):
        averaged([str(best), str(tmp_path / "heads")])
