"""Numbers from references and predictions: pure functions over the raw texts, all offline. No torch."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from task_utils import LABEL_METRICS, METRIC_NAMES, TEXT_METRICS, LabelMap

CORRECTIONS = ("nearest", "none")
INVALID = "(invalid)"


@dataclass(frozen=True)
class Scores:
    """The result of `score`: plain numbers, texts, lists and dicts.

    `rows` counts predictions and `scored_rows` those with a reference; the metrics cover the latter. `metrics` is
    empty when no row has a reference. `details` says how a metric was computed (tokenizer, signature).

    Only with a label map (`labels`, else empty): `invalid_outputs` counts the predictions of all rows that are no
    label text; `corrections` holds every such text once, most frequent first, as {output, label or None, count};
    `corrected_counts` counts the labels after correction (None: still no label). `per_class` holds {label, precision,
    recall, f1, support} in declared order, `averages` the same for "macro" and "micro". `confusion_matrix` is {labels,
    columns, rows}: a row for each label in the references, a column for each label predicted, and a last column for
    outputs that are no label even after correction. When a row may have several labels, `corrected_counts` and
    `per_class` count each of them, and there is no confusion matrix.
    """

    rows: int
    scored_rows: int
    metrics: dict[str, float]
    prediction_counts: dict[str, int]
    details: dict[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    correction: str = "none"
    max_distance: int | None = None
    invalid_outputs: int = 0
    corrections: list[dict[str, Any]] = field(default_factory=list)
    corrected_counts: dict[str | None, int] = field(default_factory=dict)
    per_class: list[dict[str, Any]] = field(default_factory=list)
    averages: list[dict[str, Any]] = field(default_factory=list)
    confusion_matrix: dict[str, Any] | None = None


def score(
    references: Sequence[str | None],
    predictions: Sequence[str],
    label_map: LabelMap | None = None,
    correction: str = "nearest",
    max_distance: int | None = None,
    names: Sequence[str] | None = None,
) -> Scores:
    """Score predictions against raw references; a row whose reference is None is left out of the metrics.

    Texts are compared as they stand (case and blanks count). `names` default to the label metrics with a label map
    and to the text metrics without one. All are fractions from 0 to 1, but `bleu` and `chrf` are points from 0 to 100:

    - `exact_match`, `accuracy`: share of raw predictions equal to their reference.
    - `accuracy_corrected`: the same after the correction of outputs that are no label text. `nearest` takes the label
      at the smallest edit distance, or none beyond `max_distance`; correction `none` takes no label at all.
    - `macro_f1`, `micro_f1`: on the *corrected* predictions. An output that is still no label is a miss of its
      reference's class (lower recall) and a false alarm of no class. Macro: mean over the labels that occur in the
      references or the corrected predictions. Micro: over all rows; equal to `accuracy_corrected` when nothing is
      invalid any more.
    - Where a row may have several labels, `accuracy_corrected` is the share of rows with exactly those of the
      reference; `macro_f1` and `micro_f1` are over the single decisions, a row and a label each; an output that is
      still no label is a row without labels.
    - `bleu`, `chrf`: see `corpus_bleu`, `corpus_chrf`. `rouge1`, `rouge2`, `rougeL`: see `mean_rouge`.

    Raises `ValueError` on an unknown name, a label metric without a label map, a reference that is no label text,
    or references and predictions of different number.
    """
    if len(references) != len(predictions):
        raise ValueError(f"{len(references)} references, but {len(predictions)} predictions")
    wanted = tuple(names) if names is not None else (TEXT_METRICS if label_map is None else LABEL_METRICS)
    unknown = [name for name in wanted if name not in (METRIC_NAMES if label_map else TEXT_METRICS)]
    if unknown:
        raise ValueError(f"metric {unknown[0]!r} is unknown{'' if label_map else ' or needs a label map'}")
    scored = [(ref, pred) for ref, pred in zip(references, predictions, strict=True) if ref is not None]
    scored_references, scored_predictions = [ref for ref, _ in scored], [pred for _, pred in scored]
    text_metrics, details = _text_metrics(scored_references, scored_predictions, wanted)
    common: dict[str, Any] = {
        "rows": len(predictions),
        "scored_rows": len(scored),
        "prediction_counts": dict(Counter(predictions).most_common()),
        "details": details,
    }
    if label_map is None:
        return Scores(metrics=text_metrics, **common)
    corrected = correct(predictions, label_map, correction, max_distance)
    scored_labels = [label for ref, label in zip(references, corrected, strict=True) if ref is not None]
    compare = _label_set_scores if label_map.separator else _label_scores
    label_metrics, tables = compare(scored_references, scored_predictions, scored_labels, label_map)
    found = {**text_metrics, **label_metrics}
    return Scores(
        metrics={name: found[name] for name in wanted if name in found},
        labels=label_map.texts,
        correction=correction,
        max_distance=max_distance,
        **_correction_counts(predictions, corrected, label_map),
        **tables,
        **common,
    )


def correct(
    predictions: Sequence[str], label_map: LabelMap, correction: str = "nearest", max_distance: int | None = None
) -> list[str | None]:
    """Label text of every prediction (None: no label), by correction `nearest` or `none`; see `score`."""
    if correction not in CORRECTIONS:
        raise ValueError(f"correction {correction!r} is unknown; known: {', '.join(CORRECTIONS)}")
    if correction == "nearest":
        return label_map.correct(predictions, max_distance)
    valid = {text for text in set(predictions) if label_map.labels_of(text)}
    return [text if text in valid else None for text in predictions]


def exact_match(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Share of predictions equal to their reference, 0 to 1 (at least one row)."""
    return sum(map(str.__eq__, references, predictions)) / len(references)


