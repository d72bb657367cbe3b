"""What a prediction tells and refuses before its first row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from errors import UserError
from flag_parsing import parse_flags
from flags import InferenceConfig
from inference_setup import make_engine, prepare
from models.label_prediction import LabelDecoding
from models.loading import from_config
from tests.small_configs import config_of
from tests.small_models import byte_tokenizer

Prepared = Callable[..., list[str]]


def folder_of(model: PreTrainedModel, folder: Path) -> Path:
    """A from_pretrained folder of the model with the byte tokenizer."""
    model.save_pretrained(folder)
    byte_tokenizer(folder)
    return folder


@pytest.fixture
def told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Prepared:
    """`told(model, FLAG, VALUE, ..., decoding=None)`: the lines printed until the engine is there."""

    def get(*flags: object, decoding: LabelDecoding | None = None) -> list[str]:
        argv = [*map(str, flags), "-test_data", "rows.tsv", "-gpus", "0"]
        config, given, problems = parse_flags(InferenceConfig, argv)
        assert problems == []
        capsys.readouterr()
        make_engine(prepare(config, given, tmp_path), decoding, [])
        return capsys.readouterr().out.splitlines()

    return get


def test_the_end_of_outputs_is_told_where_the_flag_says_more(tmp_path: Path, told: Prepared) -> None:
    bart = folder_of(from_config(config_of("bart"), seed=1), tmp_path / "bart")
    t5 = folder_of(from_config(config_of("t5"), seed=1), tmp_path / "t5")
    assert told("-model", bart) == ["-max_predict_length 512: outputs end at 127 tokens, the model's limit"]
    assert told("-model", bart, "-max_predict_length", 127) == []
    assert told("-model", t5, "-max_predict_length", 1000) == []
    assert told("-model", t5, "-model", bart, "-max_predict_length", 128) == [
        "-max_predict_length 128: outputs end at 127 tokens, the model's limit"
    ]
    assert told("-model", bart, decoding=LabelDecoding("constrained", ("a", "b"))) == []


def test_a_shortest_output_beyond_the_model_is_refused(tmp_path: Path, told: Prepared) -> None:
    bart = folder_of(from_config(config_of("bart"), seed=1), tmp_path / "bart")
    with pytest.raises(UserError) as refused:
        told("-model", bart, "-min_predict_length", 128)
    assert refused.value.problems == (
        "-min_predict_length 128: the model has positions for outputs of 127 tokens; give that or less",
    )
    assert told("-model", bart, "-min_predict_length", 127, "-max_predict_length", 127) == []
