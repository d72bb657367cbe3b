"""The answers of a row's windows become one prediction: by the sums of their scores, and none only where all say so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from transformers import ByT5Tokenizer

from config.flags.data import DataFlags, LengthFlags
from datamodules.splits import RowEncoder, prediction_split
from generation.batch_limits import BatchLimits
from generation.decoder import Hypothesis
from generation.engines.base import Prediction
from postprocessors.answers import Answers
from prediction.output import OutputForm, output_rows, write_rows
from prediction.predict import predict
from prediction.windows import by_row, combined
from task_utils import get_task
from utils.devices import Devices

NONE = Answers("없음")


def window(*outputs: tuple[str, float]) -> Prediction:
    """The outputs of a window with their weights, best first."""
    nbest = tuple(Hypothesis(text, math.log(weight)) for text, weight in outputs)
    return Prediction(nbest[0].text, nbest[0].score, nbest)


def shares(prediction: Prediction) -> list[tuple[str, float, float]]:
    """The outputs with their weights and probabilities."""
    return [(one.text, round(math.exp(one.score), 4), one.probability or 0.0) for one in prediction.nbest]


def test_the_weights_of_an_answer_in_several_windows_are_added() -> None:
    windows = [window(("서울", 0.3), ("부산", 0.4)), window(("부산 ", 0.1), ("서울", 0.4)), window(("대구", 0.5))]
    assert shares(combined(windows, Answers(), 9)) == [
        ("서울", 0.7, 0.411765),
        ("부산", 0.5, 0.294118),  # the better of its two writings
        ("대구", 0.5, 0.294118),
    ]
    best = combined(windows, Answers())
    assert (best.text, round(math.exp(best.score or 0), 4), len(best.nbest)) == ("서울", 0.7, 1)
    assert shares(best) == [("서울", 0.7, 0.411765)]  # a share of all outputs, also of those that are not kept


def test_a_passage_has_no_answer_where_no_window_has_one() -> None:
    empty, sure = window(("없음", 0.9), ("서울", 0.05)), window(("서울", 0.6), ("없음", 0.3))
    assert shares(combined([empty] * 9, NONE, 2)) == [("없음", 0.9, 0.666667), ("서울", 0.45, 0.333333)]
    assert shares(combined([empty, sure], NONE, 2)) == [("서울", 0.65, 0.684211), ("없음", 0.3, 0.315789)]
    assert shares(combined([empty, window(("서울", 0.1))], NONE, 2)) == [("서울", 0.15, 1.0)]
    assert combined([window(("없음", 0.5), ("서울", 0.5))], NONE).text == "서울"


def test_an_answer_beats_an_empty_output_where_questions_have_one() -> None:
    assert shares(combined([window((" ", 0.9), ("서울", 0.1)), window(("", 0.8))], Answers(), 2)) == [
        ("서울", 0.1, 1.0)
    ]
    assert shares(combined([window(("", 0.9)), window((" ", 0.8))], Answers(), 2)) == [("", 0.8, 1.0)]


def test_equal_texts_of_one_window_count_once() -> None:
    """Samples may be equal, and so may the texts of different tokens."""
    assert shares(combined([window(("서울", 0.4), ("서울", 0.3), ("부산", 0.1))], Answers(), 2)) == [
        ("서울", 0.4, 0.8),
        ("부산", 0.1, 0.2),
    ]


def test_every_row_gets_one_prediction_in_order(tmp_path: Path) -> None:
    """Windows are what processes share; rows, whatever their windows, are what is written and scored."""
    passage = " ".join(f"낱말{number}" for number in range(40))
    rows = [{"id": n, "question": f"{n}?", "context": passage[: 1 + 60 * n], "answers": []} for n in range(6)]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    lengths = LengthFlags(max_seq_length=120, doc_stride=30)
    encoder = RowEncoder(DataFlags(test_data=(str(path),)), lengths, get_task("squad"), ByT5Tokenizer(), 0, tmp_path)
    split, lines = prediction_split(encoder)
    counts = np.bincount(split.row_ids).tolist()
    assert counts == sorted(counts)
    assert (counts[0], counts[1]) == (1, 2)
    assert any(f"sources too long, cut into {sum(counts[1:])} windows" in line for line in lines)

    def engine(_: Any) -> Any:
        def answers(row_ids: Any, sources: Any, languages: Any) -> list[Prediction]:  # noqa: ARG001
            return [Prediction(f"a{split.row_ids[row]}", -1.0) for row in row_ids]

        return answers

    (tmp_path / "parts").mkdir()
    with predict(engine, split, BatchLimits(2), Devices("cpu", 1, 1, "32-true"), tmp_path / "parts") as parts:
        of_rows, predictions = by_row(split, parts, get_task("squad").postprocessor)
        written = list(output_rows(predictions, of_rows, lambda text: text, None))
        write_rows(tmp_path / "out.jsonl", written, OutputForm(probabilities=True))
        write_rows(tmp_path / "out.tsv", written, OutputForm(probabilities=True))
    assert [row.answer for row in written] == [f"a{number}" for number in range(6)]
    assert [row.source for row in written] == [
        f"question: {n}? context: {row['context']}" for n, row in enumerate(rows)
    ]
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["score"] for row in found] == [round(math.log(count) - 1, 6) for count in counts]
    assert {row["probability"] for row in found} == {1.0}
    assert (tmp_path / "out.tsv").read_text(encoding="utf-8").splitlines()[0].split("\t")[-1] == "probability"
