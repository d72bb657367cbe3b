"""Our T5 with switch layers: its routing against a plain loop, and what a row gives depends on that row alone."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from checkpoints.model_folder import fill_folder
from config.flags.export import ExportFlags
from deploy.model_card import write_card
from generation.engines.conversion import check_convertible
from models.adapters.quantised import check_quantisable
from models.forward import decode_teacher_forced
from models.kernels.compiled import check_compiler
from models.layer_selection import smaller_config
from models.loading import config_from_dict, describe, from_checkpoint, from_config, from_pretrained
from models.losses.objective import Objective, batch_loss
from models.retrieval.pooling import check_pooling
from models.switch.modeling_switch_t5 import SwitchFeedForward, choose
from models.switch.routers import RouterPass, collected, figures_of, switch_layers
from tests.cli.command import environment, run_forked
from tests.small_configs import NEWER
from tests.trained_models import TOKENIZER
from training.strategies.registry import STRATEGIES
from utils.devices import resolve_devices
from utils.errors import UserError

SWITCH = {**NEWER["switch-t5"], "dropout_rate": 0.0}
ROWS, SOURCE, TARGET = 6, 20, 9


def model_of(**changes: Any) -> PreTrainedModel:
    model = from_config({**SWITCH, **changes}, seed=3).train()
    for layer in switch_layers(model).values():
        layer.router.data.mul_(20)  # tokens that differ go to experts that differ
    return model


def batch_of(rows: int = ROWS, source: int = SOURCE, target: int = TARGET) -> dict[str, Any]:
    """Rows of all lengths, the first of which are the longest."""
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 259, (rows, source), generator=draw)
    labels = torch.randint(3, 259, (rows, target), generator=draw)
    mask = (torch.arange(source) < torch.linspace(source, 2, rows).long()[:, None]).long()
    labels = labels.masked_fill(torch.arange(target) >= torch.linspace(target, 1, rows).long()[:, None], -100)
    return as_batch(ids * mask, mask, labels)


def as_batch(ids: Tensor, mask: Tensor, labels: Tensor) -> dict[str, Any]:
    index = (labels != -100).flatten().nonzero()[:, 0]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "target_index": index,
        "num_rows": len(ids),
    }


def part(batch: dict[str, Any], rows: slice) -> dict[str, Any]:
    """Some rows, padded to the longest of them."""
    ids, mask, labels = (batch[name][rows] for name in ("input_ids", "attention_mask", "labels"))
    source, target = int(mask.sum(1).max()), int((labels != -100).sum(1).max())
    return as_batch(ids[:, :source], mask[:, :source], labels[:, :target])


def losses(model: PreTrainedModel, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the tokens, and the routers' losses over the rows."""
    routers = RouterPass(model.config, len(batch["input_ids"]), batch["num_rows"])
    with collected([*switch_layers(model).values()], routers):
        loss = batch_loss(model, batch)[0]
    return loss, routers.loss()


def gradient(model: PreTrainedModel, batches: list[dict[str, Any]]) -> Tensor:
    """That of a step of these micro-batches."""
    tokens = sum(len(batch["target_index"]) for batch in batches)
    rows = sum(batch["num_rows"] for batch in batches)
    model.zero_grad()
    for batch in batches:
        loss, routers = losses(model, batch)
        (loss / tokens + routers / rows).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).double()


