"""Flags of `analyze.py`; those of the devices are of inference.py. No torch import."""

from __future__ import annotations

import dataclasses

from config.flags.data import USER_CODE
from config.flags.inference import ON_GPUS, InferenceDeviceFlags
from config.parser import free


@dataclasses.dataclass(frozen=True)
class AnalyzeFlags:
    """Review analysis"""

    keyword_model: str = free(
        "",
        "Finds the keywords of a review, a task of several labels a row: a .ckpt file, a run's folder (its best/), a"
        " from_pretrained folder or a hub name.",
        required=True,
        metavar="MODEL",
        path="read",
    )
    sentiment_model: str = free(
        "",
        "Tells the sentiment of a review about a keyword, a task of one label a row; it may be the same model.",
        required=True,
        metavar="MODEL",
        path="read",
    )
    keyword_task: str = free(
        "", "Task of -keyword_model: a name, or a YAML file; empty = the checkpoint's.", path="read"
    )
    sentiment_task: str = free(
        "", "Task of -sentiment_model: a name, or a YAML file; empty = the checkpoint's.", path="read"
    )
    data: tuple[str, ...] = free(
        (),
        "Reviews, a row each, in any format that -test_data of inference.py takes; may repeat.",
        required=True,
        metavar="PATH[:N]",
        path="read",
    )
    review_column: str = free(
        "", "Column of the review: a name, or a number counted from 1; empty = the source column of -keyword_model."
    )
    keyword_column: str = free(
        "",
        "Column of the right keywords, which may be missing: a name, or a number; empty = the target column of"
        " -keyword_model.",
    )
    sentiment_column: str = free(
        "sentiments",
        "Column of the right sentiments, which may be missing: one for each right keyword, in their order, joined as"
        " they are.",
    )
    no_keyword: str = free(
        "", "Label of -keyword_model that stands for reviews without a keyword; it gets no sentiment. Empty = none."
    )
    thresholds: str = free(
        "",
        "Rows with the right keywords, like -valid_data, on which the threshold of every keyword is fitted that gives"
        " the best F1; empty = 0.5 for all.",
        metavar="PATH[:N]",
        path="read",
    )
    save_output: str = free(
        "", "File of the analyses, a JSON object a review.", required=True, metavar="FILE.jsonl", path="written"
    )
    save_report: str = free("", "JSON file of the scores of both steps; empty = none.", metavar="FILE", path="written")
    save_page: str = free(
        "",
        "HTML page of examples with the words coloured by their effect; empty = none.",
        metavar="FILE.html",
        path="written",
    )
    page_examples: int = free(100, "Reviews on the page: those that depend most on a word.", minimum=1, maximum=10_000)
    overwrite: bool = free(False, "Replace output files that exist, and throw away finished parts of another command.")
    batch_size: int = free(128, f"Rows in a batch on each device{ON_GPUS}.", minimum=1, maximum=10**7)
    max_tokens: int = free(0, "Source tokens in a batch on each device, padding included; 0 = no limit.", minimum=0)
    user_code: tuple[str, ...] = free((), USER_CODE, metavar="FILE.py", path="read")

    @property
    def sentiments_output(self) -> str:
        """The output of the second prediction: it is not written, and its finished parts lie beside it."""
        return f"{self.save_output}.sentiments"


@dataclasses.dataclass(frozen=True)
class AnalyzeConfig:
    """Everything that an analysis of reviews is made of."""

    review: AnalyzeFlags = AnalyzeFlags()
    device: InferenceDeviceFlags = dataclasses.field(default_factory=InferenceDeviceFlags)
