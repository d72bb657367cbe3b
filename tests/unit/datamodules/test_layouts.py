"""The published files of corpora that are no tables, read as they are: KLUE's sentences, SQuAD's articles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.readers.layouts import READERS, Layout, register
from datamodules.readers.read import ReadOptions, RowReport, read_rows
from datamodules.readers.records import InputRecords
from datamodules.readers.rows import LayoutRow
from task_utils import LAYOUTS, Task
from utils.errors import UserError

PREDICT: dict[str, Any] = {"keep_all": True, "target_required": False}
ENTITIES = Task("ner", "", source_column="sentence", target_column="tagged", layout="conll")
TREES = Task("dp", "", source_column="sentence", target_column="parse", layout="conll")
READING = Task("mrc", "", source_column="question", target_column="answer", layout="squad")

NER = """## 토큰, 레이블 구분자 : \\t
## 컬럼명 : CHAR\tNE_TAG
## klue-ner-v1_dev_99999-nsmc\t<김 하늘:PS> 최고<<레이:PS>>
김\tB-PS
 \tI-PS
하\tI-PS
늘\tI-PS
 \tO
최\tO
고\tO
<\tB-PS
레\tI-PS
이\tI-PS

## klue-ner-v1_dev_99998-nsmc\t<1:23:TI>
1\tB-TI
:\tI-TI
2\tI-TI
3\tI-TI
"""
DP = """## 칼럼명 : INDEX\tWORD_FORM\tLEMMA\tPOS\tHEAD\tDEPREL
## klue-dp-v1_dev_99999_wikitree\t나는 밥을 먹었다.
1\t나는\t나 는\tNP+JX\t3\tNP_SBJ
2\t밥을\t밥 을\tNNG+JKO\t3\tNP_OBJ
3\t먹었다.\t먹 었 다 .\tVV+EP+EF+SF\t0\tVP

