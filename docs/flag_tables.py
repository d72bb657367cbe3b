"""The tables of docs/ that come from the code: flags by group, and the presets.

    python docs/flag_tables.py           writes them between their markers, <!-- table NAME --> and <!-- end -->
    python docs/flag_tables.py -check    exit code 1 and the names of the tables that differ; writes nothing

Korean sentences for the flags stand in `docs/flags_ko.yaml` under `GroupClass.flag_name`; a flag without one, and a
sentence without a flag, are errors.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import get_type_hints

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config.flags.analyze import AnalyzeConfig  # noqa: E402
from config.flags.export import ExportConfig  # noqa: E402
from config.flags.inference import InferenceConfig  # noqa: E402
from config.flags.pretrain import PretrainConfig  # noqa: E402
from config.flags.retrieval.embed import EmbedConfig  # noqa: E402
from config.flags.select_rows import SelectConfig  # noqa: E402
from config.flags.serve import ServeConfig  # noqa: E402
from config.flags.train import TrainConfig  # noqa: E402
from config.flags.train_tokenizer import TokenizerConfig  # noqa: E402
from config.flags.tune import SearchConfig  # noqa: E402
from config.parser import FlagSpec, flag_groups  # noqa: E402
from utils.console import run_command  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.mapping_files import read_mapping_file  # noqa: E402

FLAG_TABLES = ("both", "train", "inference")
DOCUMENTS = (  # file, language, tables
    ("docs/training.md", "en", ("presets",)),
    ("docs/training.ko.md", "ko", ("presets",)),
    ("docs/flags.md", "en", FLAG_TABLES),
    ("docs/flags.ko.md", "ko", FLAG_TABLES),
    ("docs/export.md", "en", ("export",)),
    ("docs/export.ko.md", "ko", ("export",)),
    ("docs/tuning.md", "en", ("tune",)),
    ("docs/tuning.ko.md", "ko", ("tune",)),
    ("docs/reviews.md", "en", ("analyze",)),
    ("docs/reviews.ko.md", "ko", ("analyze",)),
    ("docs/serving.md", "en", ("serve",)),
    ("docs/serving.ko.md", "ko", ("serve",)),
    ("docs/pretraining.md", "en", ("pretrain", "train_tokenizer")),
    ("docs/pretraining.ko.md", "ko", ("pretrain", "train_tokenizer")),
    ("docs/labelling.md", "en", ("select_rows",)),
    ("docs/labelling.ko.md", "ko", ("select_rows",)),
    ("docs/retrieval.md", "en", ("embed",)),
    ("docs/retrieval.ko.md", "ko", ("embed",)),
)
KOREAN_FLAGS = ROOT / "docs" / "flags_ko.yaml"
COMMANDS = (
    *(TrainConfig, InferenceConfig, ExportConfig, AnalyzeConfig, ServeConfig, SelectConfig, SearchConfig),
    *(PretrainConfig, EmbedConfig, TokenizerConfig),
)
WORDS = {
    "en": {
        "flag": ("flag", "value", "default", "meaning"),
        "preset": ("preset", "architecture", "tokenizer", "width", "layers (encoder + decoder)", "dropout"),
        "required": "required",
        "automatic": "automatic",
        "repeat": ", may repeat",
    },
    "ko": {
        "flag": ("플래그", "값", "기본값", "설명"),
        "preset": ("프리셋", "구조", "토크나이저", "은닉 크기", "층 수 (인코더 + 디코더)", "드롭아웃"),
        "required": "필수",
        "automatic": "자동",
        "repeat": ", 반복 가능",
    },
}
KOREAN_TITLES = {
    "Choice of rows": "행 고르기",
    "Texts and their vectors": "텍스트와 벡터",
    "Search among vectors": "벡터에서 찾기",
    "Task": "태스크",
    "Data": "데이터",
    "Lengths": "길이",
    "Model": "모델",
    "Batches": "배치",
    "Optimization": "최적화",
    "Distillation": "증류",
    "Retrieval": "검색",
    "Run, validation and checkpoints": "실행, 검증, 체크포인트",
    "Devices": "장치",
    "Model and task": "모델과 태스크",
    "Output": "출력",
    "Scoring without a model": "모델 없이 채점",
    "Decoding": "디코딩",
    "Labels": "라벨",
    "Export": "내보내기",
    "Search": "탐색",
    "Review analysis": "리뷰 분석",
    "Server": "서버",
    "Tokenizer": "토크나이저",
    "Corpus": "말뭉치",
    "Objective": "목적 함수",
    "Pretraining": "사전학습",
}
_TABLE = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main(argv: list[str]) -> int:
    if argv not in ([], ["-check"]):
        raise UserError("usage: python docs/flag_tables.py [-check]")
    outdated = []
    for name, language, tables in DOCUMENTS:
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        updated = with_tables(text, language, tables)
        if updated != text:
            outdated.append(path.name)
            if not argv:
                path.write_text(updated, encoding="utf-8")
    if argv and outdated:
        print(f"tables differ from the code: {', '.join(outdated)}; run python docs/flag_tables.py")
        return 1
    return 0


def with_tables(text: str, language: str, names: Sequence[str]) -> str:
    """`text` with its tables `names` as the code has them. Raises `UserError` for an unknown one or one left out."""
    tables = {name: table for name, table in all_tables(language).items() if name in names}
    present = [match[2] for match in _TABLE.finditer(text)]
    problems = [f"{language}: unknown table {name!r}" for name in present if name not in tables]
    problems += [f"{language}: table {name!r} occurs {present.count(name)} times" for name in tables if
                 present.count(name) != 1]  # fmt: skip
    if problems:
        raise UserError(*problems)
    return _TABLE.sub(lambda match: f"{match[1]}{tables[match[2]]}{match[3]}", text)


def all_tables(language: str) -> dict[str, str]:
    """Table text by name: `train`, `inference`, `both` (groups that these two share), `export`, `analyze`, `serve`,
    `select_rows`, `pretrain`, `embed`, `train_tokenizer`, and `presets`."""
    meaning = meanings(language)
    groups = [{group_class for group_class, _ in command_groups(command)} for command in COMMANDS]
    tables = {}
    for name, command, wanted in (
        ("train", TrainConfig, groups[0] - groups[1]),
        ("both", TrainConfig, groups[0] & groups[1]),
        ("inference", InferenceConfig, groups[1] - groups[0]),
        ("export", ExportConfig, groups[2]),
        ("tune", SearchConfig, groups[6]),
        ("analyze", AnalyzeConfig, groups[3] - groups[1]),
        ("serve", ServeConfig, groups[4] - groups[1]),
        ("select_rows", SelectConfig, groups[5] - groups[1]),
        ("pretrain", PretrainConfig, groups[7] - groups[0]),
        ("embed", EmbedConfig, groups[8] - groups[1]),
        ("train_tokenizer", TokenizerConfig, groups[9]),
    ):
        rows: list[Sequence[str]] = []
        for group_class, specs in command_groups(command):
            if group_class in wanted:
                rows.append((f"**{title(group_class, language)}**", "", "", ""))
                rows += [flag_row(spec, group_class.__name__, language, meaning) for spec in specs]
        tables[name] = markdown_table(WORDS[language]["flag"], rows)
    return {**tables, "presets": markdown_table(WORDS[language]["preset"], preset_rows())}


def command_groups(command: type) -> list[tuple[type, list[FlagSpec]]]:
    """The group classes of a command with their flags, in the order of `-h`."""
    types = get_type_hints(command)
    return [(types[group], specs) for group, specs in flag_groups(command).items()]


def title(group_class: type, language: str) -> str:
    """The name of a group, as `-h` has it."""
    english = (group_class.__doc__ or "").strip()
    return KOREAN_TITLES[english] if language == "ko" else english


def group_specs() -> dict[str, list[FlagSpec]]:
    """The flags of every group class of the commands, by the name of the class."""
    # A group that a command takes over from train.py may lack flags there.
    return {group.__name__: specs for command in reversed(COMMANDS) for group, specs in command_groups(command)}


def meanings(language: str) -> Callable[[str, FlagSpec], str]:
    """The sentence of a flag, given its group. Raises `UserError` when the Korean file does not fit the flags."""
    if language == "en":
        return lambda _, spec: spec.help
    content = read_mapping_file("docs", str(KOREAN_FLAGS))
    assert isinstance(content, Mapping)
    names = {f"{group}.{spec.name}" for group, specs in group_specs().items() for spec in specs}
    problems = [f"{KOREAN_FLAGS.name}: {name} is missing" for name in sorted(names - set(content))]
    problems += [f"{KOREAN_FLAGS.name}: {name} is no flag" for name in sorted(set(content) - names)]
    if problems:
        raise UserError(*problems)
    return lambda group, spec: str(content[f"{group}.{spec.name}"])


def flag_row(spec: FlagSpec, group: str, language: str, meaning: Callable[[str, FlagSpec], str]) -> Sequence[str]:
    """One line of a table of flags."""
    words = WORDS[language]
    names = ", ".join(f"`-{name}`" for name in (spec.name, *spec.aliases))
    kind = {int: "N", float: "X", bool: "true, false", str: "TEXT"}[spec.kind]
    value = ", ".join(spec.choices) or spec.metavar or kind
    default = str(spec.default).lower() if isinstance(spec.default, bool) else str(spec.default)
    if spec.required:
        default = str(words["required"])
    elif spec.default is None:
        default = str(words["automatic"])
    elif spec.default in ("", ()):
        default = ""
    return names, escaped(value) + (str(words["repeat"]) if spec.repeat else ""), default, escaped(meaning(group, spec))


def preset_rows() -> list[Sequence[str]]:
    """One line for each file in configs/."""
    rows: list[Sequence[str]] = []
    for path in sorted((ROOT / "configs").glob("*.json")):
        config = json.loads(path.read_text(encoding="utf-8"))

        def first(*names: str, config: Mapping[str, object] = config) -> str:
            return str(next((config[name] for name in names if name in config), "-"))

        layers = first("encoder_layers", "num_layers"), first("decoder_layers", "num_decoder_layers", "num_layers")
        rows.append(
            (
                f"`{path.stem}`",
                first("model_type"),
                first("s2s_tokenizer"),
                first("d_model"),
                " + ".join(layers),
                first("dropout", "dropout_rate"),
            )
        )
    return rows


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with a newline at the end."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def escaped(text: str) -> str:
    """`text` as plain text in a Markdown table cell."""
    for mark, written in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("*", "\\*"), ("_", "\\_")):
        text = text.replace(mark, written)
    return text


if __name__ == "__main__":
    run_command(main)
