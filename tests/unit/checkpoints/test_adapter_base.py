"""Where the base model of an adapter lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints.adapter_base import find_base
from models.adapters.methods import Adapter
from utils.errors import UserError


def test_an_adapter_is_no_base_of_another(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    adapter = Adapter("lora", ("q",))
    with pytest.raises(UserError) as refused:
        find_base(adapter, "-model x", "-base_model", str(tmp_path))
    told = f"-base_model {tmp_path}: is an adapter itself; give the full model that it was trained on"
    assert str(refused.value) == told
