"""Checks of the data flags that can be made without reading whole files."""

from __future__ import annotations

import os
from collections.abc import Mapping

from config.flags.data import DataFlags
from datamodules.readers.paths import check_data_paths, parse_data_path
from utils.errors import UserError

DATA = ("train_data", "valid_data", "test_data")


def check_data(data: DataFlags, problems: list[str], places: Mapping[str, str] | None = None) -> None:
    """Problems of the data flags that can be seen without reading whole files.

    Args:
        places: what stands before the name of a flag, where another place than the command line gives its value.
    """
    for name in DATA:
        problems.extend(check_data_paths(f"{(places or {}).get(name, '')}-{name}", getattr(data, name)))
    if data.valid_data_proportions + data.test_data_proportions >= 1.0:
        problems.append(
            f"-valid_data_proportions {data.valid_data_proportions} and -test_data_proportions"
            f" {data.test_data_proportions} leave no training rows: their sum must be below 1"
        )
    if data.cache_dir and os.path.exists(data.cache_dir) and not os.path.isdir(data.cache_dir):
        problems.append(f"-cache_dir {data.cache_dir}: exists and is no folder")


def local_inputs(data: DataFlags, **others: str) -> list[tuple[str, str]]:
    """(flag, path) of the files and folders on this machine that the flags read; data without the suffix :N."""
    values = [(f"-{name}", data_file(value)) for name in DATA for value in getattr(data, name)]
    values += [("-label_map", data.label_map), *((f"-{name}", value) for name, value in others.items())]
    return [(flag, value) for flag, value in values if value and os.path.exists(value)]


def data_file(value: str) -> str:
    """The file or folder that a data flag names, without its suffix; empty when it names none."""
    try:
        return parse_data_path(value).path
    except UserError:
        return ""