def corpus_bleu(references: Sequence[str], predictions: Sequence[str]) -> tuple[float, str]:
    """BLEU of the whole corpus in points (sacrebleu, Post 2018) and its signature.

    Tokenizer `13a`, the standard one; `char` when most letters of the references are Hangul, kana or Han, because 13a
    only splits at blanks and punctuation, and Korean particles and endings cling to their words (`ko-mecab` needs a
    dictionary that is not installed). Figures from different tokenizers cannot be compared: quote the signature.
    """
    from sacrebleu.metrics.bleu import BLEU

    # force: no warning on standard error about lines that end in a detached period
    metric = BLEU(tokenize="char" if _mostly_cjk(references) else "13a", force=True)
    result = metric.corpus_score(predictions, [references])
    return float(result.score), str(metric.get_signature())


def corpus_chrf(references: Sequence[str], predictions: Sequence[str]) -> tuple[float, str]:
    """chrF2 of the whole corpus in points (character 6-grams; sacrebleu, Popović 2015) and its signature."""
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    result = metric.corpus_score(predictions, [references])
    return float(result.score), str(metric.get_signature())


class WordTokenizer:
    r"""Words for ROUGE: runs of letters and digits (`\w+`) of the lower-case NFC text, in any script, no stemming.

    The tokenizer that comes with `rouge_score` keeps a-z and 0-9 only, which drops every Hangul word.
    """

    def tokenize(self, text: str) -> list[str]:
        """The words of `text`; empty when it has none."""
        return re.findall(r"\w+", unicodedata.normalize("NFC", text).lower())


