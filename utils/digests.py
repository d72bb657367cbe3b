"""Digests that tell tokenizers, files and folders of other content apart."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def tokenizer_digest(tokenizer: Any) -> str:
    """Hex digest of everything in a tokenizer that decides the ids it gives."""
    digest = hashlib.blake2b(digest_size=16)
    settings: list[Any] = [type(tokenizer).__name__, tokenizer.eos_token_id, getattr(tokenizer, "truncation_side", "")]
    if tokenizer.is_fast:
        rust = tokenizer.backend_tokenizer
        rust.no_truncation()
        rust.no_padding()
        digest.update(rust.to_str().encode())
        settings += [tokenizer(text="a")["input_ids"], tokenizer(text_target="a")["input_ids"]]
        rust.no_truncation()
        rust.no_padding()
    else:
        added = {str(index): repr(token) for index, token in tokenizer.added_tokens_decoder.items()}
        settings += [tokenizer.get_vocab(), added, getattr(tokenizer, "offset", 0)]
        settings += [tokenizer(text="a b1가")["input_ids"], tokenizer(text_target="a b1가")["input_ids"]]
        models = (getattr(tokenizer, name, None) for name in ("sp_model", "spm_source", "spm_target"))
        for model in filter(None, models):
            digest.update(model.serialized_model_proto())
    digest.update(json.dumps(settings, sort_keys=True, default=repr).encode())
    return digest.hexdigest()


def content_of(path: Path) -> str:
    """A digest of the file, or of the files of the folder."""
    files = _files(path)
    digest = hashlib.blake2b(digest_size=20)
    for item in files:
        with open(item, "rb") as file:
            digest.update(hashlib.file_digest(file, hashlib.blake2b).digest())
        digest.update(os.fsencode(item.name) if len(files) > 1 else b"")
    return digest.hexdigest()


FileState = tuple[str, int, int, int]  # name, inode, bytes, time of the last change in nanoseconds


def file_states(path: Path) -> tuple[FileState, ...]:
    """What changes when the file, or a file of the folder, is replaced or written to; empty where nothing is."""
    if not path.exists():
        return ()
    found = [(item.name, item.stat()) for item in _files(path)]
    return tuple((name, state.st_ino, state.st_size, state.st_mtime_ns) for name, state in found)


def _files(path: Path) -> list[Path]:
    return sorted(item for item in path.iterdir() if item.is_file()) if path.is_dir() else [path]
