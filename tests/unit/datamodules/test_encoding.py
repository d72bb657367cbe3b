"""Rows to cached token ids: templates, labels, limits, the report, the cache and what bad input leaves behind."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from datamodules.encoding import encode as encoding
from datamodules.encoding.encode import EncodeOptions, encode_rows
from datamodules.encoding.store import EncodedSplit
from datamodules.readers import tsv
from datamodules.readers.read import ReadOptions
from datamodules.splits import report_lines, unknown_share
from postprocessors.labels import LabelMap
from postprocessors.numbers import Number
from task_utils import Task
from tests.small_models import bart_tokenizer, byte_tokenizer, kobart_tokenizer, unigram_tokenizer
from utils.errors import UserError

TASK = Task("t", "")
OPTIONS = EncodeOptions("{{ source }}", "{{ target }}", None, 0, 0, True)
PREDICT = ReadOptions(keep_all=True, target_required=False)
LABELS = LabelMap.parse("0=부정,1=긍정")
TEXTS = ["이 영화 정말 재미있었어요", "a\0b  c", "the movie, again.", "</s> <pad>", "😀 é 한글", "x" * 300]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tokenizers")
    builders = {
        "byt5": byte_tokenizer,
        "unigram": unigram_tokenizer,
        "bart": bart_tokenizer,
        "kobart": kobart_tokenizer,
    }
    return {name: build(folder / name) for name, build in builders.items()}


class Bench:
    """A folder with data files, and `encode_rows` on them."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self.folder, self.tokenizer = folder, tokenizer

    def file(self, content: str | bytes, name: str = "a.tsv") -> str:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def encode(
        self,
        *paths: str,
        task: Task = TASK,
        read: ReadOptions | None = None,
        tokenizer: Any = None,
        flag: str = "-train_data",
        workers: int = 1,
        **options: Any,
    ) -> EncodedSplit:
        return encode_rows(
            flag,
            paths,
            task,
            read or ReadOptions(),
            replace(OPTIONS, **options),
            tokenizer or self.tokenizer,
            self.folder / "new" / "cache",
            workers,
        )

    def problem(self, *paths: str, **options: Any) -> str:
        """The message of the `UserError`; nothing may be left behind."""
        before = sorted(self.folder.rglob("*"))
        with pytest.raises(UserError) as caught:
            self.encode(*paths, **options)
        assert sorted(self.folder.rglob("*")) == before
        return str(caught.value)


@pytest.fixture
def bench(tmp_path: Path, tokenizers: dict[str, Any]) -> Bench:
    return Bench(tmp_path, tokenizers["byt5"])


def b(text: str) -> list[int]:
    """ByT5 ids."""
    return [byte + 3 for byte in text.encode()] + [1]


