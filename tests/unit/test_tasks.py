"""Every built-in task: what the model reads and writes, its labels, and its metrics on gold and on shuffled gold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from datamodules.readers.conll import file_rows
from metrics.registry import METRICS, PASSAGES, POINTS, PROBABILITIES
from metrics.score import score
from postprocessors.dependencies import Dependencies
from postprocessors.labels import LabelMap
from postprocessors.spans import TaggedText, tags_of_spans
from task_utils import BUILT_IN, Task, Template, get_task, task_name, task_names, task_table
from tests.official_scorers import FOLDER, golden_cases
from utils.errors import UserError

MOST_LINES = 25  # of a task file

PAIR = {"sentence1": "가다", "sentence2": "오다"}
PASSAGE = {"question": "언제인가?", "context": "회의는 3일이다.", "answers": '["3일"]'}
ENTITIES = {"subject_entity.word": "나래", "subject_entity.type": "ORG"} | {
    "object_entity.word": "서울",
    "object_entity.type": "LOC",
}
# task: source column, target column, a row, and the source and target that the model gets of it
ROWS: dict[str, tuple[str | int, str | int, dict[str, str], str, str]] = {
    "seq2seq": (1, 2, {"source": "안녕", "target": "hi"}, "안녕", "hi"),
    "retrieval": (
        "query",
        "passage",
        {"source": "회의는 언제?", "target": "3일이다."},
        "query: 회의는 언제?",
        "passage: 3일이다.",
    ),
    "jsonlines": ("text", "label", {"source": "안녕", "target": "hi"}, "안녕", "hi"),
    "hfdataset": ("text", "label", {"source": "안녕", "target": "hi"}, "안녕", "hi"),
    "nsmc-naive": ("document", "label", {"source": "굿 ㅋㅋ", "target": "1"}, "굿 ㅋㅋ", "positive"),
    "nsmc-prompted": (
        "document",
        "label",
        {"source": "굿 ㅋㅋ", "target": "0"},
        "nsmc sentiment classification: 굿 ㅋㅋ",
        "negative",
    ),
    "keyword-sentiment": (
        "review",
        "sentiment",
        {"review": "국물이 짜요", "keyword": "맛", "target": "부정"},
        "###입력: 국물이 짜요\n###키워드: 맛",
        "부정",
    ),
    "klue-ynat": ("title", "label", {"source": "새 위성", "target": "IT과학"}, "KLUE YNAT task: 새 위성\n", "IT과학"),
    "klue-nli": (
        "premise",
        "gold_label",
        {"premise": "비가 온다.", "hypothesis": "맑다.", "target": "contradiction"},
        "NLI, 전제: 비가 온다.\n가설: 맑다.\n",
        "모순",
    ),
    "kornli": ("sentence1", "gold_label", {**PAIR, "target": "neutral"}, "NLI, 전제: 가다\n가설: 오다\n", "neutral"),
    "paws-x-kor": (
        "sentence1",
        "label",
        {**PAIR, "target": "1"},
        "paraphrase detection task:\n\nsentence-1: 가다\nsentence-2: 오다\n",
        "paraphrase",
    ),
    "klue-sts": (
        "sentence1",
        "labels.label",
        {**PAIR, "target": "4.3", "labels.real-label": "4.285714285714286"},
        "klue sts sentence1: 가다 sentence2: 오다",
        "4.3",
    ),
    "korsts": ("sentence1", "score", {**PAIR, "target": "3.250"}, "korsts sentence1: 가다 sentence2: 오다", "3.3"),
    "klue-re": (
        "sentence",
        "label",
        {"sentence": "나래는 서울에 있다.", **ENTITIES, "target": "org:place_of_headquarters"},
        "klue re: 나래는 서울에 있다. subject: 나래(ORG) object: 서울(LOC)",
        "org:place_of_headquarters",
    ),
    "klue-ner": (
        "sentence",
        "tagged",
        {"source": "김하늘 최고", "target": "<김하늘:PS> 최고"},
        "task: NER\n\n### 입력\n김하늘 최고\n",
        "<김하늘:PS> 최고",
    ),
    "klue-dp": (
        "sentence",
        "parse",
        {"sentence": "가자.", "table": "1/가자./3/가 자 ./VV+EF+SF/가:VV/.:SF", "target": "deprel: (1/3, 0, VP)"},
        "task: Dependency Parsing\n\nInput: 가자.\nLemmas: 1/가자./3/가 자 ./VV+EF+SF/가:VV/.:SF\n",
        "deprel: (1/3, 0, VP)",
    ),
    "klue-mrc": (
        "context",
        "answer",
        {**PASSAGE, "target": "3일"},
        "task: MRC, 지문을 읽고 질문에 답을 할 수 없다면 '[알 수 없음]'을 출력한다.\n\n### 질문\n언제인가?\n\n"
        "### 지문\n회의는 3일이다.\n",
        "3일",
    ),
    "korquad-v1": (
        "context",
        "answer",
        {**PASSAGE, "target": "3일"},
        "task: MRC\n\nquestion: 언제인가?\n\ncontext: 회의는 3일이다.\n",
        "3일",
    ),
    "squad": (
        "context",
        "answer",
        {**PASSAGE, "target": "3일"},
        "question: 언제인가? context: 회의는 3일이다.",
        "3일",
    ),
    "translation": (1, 2, {"source": "비가 온다.", "target": "It rains."}, "비가 온다.", "It rains."),
    "summarisation": (1, 2, {"source": "긴 글", "target": "글"}, "summarize: 긴 글", "글"),
    "multi-label": ("text", "labels", {"source": "좋아!", "target": "surprise, joy"}, "좋아!", "기쁨, 놀람"),
}
REFERENCES = {  # what a row is scored against where that is not its target
    "klue-sts": "4.285714285714286",
    "korsts": "3.250",
    **dict.fromkeys(("klue-mrc", "korquad-v1", "squad"), '["3일"]'),
}
GOLDS: dict[str, Sequence[str]] = {  # references of a kind of output, and below the predictions that are right
    "texts": ["It is raining in Seoul today.", "나는 어제 학교에 갔다.", "오늘은 날씨가 맑고 바람이 분다."],
    "numbers": ["0.0", "4.4", "3.25", "2.9"],
    "answers": ['["3일", "오는 3일"]', '["서울시"]', '["가나다 라"]', '["John of the Hill"]'],
    "spans": ["<김하늘:PS> 최고", "<서울:LC>에 <3일:DT> 간다", "<2명:QT>", "<KBS:OG> <9시:TI>"],
    "dependencies": [
        f"deprel: {'▁'.join(f'({n}/2, {n + 1}, NP_SBJ)' for n in range(1, words))}▁({words}/3, 0, VP)"
        f"\nword_counts: {words}"
        for words in (2, 3, 5)
    ],
}
RIGHT = {"answers": ["오는 3일", "서울시", "가나다 라", "John of the Hill"]}


@pytest.mark.parametrize("name", task_names())
def test_the_task_file_is_short_and_its_task_outlives_a_checkpoint(name: str) -> None:
    assert len((BUILT_IN / f"{name}.yaml").read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    task = get_task(name)
    assert (task.name, bool(task.description)) == (name, True)
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task


def target(task: Task, row: dict[str, str]) -> str:
    """What the model should write of a row."""
    value = row["target"] if task.label_map is None else task.label_map.lookup(row["target"])
    assert value is not None
    return Template(task.target_template).render({**row, "target": value})


@pytest.mark.parametrize("name", task_names())
def test_columns_and_what_the_model_reads_and_writes(name: str) -> None:
    task = get_task(name)
    source_column, target_column, row, source, written = ROWS[name]
    assert (task.source_column, task.target_column) == (source_column, target_column)
    assert Template(task.input_template).render(row) == source
    assert target(task, row) == written
    reference = Template(task.references).render(row) if task.references else written
    assert reference == REFERENCES.get(name, written)


@pytest.mark.parametrize("name", [name for name in task_names() if get_task(name).label_map])
def test_every_label_is_written_and_read_back(name: str) -> None:
    task = get_task(name)
    labels = task.postprocessor
    assert isinstance(labels, LabelMap)
    for label_id, text in labels.entries:
        assert target(task, {"target": label_id}) == target(task, {"target": text}) == text
        assert (labels.lookup(label_id), labels.value(text), labels.nearest(text)) == (text, (text,), text)


@pytest.mark.parametrize("name", [name for name in task_names() if get_task(name).kind != PASSAGES])
def test_gold_against_gold_is_perfect_and_shuffled_gold_is_not(name: str) -> None:
    task = get_task(name)
    references = task.label_map.texts if task.label_map else GOLDS[task.kind]
    golds = RIGHT.get(task.kind, references)
    best = {
        metric: 0.0 if not METRICS[metric].higher_is_better else 100.0 if METRICS[metric].scale == POINTS else 1.0
        for metric in task.metrics
        if METRICS[metric].takes != PROBABILITIES
    }
    figures = score(references, golds, task.postprocessor, names=list(best)).metrics
    assert figures == pytest.approx(best)
    shuffled = score(references, [*golds[1:], golds[0]], task.postprocessor, names=list(best)).metrics
    assert {metric for metric, figure in shuffled.items() if figure == pytest.approx(best[metric])} == set()


def test_labels_are_mapped_by_name() -> None:
    nli, topics = get_task("klue-nli").label_map, get_task("klue-ynat").label_map
    assert nli
    assert topics
    assert nli.to_dict() == {"entailment": "함의", "neutral": "중립", "contradiction": "모순"}
    assert (nli.lookup("0"), topics.lookup("0")) == (None, None)  # the same corpus has several orders of ids
    relations = get_task("klue-re").label_map
    assert relations
    assert (len(relations.texts), relations.texts[0], relations.texts[29]) == (30, "no_relation", "per:title")
    assert get_task("nsmc-naive").label_map == LabelMap((("0", "negative"), ("1", "positive")))


def test_a_question_without_an_answer_has_a_text_to_learn() -> None:
    texts = {"klue-mrc": ("[알 수 없음]", "klue_em"), "squad": ("unanswerable", "squad_v2_em")}
    for name, (text, metric) in texts.items():
        task = get_task(name)
        assert Template(task.target_template).render({"target": ""}) == text
        assert score(["[]"], [text], task.postprocessor, names=[metric]).metrics == {metric: 100.0}


def test_the_table_of_tasks_fits_a_terminal() -> None:
    lines = task_table()
    assert [line for line in lines if not line.startswith(" ")] == list(task_names())
    assert max(map(len, lines)) <= 80
    place = lines.index("klue-nli")
    assert lines[place + 1 : place + 5] == [
        "  KLUE natural language inference, whether a premise entails a hypothesis",
        "  columns hypothesis, premise -> gold_label",
        "  labels by accuracy, accuracy_corrected, macro_f1, micro_f1",
        "klue-re",
    ]


def test_older_names_are_the_same_tasks() -> None:
    aliases = {"klue-nli-prompted": "klue-nli", "kornli-prompted": "kornli", "summarization": "summarisation"}
    for alias, name in aliases.items():
        assert task_name(alias) == name
        assert get_task(alias) == get_task(name)


def sources_and_targets(name: str, cases: Sequence[dict[str, Any]], columns: Any) -> list[str]:
    """The golden rows whose source is another than the task's of the same columns."""
    template = Template(get_task(name).input_template)
    return [case["id"] for case in cases if template.render(columns(case)) != case["source"]]