## klue-dp-v1_dev_99998_wikitree\t값 7.7%
1\t값\t값\tNNG\t2\tNP
2\t7.70%\t7.70%\tSN\t0\tNP"""
SQUAD: dict[str, Any] = {
    "version": "1",
    "data": [
        {
            "title": "회의",
            "paragraphs": [
                {
                    "context": "회의는 오는 3일 열린다.",
                    "qas": [
                        {
                            "id": "q1",
                            "question": "언제?",
                            "answers": [{"text": "오는 3일", "answer_start": 4}, {"text": "3일", "answer_start": 7}],
                        },
                        {"guid": "q2", "question": "어디?", "is_impossible": True, "answers": [], "question_type": 3},
                        {"id": "q3", "question": "누가?", "answers": [{"text": "없는 말", "answer_start": 0}]},
                    ],
                }
            ],
        },
        {"paragraphs": [{"context": "가나", "qas": [{"id": 4, "question": "무엇?"}]}]},
    ],
    "more": 1,
}


def write(path: Path, content: str) -> Path:
    path.write_bytes(content.encode())
    return path


def read(path: Path | str, task: Task, *names: str, **options: Any) -> tuple[list[tuple[str | None, ...]], RowReport]:
    """The named columns of every row, after its line."""
    report = RowReport()
    rows: list[tuple[Any, ...]] = []
    for chunk in read_rows([str(path)], task, frozenset(names), ReadOptions(**options), report):
        rows += zip(chunk.lines.tolist(), *(chunk.columns[name].to_pylist() for name in names), strict=True)
    return rows, report


def problem_of(path: Path, task: Task, *names: str) -> str:
    with pytest.raises(UserError) as caught:
        read(path, task, *names)
    (problem,) = caught.value.problems
    return problem


def test_every_layout_that_a_task_may_name_has_a_reader() -> None:
    assert list(READERS) == LAYOUTS


def test_a_layout_of_ones_own(tmp_path: Path) -> None:
    def pairs_of_lines(path: str) -> Iterator[LayoutRow]:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
        for number in range(0, len(lines) - 1, 2):
            yield LayoutRow(number + 1, {"upper": lines[number], "lower": lines[number + 1]})

    register("pairs", Layout(("tsv",), pairs_of_lines))
    try:
        task = Task("own", "", source_column="upper", target_column="lower", layout="pairs")
        file = write(tmp_path / "a.txt", "a\nb\nc\nd\n")
        assert read(file, task, "source", "target")[0] == [(1, "a", "b"), (3, "c", "d")]
    finally:
        del READERS["pairs"]
        LAYOUTS.remove("pairs")
    with pytest.raises(ValueError, match="a layout named 'conll' is registered already"):
        register("conll", READERS["squad"])


# ---- sentences of KLUE


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_named_entities(tmp_path: Path, end: str) -> None:
    file = write(tmp_path / "a.tsv", "\ufeff" + NER.replace("\n", end))
    rows, report = read(file, ENTITIES, "id", "sentence", "tagged")
    assert rows == [
        (3, "klue-ner-v1_dev_99999-nsmc", "김 하늘 최고<레이", "<김 하늘:PS> 최고<<레이:PS>"),
        (15, "klue-ner-v1_dev_99998-nsmc", "1:23", "<1:23:TI>"),
    ]
    assert report.headers == {str(file): "layout conll: id, sentence, tagged"}


def test_dependencies(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path / "a.tsv", DP), TREES, "id", "sentence", "words", "table", "parse")
    assert rows == [
        (
            2,
            "klue-dp-v1_dev_99999_wikitree",
            "나는 밥을 먹었다.",
            "나는 밥을 먹었다.",
            "1/나는/2/나 는/NP+JX/나:NP/는:JX\n2/밥을/2/밥 을/NNG+JKO/밥:NNG/을:JKO\n"
            "3/먹었다./4/먹 었 다 ./VV+EP+EF+SF/먹:VV/.:SF",
            "deprel: (1/2, 3, NP_SBJ)▁(2/2, 3, NP_OBJ)▁(3/4, 0, VP)\nword_counts: 3",
        ),
        (
            7,
            "klue-dp-v1_dev_99998_wikitree",
            "값 7.7%",
            "값 7.70%",
            "1/값/1/값/NNG/값:NNG/NONE\n2/7.70%/5/7.70%/SN/7.70%:SN/NONE",
            "deprel: (1/1, 2, NP)▁(2/5, 0, NP)\nword_counts: 2",
        ),
    ]


@pytest.mark.parametrize(
    "line, reason",
    [
        ("김\tB-PS\tX", "uneven number of columns"),
        ("김", "uneven number of columns"),
        ("김치\tB-PS", "more than one character on a line"),
        ("김\tPS", "tag is none of O, B-TYPE and I-TYPE"),
        ("김\tI-PS", "tag I-TYPE without its B-TYPE"),
    ],
)
def test_broken_sentences_with_entities_are_counted(tmp_path: Path, line: str, reason: str) -> None:
    file = write(tmp_path / "a.tsv", f"## a\t.\n가\tB-LC\n\n## b\t.\n나\tO\n{line}\n\n## c\t.\n다\tO\n")
    rows, report = read(file, ENTITIES, "id", "tagged")
    assert rows == [(1, "a", "<가:LC>"), (8, "c", "다")]
    assert report.malformed == {reason: (1, [f"{file}:6"])}
    kept, report = read(file, ENTITIES, "id", "target", **PREDICT)
    assert kept == [(1, "a", "<가:LC>"), (6, "b", None), (8, "c", "다")]
    assert report.malformed == {reason: (1, [f"{file}:6"])}


@pytest.mark.parametrize(
    "line, reason",
    [
        ("2\t밥\t밥\tNNG\t3\tNP", "head is no other word of the sentence, nor 0"),
        ("2\t밥\t밥\tNNG\t2\tNP", "head is no other word of the sentence, nor 0"),
        ("2\t밥\t밥\tNNG\t_\tNP", "head is no other word of the sentence, nor 0"),
        ("3\t밥\t밥\tNNG\t0\tNP", "words are not numbered 1, 2, 3, ..."),
        ("2\t밥\t밥\tNNG\t0", "uneven number of columns"),
    ],
)
def test_broken_trees_are_counted(tmp_path: Path, line: str, reason: str) -> None:
    file = write(tmp_path / "a.tsv", f"{DP}\n\n## b\t새 밥\n1\t새\t새\tMM\t2\tDP\n{line}\n")
    rows, report = read(file, TREES, "id")
    assert len(rows) == 2
    assert report.malformed == {reason: (1, [f"{file}:13"])}
    assert [row[1:] for row in read(file, TREES, "source", "target", **PREDICT)[0]][2] == ("새 밥", None)


def test_a_sentence_of_bytes_that_are_no_utf8_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "a.tsv"
    file.write_bytes(NER.encode() + b"\n## x\t.\n\xff\tO\n")
    assert read(file, ENTITIES, "id")[1].malformed == {"invalid UTF-8": (1, [f"{file}:21"])}


def test_a_sentence_without_tokens_is_counted(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", f"{DP}\n\n## b\t새 밥\n\n\n## c\t끝")
    rows, report = read(file, TREES, "id", "source", **PREDICT)
    assert rows[2:] == [(11, "b", "새 밥"), (14, "c", "끝")]
    assert report.malformed == {"sentence without tokens": (2, [f"{file}:11", f"{file}:14"])}


@pytest.mark.parametrize("first", ["id\tdocument\tlabel", "좋은 영화\t1", "1\tEU\tNNP\tO\n", "{}"])
def test_a_table_is_not_read_as_sentences(tmp_path: Path, first: str) -> None:
    problem = problem_of(write(tmp_path / "a.tsv", f"## 1\t.\n{first}\n"), ENTITIES)
    assert problem.startswith(f"{tmp_path}/a.tsv:2: layout conll: expected sentences of lines 'character<TAB>tag', or")
    assert first.split("\t")[0] in problem.rpartition(", not ")[2]
    assert problem.endswith("; sentences without tags come in the column 'sentence' of a .csv or .jsonl file")


def test_columns_of_the_other_kind_of_sentences_are_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", NER)
    assert problem_of(file, TREES) == f"{file}:3: no column 'parse'; columns there are: 1=id, 2=sentence, 3=tagged"


def test_sentences_of_the_hub(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    tags = datasets.Sequence(datasets.ClassLabel(names=["B-PS", "I-PS", "O"]))
    features = {"sentence": datasets.Value("string"), "tokens": datasets.Sequence(datasets.Value("string"))}
    rows = {"sentence": ["<김씨:PS>!"], "tokens": [["김", "씨", "!"]], "ner_tags": [[0, 1, 2]]}
    dataset = datasets.Dataset.from_dict(rows, features=datasets.Features({**features, "ner_tags": tags}))
    dataset.to_parquet(str(tmp_path / "a.parquet"))
    dataset.save_to_disk(str(tmp_path / "saved"))
    for path in (tmp_path / "a.parquet", tmp_path / "saved"):
        assert read(path, ENTITIES, "sentence", "tagged")[0] == [(1, "김씨!", "<김씨:PS>!")]
    trees = {
        "sentence": ["나는 간다"],
        "index": [[1, 2]],
        "word_form": [["나는", "간다"]],
        "lemma": [["나 는", "가 ㄴ다"]],
        "pos": [["NP+JX", "VV+EF"]],
        "head": [[2, 0]],
        "deprel": [["NP_SBJ", "VP"]],
    }
    pq.write_table(pa.table(trees), tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet", TREES, "sentence", "parse")[0] == [
        (1, "나는 간다", "deprel: (1/2, 2, NP_SBJ)▁(2/2, 0, VP)\nword_counts: 2")
    ]


def test_a_table_with_the_columns_of_a_layout_is_read_as_a_table(tmp_path: Path) -> None:
    row = {"sentence": "김씨!", "tagged": "<김씨:PS>!", "tokens": "김씨!", "ner_tags": 3}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    write(tmp_path / "a.jsonl", json.dumps(row))
    write(tmp_path / "a.csv", "sentence,tagged\n김씨!,<김씨:PS>!\n")
    for name in ("a.parquet", "a.jsonl", "a.csv"):
        assert [row[1:] for row in read(tmp_path / name, ENTITIES, "source", "target")[0]] == [("김씨!", "<김씨:PS>!")]


# ---- questions of SQuAD

COLUMNS = ("id", "title", "context", "question", "answer", "answers")
QUESTIONS = [
    ("q1", "회의", "회의는 오는 3일 열린다.", "언제?", "오는 3일", '["오는 3일", "3일"]'),
    ("q2", "회의", "회의는 오는 3일 열린다.", "어디?", "", "[]"),
    ("q3", "회의", "회의는 오는 3일 열린다.", "누가?", "없는 말", '["없는 말"]'),
    ("4", "", "가나", "무엇?", "", ""),
]
NOT_THERE = "gold answer is not in the passage; the row is kept"


def test_questions(tmp_path: Path) -> None:
    """On one line places count questions, else lines; an answer that is not in the passage is told, and kept."""
    one_line = write(tmp_path / "a.json", json.dumps(SQUAD))
    rows, report = read(one_line, READING, *COLUMNS, **PREDICT)
    assert [row[1:] for row in rows] == QUESTIONS
    assert report.malformed == {NOT_THERE: (1, [f"{one_line}:3"])}
    with pytest.raises(UserError, match=r"a.json:3: gold answer is not in the passage \(-strict_data\)"):
        read(one_line, READING, "id", strict=True, **PREDICT)
    targets = [target for _, target in read(one_line, READING, "target", **PREDICT)[0]]
    assert targets == ["오는 3일", None, "없는 말", None]

    lines = write(tmp_path / "b.json", json.dumps(SQUAD, ensure_ascii=False, indent=1))
    rows, report = read(lines, READING, "id")
    numbers = [
        number for number, line in enumerate(lines.read_text(encoding="utf-8").split("\n"), 1) if '": "q' in line
    ]
    assert rows == [(numbers[0], "q1"), (numbers[2], "q3")]
    assert report.malformed[NOT_THERE] == (1, [f"{lines}:{numbers[2]}"])
    assert report.malformed["empty target"][0] == 2


def flat_rows() -> Iterator[dict[str, Any]]:
    """The questions as the hub has them, with a plausible answer among those of the impossible one."""
    for article in SQUAD["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = question.get("answers")
                if question.get("is_impossible"):
                    answers = [{"text": "회의", "answer_start": 0}]
                yield {
                    "id": str(question.get("guid", question.get("id"))),
                    "title": article.get("title", ""),
                    "context": paragraph["context"],
                    "question": question["question"],
                    "is_impossible": question.get("is_impossible", False),
                    "answers": None
                    if answers is None
                    else {key: [answer[key] for answer in answers] for key in ("text", "answer_start")},
                }


def test_questions_without_ids_have_the_line_of_their_article(tmp_path: Path) -> None:
    """They are not looked for: each search would go through the rest of the file."""
    question = {"question": "수도는?", "answers": [{"text": "서울", "answer_start": 0}]}
    known = {"title": "a", "paragraphs": [{"context": "서울", "qas": [{"id": "q1", **question}]}]}
    other = {"title": "b", "paragraphs": [{"context": "서울", "qas": [question, question]}]}
    path = tmp_path / "questions.json"
    path.write_text(json.dumps({"data": [known, other]}, indent=1), encoding="utf-8")
    lines = path.read_text(encoding="utf-8").splitlines()
    places = [row.line for row in READERS["squad"].file_rows(str(path))]
    starts = [number for number, line in enumerate(lines, 1) if line == "  {"]
    assert places == [lines.index('       "id": "q1",') + 1, starts[1], starts[1]]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "saved"])
def test_questions_of_the_hub(tmp_path: Path, name: str) -> None:
    rows, file = list(flat_rows()), tmp_path / name
    match name:
        case "a.jsonl":
            write(file, "\n".join(map(json.dumps, rows)))
        case "a.json":
            write(file, json.dumps(rows))
        case "a.parquet":
            pq.write_table(pa.Table.from_pylist(rows), file)
        case _:
            pytest.importorskip("datasets").Dataset.from_list(rows).save_to_disk(str(file))
    found, report = read(file, READING, *COLUMNS, **PREDICT)
    assert [row[1:] for row in found] == QUESTIONS
    assert report.malformed == {NOT_THERE: (1, [f"{file}:{1 if name == 'a.json' else 3}"])}


@pytest.mark.parametrize(
    "content, line",
    [
        ("[1]", 0),
        ('{"version": 1}', 1),
        ('\n{"data": 3}', 2),
        ('{"data": [\n{"paragraphs": 1}]}', 2),
        ('{"data": [{"paragraphs": [{"context": "a"}]}]}', 1),
        ('{"data": [{"paragraphs": [{"context": "a", "qas": [1]}]}]}', 1),
        ('{"data": []} x', 1),
        ('{"data": []', 1),
        ('{"data" []}', 1),
        ('[{"passage": "a"}]', 1),
    ],
)
def test_other_json_is_not_read_as_questions(tmp_path: Path, content: str, line: int) -> None:
    file = write(tmp_path / "a.json", content)
    if line:
        assert problem_of(file, READING).startswith(f'{file}:{line}: layout squad: expected {{"data": [{{"title": ')
    else:
        assert read(file, READING)[1].malformed == {"not a JSON object": (1, [f"{file}:1"])}


def test_broken_json_and_broken_questions(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", '{"data": [\n{"paragraphs": [{]}]}')
    assert problem_of(file, READING).startswith(f"{file}:2: broken JSON in the array that starts here or later: ")
    deep = write(tmp_path / "b.json", '{"data": ' + "[" * 100_000)
    assert problem_of(deep, READING).startswith(f"{deep}:1: broken JSON")
    questions = [
        {"id": "a", "answers": []},
        {"id": "b", "question": 3, "answers": 7},
        {"id": "c", "question": "?", "answers": [{"text": 1}]},
        {"id": "d", "question": "?", "answers": [{"text": "가"}]},
        {"id": "e", "question": "?", "answers": {"text": "가"}},
    ]
    file = write(tmp_path / "c.json", json.dumps({"data": [{"paragraphs": [{"context": "가", "qas": questions}]}]}))
    rows, report = read(file, READING, "id", "answer")
    assert rows == [(4, "d", "가")]
    assert report.malformed == {
        "missing column": (1, [f"{file}:1"]),
        "value is not text": (3, [f"{file}:2", f"{file}:3", f"{file}:5"]),
    }


# ---- what is copied beside a prediction


def test_records_of_layouts(tmp_path: Path) -> None:
    records = InputRecords([str(write(tmp_path / "a.tsv", NER))], "conll")
    first, second = map(json.loads, records.rows({}, True))
    assert (first["id"], first["sentence"]) == ("klue-ner-v1_dev_99999-nsmc", "<김 하늘:PS> 최고<<레이:PS>>")
    assert second["tokens"] == [["1", "B-TI"], [":", "I-TI"], ["2", "I-TI"], ["3", "I-TI"]]
    file = write(tmp_path / "a.json", json.dumps(SQUAD))
    found = [json.loads(line) for line in InputRecords([f"{file}:3"], "squad").rows({}, True)]
    article = SQUAD["data"][0]
    passage = article["paragraphs"][0]
    assert found[0] == {"title": "회의", "context": passage["context"], **passage["qas"][0]}
    assert found[1:] == [{"title": None, "context": "가나", "id": 4, "question": "무엇?"}]


# ---- tables with quotes


def test_quotes_of_a_table_are_text(tmp_path: Path) -> None:
    """PAWS-X as it is published, with a quote that no other closes."""
    lines = ["id\tsentence1\tsentence2\tlabel", '1\t"가\t나"다"\t0', '2\t"""\tNS\t1', "3\t라\t\t0"]
    task = Task("paws", "", source_column="sentence1", target_column="label")
    rows, _ = read(write(tmp_path / "dev_2k.tsv", "\n".join(lines)), task, "source", "sentence2", "target")
    assert rows == [(2, '"가', '나"다"', "0"), (3, '"""', "NS", "1"), (4, "라", "", "0")]


