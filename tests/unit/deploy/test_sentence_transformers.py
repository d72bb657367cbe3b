"""The folder for `sentence-transformers`: the vectors that its files describe are those of embed.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, T5EncoderModel

import embed
import export
from deploy.model_card import Card
from models.loading import from_config
from task_utils import get_task
from tests.cli.tiny import write_tsv
from tests.small_configs import config_of
from tests.small_models import byte_tokenizer
from utils.errors import UserError

ROWS = [("ab c", "b"), ("d", "c d e f"), ("하나", "a" * 90)]


def make_model(folder: Path, kind: str = "t5", **changes: Any) -> Path:
    from_config(config_of(kind), 3).save_pretrained(folder)
    byte_tokenizer(folder)
    flags = {"pooling": "mean", "max_target_length": 40, "max_seq_length": 20}
    task = get_task("retrieval").to_dict()
    flags |= {name: value for name, value in changes.items() if name in flags}
    task |= {name: value for name, value in changes.items() if name in task}
    (folder / "training_state.json").write_text(json.dumps({"task": task, "flags": flags}))
    return folder


def vectors_of(folder: Path, texts: list[str], prompt: str) -> np.ndarray:
    """Those that the modules of the folder describe: transformer, mean of the tokens, length 1."""
    modules = json.loads((folder / "modules.json").read_text())
    assert [(module["path"], module["type"].rpartition(".")[2]) for module in modules] == [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        ("2_Normalize", "Normalize"),
    ]
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert [name for name, value in pooling.items() if value is True] == ["pooling_mode_mean_tokens", "include_prompt"]
    limit = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    prompts = json.loads((folder / "config_sentence_transformers.json").read_text())["prompts"]
    model, tokenizer = T5EncoderModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    given = [prompts[prompt] + text for text in texts]
    inputs = tokenizer(given, padding=True, truncation="longest_first", max_length=limit, return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs)[0]
    mask = inputs["attention_mask"].unsqueeze(2)
    found = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))
    assert found.shape[1] == pooling["word_embedding_dimension"]
    return found.numpy()


def test_its_vectors_are_those_of_embed(tmp_path: Path) -> None:
    model, target = make_model(tmp_path / "model"), tmp_path / "out"
    flags = ["-model", str(model), "-save_path", str(target), "-format", "sentence-transformers", "-model_card"]
    for overwrite in ([], ["-overwrite"]):
        assert export.main([*flags, *overwrite]) == 0
    assert "library_name: sentence-transformers\n" in (target / "README.md").read_text()
    card = Card("mine", json.loads((model / "training_state.json").read_text())).text()
    assert "python embed.py -model mine -data rows.tsv" in card
    rows = write_tsv(tmp_path / "rows.tsv", ROWS, ("query", "passage"))
    for column, (kind, prompt) in enumerate((("query", "query"), ("passage", "document"))):
        output = tmp_path / f"{kind}.npy"
        more = ["-encode_as", kind, "-save_output", str(output), "-gpus", "0"]
        assert embed.main(["-model", str(target), "-data", str(rows), *more]) == 0
        found = vectors_of(target, [row[column] for row in ROWS], prompt)
        np.testing.assert_allclose(found, np.load(output), atol=1e-6)
    (target / "1_Pooling" / "mine.txt").touch()
    with pytest.raises(UserError, match=r"holds what no export wrote \(1_Pooling/\)"):
        export.main([*flags, "-overwrite"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pooling": "decoder"}, "has means of states alone, and .* was trained with -pooling decoder"),
        ({"kind": "bart"}, "is for the encoders of t5, mt5, and .* is a bart model"),
        (
            {"target_template": "{{ target }}."},
            "has prefixes for prompts, and -target_template '{{ target }}.' is none",
        ),
    ],
)
def test_what_it_could_not_give_is_refused(changes: dict[str, str], told: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", **changes)
    with pytest.raises(UserError, match=f"-format sentence-transformers: {told}"):
        export.main(["-model", str(model), "-save_path", str(tmp_path / "out"), "-format", "sentence-transformers"])
    assert not (tmp_path / "out").exists()