def by_loop(layer: SwitchFeedForward, x: Tensor, mask: Tensor) -> tuple[Tensor, list[float], list[int], int]:
    """What the layer gives for (B, L, D), the balance loss of each row, the load, and how much was dropped: in words.

    Fedus et al. 2021, equations 1 to 6, one token at a time.
    """
    layer = copy.deepcopy(layer).requires_grad_(False)
    experts = layer.experts(x.dtype)
    out, balances, load, dropped = torch.zeros_like(x), [], [0] * len(layer.router), 0
    for row in range(len(x)):
        tokens = mask[row].nonzero()[:, 0].tolist()
        capacity = max(layer.smallest, math.ceil(layer.capacity_factor * len(tokens) / len(layer.router)))
        probabilities = (x[row] @ layer.router.T).softmax(1)
        free = dict.fromkeys(range(len(layer.router)), capacity if layer.capacity_factor else len(tokens))
        frequency = torch.zeros(len(layer.router))
        ranks = probabilities.argsort(1, descending=True)
        for place in range(layer.per_token):
            for token in tokens:
                expert = int(ranks[token, place])
                frequency[expert] += 1 / len(tokens)
                load[expert] += 1
                if not free[expert]:
                    dropped += 1
                    continue
                free[expert] -= 1
                inner = layer.act(x[row, token] @ experts.inner[expert])
                if experts.up is not None:
                    inner = inner * (x[row, token] @ experts.up[expert])
                out[row, token] += probabilities[token, expert] * (inner @ experts.outer[expert])
        mean = probabilities[tokens].mean(0) if tokens else torch.zeros(len(layer.router))
        balances.append(float(len(layer.router) * (frequency * mean).sum()))
    return out, balances, load, dropped


@pytest.mark.parametrize("projection", ["relu", "gated-gelu"])
@pytest.mark.parametrize(("per_token", "factor"), [(1, 1.0), (2, 0.75), (2, 0.0)])
def test_a_layer_gives_what_a_loop_over_tokens_gives(per_token: int, factor: float, projection: str) -> None:
    model = model_of(experts_per_token=per_token, capacity_factor=factor, feed_forward_proj=projection)
    layer = switch_layers(model)["encoder_1"]
    x = torch.randn(4, 17, 32, generator=torch.Generator().manual_seed(1))
    layer.token_mask = torch.arange(17) < torch.tensor([17, 9, 1, 0])[:, None]
    layer.token_mask[0, 3] = False  # padding in front or amid takes no place either
    routers = RouterPass(model.config, 4, 4)
    with collected([layer], routers):
        found = layer(x)
    expected, balances, load, dropped = by_loop(layer, x, layer.token_mask)
    (routed,) = routers.layers
    mask = layer.token_mask if not factor else torch.ones(4, 17, dtype=torch.bool)
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(routed.balance, torch.tensor(balances), rtol=1e-5, atol=1e-6)
    assert (routed.load.tolist(), int(routed.dropped)) == (load, dropped)
    assert (dropped > 0) == (factor > 0)
    z = choose(x, layer.experts(x.dtype)).logits.detach().exp().sum(2).log().square()
    expected_z = [float(z[row][layer.token_mask[row]].mean()) if layer.token_mask[row].any() else 0 for row in range(4)]
    torch.testing.assert_close(routed.z, torch.tensor(expected_z), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [1.25, 0.0])
def test_accumulation_and_padding_give_one_big_batch_s_gradient(factor: float) -> None:
    model = model_of(capacity_factor=factor)
    whole = batch_of()
    with torch.no_grad():
        _, router_loss = losses(model, whole)
    expected = gradient(model, [whole])
    assert router_loss.item() > 0
    model.config.router_aux_loss_coef, kept = 0.0, model.config.router_aux_loss_coef
    assert (gradient(model, [whole]) - expected).norm() > 1e-4 * expected.norm()  # the routers' losses take part
    model.config.router_aux_loss_coef = kept
    ones = [part(whole, slice(row, row + 1)) for row in range(ROWS)]
    left = as_batch(
        torch.stack([row.roll(int((row == 0).sum())) for row in whole["input_ids"]]),
        torch.stack([row.roll(int((row == 0).sum())) for row in whole["attention_mask"]]),
        whole["labels"],
    )
    assert left["input_ids"][-1, 0] == 0 != left["input_ids"][-1, -1]
    wide = as_batch(
        torch.nn.functional.pad(whole["input_ids"], (0, 13)),
        torch.nn.functional.pad(whole["attention_mask"], (0, 13)),
        torch.nn.functional.pad(whole["labels"], (0, 7), value=-100),
    )
    for batches in (ones, [part(whole, slice(0, 4)), part(whole, slice(4, None))], [left], [wide]):
        assert (gradient(model, batches) - expected).norm() < 1e-6 * expected.norm()