# ---- the corpora

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the corpora are not there")


def golden(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SHARED / "scorers" / name).read_text(encoding="utf-8").split("\n") if line]


@needs_data
def test_all_entities_of_klue() -> None:
    """The tags of every row give the sentence as the file's own line has it, and the texts of the original tool."""
    file = SHARED / "klue" / "klue-ner-v1.1_dev.tsv"
    rows, report = read(file, ENTITIES, "id", "sentence", "tagged")
    assert (len(rows), report.malformed) == (4000, {})
    lines = [json.loads(line) for line in InputRecords([str(file)], "conll").rows({}, True)]
    assert [(line["id"], line["sentence"]) for line in lines] == [(name, tagged) for _, name, _, tagged in rows]
    assert (rows[0][1], rows[-1][1]) == ("klue-ner-v1_dev_00000-wikitree", lines[-1]["id"])
    texts = {name: (sentence, tagged) for _, name, sentence, tagged in rows}
    for row in golden("klue_ner_rows.jsonl"):
        assert texts[row["guid"]] == (row["text"], row["target"])
        assert row["source"] == f"task: NER\n\n### 입력\n{row['text']}\n"


@needs_data
def test_all_trees_of_klue() -> None:
    rows, report = read(SHARED / "klue" / "klue-dp-v1.1_dev.tsv", TREES, "id", "sentence", "words", "table", "parse")
    assert (len(rows), report.malformed) == (1600, {})
    assert rows[0][1:4] == (
        "klue-dp-v1_dev_00000_wikitree",
        "'K팝스타3’ 유희열이 홍정희의 탈락에 눈물을 흘렸다.",
        "'K팝스타3’ 유희열이 홍정희의 탈락에 눈물을 흘렸다.",
    )
    assert sum(sentence != words for _, _, sentence, words, _, _ in rows) == 6
    texts = {name: cells for _, name, *cells in rows}
    for row in golden("klue_dp_rows.jsonl"):
        sentence, words, table, parse = texts[row["guid"]]
        assert (words, parse) == (" ".join(row["words"]), row["target"])
        assert row["source"] == f"task: Dependency Parsing\n\nInput: {sentence}\nLemmas: {table}\n"