def test_prompts_are_those_of_the_tool_that_had_these_tasks_first() -> None:
    def of_sentence(case: dict[str, Any]) -> dict[str, str]:
        return {"source": case["text"]}

    def of_words(case: dict[str, Any]) -> dict[str, str]:
        _, _, rest = case["source"].partition("\nInput: ")
        sentence, _, table = rest.partition("\nLemmas: ")
        return {"sentence": sentence, "table": table.removesuffix("\n")}

    assert sources_and_targets("klue-ner", golden_cases("klue_ner_rows"), of_sentence) == []
    assert sources_and_targets("klue-dp", golden_cases("klue_dp_rows"), of_words) == []


@pytest.mark.parametrize("name, rows", [("klue-ner", 4000), ("klue-dp", 1600)])
def test_every_sentence_of_klue_is_read_back_from_its_target(name: str, rows: int) -> None:
    path = FOLDER.parent / "klue" / f"{name}-v1.1_dev.tsv"
    if not path.exists():
        pytest.skip(f"{path} is not there: the corpus is kept out of the tree")
    reader = get_task(name).output
    read = 0
    for row in file_rows(str(path)):
        tokens = row.record["tokens"]
        if isinstance(reader, TaggedText):
            text, spans = reader.value(row.values["tagged"] or "")
            assert text == row.values["sentence"]
            assert tags_of_spans(spans, len(text)) == [tag for _, tag in tokens]
        if isinstance(reader, Dependencies):
            tree = reader.value(row.values["parse"] or "")
            assert tree == tuple((int(head), relation) for *_, head, relation in tokens)
        read += 1
    assert read == rows


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            "{postprocessor: {kind: numbers, lowest: x}, metrics: [acuracy, squad_em, pearson]}",
            ["postprocessor: lowest must be", "unknown metric 'acuracy'", "metric 'squad_em' needs postprocessor: ans"],
        ),
        (
            "{label_map: {a: [b]}, metrics: [acuracy, pearson, accuracy]}",
            [
                "label_map: the text of label 'a'",
                "unknown metric 'acuracy'",
                "metric 'pearson' needs",
            ],
        ),
        ("{postprocessor: spanns, metrics: [acuracy, pearson]}", ["unknown kind 'spanns'", "unknown metric 'acuracy'"]),
    ],
)
def test_metrics_are_checked_beside_outputs_that_cannot_be_read(tmp_path: Path, content: str, told: list[str]) -> None:
    (tmp_path / "t.yaml").write_text(content)
    with pytest.raises(UserError) as caught:
        get_task(str(tmp_path / "t.yaml"))
    assert [words in problem for words, problem in zip(told, caught.value.problems, strict=True)] == [True] * len(told)
