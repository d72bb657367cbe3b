"""Reviews of files and what is right for them, and the pairs of review and keyword that a second model judges."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.stages import SENTIMENT, Stages
from config.flags.analyze import AnalyzeFlags
from datamodules.readers.paths import file_state, parse_data_path
from datamodules.readers.read import ReadOptions, RowReport, read_rows
from generation.engines.base import Prediction
from postprocessors.labels import LabelMap
from utils.errors import RunError, UserError
from utils.escapes import escape_json
from utils.files import run_error, write_file
from utils.tables import counted


@dataclass(frozen=True)
class Review:
    """A review as its file has it, and its right keywords with their sentiments (None: not told); None = unlabelled."""

    text: str
    right: Mapping[str, str | None] | None


class Reviews:
    """The reviews of `-data` in order, read from the files whenever they are iterated over.

    Raises:
        UserError: right sentiments that are no labels, or more or fewer than right keywords; with file:line.
        RunError: a file has changed since this object was made.
    """

    def __init__(self, flags: AnalyzeFlags, stages: Stages, escapes: bool) -> None:
        self.flags, self.stages, self.escapes = flags, stages, escapes
        self.states = self._states()

    def check(self) -> None:
        """Read all of them, so that what is wrong is told before anything is predicted."""
        for _ in self:
            pass

    def __iter__(self) -> Iterator[Review]:
        flags, column = self.flags, self.flags.sentiment_column
        options = ReadOptions(
            source_column=flags.review_column,
            target_column=flags.keyword_column,
            tsv_escapes=self.escapes,
            keep_all=True,
            target_required=False,
            optional=(column,),
            flag="-data",
        )
        for chunk in read_rows(flags.data, self.stages.keyword_task, frozenset({column}), options, RowReport()):
            self._check_files()
            texts, keywords = chunk.columns["source"].to_pylist(), chunk.columns["target"].to_pylist()
            sentiments = chunk.columns[column].to_pylist()
            for index, text in enumerate(texts):
                yield Review(text, self._right(keywords[index], sentiments[index], chunk.place(index)))
        self._check_files()

    def _check_files(self) -> None:
        if self._states() != self.states:
            raise RunError(f"-data {' '.join(self.flags.data)} has changed while its reviews were analysed")

    def _states(self) -> list[Any]:
        return [file_state(parse_data_path(value).path) for value in self.flags.data]

    def _right(self, keywords: str | None, sentiments: str | None, place: str) -> dict[str, str | None] | None:
        """The right keywords with their sentiments, in the order of the row."""
        if keywords is None:
            return None
        stages = self.stages
        one = stages.keywords.joined_by("")
        texts = [one.lookup(part) or part for part in stages.keywords.parts(keywords)]
        if sentiments is None:
            return {text: None for text in texts if text != stages.no_keyword}
        parts = stages.keywords.parts(sentiments)
        told = [stages.sentiments.lookup(part) for part in parts]
        if len(told) != len(texts):
            raise UserError(
                f"{place}: {len(texts)} keyword(s), but {len(told)} sentiment(s): {keywords!r} and {sentiments!r}"
            )
        unknown = [part for part, text in zip(parts, told, strict=True) if text is None]
        if unknown:
            raise UserError(
                f"{place}: sentiment {unknown[0]!r} is no label of -sentiment_model: {stages.sentiments.describe()}"
            )
        return {text: label for text, label in zip(texts, told, strict=True) if text != stages.no_keyword}


def write_pairs(path: Path, reviews: Iterable[Review], found: Sequence[Prediction], stages: Stages) -> int:
    """Write a JSON line for every keyword of every review: the columns of the prompt, and the right sentiment or null;
    returns how many there are."""
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for review, prediction in zip(reviews, found, strict=True):
            for keyword in stages.found(prediction):
                right = (review.right or {}).get(keyword)
                row = {stages.review_column: review.text, stages.keyword_column: keyword, SENTIMENT: right}
                file.write(f"{json.dumps(row)}\n")
                count += 1
    return count


def analyses(
    reviews: Iterable[Review], found: Sequence[Prediction], judged: Iterable[Prediction], stages: Stages
) -> Iterator[dict[str, Any]]:
    """What is written of each review; `judged` holds the sentiments of the pairs of `write_pairs`, in their order."""
    sentiments = iter(judged)
    for number, (review, prediction) in enumerate(zip(reviews, found, strict=True)):
        keywords = [
            _of_keyword(keyword, share, next(sentiments), stages.sentiments)
            for keyword, share in stages.found(prediction).items()
        ]
        yield {"id": number, "review": review.text, "reference": review.right, "keywords": keywords}


def _of_keyword(keyword: str, probability: float, judged: Prediction, sentiments: LabelMap) -> dict[str, Any]:
    words = judged.words or ()
    return {
        "keyword": keyword,
        "probability": probability,
        "sentiment": judged.text,
        "sentiment_probabilities": dict(zip(sentiments.texts, judged.label_probabilities or (), strict=True)),
        "highlight": max(words, key=lambda pair: pair[1])[0] if words else None,  # of equal ones the first
        "words": [{"word": word, "loss": loss} for word, loss in words],
    }


class PairScores:
    """How many pairs of keyword and sentiment are right, over the reviews whose right keywords have sentiments."""

    def __init__(self) -> None:
        self.reviews = self.found = self.wanted = self.both = 0

    def seen(self, analyses: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The analyses themselves, while they are counted."""
        for analysis in analyses:
            right = analysis["reference"]
            if right is not None and None not in right.values():
                found = {(keyword["keyword"], keyword["sentiment"]) for keyword in analysis["keywords"]}
                self.reviews += 1
                self.found, self.wanted = self.found + len(found), self.wanted + len(right)
                self.both += len(found & right.items())
            yield analysis

    def to_dict(self) -> dict[str, Any]:
        """Precision, recall and F1 of the pairs, None where there is none to count."""
        precision = self.both / self.found if self.found else None
        recall = self.both / self.wanted if self.wanted else None
        f1 = 2 * self.both / (self.found + self.wanted) if self.found + self.wanted else None
        return {"reviews": self.reviews, "support": self.wanted, "precision": precision, "recall": recall, "f1": f1}

    def lines(self) -> list[str]:
        """The same to print; nothing without such a review."""
        figures = {key: value for key, value in self.to_dict().items() if isinstance(value, float)}
        shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        of = f"{counted(self.wanted, 'pair')} of keyword and sentiment in {counted(self.reviews, 'review')}"
        return [f"{of}: {shown}"] if shown else []


def save_json_lines(path: Path, objects: Iterable[dict[str, Any]], overwrite: bool) -> None:
    """Write a JSON object a line; the file appears whole or not at all."""
    lines = (f"{escape_json(json.dumps(content, ensure_ascii=False))}\n" for content in objects)
    encoded = (line.encode("utf-8", "replace") for line in lines)
    with run_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda file: file.writelines(encoded), replace=overwrite)