@needs_data
def test_all_pairs_of_klue() -> None:
    task = Task("sts", "", source_column="sentence1", target_column="labels.real-label")
    rows, report = read(SHARED / "klue" / "klue-sts-v1.1_dev.json", task, "guid", "target", "labels.binary-label")
    assert (len(rows), report.malformed) == (415, {})
    assert rows[0] == (3 - 1, "klue-sts-v1_dev_00000", "4.857142857142857", "1")
    assert all((float(str(score)) >= 3) == (binary == "1") for _, _, score, binary in rows)


@needs_data
@pytest.mark.parametrize(
    "name, count, target",
    [
        ("korsts/sts-train.tsv", 5749, "score"),
        ("korsts/sts-dev.tsv", 1500, "score"),
        ("korsts/sts-test.tsv", 1379, "score"),
        ("kornli/xnli.dev.ko.tsv", 2490, "gold_label"),
        ("kornli/xnli.test.ko.tsv", 5010, "gold_label"),
    ],
)
def test_all_pairs_of_korean_nlu(name: str, count: int, target: str) -> None:
    lines = (SHARED / name).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    names = ("sentence1", "sentence2", target)
    rows, report = read(SHARED / name, Task("pairs", "", source_column="sentence1", target_column=target), *names)
    assert (len(rows), report.malformed) == (count, {})
    header = lines[0].split("\t")
    for row, line in ((rows[0], lines[1]), (rows[-1], lines[-1])):
        assert row[1:] == tuple(dict(zip(header, line.split("\t"), strict=True))[column] for column in names)
