"""Tokenizers: from a hub name, a folder, or the files packed in a checkpoint."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from models.foreign_code import NO_CODE, not_loaded, refuse_code_of
from models.languages import with_languages
from models.loading import is_dense
from utils.errors import RunError, UserError, error_reason, first_line, shortened
from utils.files import DISK_FULL, STATE_NAME
from utils.json_files import read_json

CONFIG_FILE = "tokenizer_config.json"
WHOLE_FILE = "tokenizer.json"  # a tokenizer whose tokens are all added ones has it, and is what it says
WAY_OUT = "copy them from where the model was saved (train.py and inference.py also take -tokenizer)"

REGEX = re.compile(rb'"Regex":"((?:[^"\\\\]|\\\\.)*)"')
REPEATED_TWICE = re.compile(rb"[+*]\)[+*]")
BYTES_TOKENIZER = "bytes"
BYTE_VOCABULARY = 259  # pad, end, unknown and 256 bytes


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
        tokenizer = _tried(spec)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, ImportError by the kind of trouble
        raise UserError(f"{flag} {spec}: no tokenizer could be loaded: {not_loaded(spec, error)}") from error
    problem = tokenizer_problem(spec, tokenizer)
    if problem:
        raise UserError(f"{flag} {spec}: {problem}")
    return with_languages(tokenizer, **languages)


def _tried(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name, tried on a text; a panic of its Rust code is a RuntimeError."""
    tokenizer: Any = None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **NO_CODE)
        _forget_origin(tokenizer)
        _refuse_endless(tokenizer)
        tokenizer("a 가 1")
    except BaseException as error:
        if tokenizer is not None and type(error) is Exception:  # the Rust code knows no token for this text
            return tokenizer
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(f"a damaged tokenizer: {first_line(error)}") from error
    return tokenizer


def _forget_origin(tokenizer: PreTrainedTokenizerBase) -> None:
    """Leave out of tokenizer_config.json what says where it was loaded from: a run that was resumed writes the same."""
    settings = tokenizer.init_kwargs
    for name in ("is_local", "local_files_only"):
        settings.pop(name, None)
    if settings.get("additional_special_tokens", "") is None:
        del settings["additional_special_tokens"]


def _refuse_endless(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse an expression with a repetition of a repetition: one long word may take it longer than the world lasts."""
    rust = getattr(tokenizer, "backend_tokenizer", None)
    for part in filter(None, (getattr(rust, "normalizer", None), getattr(rust, "pre_tokenizer", None))):
        for expression in REGEX.findall(part.__getstate__()):
            if REPEATED_TWICE.search(expression):
                raise ValueError(
                    f"the expression {expression.decode(errors='replace')[:60]} may never end on some text"
                )


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
        RunError: no room for temporary files.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        for name, content in files.items():
            shown = repr(name)[:80]
            if not (is_dense(content) and content.dtype == torch.uint8 and content.dim() == 1):
                raise UserError(f"{place}: its tokenizer is damaged: {shown} holds no bytes")
            try:
                target = (root / name).resolve()
                if root not in target.parents:
                    raise UserError(f"{place}: its tokenizer holds a file outside its folder: {shown}")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.numpy().tobytes())
            except (OSError, ValueError, TypeError) as error:  # no text, NUL, too long, half a character, in a file
                if getattr(error, "errno", None) in DISK_FULL:
                    raise RunError(
                        f"{folder}: no room for temporary files ({error}); TMPDIR names another folder"
                    ) from error
                raise UserError(f"{place}: its tokenizer is damaged: {shown} is no file name ({error})") from error
        refuse_code_of(folder, place)
        try:
            return _tried(folder)
        except Exception as error:  # see load_tokenizer
            raise UserError(f"{place}: its tokenizer is damaged: {error_reason(error)}") from error


def fitting_tokenizer(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """`tokenizer` for a model of that vocabulary; ByT5's is made without sentinels where there is no room for them.

    Raises:
        UserError: its ids go beyond the model's embedding, or it has no pad or end token.
    """
    for token, id_ in (("pad_token", tokenizer.pad_token_id), ("eos_token", tokenizer.eos_token_id)):
        if id_ is None:
            raise UserError(f"the tokenizer has no {token}, which training and decoding need; name it in {CONFIG_FILE}")
    size, tokens = vocabulary_size(config), number_of_ids(tokenizer)
    if tokens <= size:
        return tokenizer
    if not isinstance(tokenizer, ByT5Tokenizer):
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens with ids up to {tokens - 1} but the model's vocabulary only"
            f" {size}; give the model's own -tokenizer"
        )
    if size < BYTE_VOCABULARY:
        raise UserError(
            f"the byte tokenizer needs a vocabulary of at least {BYTE_VOCABULARY}, the model has {size}; "
            "give another -tokenizer or another model"
        )
    added = sorted(tokenizer.get_vocab().keys() - ByT5Tokenizer().get_vocab().keys())
    if added:
        raise UserError(
            f"the byte tokenizer has {len(tokenizer)} tokens ({shortened(added, 3)} of its own) but the model's "
            f"vocabulary only {size}; give the model's own -tokenizer"
        )
    return ByT5Tokenizer(extra_ids=0)  # else the text <extra_id_0> would be a token beyond the embedding


def number_of_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """The highest id of any token, and one more."""
    languages = getattr(tokenizer, "lang_code_to_id", {})  # M2M100's stand behind its vocabulary
    highest = max([*tokenizer.get_vocab().values(), *languages.values()], default=0)
    return max(len(tokenizer), highest + 1)


def vocabulary_size(config: PreTrainedConfig) -> int:
    """Rows of the embedding."""
    parts = (config, getattr(config, "encoder", None), getattr(config, "decoder", None))  # a pair has none of its own
    sizes = (getattr(part, "vocab_size", None) for part in parts)
    return int(next(filter(None, sizes)))


def tokenizer_problem(spec: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Why `tokenizer`, loaded from the folder or hub name `spec`, is not the one of there; empty if it may be.

    Without its files the library makes one of the model's kind that knows special tokens only (and the mark of a
    blank), so that every text is unknown. Without the class in tokenizer_config.json it takes the model's usual one,
    which may put other tokens around a text; `train.py` always writes the class.
    """
    folder = Path(spec)
    real_tokens = len(tokenizer) - len(tokenizer.get_added_vocab())
    if real_tokens < 2 and not os.path.isfile(folder / WHOLE_FILE):
        return f"no tokenizer files there: only special tokens would be known; {WAY_OUT}"
    if os.path.isfile(folder / STATE_NAME) and not _names_class(folder / CONFIG_FILE):
        return f"no tokenizer files of a run there: {CONFIG_FILE} is missing or names no tokenizer_class; {WAY_OUT}"
    return ""


def _names_class(path: Path) -> bool:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and bool(content.get("tokenizer_class"))