def mean_rouge(
    references: Sequence[str], predictions: Sequence[str], names: Sequence[str] = ("rouge1", "rouge2", "rougeL")
) -> dict[str, float]:
    """Mean over the rows of the ROUGE F-measure, 0 to 1 (rouge_score, Lin 2004; words as in `WordTokenizer`).

    A row without a word (for `rouge2`: without two) on one side counts 0, as in `rouge_score`.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(names), tokenizer=WordTokenizer())
    totals = dict.fromkeys(names, 0.0)
    for (reference, prediction), count in Counter(zip(references, predictions, strict=True)).items():
        for name, result in scorer.score(reference, prediction).items():
            totals[name] += count * float(result.fmeasure)
    return {name: total / len(references) for name, total in totals.items()}


def _text_metrics(
    references: Sequence[str], predictions: Sequence[str], wanted: Sequence[str]
) -> tuple[dict[str, float], dict[str, str]]:
    """The text metrics among `wanted`, and how each was computed; nothing without a row."""
    metrics: dict[str, float] = {}
    details: dict[str, str] = {}
    if not references:
        return metrics, details
    if "exact_match" in wanted:
        metrics["exact_match"] = exact_match(references, predictions)
    if "chrf" in wanted:
        metrics["chrf"], details["chrf"] = corpus_chrf(references, predictions)
    if "bleu" in wanted:
        metrics["bleu"], details["bleu"] = corpus_bleu(references, predictions)
    rouge = [name for name in wanted if name.startswith("rouge")]
    if rouge:
        metrics.update(mean_rouge(references, predictions, rouge))
        details["rouge"] = r"F-measure, mean of rows; words: NFC, lower case, \w+ (keeps Hangul), no stemming"
    return {name: metrics[name] for name in wanted if name in metrics}, details


def _label_scores(
    references: Sequence[str], predictions: Sequence[str], corrected: Sequence[str | None], label_map: LabelMap
) -> tuple[dict[str, float], dict[str, Any]]:
    """Label metrics, and the fields `per_class`, `averages`, `confusion_matrix` of `Scores`; nothing without a row."""
    if not references:
        return {}, {}
    import numpy as np
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    labels = label_map.texts
    number: dict[str | None, int] = {label: index for index, label in enumerate(labels)}
    invalid = len(labels)
    strangers = set(references) - set(labels)
    if strangers:
        raise ValueError(f"reference {min(strangers)!r} is no label text; known: {', '.join(labels)}")
    true = np.fromiter((number[label] for label in references), dtype=np.int64, count=len(references))
    guess = np.fromiter((number.get(label, invalid) for label in corrected), dtype=np.int64, count=len(corrected))
    classes = np.arange(len(labels))
    columns = precision_recall_fscore_support(true, guess, labels=classes, zero_division=0)
    occurring = np.union1d(true, guess[guess < invalid])
    per_class = [
        _class_row(labels[index], [column[index] if index in occurring else None for column in columns[:3]], support)
        for index, support in enumerate(columns[3])
    ]
    averages = {
        average: precision_recall_fscore_support(true, guess, labels=occurring, average=average, zero_division=0)
        for average in ("macro", "micro")
    }
    matrix = confusion_matrix(true, guess, labels=np.arange(invalid + 1))[:invalid]
    metrics = {
        "accuracy": exact_match(references, predictions),
        "accuracy_corrected": float(np.mean(true == guess)),
        "macro_f1": float(averages["macro"][2]),
        "micro_f1": float(averages["micro"][2]),
    }
    return metrics, {
        "per_class": per_class,
        "averages": [_class_row(name, row[:3], len(references)) for name, row in averages.items()],
        "confusion_matrix": {"labels": list(labels), "columns": [*labels, INVALID], "rows": matrix.tolist()},
    }


def _label_set_scores(
    references: Sequence[str], predictions: Sequence[str], corrected: Sequence[str | None], label_map: LabelMap
) -> tuple[dict[str, float], dict[str, Any]]:
    """`_label_scores` where a text may name several labels: every pair of row and label is a decision."""
    if not references:
        return {}, {}
    import numpy as np
    from sklearn.metrics import precision_recall_fscore_support

    labels = label_map.texts
    strangers = {text for text in set(references) if not label_map.labels_of(text)}
    if strangers:
        raise ValueError(f"reference {min(strangers)!r} is no text of labels; known: {', '.join(labels)}")
    number = {label: index for index, label in enumerate(labels)}

    def decisions(texts: Sequence[str | None]) -> np.ndarray[Any, Any]:
        """(rows, labels), 1 where the text names the label."""
        table = np.zeros((len(texts), len(labels)), dtype=np.int8)
        for row, text in enumerate(texts):
            table[row, [number[label] for label in label_map.labels_of(text or "") or ()]] = 1
        return table

    true, guess = decisions(references), decisions(corrected)
    columns = precision_recall_fscore_support(true, guess, average=None, zero_division=0)
    occurring = np.flatnonzero((true | guess).any(axis=0))
    averages = {
        average: precision_recall_fscore_support(true, guess, labels=occurring, average=average, zero_division=0)
        for average in ("macro", "micro")
    }
    metrics = {
        "accuracy": exact_match(references, predictions),
        "accuracy_corrected": float((true == guess).all(axis=1).mean()),
        "macro_f1": float(averages["macro"][2]),
        "micro_f1": float(averages["micro"][2]),
    }
    return metrics, {
        "per_class": [
            _class_row(
                labels[index], [column[index] if index in occurring else None for column in columns[:3]], support
            )
            for index, support in enumerate(columns[3])
        ],
        "averages": [_class_row(name, row[:3], int(true.sum())) for name, row in averages.items()],
    }


def _class_row(label: str, numbers: Sequence[Any], support: Any) -> dict[str, Any]:
    """A line of the per-class table; None where the label neither occurs nor is predicted."""
    values = [None if value is None else float(value) for value in numbers]
    return dict(zip(("label", "precision", "recall", "f1", "support"), (label, *values, int(support)), strict=True))


def _correction_counts(
    predictions: Sequence[str], corrected: Sequence[str | None], label_map: LabelMap
) -> dict[str, Any]:
    """The fields `invalid_outputs`, `corrections` and `corrected_counts` of `Scores`."""
    pairs = Counter(zip(predictions, corrected, strict=True))
    changed = Counter({pair: count for pair, count in pairs.items() if not label_map.labels_of(pair[0])})
    counts: Counter[str | None] = Counter()
    for (_, text), count in pairs.items():
        counts.update(dict.fromkeys((None,) if text is None else label_map.labels_of(text) or (), count))
    corrected_counts: dict[str | None, int] = {label: counts[label] for label in label_map.texts}
    if counts[None]:
        corrected_counts[None] = counts[None]
    return {
        "invalid_outputs": sum(changed.values()),
        "corrections": [
            {"output": output, "label": label, "count": count} for (output, label), count in changed.most_common()
        ],
        "corrected_counts": corrected_counts,
    }


def _mostly_cjk(texts: Sequence[str]) -> bool:
    """Whether Hangul, kana and Han make up more than half of the letters."""
    letters = cjk = 0
    for text in texts:
        letters += sum(map(str.isalpha, text))
        cjk += len(_CJK.findall(text))
    return 2 * cjk > letters


_CJK = re.compile("[\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff]")
