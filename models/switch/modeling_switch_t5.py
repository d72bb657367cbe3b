"""A T5 in which every n-th feed-forward layer is a mixture of experts (switch layers), trained with groups of one row.

This file needs torch and transformers only, and lies beside the weights of every export, so that few lines read it:

    import sys
    from transformers import AutoModelForSeq2SeqLM
    sys.path.insert(0, "FOLDER")
    import modeling_switch_t5  # tells transformers of the architecture
    model = AutoModelForSeq2SeqLM.from_pretrained("FOLDER")

A router gives every token its `experts_per_token` likeliest experts, and the layer adds their outputs, each times its
probability (Fedus et al. 2021, "Switch Transformers", section 2; Zoph et al. 2022, "ST-MoE", section 2). In training
an expert takes max(min_expert_capacity, ceil(capacity_factor * tokens of the row / num_experts)) tokens of a row, first
choices before second ones, earlier tokens before later ones; what is beyond passes it by. Padding takes no place. In
evaluation, and with capacity_factor 0, no token is left out. So what a row gives depends on no other row and on no
padding, and decoding token by token gives what teacher forcing gives.

Shapes: B rows, L tokens, N tokens of all rows, K experts_per_token, E experts, D width, F inner width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.models.t5.modeling_t5 import T5Block, T5LayerFF, T5Stack

ROUTER_STD = 0.02  # of a router's weights, as in ST-MoE


class SwitchT5Config(T5Config):  # type: ignore[misc]
    """That of a T5, and what its switch layers are."""

    model_type = "switch_t5"
    num_experts: int = 8
    experts_per_token: int = 1  # 1 or 2
    sparse_step: int = 2  # layers sparse_step, 2 * sparse_step, ... of encoder and decoder are switch layers
    capacity_factor: float | int = 1.25  # 0 = an expert takes all its tokens in training as well
    min_expert_capacity: int = 4  # tokens of a row
    router_aux_loss_coef: float | int = 0.01  # of the balance loss
    router_z_loss_coef: float | int = 0.001
    dense_after_sparse: bool = False  # another feed-forward layer, a dense one, behind each switch layer


class Experts(NamedTuple):
    """The weights of a switch layer."""

    router: Tensor  # (E, D) fp32
    inner: Tensor  # (E, D, F)
    up: Tensor | None  # (E, D, F) the linear branch of a gated layer
    outer: Tensor  # (E, F, D)
    activation: Callable[[Tensor], Tensor]
    per_token: int  # K


class Choice(NamedTuple):
    """What a router gives: fp32 logits (..., E), the experts (..., K) of a token and their probabilities (..., K)."""

    logits: Tensor
    probabilities: Tensor  # (..., E)
    experts: Tensor
    weights: Tensor


class Routed(NamedTuple):
    """What a router did in a training pass."""

    balance: Tensor  # (B,) the balance loss of every row, 0 without tokens
    z: Tensor  # (B,) the mean z-loss of its tokens, 0 without
    load: Tensor  # (E,) how often an expert was chosen
    dropped: Tensor  # choices beyond the capacity


def choose(x: Tensor, experts: Experts) -> Choice:
    """The router's choice for tokens (..., D)."""
    with torch.autocast(x.device.type, enabled=False):
        logits = functional.linear(x.float(), experts.router.float())
    probabilities = logits.softmax(-1)
    weights, chosen = probabilities.topk(experts.per_token, -1)
    return Choice(logits, probabilities, chosen, weights)


