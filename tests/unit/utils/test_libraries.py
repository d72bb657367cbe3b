"""What the libraries say by themselves is not shown, their errors are."""

from __future__ import annotations

import logging

import pytest

from utils.libraries import quiet_libraries


def test_advice_of_deepspeed_is_not_shown_wherever_it_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    """A run without it imports it too, when transformers saves the model."""
    quiet_libraries()
    logger = logging.getLogger("DeepSpeed")
    handler = logging.StreamHandler()
    logger.addHandler(handler)  # as its import does, which sets the level as well
    logger.setLevel(logging.WARNING)
    logger.warning("Setting accelerator to CPU.")
    logger.error("no accelerator")
    logger.removeHandler(handler)
    assert capsys.readouterr().err == "no accelerator\n"
