"""Tiny models and data for commands that must end within seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.small_configs import config_of

BART = config_of(
    "bart",
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=64,
    decoder_ffn_dim=64,
    max_position_embeddings=64,
    init_std=0.1,
)
T5 = config_of("t5-untied", d_kv=16, d_ff=64, num_layers=1, num_decoder_layers=1, num_heads=2)


def write_config(path: Path, config: dict[str, Any], **changes: Any) -> Path:
    """A model config file for -config_path."""
    path.write_text(json.dumps({**config, **changes}), encoding="utf-8")
    return path


def letter_rows(count: int, seed: int) -> list[tuple[str, str]]:
    """Words of the letters a to d, and their first letter: learned within seconds."""
    draw = random.Random(seed)
    words = ["".join(draw.choice("abcd") for _ in range(draw.randint(1, 4))) for _ in range(count)]
    return [(word, word[0]) for word in words]


def write_tsv(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("source", "target")) -> Path:
    """A TSV file with a header line (none when `header` is empty)."""
    lines = [*([header] if header else []), *rows]
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    return path


def write_mixture(folder: Path, rows: int = 40) -> Path:
    """A file that mixes three tasks at rates: the first letter, whether there is an `a` (rarely none), and how many
    letters there are; each has training, validation and test rows."""
    targets = {
        "letter": (lambda word: word[0], ""),
        "has": (lambda word: str(int("a" in word)), "label_map: {0: no, 1: yes}\n"),
        "length": (lambda word: str(len(word)), "postprocessor: {kind: numbers, lowest: 1, highest: 4, decimals: 0}\n"),
    }
    entries = []
    for number, (name, (target, output)) in enumerate(targets.items()):
        splits = {"train": rows - 10 * number, "valid": 12, "test": 9}
        for seed, (split, count) in enumerate(splits.items()):
            words = [word for word, _ in letter_rows(count, 10 * number + seed)]
            write_tsv(folder / f"{name}-{split}.tsv", [(word, target(word)) for word in words])
        files = "".join(f"{split}_data: {name}-{split}.tsv\n" for split in splits)
        content = f"source_column: source\ntarget_column: target\ninput_template: '{name}: {{{{ source }}}}'\n"
        (folder / f"{name}.yaml").write_text(content + output + files, encoding="utf-8")
        entries.append(f"- {{task: {name}.yaml, rate: {number + 1}}}\n")
    (folder / "mixture.yaml").write_text("tasks:\n" + "".join(entries), encoding="utf-8")
    return folder / "mixture.yaml"


def flag_list(flags: dict[str, Any]) -> list[str]:
    """`{"batch_size": 8}` as `["-batch_size", "8"]`; a value None is left out."""
    return [token for name, value in flags.items() if value is not None for token in (f"-{name}", str(value))]


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