def test_padding_of_packed_rows_takes_no_place_either() -> None:
    model, whole = model_of(), batch_of()
    segments = {"source_segments": whole["attention_mask"], "target_segments": (whole["labels"] != -100).long()}
    expected = gradient(model, [whole])
    assert (gradient(model, [whole | segments]) - expected).norm() < 1e-6 * expected.norm()


def test_a_process_without_rows_adds_nothing() -> None:
    model = model_of()
    dummy = as_batch(torch.zeros(1, 1).long(), torch.ones(1, 1).long(), torch.full((1, 1), -100)) | {"num_rows": 0}
    whole = batch_of()
    assert torch.equal(gradient(model, [whole, dummy]), gradient(model, [whole]))


def test_rows_that_stand_twice_count_once() -> None:
    model, whole = model_of(), batch_of()
    routers = RouterPass(model.config, ROWS, ROWS)
    with collected([*switch_layers(model).values()], routers):
        Objective(rdrop_alpha=1.0)(model, whole)
    torch.testing.assert_close(routers.loss(), losses(model, whole)[1])


def test_every_expert_and_every_other_weight_learns() -> None:
    model = model_of(experts_per_token=1)
    gradient(model, [batch_of()])
    for layer in switch_layers(model).values():
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None
            assert (parameter.grad.flatten(1).norm(dim=1) > 0).all(), name
    one = part(
        batch_of(), slice(ROWS - 1, None)
    )  # fewer tokens than experts: nothing fails, and nothing is without one
    assert one["input_ids"].shape[1] < model.config.num_experts
    gradient(model, [one])
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_checkpointing_computes_the_same() -> None:
    model, whole = model_of(), batch_of()
    expected = gradient(model, [whole])
    model.activation_checkpointing_enable({"use_reentrant": False})
    assert (gradient(model, [whole]) - expected).norm() < 1e-6 * expected.norm()
    assert all(layer.collected is None for layer in switch_layers(model).values())


def test_evaluation_leaves_no_token_out() -> None:
    """So it does not depend on the capacity, and a token's output on no later one."""
    narrow, ample = model_of(capacity_factor=0.1).eval(), model_of(capacity_factor=0.0).eval()
    batch = batch_of()
    inputs = [batch[name] for name in ("input_ids", "attention_mask", "labels")]
    with torch.no_grad():
        hidden = decode_teacher_forced(narrow, *inputs).hidden
        assert torch.equal(hidden, decode_teacher_forced(ample, *inputs).hidden)
        shorter = decode_teacher_forced(narrow, *inputs[:2], inputs[2][:, :3]).hidden
        torch.testing.assert_close(hidden[:, :3], shorter, rtol=1e-5, atol=1e-6)
        trained = decode_teacher_forced(narrow.train(), *inputs).hidden
    assert (trained - hidden).abs().max() > 1e-3


def test_weights_are_drawn_so_that_it_learns() -> None:
    """transformers draws a class from elsewhere otherwise: its attention with a standard deviation of 1."""
    model = from_config({**SWITCH, "d_model": 256, "num_experts": 16, "dense_after_sparse": True}, seed=1)
    deviations = {name: parameter.std().item() for name, parameter in model.named_parameters() if parameter.ndim > 1}
    block = "decoder.block.1.layer"
    expected = {
        f"{block}.0.SelfAttention.k.weight": 256**-0.5,
        f"{block}.2.DenseReluDense.router": 0.02,
        f"{block}.2.DenseReluDense.wi_0": 256**-0.5,
        f"{block}.2.DenseReluDense.wo": 48**-0.5,
        f"{block}.2.dense_after.DenseReluDense.wo.weight": 48**-0.5,
        "lm_head.weight": 256**-0.5,
    }
    assert {name: deviations[name] for name in expected} == pytest.approx(expected, rel=0.05)


