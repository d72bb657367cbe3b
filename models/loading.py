"""Models and tokenizers: from a hub name, a folder, a config, or a checkpoint; always fp32 master weights.

The tying trap of transformers 5 (T5Config and MT5Config force `tie_word_embeddings=True`) is settled here once:
a model whose output embedding is its own matrix keeps it through building, loading, saving and resuming.
"""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel

from models.adapters.methods import adapter_text
from models.adapters.tuning import adapter_of
from models.architectures import architecture, refuse_unsupported
from models.config_checks import config_problems
from models.foreign_code import NO_CODE, not_loaded, refuse_code, refuse_code_of
from models.presets import TOKENIZER_KEY
from models.switch import modeling_switch_t5  # noqa: F401 (tells the library of it)
from utils.errors import UserError, error_reason, raise_if_any, shortened
from utils.json_files import parse_json

ADAPTER_KEY = "adapter"  # in the description of a model whose checkpoint holds the adapter only
OF_ANOTHER_KIND = "a checkpoint of another kind or damaged"


def load_config(name: str, flag: str = "-init_model") -> PreTrainedConfig:
    """The model config of a folder or hub name, refused when it is no encoder-decoder."""
    refuse_code_of(name, f"{flag} {name}")
    try:
        config = AutoConfig.from_pretrained(name, **NO_CODE)
    except Exception as error:  # see load_tokenizer
        raise UserError(f"{flag} {name}: no model could be loaded: {not_loaded(name, error)}") from error
    if not config.is_encoder_decoder:
        raise UserError(f"{flag} {name}: a {config.model_type} model is no encoder-decoder (BART, T5, mT5, ByT5, ...)")
    refuse_unsupported(config, f"{flag} {name}")
    _check_config(config, f"{flag} {name}")
    return config


def from_pretrained(name: str, flag: str = "-init_model", empty: bool = False) -> PreTrainedModel:
    """A pretrained encoder-decoder with fp32 weights and its tying settled; `empty` as in `from_checkpoint`."""
    load_config(name, flag)
    try:
        with _quiet_tying_warning():
            model, report = AutoModelForSeq2SeqLM.from_pretrained(
                name,
                dtype="auto" if empty else torch.float32,  # "auto" leaves the weights in the mapped file
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **NO_CODE,
            )
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{flag} {name}: the weights are torn, or hold pickled objects that could run code, which is never done;"
            " give a model with .safetensors"
        ) from error
    except Exception as error:  # see load_tokenizer
        raise UserError(f"{flag} {name}: the weights could not be loaded: {error_reason(error)}") from error
    _refuse_drawn_weights(report, f"{flag} {name}")
    for module in model.modules():
        if hasattr(module, "create_weight"):  # a table of sines, which the library freezes, and not when it loads it
            module.requires_grad_(False)
    settle_tying(model)
    return from_checkpoint(describe(model), model.state_dict(), f"{flag} {name}", empty) if empty else model


def _refuse_drawn_weights(report: Mapping[str, Any], place: str) -> None:
    """Refuse a model of which the library drew weights at random, since the files lack them or have other shapes."""
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    mismatched = sorted(f"{key} {list(stored)}, not {list(own)}" for key, stored, own in report["mismatched_keys"])
    found = [
        f"{title} {shortened(keys, 3)}"
        for title, keys in (("missing:", missing), ("of another shape:", mismatched), ("left over:", unexpected))
        if keys
    ]
    if missing or mismatched:
        raise UserError(f"{place}: the weights do not fit the config.json; {'; '.join(found)}")


def _check_config(config: PreTrainedConfig, place: str) -> None:
    raise_if_any(f"{place}: not a valid {config.model_type} config: {problem}" for problem in config_problems(config))


def config_from_dict(content: Mapping[str, Any], place: str = "-config_path") -> PreTrainedConfig:
    """A model config from its JSON; `s2s_tokenizer` (the preset's tokenizer) is left out.

    Args:
        place: opens the error messages: the flag and its value.

    Raises:
        UserError: no encoder-decoder, code of its own, or every size, token id, dropout and activation that cannot be.
    """
    refuse_code(content, place)
    values = {key: value for key, value in content.items() if key not in (TOKENIZER_KEY, "model_type")}
    model_type = content["model_type"]
    try:
        config = AutoConfig.for_model(model_type, **values)
    except Exception as error:  # ValueError, TypeError or a strict dataclass error, by the key at fault
        raise UserError(f"{place}: not a valid {model_type} config: {error_reason(error)}") from error
    if not config.is_encoder_decoder:
        raise UserError(f"{place}: model_type {model_type} is no encoder-decoder (t5, mt5, umt5, bart, mbart, ...)")
    refuse_unsupported(config, place)
    _check_config(config, place)
    return config


def check_config_builds(config: PreTrainedConfig, place: str) -> None:
    """Refuse a config that no model can be built from; takes no memory for weights."""
    with torch.device("meta"):
        _build(config, place)


def _build(config: PreTrainedConfig, place: str) -> PreTrainedModel:
    try:
        return AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32, **NO_CODE)
    except Exception as error:  # any kind, by the key at fault
        raise UserError(f"{place}: not a valid {config.model_type} config: {error_reason(error)}") from error