@pytest.mark.parametrize("change", ["cut", "appended", "overwritten", "touched up"])
def test_a_file_that_changes_while_it_is_read(bench: Bench, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    file = bench.file("".join(f"source {number:04}\ttarget\n" for number in range(1000)))
    read_rows = encoding.read_rows

    def changed_meanwhile(*given: Any) -> Iterator[Any]:
        chunks = read_rows(*given)
        yield next(chunks)
        before = os.stat(file)
        with open(file, "r+b") as opened:
            match change:
                case "cut":
                    opened.truncate(500)
                case "appended":
                    opened.seek(0, os.SEEK_END)
                    opened.write(b"more\trows\n")
                case _:
                    opened.seek(-10, os.SEEK_END)
                    opened.write(b"other")
        if change == "touched up":
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        yield from chunks

    monkeypatch.setattr(tsv, "BLOCK_BYTES", 200)
    monkeypatch.setattr(encoding, "read_rows", changed_meanwhile)
    assert bench.problem(file) == f"-train_data: {file} has changed while it was read; try again when it is complete"


# ---- references and placeholders

READING = Task("mrc", "", source_column="context", target_column="answer", layout="squad", references="{{ answers }}")
ANSWERED = {"references": "{{ answers }}", "target_template": "{{ target or 'none' }}"}


def questions(*answers: list[str] | None) -> str:
    given = [{} if texts is None else {"answers": [{"text": text} for text in texts]} for texts in answers]
    paragraphs = [{"context": "가 나", "qas": [{"question": "?", **answer} for answer in given]}]
    return json.dumps({"data": [{"paragraphs": paragraphs}]})


def test_references_are_other_texts_than_the_targets(bench: Bench) -> None:
    file = bench.file(questions(["가", "나"], [], None), "a.json")
    split = bench.encode(file, task=READING, **ANSWERED)
    assert [split.reference(row) for row in range(2)] == ['["가", "나"]', "[]"]
    assert [split.target_ids(row).tolist() for row in range(2)] == [b("가"), b("none")]
    assert split.report.malformed == {"empty target": [1, [f"{file}:3"]]}

    kept = bench.encode(file, task=READING, read=PREDICT, **ANSWERED)
    assert [kept.reference(row) for row in range(3)] == ['["가", "나"]', "[]", None]
    assert [kept.target_ids(row).tolist() for row in range(3)] == [b("가"), b("none"), []]
    assert (kept.report.missing_targets, kept.report.malformed) == (1, {})

    plain = bench.encode(file, task=READING, references="{{ answers }}")
    assert [plain.reference(row) for row in range(len(plain))] == ['["가", "나"]']
    assert plain.report.malformed["empty target after -target_template"] == [1, [f"{file}:2"]]


def test_references_of_a_table(bench: Bench) -> None:
    """Of rows without them the target is not made: its template need not bear an empty column."""
    file = bench.file("text\tscore\tmean\na\t1.0\t1.25\nb\t\t\n", "a.tsv")
    task = Task("sts", "", source_column="text", target_column="score")
    options = {"references": "{{ mean }}", "target_template": "{{ target[0] + target[1:] }}"}
    split = bench.encode(file, task=task, **options)
    assert [(split.reference(row), split.target_ids(row).tolist()) for row in range(len(split))] == [("1.25", b("1.0"))]
    kept = bench.encode(file, task=task, read=PREDICT, **options)
    assert [kept.reference(row) for row in range(2)] == ["1.25", None]
    unlabelled = bench.file("text\na\n", "b.tsv")
    assert bench.encode(unlabelled, task=task, read=PREDICT, **options).report.notes == [
        f"no row has a reference: references needs values in the columns mean ({unlabelled}: header: text)"
    ]


def test_references_that_fail_are_counted(bench: Bench) -> None:
    file = bench.file("a\tb\nc\td\n")
    problem = bench.problem(file, read=PREDICT, references="{{ target + 1 }}")
    assert problem.startswith(f"references '{{{{ target + 1 }}}}': fails on every row; first at {file}:1: can only")
    split = bench.encode(file, references="{% if target == 'b' %}{{ target + 1 }}{% endif %}x")
    assert split.report.malformed == {
        'template references: can only concatenate str (not "int") to str': [1, [f"{file}:1"]]
    }


def test_references_that_nothing_can_be_scored_against_are_counted(bench: Bench) -> None:
    file = bench.file("a\t1.5\nb\thigh\nc\t3,5\n")
    task = Task("sts", "", output=Number(0, 5))
    split = bench.encode(file, task=task)
    assert [split.reference(row) for row in range(len(split))] == ["1.5"]
    assert split.report.malformed == {"reference is no number": [2, [f"{file}:2", f"{file}:3"]]}
    kept = bench.encode(file, task=task, read=PREDICT)
    assert [kept.source_text(row) for row in range(3)] == ["a", "b", "c"]
    assert [kept.reference(row) for row in range(3)] == ["1.5", None, None]
    assert (kept.report.missing_targets, kept.report.malformed) == (2, split.report.malformed)
    assert len(bench.encode(file, task=Task("texts", ""))) == 3  # of the same columns, from another place in the cache


def test_numbers_out_of_bounds_are_counted_and_kept(bench: Bench) -> None:
    file = bench.file("a\t1.5\nb\t-1\nc\t7\n")
    task = Task("sts", "", output=Number(0, 5))
    split = bench.encode(file, task=task)
    assert [split.reference(row) for row in range(len(split))] == ["1.5", "-1", "7"]
    reason = "reference is not one of the numbers from 0 to 5"
    assert split.report.malformed == {f"{reason}; the row is kept": [2, [f"{file}:2", f"{file}:3"]]}
    told = bench.problem(file, task=task, read=ReadOptions(strict=True))
    assert told == f"{file}:2: {reason} (-strict_data)"


def test_placeholders_are_no_texts(bench: Bench) -> None:
    lines = ["x\ty\t0", " NS\ty\t1", "x\t\t0", "\ty\t1", "x\tNS.\t1"]
    file = bench.file("sentence1\tsentence2\tlabel\n" + "\n".join(lines) + "\n")
    task = Task("paws", "", source_column="sentence1", target_column="label", placeholders=("NS",))
    both = {"input_template": "{{ sentence1 }}/{{ sentence2 }}"}
    split = bench.encode(file, task=task, **both)
    assert [split.source_text(row) for row in range(len(split))] == ["x/y", "x/NS."]
    named = {
        "no text in column 'sentence1': 'NS'": [1, [f"{file}:3"]],
        "no text in column 'sentence2': ''": [1, [f"{file}:4"]],
    }
    assert split.report.malformed == {**named, "empty source": [1, [f"{file}:5"]]}
    kept = bench.encode(file, task=task, read=PREDICT, **both)
    assert [kept.source_text(row) for row in range(5)] == ["x/y", " NS/y", "x/", "/y", "x/NS."]
    assert [kept.reference(row) for row in range(5)] == ["0", "1", "0", "1", "1"]
    assert kept.report.malformed == {**named, "no text in column 'sentence1': ''": [1, [f"{file}:5"]]}
    without = bench.encode(file, task=replace(task, placeholders=()), **both)
    assert (len(without), list(without.report.malformed)) == (4, ["empty source"])


# ---- ids and texts


def test_ids_texts_and_lengths(bench: Bench) -> None:
    split = bench.encode(bench.file("source\ttarget\n가\tb\n\nlong one\t\\n.\n"))
    assert len(split) == 2
    assert [split.source_ids(row).tolist() for row in range(2)] == [b("가"), b("long one")]
    assert [split.target_ids(row).tolist() for row in range(2)] == [b("b"), b("\n.")]
    assert [split.source_text(row) for row in range(2)] == ["가", "long one"]
    assert [split.reference(row) for row in range(2)] == ["b", "\n."]
    assert (split.source_lengths.tolist(), split.target_lengths.tolist()) == ([4, 9], [2, 3])
    assert (split.source_lengths.dtype, split.row_ids.dtype) == (np.int32, np.int64)
    assert split.row_ids.tolist() == [0, 2]
    assert split.too_long.tolist() == [False, False]
    report = split.report
    assert (report.rows_read, report.rows_kept, report.escapes_seen) == (3, 2, 1)
    assert report.malformed == {"empty line": [1, [f"{bench.folder}/a.tsv:3"]]}
    assert report.headers == {f"{bench.folder}/a.tsv": "header: source, target"}
    with pytest.raises(IndexError):
        split.source_ids(2)


@pytest.mark.parametrize("name", ["byt5", "unigram", "bart", "kobart"])
@pytest.mark.parametrize("limit", [0, 5])
def test_ids_are_those_of_the_tokenizer(bench: Bench, tokenizers: dict[str, Any], name: str, limit: int) -> None:
    tokenizer = tokenizers[name]
    file = bench.file("".join(json.dumps({"text": text, "label": text}) + "\n" for text in TEXTS), "a.jsonl")
    task = Task("j", "", source_column="text", target_column="label")
    split = bench.encode(file, task=task, tokenizer=tokenizer, max_source_length=limit, max_target_length=limit)
    eos = name == "kobart"
    for row, text in enumerate(TEXTS):
        stock = tokenizer(text)["input_ids"]
        cut = tokenizer(text, truncation=True, max_length=limit - eos)["input_ids"] if limit else stock
        expected = cut + [tokenizer.eos_token_id] * eos
        assert split.source_ids(row).tolist() == expected
        assert split.target_ids(row).tolist() == expected
    lengths = [len(tokenizer(text)["input_ids"]) + eos for text in TEXTS]
    over = sum(length > limit for length in lengths) if limit else 0
    assert (split.report.truncated_sources, split.report.truncated_targets) == (over, over)
    assert bool(split.report.notes) == eos


def test_a_tokenizer_written_in_python(bench: Bench) -> None:
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    tokenizer.add_tokens(["é"])  # a token of one character: the byte path does not apply
    split = bench.encode(bench.file("caféx\tb\n"), tokenizer=tokenizer, max_source_length=5)
    assert split.source_ids(0).tolist() == [*tokenizer("café")["input_ids"][:4], 1]
    assert split.report.truncated_sources == 1


def test_threads_share_a_tokenizer_that_is_switched_for_targets(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Marian's and M2M100's: the call itself switches the tokenizer, to the language code 5 and back to 4."""
    from transformers import ByT5Tokenizer

    class TwoModes(ByT5Tokenizer):
        code = 4

        def _switch_to_input_mode(self) -> None:
            self.code = 4

        def _switch_to_target_mode(self) -> None:
            self.code = 5

        def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: Any = None) -> list[int]:  # noqa: ARG002
            return [self.code, *token_ids_0, 1]

    monkeypatch.setattr(tsv, "BLOCK_BYTES", 400)
    file = bench.file("".join(f"source {n}\ttarget {n}\n" for n in range(3_000)))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # another thread's turn comes within every call
    try:
        split = bench.encode(file, tokenizer=TwoModes(), workers=4)
    finally:
        sys.setswitchinterval(interval)
    rows = range(3_000)
    assert [split.source_ids(row).tolist() for row in rows] == [[4, *b(f"source {row}")] for row in rows]
    assert [split.target_ids(row).tolist() for row in rows] == [[5, *b(f"target {row}")] for row in rows]


def test_templates(bench: Bench) -> None:
    task = Task("t", "", source_column="q", target_column="a")
    file = bench.file('{"q": "Q", "a": "A", "c": "C"}\n{"q": "q", "a": "x", "c": null}\n', "a.jsonl")
    plain = bench.encode(file, task=task, input_template="q: {{ source }}\n{{ c }}", target_template="<{{ target }}>\n")
    assert [plain.source_text(row) for row in range(2)] == ["q: Q\nC", "q: q\n"]
    assert plain.reference(0) == "<A>\n"
    assert plain.target_ids(0).tolist() == b("<A>\n")
    slow = bench.encode(file, task=task, input_template="{{ q | upper }}{% if c %}!{% endif %}")
    assert [slow.source_text(row) for row in range(2)] == ["Q!", "Q"]
    fixed = bench.encode(file, task=task, input_template="same")
    assert [fixed.source_text(row) for row in range(2)] == ["same", "same"]
    assert "no column 'd'; columns there are: 1=q, 2=a, 3=c" in bench.problem(
        file, task=task, input_template="{{ source }}{{ d }}"
    )
    assert "the source may not hold {{ target }}" in bench.problem(file, task=task, input_template="{{ target }}")


def test_reports_are_bounded_and_printable(bench: Bench) -> None:
    """Reasons that differ in every row, a header of thousands of columns, a name of several lines."""
    header = "\t".join(["source", "target", *(f"column{number}" for number in range(5000))])
    rows = "".join(f"{number}\tb\n" for number in range(300))
    file = bench.file(f"{header}\n{rows}7\tb\n", "a\nerror: b.tsv")
    template = "{{ {'7': 'seven'}[source] }}"
    report = bench.encode(file, input_template=template).report
    lines = report_lines("-train_data", report)
    assert "\n" not in "".join(lines)
    assert "column17 and 4,982 more" in lines[1]
    others = [line for line in lines if "other reasons" in line]
    assert (len(lines), others[0].split(" first")[0]) == (
        23,
        "-train_data: 279 malformed row(s) (template -input_template: other reasons),",
    )
    problem = bench.problem(file, input_template="{{ source }}{{ x }}")
    assert problem.startswith(f"{bench.folder}/a\\nerror: b.tsv: no column 'x'; columns there are: 1=source, 2=target,")


def test_targets_that_a_template_empties(bench: Bench) -> None:
    """They are not trained on; a row to predict has no reference then."""
    file, template = bench.file("s\tb\nt\tbc\n"), "{{ target | replace('b', '') }}"
    split = bench.encode(file, target_template=template)
    assert [split.reference(row) for row in range(len(split))] == ["c"]
    assert split.report.malformed == {"empty target after -target_template": [1, [f"{file}:1"]]}
    predicted = bench.encode(file, target_template=template, read=PREDICT)
    assert [predicted.reference(row) for row in range(2)] == [None, "c"]
    assert (predicted.target_lengths.tolist(), predicted.report.missing_targets) == ([0, 2], 1)
    none = bench.file("s\tb\n", "b.tsv")
    assert bench.problem(none, target_template=template) == (
        f"-train_data {none}: no valid row: of 1 row(s) 1 malformed (empty target after -target_template), first at"
        f" {none}:1"
    )


def test_tokens_that_the_tokenizer_does_not_know(bench: Bench, tokenizers: dict[str, Any]) -> None:
    """The Korean tokenizer knows no Thai; bytes know every text."""
    thai, korean = bench.file("ไม่ดี ดี\t영화\n"), bench.file("영화 정말\t영화\n", "b.tsv")
    mixed = bench.file("영화 정말 재미있었어요 영화\t정말 영화 영화\n" + "영화 ด\t영화\n", "c.tsv")
    unigram = tokenizers["unigram"]
    report = bench.encode(thai, tokenizer=unigram).report
    assert report.unknown_characters == "ไม่ดี"
    (line,) = unknown_share(report)
    assert line.startswith(f"WARNING: {report.unknown_tokens} of {report.tokens} tokens (")
    assert line.endswith(
        "are unknown to the tokenizer, such as those of ไ ม ่ ด ี: the model can neither see nor write them; give one"
        " whose tokenizer knows them"
    )
    assert unknown_share(bench.encode(korean, tokenizer=unigram).report) == []
    assert unknown_share(bench.encode(thai).report) == []
    (line,) = unknown_share(bench.encode(mixed, tokenizer=unigram).report)
    assert line.endswith("are unknown to the tokenizer, such as those of ด")


def test_template_errors_count_as_malformed(bench: Bench) -> None:
    file = bench.file("3\tb\nx\ty\n")
    template = "{{ 6 // (source | int) }}"
    split = bench.encode(file, input_template=template)
    assert [split.source_text(row) for row in range(len(split))] == ["2"]
    reason = "template -input_template: integer division or modulo by zero"
    assert split.report.malformed == {reason: [1, [f"{file}:2"]]}
    kept = bench.encode(file, input_template=template, read=PREDICT)
    assert [kept.source_text(row) for row in range(2)] == ["2", ""]
    assert bench.problem(file, input_template=template, read=ReadOptions(strict=True)) == (
        f"{file}:2: {reason} (-strict_data)"
    )


# ---- labels


def test_labels(bench: Bench) -> None:
    split = bench.encode(
        bench.file("좋다\t1\n나쁘다\t0\n또\t 긍정\n"), label_map=LABELS, target_template="답: {{ target }}"
    )
    assert [split.reference(row) for row in range(3)] == ["답: 긍정", "답: 부정", "답: 긍정"]
    assert [split.target_ids(row).tolist() for row in range(3)] == [b("답: 긍정"), b("답: 부정"), b("답: 긍정")]


def test_a_target_outside_the_label_map(bench: Bench) -> None:
    file = bench.file("text\tlabel\na\t1\nb\t2\nc\t3\n")
    assert bench.problem(file, label_map=LABELS, read=ReadOptions(source_column="text", target_column="label")) == (
        f"{file}:3: value '2' of column 'label' is not in the label map; known: 0=부정, 1=긍정"
    )
    assert bench.problem(file, label_map=LABELS).endswith("column 2 is not in the label map; known: 0=부정, 1=긍정")
    assert "'2'" in bench.problem(file, label_map=LABELS, read=PREDICT)


def test_several_labels_a_row_are_one_text_in_declared_order(bench: Bench) -> None:
    moods = LabelMap.parse("0=joy,1=anger,2=fear").joined_by(", ")
    file = bench.file("a\t2,0\nb\tanger\nc\tjoy, fear\nd\t0, 1, 2\n")
    split = bench.encode(file, label_map=moods)
    texts = ["joy, fear", "anger", "joy, fear", "joy, anger, fear"]
    assert [split.reference(row) for row in range(4)] == texts
    assert [split.target_ids(row).tolist() for row in range(4)] == [b(text) for text in texts]
    assert bench.problem(file, label_map=moods.joined_by("|")) == (
        f"{file}:1: value '2,0' of column 2 is not in the label map, nor several different ones joined by '|'; "
        "known: 0=joy, 1=anger, 2=fear"
    )
    assert bench.problem(file, label_map=moods, max_target_length=12) == (
        "-max_target_length 12: label 'joy, anger, fear' has 17 tokens, and labels are never cut"
    )


def test_labels_that_the_model_could_not_write(bench: Bench, tokenizers: dict[str, Any]) -> None:
    """The Korean tokenizer knows no Thai, so both labels are the same unknown token; bytes know every text."""
    file = bench.file("a\t0\nb\t1\n")
    way_out = "choose other label texts, or a -tokenizer that knows them"
    thai = LabelMap.parse("0=ดี,1=ไม่,2=영화")
    assert bench.problem(file, label_map=thai, tokenizer=tokenizers["unigram"]).splitlines() == [
        f"-label_map: label 'ดี' holds the unknown token <unk>; {way_out}",
        f"-label_map: label 'ไม่' holds the unknown token <unk>; {way_out}",
        f"-label_map: labels 'ดี' and 'ไม่' have the same tokens with this tokenizer; {way_out}",
    ]
    assert len(bench.encode(file, label_map=thai, tokenizer=tokenizers["unigram"], read=PREDICT)) == 2
    special = bench.problem(file, label_map=LabelMap.parse("0=</s>,1=a<pad>"), tokenizer=tokenizers["unigram"])
    assert special.splitlines() == [
        f"-label_map: label '</s>' holds </s>, a special token of this tokenizer; {way_out}",
        f"-label_map: label 'a<pad>' holds <pad>, a special token of this tokenizer; {way_out}",
    ]
    blanks = LabelMap.parse("0=정말 영화,1=정말  영화")
    assert bench.problem(file, label_map=blanks, tokenizer=tokenizers["unigram"]) == (
        f"-label_map: labels '정말 영화' and '정말  영화' have the same tokens with this tokenizer; {way_out}"
    )
    for name in ("byt5", "bart", "kobart"):
        assert len(bench.encode(file, label_map=thai, tokenizer=tokenizers[name])) == 2
    tokenizer = kobart_tokenizer(bench.folder / "no_unknown")
    tokenizer.unk_token = tokenizer.eos_token  # as GPT-2's: no text is unknown
    assert len(bench.encode(file, label_map=thai, tokenizer=tokenizer)) == 2


def test_labels_are_never_cut(bench: Bench) -> None:
    file = bench.file("a\t1\n")
    assert bench.problem(file, label_map=LABELS, max_target_length=6).splitlines() == [
        "-max_target_length 6: label '부정' has 7 tokens, and labels are never cut",
        "-max_target_length 6: label '긍정' has 7 tokens, and labels are never cut",
    ]
    assert bench.encode(file, label_map=LABELS, max_target_length=7).target_ids(0).tolist() == b("긍정")


# ---- limits


def test_truncation_and_discarding(bench: Bench) -> None:
    file = bench.file("abc\tx\nabcdef\tx\nab\txyz\nabcdef\txyz\n")
    limits: dict[str, Any] = {"max_source_length": 5, "max_target_length": 3}
    cut = bench.encode(file, **limits)
    assert [cut.source_ids(row).tolist() for row in range(4)] == [b("abc"), b("abcd"), b("ab"), b("abcd")]
    assert [cut.target_ids(row).tolist() for row in range(4)] == [b("x"), b("x"), b("xy"), b("xy")]
    assert (cut.source_lengths.max(), cut.target_lengths.max(), cut.too_long.any()) == (5, 3, False)
    assert (cut.source_text(1), cut.reference(2)) == ("abcdef", "xyz")
    assert (cut.report.truncated_sources, cut.report.truncated_targets, cut.report.discarded) == (2, 2, 0)
    assert cut.report.places == {
        "truncated_sources": [f"{file}:2", f"{file}:4"],
        "truncated_targets": [f"{file}:3", f"{file}:4"],
    }
    discarded = bench.encode(file, truncate=False, **limits)
    assert discarded.too_long.tolist() == [False, True, True, True]
    assert (discarded.report.discarded, discarded.report.truncated_sources) == (3, 0)
    assert discarded.report.places == {"discarded": [f"{file}:2", f"{file}:3", f"{file}:4"]}
    kept = bench.encode(file, truncate=False, read=PREDICT, **limits)
    assert len(kept) == 4
    assert (kept.report.discarded, kept.report.truncated_sources, kept.report.truncated_targets) == (0, 2, 2)
    message = bench.problem(file, truncate=False, max_source_length=2)
    assert message.endswith(f"4 malformed (over a length limit, -do_truncate false), first at {file}:1")


def test_limits_without_room(bench: Bench, tokenizers: dict[str, Any]) -> None:
    file = bench.file("a\tb\n")
    assert bench.problem(file, max_source_length=1).startswith("-max_seq_length 1: leaves no room for text")
    assert bench.problem(file, max_target_length=2, tokenizer=tokenizers["bart"]).startswith("-max_target_length 2:")


# ---- prediction


def test_prediction_keeps_every_row(bench: Bench) -> None:
    file = bench.file(b"first\n\nbad\xff\tx\nlast\t \n")
    split = bench.encode(file, read=PREDICT, flag="-test_data")
    assert [split.source_text(row) for row in range(4)] == ["first", "", "bad\ufffd", "last"]
    assert [split.reference(row) for row in range(4)] == [None, None, "x", None]
    assert [split.target_ids(row).tolist() for row in range(4)] == [[], [], b("x"), []]
    assert split.source_ids(1).tolist() == [1]
    assert split.row_ids.tolist() == [0, 1, 2, 3]
    assert (split.report.missing_targets, split.report.rows_kept) == (3, 4)
    labelled = bench.encode(bench.file("a\nb\t1\n", "b.tsv"), read=PREDICT, label_map=LABELS)
    assert [labelled.reference(row) for row in range(2)] == [None, "긍정"]
    assert [labelled.target_ids(row).tolist() for row in range(2)] == [[], b("긍정")]
    assert bench.encode(bench.file("a\n", "c.tsv"), read=PREDICT, label_map=LABELS).reference(0) is None


def test_prediction_without_the_columns_of_the_target_template(bench: Bench) -> None:
    task = Task("t", "", source_column="q", target_column="a")
    file = bench.file("q\ta\nQ\t\n")
    split = bench.encode(file, task=task, target_template="{{ a }} {{ kind }}", read=PREDICT)
    assert (split.source_text(0), split.reference(0)) == ("Q", None)
    split = bench.encode(file, task=task, target_template="{{ a | upper }}", read=PREDICT)
    assert split.reference(0) is None


# ---- bad input


def test_no_valid_row(bench: Bench) -> None:
    file = bench.file("source\ttarget\n\t\na\t\n\t\n")
    assert bench.problem(file) == (
        f"-train_data {file}: no valid row: of 3 row(s) 2 malformed (empty source), first at {file}:2"
    )
    header = bench.file("source\ttarget\n", "b.tsv")
    assert bench.problem(header, flag="-valid_data") == (f"-valid_data {header}: no valid row: the file holds no row")


def test_problems_of_files_come_together(bench: Bench) -> None:
    assert bench.problem("gone.tsv", bench.file(b"", "e.tsv")).splitlines() == [
        "-train_data: gone.tsv: no such file",
        f"-train_data: {bench.folder}/e.tsv: the file is empty",
    ]


def test_strict(bench: Bench) -> None:
    file = bench.file("a\tb\nc\n")
    assert bench.problem(file, read=ReadOptions(strict=True)) == f"{file}:2: too few columns (-strict_data)"


def test_a_cache_folder_that_cannot_be_written(bench: Bench) -> None:
    bench.file("", "new")
    assert bench.problem(bench.file("a\tb\n")).startswith(f"-cache_dir {bench.folder}/new/cache: cannot be written (")


def test_an_interrupt_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(encoding, "encode_chunk", interrupted)
    file = bench.file("a\tb\n")
    for workers in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            bench.encode(file, workers=workers)
    assert sorted(path.name for path in bench.folder.rglob("*")) == ["a.tsv"]


# ---- cache


def cache_files(bench: Bench) -> list[str]:
    return sorted(path.name for path in (bench.folder / "new" / "cache").iterdir())


def data_file(bench: Bench) -> Path:
    """The one data file in the cache."""
    (path,) = (bench.folder / "new" / "cache").glob("*.arrow")
    return path


def test_a_second_call_reads_the_cache(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    file = bench.file("a\tb\n\nabcdef\td\n")
    first = bench.encode(file, max_source_length=4)
    key = data_file(bench).stem
    assert cache_files(bench) == [f"{key}.arrow", f"{key}.json"]
    monkeypatch.setattr(encoding, "write_rows", None)
    second = bench.encode(file, max_source_length=4)
    assert second.report == first.report
    assert second.fingerprint == first.fingerprint
    assert second.source_ids(1).tolist() == b("abc")
    os.rename(file, file + ".txt")
    moved = bench.encode(file + ".txt", max_source_length=4)
    assert moved.report.malformed == {"empty line": [1, [f"{file}.txt:2"]]}
    assert moved.report.places == {"truncated_sources": [f"{file}.txt:3"]}
    assert moved.report.headers == {f"{file}.txt": "no header"}


def test_whatever_changes_the_ids_changes_the_key(bench: Bench, tokenizers: dict[str, Any]) -> None:
    file = bench.file("1\t0\n0\t1\n")
    variants: list[dict[str, Any]] = [
        {},
        {"max_source_length": 9},
        {"max_target_length": 9},
        {"truncate": False},
        {"input_template": "x{{ source }}"},
        {"target_template": "x{{ target }}"},
        {"references": "x{{ target }}"},
        {"task": replace(TASK, placeholders=("x",))},
        {"label_map": LABELS},
        {"label_map": LabelMap.parse("1=부정,0=긍정")},
        {"read": ReadOptions(tsv_escapes=False)},
        {"read": ReadOptions(header="true")},
        {"read": PREDICT},
        {"read": ReadOptions(source_column="2", target_column="1")},
        {"task": replace(TASK, source_column=2, target_column=1)},
        *({"tokenizer": tokenizers[name]} for name in ("unigram", "bart", "kobart")),
    ]
    for variant in variants:
        bench.encode(file, **variant)
    bench.encode(bench.file("1\t0\n0\t0\n", "b.tsv"))
    bench.encode(f"{file}:2")
    assert len(cache_files(bench)) == 2 * (len(variants) + 2)
    bench.encode(file)
    assert len(cache_files(bench)) == 2 * (len(variants) + 2)


def test_the_fingerprint_is_of_the_token_ids(bench: Bench) -> None:
    """Another way to read the same rows is the same training data; other rows, or another order, are not."""
    first = bench.encode(bench.file("a\tb\nc\td\n"))
    columns = ReadOptions(source_column="2", target_column="1")
    assert bench.encode(bench.file("b,a\nd,c\n", "a.csv"), read=columns).fingerprint == first.fingerprint
    others = ["c\td\na\tb\n", "a\tb\nc\te\n", "a\tb\nc\td\nc\td\n", "ac\tb\n\td\n", "ab\t\nc\td\n"]
    fingerprints = {bench.encode(bench.file(text, f"{n}.tsv")).fingerprint for n, text in enumerate(others)}
    assert len(fingerprints | {first.fingerprint}) == 6


@pytest.mark.parametrize("damage", ["cut", "zeros", "foreign", "no report", "torn report", "other report", "gone"])
def test_a_damaged_cache_is_built_anew(bench: Bench, damage: str) -> None:
    file = bench.file("a\tb\nc\td\n")
    bench.encode(file)
    data = data_file(bench)
    report = data.with_suffix(".json")
    whole, said = data.read_bytes(), report.read_bytes()
    if damage == "cut":
        data.write_bytes(whole[:-7])
    elif damage == "zeros":
        middle = len(whole) // 2
        data.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    elif damage == "foreign":
        data.write_bytes(b"something else")
    elif damage == "no report":
        report.unlink()
    elif damage == "torn report":
        report.write_bytes(said[:20])
    elif damage == "other report":
        report.write_text("[1]")
    else:
        data.unlink()
    (data.parent / f".{data.name}.999999.tmp").write_bytes(b"of a killed process")
    again = bench.encode(file)
    assert again.source_ids(1).tolist() == b("c")
    assert (data.read_bytes(), report.read_bytes()) == (whole, said)
    assert len(cache_files(bench)) == 2


LISTS, TEXT = pa.large_list(pa.uint16()), pa.large_string()


def list_array(offsets: list[int], values: list[int]) -> pa.Array:
    """A list array of these offsets, whatever they are."""
    buffers = [None, pa.py_buffer(np.array(offsets, dtype=np.int64))]
    return pa.Array.from_buffers(LISTS, len(offsets) - 1, buffers, children=[pa.array(values, pa.uint16())])


@pytest.mark.parametrize(
    "forged",
    [
        {"source_ids": pa.array([[5], [384]], LISTS)},  # beyond the vocabulary
        {"source_ids": pa.array([[5], []], LISTS)},
        {"source_ids": pa.array([[5], [6] * 9], LISTS)},  # beyond the limit
        {"source_ids": pa.array([[5], None], LISTS)},
        {"source_ids": pa.array([[5], [None]], LISTS)},
        {"source_ids": pa.array([[5], [-1]], pa.large_list(pa.int32()))},
        {"source_ids": pa.array([[5.0], [6.0]], pa.large_list(pa.float64()))},
        {"source_ids": pa.array([5, 6])},
        {"target_ids": list_array([0, 7, 2], [5, 6])},
        {"source_text": pa.array(["a", None], TEXT)},
        {"source_text": pa.array([b"a", b"\xff"], pa.large_binary()).view(TEXT)},
        {"reference": pa.array([1, 2])},
        {"row_id": pa.array([0, 0])},
        {"row_id": pa.array([-1, 0])},
        {"row_id": pa.array([0, None])},
        {"row_id": pa.array(["0", "1"])},
        {"too_long": pa.array([0, 1], pa.int64())},
    ],
)
def test_a_forged_cache_is_built_anew(bench: Bench, forged: dict[str, pa.Array]) -> None:
    """With the right size and checksum: what it holds is looked at as well."""
    file = bench.file("a\tb\nc\td\n")
    bench.encode(file, max_source_length=8)
    path = data_file(bench)
    whole = path.read_bytes()
    batch = pa.ipc.open_file(path).get_batch(0)
    columns = {**dict(zip(batch.schema.names, batch.columns, strict=True)), **forged}
    schema = pa.schema([(name, column.type) for name, column in columns.items()])
    with pa.ipc.new_file(path, schema) as writer:
        writer.write_batch(pa.record_batch(list(columns.values()), schema=schema))
    report = path.with_suffix(".json")
    said = json.loads(report.read_text())
    forged_bytes = path.read_bytes()
    report.write_text(json.dumps({**said, "size": len(forged_bytes), "checksum": zlib.crc32(forged_bytes)}))
    again = bench.encode(file, max_source_length=8)
    assert [again.source_ids(row).tolist() for row in range(2)] == [b("a"), b("c")]
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "forged",
    [
        {"rows_kept": 3},
        {"rows_read": "2"},
        {"content": None},
        {"paths": []},
        {"notes": [1]},
        {"headers": {"a": []}},
        {"malformed": {"empty line": ["many", []]}},
        {"malformed": {"empty line": [1, [2]]}},
        {"places": {"discarded": "a"}},
    ],
)
def test_a_forged_report_is_built_anew(bench: Bench, forged: dict[str, Any]) -> None:
    file = bench.file("a\tb\nc\td\n")
    bench.encode(file)
    report = data_file(bench).with_suffix(".json")
    said = json.loads(report.read_text())
    report.write_text(json.dumps({**said, "report": {**said["report"], **forged}}))
    assert bench.encode(file).report.rows_read == 2
    assert json.loads(report.read_text()) == said


def test_processes_at_the_same_time_build_once(bench: Bench) -> None:
    file = bench.file("".join(f"source {n}\ttarget {n}\n" for n in range(20_000)))
    code = f"""
import sys
from pathlib import Path
from transformers import ByT5Tokenizer
from datamodules.encoding import encode as encoding
from task_utils import Task
built = []
write = encoding.write_rows
encoding.write_rows = lambda *given: (built.append(1), write(*given))[1]
tokenizer = ByT5Tokenizer()
sys.stdin.readline()
split = encoding.encode_rows("-train_data", [{file!r}], Task("t", ""), encoding.ReadOptions(),
    encoding.EncodeOptions("{{{{ source }}}}", "{{{{ target }}}}", None, 0, 0, True), tokenizer, Path(sys.argv[1]), 1)
print(len(built), len(split), split.source_text(19_999))
"""
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", code, str(bench.folder / "cache")]
    processes = [
        subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    output = [process.communicate()[0].split(maxsplit=2) for process in processes]
    assert sorted(built for built, _, _ in output) == ["0", "0", "1"]
    assert {(rows, text.strip()) for _, rows, text in output} == {("20000", "source 19999")}
    assert len(list((bench.folder / "cache").iterdir())) == 2


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(bench: Bench, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Two processes may build at the same time: what the other one is writing is left alone."""

    def refused(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    file = bench.file("a\tb\n")
    bench.encode(file)
    key = data_file(bench).stem
    folder = bench.folder / "new" / "cache"
    for path in folder.iterdir():
        path.unlink()
    (folder / f".{key}.arrow.1.tmp").write_bytes(b"of another process")
    monkeypatch.setattr(fcntl, "lockf", refused)
    assert bench.encode(file).source_ids(0).tolist() == b("a")
    assert cache_files(bench) == [f".{key}.arrow.1.tmp", f"{key}.arrow", f"{key}.json"]


def test_a_lock_that_fails_otherwise_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "lockf", refused)
    file = bench.file("a\tb\n")
    with pytest.raises(UserError, match=r"-cache_dir .*: cannot be written \(Input/output error\)"):
        bench.encode(file)


# ---- the split


def test_many_chunks_in_parallel_keep_the_order(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tsv, "BLOCK_BYTES", 500)
    file = bench.file("".join(f"source {n}\ttarget {n}\n" for n in range(2_000)))
    split = bench.encode(file, workers=3)
    assert split.row_ids.tolist() == list(range(2_000))
    for row in (0, 1, 999, 1_234, 1_999):
        assert split.source_ids(row).tolist() == b(f"source {row}")
        assert split.reference(row) == f"target {row}"
    assert split.source_lengths.tolist() == [len(f"source {row}") + 1 for row in range(2_000)]


def test_subsets_and_pickles(bench: Bench) -> None:
    split = bench.encode(bench.file("".join(f"s{n}\t{n}\n" for n in range(10))))
    view = split.subset(np.array([7, 2, 5])).subset(np.array([2, 0]))
    assert (len(view), view.row_ids.tolist()) == (2, [5, 7])
    assert [view.source_text(row) for row in range(2)] == ["s5", "s7"]
    assert view.target_ids(1).tolist() == b("7")
    assert len({split.fingerprint, view.fingerprint, split.subset(np.array([5, 7])).fingerprint}) == 3
    again = pickle.loads(pickle.dumps(view))
    assert (again.fingerprint, again.report) == (view.fingerprint, view.report)
    assert again.source_ids(0).tolist() == b("s5")
    assert len(split.subset(np.array([], dtype=np.int64))) == 0


def test_long_lines_and_nul_bytes(bench: Bench) -> None:
    long = "가" * 350_000
    split = bench.encode(bench.file(f"{long}\tx\0y\n"))
    assert split.source_lengths.tolist() == [1_050_001]
    assert split.target_ids(0).tolist() == [ord("x") + 3, 3, ord("y") + 3, 1]


def test_encoding_imports_no_torch() -> None:
    code = "import sys, datamodules.encoding.encode; print('torch' in sys.modules, 'transformers' in sys.modules)"
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
