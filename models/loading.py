"""Models and tokenizers: from a hub name, a folder, a config, or a checkpoint; always fp32 master weights.

The tying trap of transformers 5 (T5Config and MT5Config force `tie_word_embeddings=True`) is settled here once:
a model whose output embedding is its own matrix keeps it through building, loading, saving and resuming.
"""

from __future__ import annotations

import copy
import json
import logging
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    ByT5Tokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from models.config_checks import config_problems
from models.foreign_code import NO_CODE, refuse_code, refuse_code_of
from models.forward import T5_LIKE
from models.presets import TOKENIZER_KEY
from models.tokenizer_checks import tokenizer_problem
from utils.errors import UserError, error_reason, raise_if_any

BYTES_TOKENIZER = "bytes"
BYTE_VOCABULARY = 259  # pad, end, unknown and 256 bytes
OF_ANOTHER_KIND = "a checkpoint of another kind or damaged"
T5_FAMILY = (*T5_LIKE, "longt5", "switch_transformers")
FP16_UNSAFE = T5_FAMILY
WITH_ROUTER_LOSS = ("switch_transformers", "nllb-moe")  # their training needs a loss that is not computed here


def load_tokenizer(spec: str, flag: str = "-tokenizer", **languages: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name; `bytes` is ByT5's (UTF-8 bytes + 3, needs no files).

    Args:
        languages: `src_lang` and `tgt_lang` of an mBART-like tokenizer; empty ones are left out.

    Raises:
        UserError: none can be loaded, its files are not there, or it brings code of its own.
    """
    if spec == BYTES_TOKENIZER:
        return with_languages(ByT5Tokenizer(), **languages)
    refuse_code_of(spec, f"{flag} {spec}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(spec, **NO_CODE)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, ImportError by the kind of trouble
        raise UserError(f"{flag} {spec}: no tokenizer could be loaded: {_first_line(error)}") from error
    problem = tokenizer_problem(spec, tokenizer)
    if problem:
        raise UserError(f"{flag} {spec}: {problem}")
    return with_languages(tokenizer, **languages)


def with_languages(tokenizer: PreTrainedTokenizerBase, **languages: str) -> PreTrainedTokenizerBase:
    """`tokenizer` set to the codes `src_lang` and `tgt_lang`; empty ones leave it as it is."""
    for name, code in languages.items():
        if not code:
            continue
        flag = "-source_language" if name == "src_lang" else "-target_language"
        if not hasattr(tokenizer, name):
            raise UserError(f"{flag} {code}: this tokenizer has no language codes; leave the flag out")
        if tokenizer.convert_tokens_to_ids(code) in (None, tokenizer.unk_token_id):
            codes = [token for token in tokenizer.all_special_tokens if "_" in token][:60]
            raise UserError(f"{flag} {code}: not a language code of this tokenizer; known: {', '.join(codes)}")
        setattr(tokenizer, name, code)
    return tokenizer


def load_config(name: str, flag: str = "-init_model") -> PreTrainedConfig:
    """The model config of a folder or hub name, refused when it is no encoder-decoder."""
    refuse_code_of(name, f"{flag} {name}")
    try:
        config = AutoConfig.from_pretrained(name, **NO_CODE)
    except Exception as error:  # see load_tokenizer
        raise UserError(f"{flag} {name}: no model could be loaded: {_first_line(error)}") from error
    if not config.is_encoder_decoder:
        raise UserError(f"{flag} {name}: a {config.model_type} model is no encoder-decoder (BART, T5, mT5, ByT5, ...)")
    _refuse_other_losses(config, f"{flag} {name}")
    _check_config(config, f"{flag} {name}")
    return config


def source_limit(config: PreTrainedConfig) -> int:
    """Longest source in tokens that the model has positions for; 0 = no limit (T5's relative bias)."""
    return _positions(config, "encoder")


def target_limit(config: PreTrainedConfig) -> int:
    """Longest target in tokens that the model has positions for; 0 = no limit. LED's is below its `source_limit`."""
    return _positions(config, "decoder")


def shared_target_limit(configs: Iterable[PreTrainedConfig]) -> int:
    """Longest target in tokens that all models together have positions for; 0 = no limit."""
    return min(filter(None, map(target_limit, configs)), default=0)


def longest_output(limit: int) -> int:
    """Tokens that a model with that `target_limit` writes at most (the start token takes a place); 0 = no limit."""
    return limit - 1 if limit else 0


def _positions(config: PreTrainedConfig, side: str) -> int:
    if config.model_type in T5_FAMILY:
        return 0
    part = getattr(config, side, None) if config.model_type == "encoder-decoder" else config
    found = (getattr(part, name, None) for name in ("max_position_embeddings", f"max_{side}_position_embeddings"))
    return min((int(value) for value in found if value), default=0)


def from_pretrained(name: str, flag: str = "-init_model") -> PreTrainedModel:
    """A pretrained encoder-decoder with fp32 weights and its tying settled."""
    load_config(name, flag)
    try:
        with _quiet_tying_warning():
            model, report = AutoModelForSeq2SeqLM.from_pretrained(
                name, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **NO_CODE
            )
    except Exception as error:  # see load_tokenizer
        raise UserError(f"{flag} {name}: the weights could not be loaded: {error_reason(error)}") from error
    _refuse_drawn_weights(report, f"{flag} {name}")
    settle_tying(model)
    return model


def _refuse_drawn_weights(report: Mapping[str, Any], place: str) -> None:
    """Refuse a model of which the library drew weights at random, since the files lack them or have other shapes."""
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    mismatched = sorted(f"{key} {list(stored)}, not {list(own)}" for key, stored, own in report["mismatched_keys"])
    found = [
        f"{title} {_shortened(keys)}"
        for title, keys in (("missing:", missing), ("of another shape:", mismatched), ("left over:", unexpected))
        if keys
    ]
    if missing or mismatched:
        raise UserError(f"{place}: the weights do not fit the config.json; {'; '.join(found)}")


def _shortened(names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def _check_config(config: PreTrainedConfig, place: str) -> None:
    raise_if_any(f"{place}: not a valid {config.model_type} config: {problem}" for problem in config_problems(config))


def _refuse_other_losses(config: PreTrainedConfig, place: str) -> None:
    """Refuse a model whose loss is more than the cross-entropy of a product of hidden states and output embedding."""
    kind = config.model_type
    if kind in WITH_ROUTER_LOSS:
        raise UserError(f"{place}: a {kind} model trains with a router loss, which is not supported")
    if kind == "prophetnet":
        raise UserError(f"{place}: a {kind} model trains with a loss of several future tokens, which is not supported")
    for part in (config, getattr(config, "decoder", None)):
        if getattr(part, "final_logit_softcapping", None) is not None:
            raise UserError(
                f"{place}: a {kind} model with final_logit_softcapping changes its logits before the loss, which is not"
                " supported; choose a model without it (T5, mT5, UMT5, ByT5, BART, mBART, Pegasus, M2M100, ...)"
            )


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
    _refuse_other_losses(config, place)
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
            model.get_output_embeddings().weight.normal_(0.0, config.hidden_size**-0.5)
    settle_tying(model)
    return model


def checkpoint_config(description: Mapping[str, Any], place: str) -> PreTrainedConfig:
    """The model config of a .ckpt; `place` opens the error messages."""
    try:
        content = json.loads(description["model_config"])
        return config_from_dict({**content, "model_type": content["model_type"]}, place)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{place}: {OF_ANOTHER_KIND}: its model_config is no config") from error


def from_checkpoint(
    description: Mapping[str, Any], weights: Mapping[str, torch.Tensor], place: str = "the checkpoint"
) -> PreTrainedModel:
    """The model of a .ckpt: `description` holds `model_config` and `untied`; `weights` are its parameters by name.

    Raises:
        UserError: a weight is missing, left over, or of another shape; `place` opens the message.
    """
    model = _build(checkpoint_config(description, place), place)
    if description["untied"] and not is_untied(model):
        untie(model)
    own = model.state_dict()
    missing = sorted(own.keys() - weights.keys())
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"{place}: {OF_ANOTHER_KIND}: {_shortened(missing)} {verb} missing")
    try:
        model.load_state_dict(dict(weights), strict=True)
    except (RuntimeError, TypeError, AttributeError) as error:  # left over, of another shape, or no tensor
        reason = (str(error).splitlines()[1:2] or [str(error)])[0].strip()
        raise UserError(f"{place}: {OF_ANOTHER_KIND}: {reason}") from error
    settle_tying(model)
    return model


def describe(model: PreTrainedModel) -> dict[str, Any]:
    """What `from_checkpoint` needs besides the weights, as plain values."""
    config = copy.deepcopy(model.config)  # as `save_pretrained` leaves it: the same before and after an export
    config.architectures = [type(model).__name__]
    config.dtype = str(model.dtype).removeprefix("torch.")
    return {"model_config": config.to_json_string(use_diff=False), "untied": is_untied(model)}


def is_untied(model: PreTrainedModel) -> bool:
    """Whether the output embedding is a matrix of its own."""
    output = model.get_output_embeddings()
    return output is not None and output.weight is not model.get_input_embeddings().weight


def untie(model: PreTrainedModel) -> None:
    """Give the output embedding its own parameter, a copy of the present one."""
    output = model.get_output_embeddings()
    output.weight = nn.Parameter(output.weight.detach().clone())


def settle_tying(model: PreTrainedModel) -> None:
    """Make the config say what the weights are, so that no later `tie_weights()` merges two matrices.

    UMT5's config is left alone: there the same word also switches the scaling of the decoder's output.
    """
    if is_untied(model):
        if model.config.model_type != "umt5":
            model.config.tie_word_embeddings = False
        tied: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
        tied.pop("lm_head.weight", None)


def freeze_parts(model: PreTrainedModel, parts: tuple[str, ...]) -> int:
    """Stop training `embedding`, `encoder` or `decoder`; returns the number of frozen parameters.

    A shared embedding is frozen only when `embedding` is named: freezing the encoder leaves it trained.
    """
    base = getattr(model, "model", model)
    embeddings = {
        id(parameter)
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
        if module is not None
        for parameter in module.parameters()
    }
    frozen: dict[int, nn.Parameter] = {}
    for part in parts:
        if part == "embedding":
            chosen = list(model.get_input_embeddings().parameters())
        else:
            module = base.get_encoder() if part == "encoder" else base.get_decoder()
            chosen = [parameter for parameter in module.parameters() if id(parameter) not in embeddings]
        frozen.update({id(parameter): parameter for parameter in chosen})
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    return sum(parameter.numel() for parameter in frozen.values())


def pack_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """The tokenizer's files by name, as byte tensors: loadable with `weights_only=True`."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): _byte_tensor(path.read_bytes()) for path in files}


def _byte_tensor(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def unpack_tokenizer(files: Mapping[str, torch.Tensor], place: str = "the checkpoint") -> PreTrainedTokenizerBase:
    """The inverse of `pack_tokenizer`; `place` opens the error messages.

    Raises:
        UserError: a file that would lie outside its folder, or that is no byte tensor; no tokenizer in them; code.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, content in files.items():
            target = (root / name).resolve()
            if root.resolve() not in target.parents:
                raise UserError(f"{place}: its tokenizer holds a file outside its folder: {name!r}")
            target.parent.mkdir(parents=True, exist_ok=True)
            if not isinstance(content, torch.Tensor):
                raise UserError(f"{place}: its tokenizer is damaged: {name!r} holds no bytes")
            target.write_bytes(content.numpy().tobytes())
        refuse_code_of(folder, place)
        try:
            return AutoTokenizer.from_pretrained(folder, **NO_CODE)
        except Exception as error:  # see load_tokenizer
            raise UserError(f"{place}: its tokenizer is damaged: {error_reason(error)}") from error


def fitting_tokenizer(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """`tokenizer` for a model of that vocabulary; ByT5's is made without sentinels where there is no room for them.

    Raises:
        UserError: its ids go beyond the model's embedding.
    """
    parts = (config, getattr(config, "encoder", None), getattr(config, "decoder", None))  # a pair has none of its own
    size = next(size for part in parts if (size := getattr(part, "vocab_size", None)))
    if len(tokenizer) <= size:
        return tokenizer
    if not isinstance(tokenizer, ByT5Tokenizer):
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens but the model's vocabulary only {size}; "
            "give the model's own -tokenizer"
        )
    if size < BYTE_VOCABULARY:
        raise UserError(
            f"the byte tokenizer needs a vocabulary of at least {BYTE_VOCABULARY}, the model has {size}; "
            "give another -tokenizer or another model"
        )
    added = sorted(tokenizer.get_vocab().keys() - ByT5Tokenizer().get_vocab().keys())
    if added:
        raise UserError(
            f"the byte tokenizer has {len(tokenizer)} tokens ({_shortened(added)} of its own) but the model's "
            f"vocabulary only {size}; give the model's own -tokenizer"
        )
    return ByT5Tokenizer(extra_ids=0)  # else the text <extra_id_0> would be a token beyond the embedding


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