class _Undrawn(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        del types
        if function.overloadpacket in (torch.ops.aten.normal_, torch.ops.aten.uniform_):
            return arguments[0]
        return function(*arguments, **(options or {}))


@contextmanager
def undrawn() -> Iterator[None]:
    """Within it random weights are not drawn, and take no memory of the host until something is written to them.

    For a model that gets its weights from elsewhere: everything else of it is as it would be.
    """
    drawn = torch.nn.init._no_grad_trunc_normal_  # draws until no value is out of its bounds: never, without drawing
    torch.nn.init._no_grad_trunc_normal_ = lambda tensor, *_, **__: tensor
    try:
        with _Undrawn():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.nn.init._no_grad_trunc_normal_ = drawn


def from_config(content: Mapping[str, Any], seed: int, place: str = "-config_path") -> PreTrainedModel:
    """A model with random weights drawn from `seed`.

    An explicit `tie_word_embeddings: false` gives the output embedding its own matrix, drawn with standard
    deviation `d_model ** -0.5`, so that the first logits have unit variance (T5 1.1, mT5 and ByT5 are untied).
    """
    config = config_from_dict(content, place)
    torch.manual_seed(seed)
    model = _build(config, place)
    if content.get("tie_word_embeddings") is False and not is_untied(model):
        untie(model)
        with torch.no_grad():
            output = model.get_output_embeddings().weight
            output.normal_(0.0, output.shape[1] ** -0.5)
    settle_tying(model)
    return model


def checkpoint_config(description: Mapping[str, Any], place: str) -> PreTrainedConfig:
    """The model config of a .ckpt; `place` opens the error messages."""
    try:
        content = parse_json(description["model_config"])
        return config_from_dict({**content, "model_type": content["model_type"]}, place)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{place}: {OF_ANOTHER_KIND}: its model_config is no config") from error


def from_checkpoint(
    description: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    place: str = "the checkpoint",
    empty: bool = False,
) -> PreTrainedModel:
    """The model of a .ckpt: `description` holds `model_config` and `untied`; `weights` are its parameters by name.

    Args:
        empty: without the weights, which are to be written into it before it is used.

    Raises:
        UserError: a weight is missing, left over, or of another shape; `place` opens the message.
    """
    config = checkpoint_config(description, place)
    with torch.device("meta"):  # no memory for weights that the checkpoint does not have
        problem = _misfit(_checkpoint_model(config, description, place).state_dict(), weights)
    if problem:
        raise UserError(f"{place}: {OF_ANOTHER_KIND}: {problem}")
    with undrawn():
        model = _checkpoint_model(config, description, place)
    for name, value in {} if empty else model.state_dict().items():
        value.copy_(weights[name])  # one at a time: those of a sharded checkpoint are put together for that
    settle_tying(model)
    return model


def _checkpoint_model(config: PreTrainedConfig, description: Mapping[str, Any], place: str) -> PreTrainedModel:
    model = _build(config, place)
    if description["untied"] and not is_untied(model):
        untie(model)
    return model


def _misfit(own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> str:
    """What is wrong with `weights` for a model whose parameters are `own`; empty if nothing is."""
    for names, word in ((own.keys() - weights.keys(), "missing"), (weights.keys() - own.keys(), "left over")):
        if names:
            return f"{shortened(sorted(names), 3)} {'is' if len(names) == 1 else 'are'} {word}"
    for name, value in weights.items():
        if value.shape != own[name].shape:
            return f"size mismatch for {name}: {list(value.shape)}, not {list(own[name].shape)}"
        if value.is_floating_point() != own[name].is_floating_point():
            return f"{name} is of type {value.dtype}, not {own[name].dtype}"
    return ""


def is_dense(value: Any) -> bool:
    """Whether `value` is a tensor as a checkpoint has them: on the CPU, with memory for each of its elements."""
    return (
        type(value) is torch.Tensor
        and (value.layout, value.device.type) == (torch.strided, "cpu")
        and not (value.is_quantized or value.is_conj() or value.is_neg())
        and value.nbytes <= value.untyped_storage().nbytes()
    )


def describe(model: PreTrainedModel) -> dict[str, Any]:
    """What `from_checkpoint` needs besides the weights, as plain values."""
    config = copy.deepcopy(model.config)  # as `save_pretrained` leaves it: the same before and after an export
    config.architectures = [type(model).__name__]
    config.dtype = str(model.dtype).removeprefix("torch.")
    described = {"model_config": config.to_json_string(use_diff=False), "untied": is_untied(model)}
    adapter = adapter_of(model)
    return described if adapter is None else {**described, ADAPTER_KEY: adapter_text(adapter)}


def is_untied(model: PreTrainedModel) -> bool:
    """Whether the output embedding is a matrix of its own."""
    output, source = model.get_output_embeddings(), model
    if architecture(model.config.model_type).tied_in_decoder:
        source = model.get_decoder()
    return output is not None and output.weight is not source.get_input_embeddings().weight


def untie(model: PreTrainedModel) -> None:
    """Give the output embedding its own parameter, whose values are to be written."""
    output = model.get_output_embeddings()
    output.weight = nn.Parameter(torch.empty_like(output.weight))


def settle_tying(model: PreTrainedModel) -> None:
    """Make the config say what the weights are, so that no later `tie_weights()` merges two matrices.

    UMT5's config is left alone: there the same word also switches the scaling of the decoder's output.
    """
    if is_untied(model):
        if not architecture(model.config.model_type).tying_scales:
            model.config.tie_word_embeddings = False
        tied: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
        tied.pop("lm_head.weight", None)


class _quiet_tying_warning:
    """Hold back the library's advice on `tie_word_embeddings`: `settle_tying` follows it right after."""

    def __enter__(self) -> None:
        self.logger = logging.getLogger("transformers.modeling_utils")
        self.logger.addFilter(self._keep)

    def __exit__(self, *_: object) -> None:
        self.logger.removeFilter(self._keep)

    @staticmethod
    def _keep(record: logging.LogRecord) -> bool:
        return "tied weights mapping" not in record.getMessage()
