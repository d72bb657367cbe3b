"""Rows that say their languages: tokens of the language, words for prompts, what is kept, and codes that are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config.flags.data import DataFlags, LengthFlags
from datamodules.encoding.languages import check_languages
from datamodules.encoding.store import EncodedSplit
from datamodules.lines import LineEncoder
from datamodules.splits import RowEncoder
from prediction.groups import Groups
from task_utils import Task, get_task, override_task
from tests.small_models import byte_tokenizer, mbart_tokenizer, nllb_tokenizer
from utils.digests import tokenizer_digest
from utils.errors import UserError

ROWS = (("en_XX", "ko_KR", "abc", "가나"), ("ko_KR", "de_DE", "다", "b c"), ("en_XX", "ko_KR", "b", "라"))
BY_COLUMN = {"source_language": "{{ src }}", "target_language": "{{ tgt }}"}
PROMPT = "translate {{ source_language | language_name }} to {{ target_language | language_name }}: {{ source }}"
Make = Callable[[Path], Any]


def task_of(**flags: str) -> Task:
    return override_task(get_task("translation"), DataFlags(source_column="s", target_column="t", **flags))


def encoder(folder: Path, tokenizer: Any, **flags: str) -> RowEncoder:
    return RowEncoder(DataFlags(), LengthFlags(), task_of(**flags), tokenizer, 0, folder / "cache")


def encoded(folder: Path, tokenizer: Any, rows: tuple[Any, ...] = ROWS, **flags: str) -> EncodedSplit:
    path = folder / "rows.tsv"
    path.write_text("src\ttgt\ts\tt\n" + "".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return encoder(folder, tokenizer, **flags).encode("-test_data", (str(path),), keep_all=True)


@pytest.mark.parametrize("make", [mbart_tokenizer, nllb_tokenizer])
def test_every_row_has_the_tokens_that_its_languages_give_it(tmp_path: Path, make: Make) -> None:
    tokenizer = make(tmp_path / "tokenizer")
    names = {"en_XX": "eng_Latn", "ko_KR": "kor_Hang", "de_DE": "deu_Latn"} if make is nllb_tokenizer else {}
    rows = tuple((*(names.get(code, code) for code in row[:2]), *row[2:]) for row in ROWS)
    before = tokenizer_digest(tokenizer)
    split = encoded(tmp_path, tokenizer, (*rows, (*rows[1][:2], "다", "")), **BY_COLUMN)
    assert tokenizer_digest(tokenizer) == before
    for number, (source_code, target_code, source, target) in enumerate(rows):
        tokenizer.src_lang, tokenizer.tgt_lang = source_code, target_code
        assert split.source_ids(number).tolist() == tokenizer(source)["input_ids"]
        assert split.target_ids(number).tolist() == tokenizer(text_target=target)["input_ids"]
    assert split.target_languages(range(4)) == [code for _, code, *_ in (*rows, rows[1])]
    assert split.subset(np.array([1])).target_languages([0]) == [rows[1][1]]
    assert split.reference(3) is None


def test_words_for_languages_from_columns_and_from_flags(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path / "tokenizer")
    split = encoded(tmp_path, tokenizer, **BY_COLUMN, input_template=PROMPT)
    assert [split.source_text(row) for row in range(3)] == [
        "translate English to Korean: abc",
        "translate Korean to German: 다",
        "translate English to Korean: b",
    ]
    given = encoded(tmp_path, tokenizer, source_language="de", target_language="kor_Hang", input_template=PROMPT)
    assert given.source_text(0) == "translate German to Korean: abc"
    lines = LineEncoder(encoder(tmp_path, tokenizer, source_language="de", target_language="fr", input_template=PROMPT))
    assert bytes(lines([b"abc"])[0][:-1].astype(np.uint8) - 3) == b"translate German to French: abc"


def test_rows_are_told_apart_by_their_directions(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path / "tokenizer")
    groups = Groups.of_directions(encoded(tmp_path, tokenizer, **BY_COLUMN, input_template=PROMPT))
    assert groups
    assert groups.rows == {"en_XX -> ko_KR": [0, 2], "ko_KR -> de_DE": [1]}
    assert Groups.of_directions(encoded(tmp_path, tokenizer)) is None


def test_other_target_languages_are_other_rows_though_no_token_differs(tmp_path: Path) -> None:
    tokenizer = mbart_tokenizer(tmp_path / "tokenizer")
    rows = tuple((*row[:3], "") for row in ROWS)
    others = (("en_XX", "de_DE", "abc", ""), *rows[1:])
    first, second = (encoded(tmp_path, tokenizer, given, **BY_COLUMN) for given in (rows, others))
    assert first.source_ids(0).tolist() == second.source_ids(0).tolist()
    assert first.fingerprint != second.fingerprint


def test_a_language_of_all_rows_is_the_tokenizers_and_leaves_the_task_as_it_is() -> None:
    assert task_of(source_language="en_XX", target_language="ko_KR") == task_of()


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ((*ROWS, ("en_XX", "ko", "b", "라")), r"rows\.tsv:5: -target_language '{{ tgt }}' gives 'ko': not a language"
         r" code of this tokenizer \(did you mean ko_KR\?\); known: ar_AR, "),
        ((("", "ko_KR", "b", "라"),), r"rows\.tsv:2: -source_language '{{ src }}' gives '': not a language code"),
    ],
)  # fmt: skip
def test_a_code_without_a_token_is_named_with_its_line(tmp_path: Path, rows: tuple[Any, ...], told: str) -> None:
    with pytest.raises(UserError, match=told):
        encoded(tmp_path, mbart_tokenizer(tmp_path / "tokenizer"), rows, **BY_COLUMN)


def test_a_language_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"^-source_language ko: this tokenizer has no language codes, and no template"):
        check_languages(task_of(), DataFlags(source_language="ko"), tokenizer)
    with pytest.raises(UserError, match=r"^-test_data -: a line .*, and -target_language '{{ tgt }}' reads columns"):
        LineEncoder(encoder(tmp_path, tokenizer, source_language="de", target_language="{{ tgt }}"))
    with pytest.raises(UserError, match="target_language does not go with a label_map"):
        Task("t", "", label_map=get_task("klue-nli").label_map, metrics=("accuracy",), target_language="{{ tgt }}")


def test_an_unknown_code_has_no_word(tmp_path: Path) -> None:
    split = encoded(tmp_path, byte_tokenizer(tmp_path / "t"), (("xx", "ko", "a", "b"), ROWS[0]), **BY_COLUMN,
                    input_template=PROMPT)  # fmt: skip
    ((reason, (count, _)),) = split.report.malformed.items()
    assert (count, split.source_text(0)) == (1, "")
    assert reason == (
        "template -input_template: language_name: 'xx' is no code that it knows, such as ko, ko_KR or kor_Hang"
    )
