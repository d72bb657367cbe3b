"""The run that stopped and resumed ones are compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.command import train_ok
from tests.cli.tiny import BART, flag_list, write_config
from tests.cli.whole import flags_of


@pytest.fixture(scope="session")
def whole_run(once: Callable[[str, Callable[[Path], None]], Path], letters: Path) -> Path:
    """The run that nobody stopped."""

    def make(folder: Path) -> None:
        write_config(folder / "bart.json", BART, dropout=0.2, attention_dropout=0.1, activation_dropout=0.1)
        train_ok(*flag_list(flags_of(folder, letters)))

    return once("whole_run", make)
