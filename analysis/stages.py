"""The two predictions that an analysis is made of, and whether two models go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from config.flags.analyze import AnalyzeConfig, AnalyzeFlags
from config.flags.data import DataFlags
from config.flags.inference import DecodeFlags, InferenceConfig, InferenceModelFlags, OutputFlags
from config.templates import Template, Variable
from generation.engines.base import Prediction
from postprocessors.labels import LabelMap
from task_utils import Task
from utils.errors import UserError

SENTIMENT = "sentiment"  # the column of right sentiments in the pairs


@dataclass(frozen=True)
class Stages:
    """The task of the keyword model, the labels of both, and the columns that the prompt of a sentiment reads."""

    keyword_task: Task
    keywords: LabelMap
    sentiments: LabelMap
    review_column: str
    keyword_column: str
    no_keyword: str = ""

    @classmethod
    def of(cls, flags: AnalyzeFlags, keyword_task: Task, sentiment_task: Task) -> Stages:
        """Raises `UserError` with every problem: labels that are not there, or of another kind, and a template of other
        columns than a review and a keyword, or one column for two things."""
        keywords, sentiments = keyword_task.postprocessor, sentiment_task.postprocessor
        of_keywords = f"-keyword_model {flags.keyword_model}: task {keyword_task.name}"
        of_sentiments = f"-sentiment_model {flags.sentiment_model}: task {sentiment_task.name}"
        problems = []
        if not isinstance(keywords, LabelMap) or not keywords.separator:
            problems.append(
                f"{of_keywords} is no task of several labels a row; train it with -task multi-label, or with"
                " -label_map and -label_separator"
            )
        elif flags.no_keyword and flags.no_keyword not in keywords.texts:
            problems.append(f"-no_keyword {flags.no_keyword}: no label of -keyword_model: {keywords.describe()}")
        if not isinstance(sentiments, LabelMap) or sentiments.separator:
            problems.append(
                f"{of_sentiments} is no task of one label a row; train it with -task keyword-sentiment, or with"
                " -label_map"
            )
        template = Template(sentiment_task.input_template)
        named = dict.fromkeys(part.name for part in template.parts or () if isinstance(part, Variable))
        names = list(named) or sorted(template.variables)
        if len(names) != 2:
            problems.append(
                f"{of_sentiments} reads {', '.join(names) or 'no column'} ({template.source!r}); it must read two"
                " columns, the review and the keyword"
            )
        if (same := keyword_task.target_column) in (keyword_task.source_column, flags.sentiment_column):
            problems.append(f"-keyword_column {same}: is the column of the reviews or sentiments; name another one")
        if problems or not isinstance(keywords, LabelMap) or not isinstance(sentiments, LabelMap):
            raise UserError(*problems)
        review = next((name for name in names if name in ("source", sentiment_task.source_column)), names[0])
        (keyword,) = (name for name in names if name != review)
        return cls(keyword_task, keywords, sentiments, review, keyword, flags.no_keyword)

    @property
    def columns(self) -> dict[str, str]:
        """The columns of the pairs, as flags of the data."""
        return {"source_column": self.review_column, "target_column": SENTIMENT}

    def found(self, prediction: Prediction) -> Mapping[str, float]:
        """The keywords of a review with their probabilities, in the order of the label map."""
        labels = self.keywords.value(prediction.text) or ()
        shares = dict(zip(self.keywords.texts, prediction.label_probabilities or (), strict=True))
        return {text: shares[text] for text in labels if text != self.no_keyword}


def keyword_config(config: AnalyzeConfig) -> InferenceConfig:
    """The prediction of keywords; its finished parts lie beside -save_output."""
    flags = config.review
    data = DataFlags(test_data=flags.data, source_column=flags.review_column, target_column=flags.keyword_column)
    return _stage(config, flags.keyword_model, flags.keyword_task, data, flags.save_output)


def sentiment_config(config: AnalyzeConfig, pairs: Path) -> InferenceConfig:
    """The prediction of the sentiments of `pairs`; its parts lie beside those of the keywords."""
    flags = config.review
    data = DataFlags(test_data=(str(pairs),))
    return _stage(config, flags.sentiment_model, flags.sentiment_task, data, flags.sentiments_output)


def _stage(config: AnalyzeConfig, model: str, task: str, data: DataFlags, output: str) -> InferenceConfig:
    flags = config.review
    return InferenceConfig(
        model=InferenceModelFlags(model=(model,), task=task),
        data=data,
        output=OutputFlags(save_output=output, overwrite=flags.overwrite),
        decode=DecodeFlags(batch_size=flags.batch_size, max_tokens=flags.max_tokens),
        device=config.device,
    )