def through_all(
    x: Tensor, choice: Choice, experts: Experts, dropout: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """(N, D) outputs for tokens (N, D), none of which is left out; the type of `x` is that of the products."""
    count = experts.per_token
    chosen = choice.experts.reshape(-1)  # (N * K,)
    order = chosen.argsort(stable=True)
    numbers = torch.arange(len(experts.router), device=x.device)
    ends = torch.searchsorted(chosen[order], numbers, right=True).to(torch.int32)
    rows = x.index_select(0, order.div(count, rounding_mode="floor"))
    inner = experts.activation(functional.grouped_mm(rows, experts.inner, offs=ends))
    if experts.up is not None:
        inner = inner * functional.grouped_mm(rows, experts.up, offs=ends)
    if dropout is not None:
        inner = dropout(inner)
    outputs = functional.grouped_mm(inner, experts.outer, offs=ends)
    places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
    return _mixed(outputs.index_select(0, places), choice.weights)


def _mixed(outputs: Tensor, weights: Tensor) -> Tensor:
    """(N, D) sums of the outputs (N * K, D) of the chosen experts, times their weights."""
    weights = weights.reshape(-1, weights.shape[-1])
    return (outputs.view(*weights.shape, -1) * weights.unsqueeze(2)).sum(1)


def _through_slots(
    x: Tensor, choice: Choice, slots: Tensor, count: int, experts: Experts, dropout: Callable[[Tensor], Tensor]
) -> Tensor:
    """As `through_all`; an expert has `count` slots, and `slots` (N, K) are the numbers of those taken, else -1."""
    kept = slots >= 0
    size = len(experts.router) * count
    taken = slots.masked_fill(~kept, size).reshape(-1)
    tokens = torch.arange(len(x), device=x.device).repeat_interleave(experts.per_token)
    # An empty slot holds the first token; nobody reads what becomes of it.
    sources = torch.zeros(size + 1, dtype=torch.long, device=x.device).scatter_(0, taken, tokens)[:-1]
    rows = x.index_select(0, sources).view(-1, count, x.shape[1])  # (E, slots, D)
    inner = experts.activation(torch.bmm(rows, experts.inner))
    if experts.up is not None:
        inner = inner * torch.bmm(rows, experts.up)
    outputs = torch.bmm(dropout(inner), experts.outer).flatten(0, 1)
    outputs = outputs.index_select(0, slots.clamp(min=0).reshape(-1))
    return _mixed(outputs, choice.weights.reshape(slots.shape) * kept)


def _capacity(tokens: Tensor, length: int, experts: int, factor: float, smallest: int) -> tuple[Tensor, int]:
    """Tokens that an expert takes of rows of so many `tokens` (B,), and of one of `length` tokens, all in fp64."""
    capacity = (tokens.double() * factor / experts).ceil().clamp(min=smallest)
    return capacity, min(length, max(smallest, math.ceil(length * factor / experts)))


class SwitchFeedForward(nn.Module):
    """A router and its experts, in the place of a T5's dense feed-forward."""

    def __init__(self, config: SwitchT5Config) -> None:
        super().__init__()
        self.num_experts = count = config.num_experts
        width, inner = config.d_model, config.d_ff
        self.router = nn.Parameter(torch.empty(count, width))
        self.gated = config.is_gated_act
        for name in ("wi_0", "wi_1") if self.gated else ("wi",):
            self.register_parameter(name, nn.Parameter(torch.empty(count, width, inner)))
        self.wo = nn.Parameter(torch.empty(count, inner, width))
        self.act = ACT2FN[config.dense_act_fn]
        self.dropout = nn.Dropout(config.dropout_rate)
        self.per_token = config.experts_per_token
        self.capacity_factor, self.smallest = float(config.capacity_factor), config.min_expert_capacity
        self.token_mask: Tensor | None = None  # (B, L) of the pass, where True is no padding; None = there is none
        self.collected: list[Routed] | None = None  # of training passes, while somebody wants it

    def experts(self, dtype: torch.dtype) -> Experts:
        """The weights, all but the router's in `dtype`."""
        names = ("wi_0", "wi_1", "wo") if self.gated else ("wi", "wo")
        first, *up, outer = (self.get_parameter(name).to(dtype) for name in names)
        return Experts(self.router, first, up[0] if up else None, outer, self.act, self.per_token)

    def forward(self, hidden_states: Tensor) -> Tensor:
        device = hidden_states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.wo.dtype
        experts = self.experts(dtype)
        choice = choose(hidden_states, experts)
        flat = hidden_states.to(dtype).flatten(0, 1)
        if not self.training:
            return through_all(flat, choice, experts).view(hidden_states.shape)
        taken, mask = self._taken(choice.experts)
        places, kept, most = self._places(choice.experts, taken, mask)
        routed = _routed(
            choice, taken, mask, mask.unsqueeze(2) & ~kept
        )  # always: checkpointing compares the two passes
        if self.collected is not None:
            self.collected.append(routed)
        if not self.capacity_factor:
            return through_all(flat, choice, experts, self.dropout).view(hidden_states.shape)
        rows = torch.arange(len(mask), device=mask.device).view(-1, 1, 1)
        slots = (choice.experts * len(mask) + rows) * most + places  # an expert's slots of a row stand together
        slots = slots.masked_fill(~kept, -1).flatten(0, 1)
        found = _through_slots(flat, choice, slots, len(mask) * most, experts, self.dropout)
        return found.view(hidden_states.shape)

    def _taken(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Which experts (B, K * L, E) the choices (B, L, K) take, first choices before second ones; and the mask."""
        mask = self.token_mask
        mask = torch.ones(chosen.shape[:2], dtype=torch.bool, device=chosen.device) if mask is None else mask
        by_choice = chosen.transpose(1, 2).flatten(1).unsqueeze(2)
        numbers = torch.arange(self.num_experts, device=chosen.device)
        return (by_choice == numbers) & mask.repeat(1, self.per_token).unsqueeze(2), mask

    def _places(self, chosen: Tensor, taken: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, int]:
        """Of every choice (B, L, K) the place in its expert's slots and whether it has one; slots of a row."""
        rows, length, count = chosen.shape
        if not self.capacity_factor:
            return torch.zeros_like(chosen), mask.unsqueeze(2).expand_as(chosen), 0
        sizes = self.num_experts, self.capacity_factor, self.smallest
        capacity, most = _capacity(mask.sum(1), length, *sizes)
        before = taken.cumsum(1, dtype=torch.int32) - 1  # (B, K * L, E)
        by_choice = chosen.transpose(1, 2).flatten(1).unsqueeze(2)
        places = before.gather(2, by_choice).view(rows, count, length).transpose(1, 2)
        return places, mask.unsqueeze(2) & (places < capacity.view(-1, 1, 1)), most


def _routed(choice: Choice, taken: Tensor, mask: Tensor, dropped: Tensor) -> Routed:
    """Balance loss E * sum of f * P over the experts: f how often a row's token chose an expert, P its probability.

    Fedus et al. 2021, equations 4 to 6, for each row; as in t5x, f counts second choices too, so that K is the value of
    perfect balance. The z-loss is the squared logsumexp of a router's logits: Zoph et al. 2022, equation 5.
    """
    tokens = mask.sum(1).clamp(min=1)  # (B,)
    load = taken.sum(1)  # (B, E)
    probability = (choice.probabilities * mask.unsqueeze(2)).sum(1) / tokens.unsqueeze(1)
    balance = (load * probability).sum(1) / tokens * load.shape[1]
    z = (choice.logits.logsumexp(2).square() * mask).sum(1) / tokens
    return Routed(balance, z, load.sum(0), dropped.sum())


class SwitchT5LayerFF(T5LayerFF):  # type: ignore[misc]
    """The last layer of a sparse block."""

    def __init__(self, config: SwitchT5Config) -> None:
        super().__init__(config)
        self.DenseReluDense = SwitchFeedForward(config)
        self.dense_after = T5LayerFF(config) if config.dense_after_sparse else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = super().forward(hidden_states)
        return hidden_states if self.dense_after is None else self.dense_after(hidden_states)


class SwitchT5Block(T5Block):  # type: ignore[misc]
    """A block that is sparse if its number says so."""

    def __init__(self, config: SwitchT5Config, has_relative_attention_bias: bool, layer_idx: int) -> None:
        super().__init__(config, has_relative_attention_bias, layer_idx)
        self.sparse = (layer_idx + 1) % config.sparse_step == 0
        if self.sparse:
            self.layer[-1] = SwitchT5LayerFF(config)

    def forward(self, hidden_states: Tensor, *args: Any, token_mask: Tensor | None = None, **kwargs: Any) -> Any:
        if self.sparse:
            self.layer[-1].DenseReluDense.token_mask = token_mask
        return super().forward(hidden_states, *args, **kwargs)


class _Drawn:
    """Weights drawn as transformers draws those of its own models.

    For classes from elsewhere it leaves out every module without parameters of its own, such as an attention, whose
    linear layers then keep a standard deviation of 1: such code may write over loaded weights, but `init` does not.
    """

    @classmethod
    def is_custom_code(cls) -> bool:
        """See the class; the name is that of transformers."""
        return False

    def _init_weights(self: Any, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[misc]
        if not isinstance(module, SwitchFeedForward):
            return
        factor = self.config.initializer_factor  # experts are drawn as a T5's dense layers are
        init.normal_(module.router, mean=0.0, std=factor * ROUTER_STD)
        for name, parameter in module.named_parameters(recurse=False):
            if name.startswith("wi"):
                init.normal_(parameter, mean=0.0, std=factor * self.config.d_model**-0.5)
        init.normal_(module.wo, mean=0.0, std=factor * self.config.d_ff**-0.5)


class SwitchT5Stack(_Drawn, T5Stack):  # type: ignore[misc]
    """An encoder or a decoder. `token_mask` (B, L) says what is no padding; without it the attention mask does."""

    def __init__(self, config: SwitchT5Config) -> None:
        super().__init__(config)
        self.block = nn.ModuleList(SwitchT5Block(config, number == 0, number) for number in range(config.num_layers))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        token_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if token_mask is None and attention_mask is not None and self.training:
            token_mask = seen_tokens(attention_mask)
        return super().forward(input_ids, attention_mask, *args, token_mask=token_mask, **kwargs)


def seen_tokens(attention_mask: Tensor) -> Tensor | None:
    """(B, L) where a token is no padding, of a mask (B, L) or (B, 1, 1, L) of zeros and ones; None of any other."""
    if attention_mask.dim() == 2:
        return attention_mask.bool()
    plain = attention_mask.shape[2] == 1 and not attention_mask.is_floating_point()
    return attention_mask[:, 0, 0].bool() if plain else None


class SwitchT5ForConditionalGeneration(_Drawn, T5ForConditionalGeneration):  # type: ignore[misc]
    """A T5 that writes, with switch layers in encoder and decoder."""

    config_class = SwitchT5Config
    _no_split_modules: ClassVar[list[str]] = ["SwitchT5Block"]
    _keep_in_fp32_modules: ClassVar[list[str]] = ["wo", "router"]

    def __init__(self, config: SwitchT5Config) -> None:
        super().__init__(config)
        for side in ("encoder", "decoder"):
            setattr(self, side, SwitchT5Stack(getattr(self, side).config))
        self.post_init()


AutoConfig.register(SwitchT5Config.model_type, SwitchT5Config, exist_ok=True)
AutoModelForSeq2SeqLM.register(SwitchT5Config, SwitchT5ForConditionalGeneration, exist_ok=True)
