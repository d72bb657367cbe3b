"""The families of T5 and BART as CTranslate2 models: a conversion, and a cache of it beside the model.

The library's converter is handed the loaded model, not its folder, so that what it gets wrong with transformers 5 is
set right here: the scaling of a T5's decoder output, the place of BART's layer norms, a vocabulary longer than the
tokenizer's, the start token of mBART. No import of the package before it is needed.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from generation.incremental.weights import positions_of
from models.architectures import architecture, logit_scale, of_plain_layers
from models.forward import decoder_start_token
from models.special_tokens import example_target
from utils.console import tell
from utils.errors import RunError, UserError
from utils.files import clean_folder_leftovers, file_lock, write_folder
from utils.json_files import read_json
from utils.libraries import require_package

CONVERSION = b"1"  # raised when a conversion comes out otherwise, so that caches are made anew
MODEL_FILE = "model.bin"
VOCABULARY_FILE = "shared_vocabulary.json"
CONFIG_FILE = "config.json"


def check_convertible(model_type: str, place: str) -> None:
    """Raise `UserError`, opened by `place` (the flag and its value), for an architecture that is not converted."""
    if model_type not in of_plain_layers():
        raise UserError(
            f"{place}: a {model_type} model cannot be converted to CTranslate2, only {', '.join(of_plain_layers())} can"
            " (ByT5 is a t5)"
        )


def vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """A text for every row of the embedding, all different; one without a token of its own is `<unused_ID>`."""
    size = model.get_input_embeddings().weight.shape[0]
    known = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    tokens: dict[str, None] = {}
    for number in range(size):
        token = known[number] if number < len(known) else None
        tokens[f"<unused_{number}>" if token is None or token in tokens else token] = None
    return list(tokens)


def save_converted(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, compute_type: str) -> None:
    """Write `model.bin`, `config.json` and the vocabulary into `folder`, which exists.

    Raises:
        UserError: the package is missing, or the architecture is not converted.
    """
    require_package("ctranslate2", "the conversion")
    kind = model.config.model_type
    check_convertible(kind, type(model).__name__)
    start = decoder_start_token(model, example_target(tokenizer))
    spec = _specification(model, compute_type)
    scale = logit_scale(model)
    if scale != 1.0:
        spec.decoder.scale_outputs = scale
    else:
        spec.decoder.scale_outputs = importlib.import_module("ctranslate2.specs.model_spec").OPTIONAL
    tokens = vocabulary(model, tokenizer)
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    unknown = tokenizer.unk_token_id
    spec.config.unk_token = tokens[unknown if unknown is not None else tokenizer.pad_token_id]
    spec.config.bos_token = spec.config.decoder_start_token = tokens[start]
    spec.config.eos_token = tokens[tokenizer.eos_token_id]
    spec.validate()
    spec.optimize(quantization=compute_type)
    spec.save(str(folder))


def _specification(model: PreTrainedModel, compute_type: str) -> Any:
    """The library's description of the weights; `model` is as it was before."""
    row = architecture(kind := model.config.model_type)
    if compute_type == "int8":
        model = copy.deepcopy(model)  # the library multiplies the very weights by their scales
    loader = getattr(importlib.import_module("ctranslate2.converters.transformers"), f"{row.class_name}Loader")()
    config = model.config
    model.config = copy.deepcopy(config)
    if row.like_bart:  # what the classes of transformers do, whatever an old config says
        model.config.normalize_before = row.norm_first
        model.config.normalize_embedding = row.embedding_norm
    try:
        with torch.no_grad():
            spec = loader.get_model_spec(model)
            if row.like_bart:  # the library takes it that padding is token 1
                for part, own in ((spec.encoder, model.get_encoder()), (spec.decoder, model.get_decoder())):
                    part.position_encodings.encodings = positions_of(own.embed_positions)
            return spec
    except (KeyError, ValueError) as error:  # an activation that the library does not have
        raise UserError(f"this {kind} model cannot be converted to CTranslate2: {error}") from error
    finally:
        model.config = config


def content_key(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hexadecimal digits of what a conversion depends on: weights, config, vocabulary, start token."""
    digest = hashlib.blake2b(CONVERSION, digest_size=8)
    digest.update(model.config.to_json_string(use_diff=False).encode("utf-8"))
    digest.update("\0".join(vocabulary(model, tokenizer)).encode("utf-8", errors="surrogatepass"))
    ids = (decoder_start_token(model, example_target(tokenizer)), tokenizer.eos_token_id, tokenizer.unk_token_id)
    digest.update(repr(ids).encode("ascii"))
    for name, value in sorted((*model.named_parameters(), *model.named_buffers())):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cached_conversion(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, compute_type: str) -> Path:
    """The folder of the converted model, made now unless the cache has it.

    It is `NAME.ctranslate2-TYPE-KEY` beside the file or folder `name`; where that cannot be written, or `name` is one
    of the hub, it lies in the user's cache folder. Two processes that ask at once convert once. What an earlier content
    of the same `name` left in the cache is removed. One whose files are not all there is made again.

    Raises:
        UserError: the package is missing, or the architecture is not converted.
        RunError: the disk refused.
    """
    require_package("ctranslate2", "-engine ctranslate2")
    check_convertible(model.config.model_type, f"-model {name}")
    parent = _cache_parent(name)
    stem = f"{re.sub(r'[^A-Za-z0-9._-]', '_', Path(name).name) or 'model'}.ctranslate2-{compute_type}"
    folder = parent / f"{stem}-{content_key(model, tokenizer)}"
    if _is_whole(folder):
        return folder
    try:
        waiting = "another process converts the model: waiting for it"
        with file_lock(parent / f".{stem}.lock", lambda: tell(waiting)):
            if not _is_whole(folder):
                tell(f"converting {name} to CTranslate2 ({compute_type}), once: {folder}")
                needed = sum(parameter.nbytes for parameter in model.parameters())
                clean_folder_leftovers(folder)
                write_folder(folder, lambda target: save_converted(target, model, tokenizer, compute_type), needed)
                _remove_earlier(parent, stem, folder)
    except OSError as error:
        raise RunError(f"the converted model could not be written to {parent}: {error.strerror or error}") from error
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether the files of a conversion are there, and those of JSON whole; a torn model.bin is told on loading."""
    try:
        for name in (CONFIG_FILE, VOCABULARY_FILE):
            read_json(folder / name)
    except (OSError, ValueError):
        return False
    return (folder / MODEL_FILE).is_file()


def _cache_parent(name: str) -> Path:
    path = Path(os.path.realpath(name))
    if os.path.exists(path) and os.access(path.parent, os.W_OK):
        return path.parent
    place = str(path) if os.path.exists(path) else name
    elsewhere = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ctranslate2-models"
    elsewhere /= hashlib.blake2b(os.fsencode(place), digest_size=8).hexdigest()  # other models have the same last name
    if os.path.exists(path):
        tell(f"{path.parent} cannot be written: the converted model is kept in {elsewhere}")
    return elsewhere


def _remove_earlier(parent: Path, stem: str, kept: Path) -> None:
    for folder in parent.glob(f"{stem}-*"):
        if folder != kept and re.fullmatch(re.escape(stem) + "-[0-9a-f]{16}", folder.name):
            shutil.rmtree(folder, ignore_errors=True)