def test_figures_say_how_even_the_load_is() -> None:
    sums = [30.0, 10.0, 0.0, 0.0, 8.0, 12.0, 6.0]  # four experts, 8 of 40 choices dropped, losses of 4 rows
    even = [10.0, 10.0, 10.0, 10.0, 0.0, 4.0, 2.0]
    found = figures_of(sums + even, ["encoder_1", "decoder_1"], rows=4)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(4)
    assert found == pytest.approx(
        {
            "encoder_1_load_min": 0.0,
            "encoder_1_load_max": 3.0,
            "encoder_1_load_entropy": entropy,
            "encoder_1_dropped": 0.2,
            "decoder_1_load_min": 1.0,
            "decoder_1_load_max": 1.0,
            "decoder_1_load_entropy": 1.0,
            "decoder_1_dropped": 0.0,
            "router_balance_loss": 2.0,
            "router_z_loss": 1.0,
        }
    )


def test_what_cannot_be_is_refused_in_a_line() -> None:
    config = config_from_dict(SWITCH)
    with pytest.raises(UserError, match=r"^-compile: not with a switch_t5 model"):
        check_compiler("cpu", "switch_t5")
    with pytest.raises(UserError, match=r"^X: a switch_t5 model cannot be converted to CTranslate2, only t5, mt5, "):
        check_convertible("switch_t5", "X")
    with pytest.raises(UserError, match=r"^X: layers can be taken of t5, .*, not of switch_t5$"):
        smaller_config(config, (1, 0), "X")
    with pytest.raises(UserError, match=r"^-load_in 8bit: for t5, .*, not switch_t5; leave it out$"):
        check_quantisable(config, "8bit")
    with pytest.raises(UserError, match=r"^-task: was not tried with a switch_t5 model; give one of t5, "):
        check_pooling(config, "mean", "-task")
    with pytest.raises(UserError, match=r"^-strategy deepspeed_2: not with a switch_t5 model: "):
        STRATEGIES["deepspeed_2"].check(config, resolve_devices(0, 1, "32", ""))


def test_what_is_wrong_with_a_config_is_told_at_once() -> None:
    wrong = {
        "num_experts": 1,
        "experts_per_token": 3,
        "capacity_factor": -1,
        "sparse_step": 4,
        "min_expert_capacity": 0,
        "d_ff": 12,
    }
    with pytest.raises(UserError) as raised:
        config_from_dict({**SWITCH, **wrong})
    lines = str(raised.value).splitlines()
    assert len(lines) == len(wrong)
    for name, value in wrong.items():
        assert any(f": {name} is {value}, it must be " in line for line in lines)


def test_a_folder_is_read_by_few_lines_without_this_project(tmp_path: Path) -> None:
    model = model_of(dense_after_sparse=True).eval()
    folder = tmp_path / "model"
    folder.mkdir()
    fill_folder(folder, model, TOKENIZER, {})
    write_card(folder, "model", {}, [], ExportFlags(), TOKENIZER)
    (example,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    code = f"""{example}
import torch
ids = torch.tensor([[5, 6, 7, 1]])
loss = model(input_ids=ids, labels=ids).loss.item()
print(type(model).__module__, loss, model.generate(input_ids=ids, max_new_tokens=5).tolist())
"""
    done = run_forked(["-c", code], environment(), tmp_path)
    assert done.code == 0, done.err
    ids = torch.tensor([[5, 6, 7, 1]])
    own = from_pretrained(str(folder)).eval()
    assert own(input_ids=ids, labels=ids).loss.item() == model(input_ids=ids, labels=ids).loss.item()
    module, loss, tokens = done.out.splitlines()[-1].split(" ", 2)
    assert module == "modeling_switch_t5"  # the class of the folder
    assert float(loss) == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), rel=1e-6)
    assert tokens.strip() == str(model.generate(input_ids=ids, max_new_tokens=5).tolist())


def test_a_checkpoint_is_the_model_again() -> None:
    model = model_of()
    other = from_checkpoint(describe(model), model.state_dict())
    assert other.config.to_diff_dict() == {
        **model.config.to_diff_dict(),
        "architectures": ["SwitchT5ForConditionalGeneration"],
    }
    assert all(value.equal(other.state_dict()[name]) for name, value in model.state_dict().items())
