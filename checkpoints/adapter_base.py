"""The model that an adapter was trained on: where it lies, and that it is the same one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from torch import Tensor
from transformers import PreTrainedModel

from checkpoints.model_paths import model_path
from models.adapters.methods import Adapter, check_fits
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

    A hub name that only the adapter says is never fetched: it stands for what was downloaded before.

    Args:
        flag: with which the user names it, for messages.
        given: its value.

    Raises:
        UserError: opened by `place`: there is no such model.
    """
    if given:
        return model_path(flag, given)
    if not adapter.base:
        raise UserError(f"{place}: the adapter does not say which model it was trained on; give that as {flag}")
    if os.path.isdir(adapter.base):
        return model_path(flag, adapter.base)
    try:
        return str(Path(snapshot_download(adapter.base, local_files_only=True)))
    except (HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{place}: the base model of the adapter, {adapter.base}, is neither a folder here nor downloaded; give its"
            f" folder or hub name as {flag}, or a full model (export.py -merge writes one)"
        ) from error


def build_adapted(
    adapter: Adapter, weights: Mapping[str, Tensor], place: str, flag: str, given: str = ""
) -> PreTrainedModel:
    """The base model with the adapter in it; the arguments are those of `find_base`.

    Raises:
        UserError: opened by `place`: no base, another one than the adapter was trained on, or weights that do not fit.
    """
    path = find_base(adapter, place, flag, given)
    model = from_pretrained(path, flag)
    check_fits(model, adapter, place)
    if adapter.digest and weights_digest(model) != adapter.digest:
        raise UserError(
            f"{place}: the adapter was trained on another base model than {path}: the weights are others; give the"
            f" right one as {flag} (it was {adapter.base})"
        )
    try:
        apply(model, adapter, weights)
    except ValueError as error:
        raise UserError(f"{place}: the adapter does not fit {path}: {error}") from error
    return model
