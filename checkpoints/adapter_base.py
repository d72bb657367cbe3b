"""The model that an adapter was trained on: where it lies, and that it is the same one."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from torch import Tensor, nn
from transformers import PreTrainedModel

from checkpoints.model_paths import model_path
from models.adapters.folder import is_adapter_folder
from models.adapters.methods import Adapter, fitted
from models.adapters.tuning import apply
from models.loading import from_pretrained
from utils.errors import UserError


def lasting_name(path: str) -> str:
    """How a base model is named in what is written: a hub name as it is, a folder by its whole path."""
    return os.path.abspath(path) if os.path.isdir(path) else path


def weights_digest(model: PreTrainedModel) -> str:
    """Hex digest of the weights of a model, whatever files they came from."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted((*model.named_parameters(), *model.named_buffers())):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def find_base(adapter: Adapter, place: str, flag: str, given: str = "") -> str:
    """The folder or hub name of an adapter's base model.

    A hub name that the adapter's files give is never downloaded: it must be in the cache of the hub.

    Args:
        flag: with which the user names it, for messages.
        given: its value.

    Raises:
        UserError: opened by `place`: there is no such model.
    """
    if given:
        path = model_path(flag, given)
        if is_adapter_folder(path):
            raise UserError(f"{flag} {given}: is an adapter itself; give the full model that it was trained on")
        return path
    if not adapter.base:
        raise UserError(f"{place}: the adapter does not say which model it was trained on; give that as {flag}")
    if os.path.isdir(adapter.base):
        return model_path(flag, adapter.base)
    try:
        return str(Path(snapshot_download(adapter.base, local_files_only=True)))
    except (HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{place}: the base model of the adapter, {adapter.base:.300}, is neither a folder here nor downloaded;"
            f" give its folder or hub name as {flag}, or a full model (export.py -merge writes one)"
        ) from error


@lru_cache(maxsize=1)
def _kept_base(path: str, flag: str) -> tuple[PreTrainedModel, str]:
    """The base model and the digest of its weights; stays in memory for the next adapter."""
    model = from_pretrained(path, flag)
    return model, weights_digest(model)


def _sharing(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model over the same memory; weights that are replaced or moved in the copy stay in the model."""
    shared: dict[int, Any] = {id(one): nn.Parameter(one.data, one.requires_grad) for one in model.parameters()}
    shared |= {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, shared)


def build_adapted(
    adapter: Adapter, weights: Mapping[str, Tensor], place: str, flag: str, given: str = "", keep_base: bool = False
) -> PreTrainedModel:
    """The base model with the adapter in it; the arguments are those of `find_base`.

    Args:
        keep_base: leave the base in memory for another adapter.

    Raises:
        UserError: there is no base, the adapter was trained on another one, or its weights do not fit; `place` opens
            the message.
    """
    path = find_base(adapter, place, flag, given)
    if keep_base:
        kept, digest = _kept_base(path, flag)
        model = _sharing(kept)
    else:
        model = from_pretrained(path, flag)
        digest = weights_digest(model) if adapter.digest else ""
    adapter = fitted(model, adapter, place)
    if adapter.digest and digest != adapter.digest:
        raise UserError(
            f"{place}: the adapter was trained on another base model than {path}: the weights are others; give the"
            f" right one as {flag} (it was {adapter.base})"
        )
    try:
        apply(model, adapter, weights)
    except ValueError as error:
        raise UserError(f"{place}: the adapter does not fit {path}: {error}") from error
    return model
