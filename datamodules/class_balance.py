"""The labels of the rows of a split: counted, weighted, and a few rows chosen with as many of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from datamodules.encoding.store import EncodedSplit
from postprocessors.base import Postprocessor
from postprocessors.labels import LabelMap
from utils.errors import UserError, closest, errors_at, raise_if_any, shortened
from utils.mapping_files import FILE_SUFFIXES, read_mapping_file

BALANCED = "balanced"
HEAVIEST = 1e6  # a weight; beyond it the sums of a step lose digits
CHOICE_SEED = 20261128  # of -train_rows; not -seed, so that runs with other seeds train on the same rows


@dataclass(frozen=True)
class LabelledRows:
    """Which label of the map each row of a split has: `codes` are positions in `label_map.texts`."""

    label_map: LabelMap
    codes: np.ndarray

    @classmethod
    def of(cls, split: EncodedSplit, postprocessor: Postprocessor) -> LabelledRows | None:
        """Those of a split whose rows have one label each; None for other kinds of output."""
        if not isinstance(postprocessor, LabelMap) or postprocessor.separator:
            return None
        return cls(postprocessor, split.reference_codes(postprocessor.texts))

    @property
    def counts(self) -> dict[str, int]:
        """How many rows have each label, in the order of the map."""
        counted = np.bincount(self.codes[self.codes >= 0], minlength=len(self.label_map.texts))
        return dict(zip(self.label_map.texts, counted.tolist(), strict=True))


def label_lines(use: str, rows: LabelledRows | None) -> Iterator[str]:
    """What to tell about the labels of the `training` or `validation` rows: how many of each, and which are missing."""
    if rows is None:
        return
    yield f"labels of the {use} rows: {shortened([f'{text} {count:,}' for text, count in rows.counts.items()])}"
    missing = [text for text, count in rows.counts.items() if not count]
    if missing:
        reason = "the model never learns to write it" if use == "training" else "no score covers it"
        yield f"WARNING: no {use} row has the label {shortened(missing)}: {reason}"


def chosen_rows(count: int, wanted: int, labels: LabelledRows | None, balance: bool) -> np.ndarray:
    """`wanted` of `count` training rows in their order, the same for every seed; all rows where that is 0.

    Args:
        balance: as many rows of each label; of what does not divide evenly the first labels have one more.

    Raises:
        UserError: more rows are wanted than there are, of all or of a label; labels that are not one a row.
    """
    if not wanted:
        return np.arange(count)
    if wanted > count:
        raise UserError(f"-train_rows {wanted}: there are {count:,} training rows; give at most that, or leave it out")
    order = np.argsort(np.random.PCG64(CHOICE_SEED).random_raw(count), kind="stable")
    if not balance:
        return np.sort(order[:wanted])
    if labels is None:
        raise UserError("-balance_labels: needs a task with one label a row (-label_map, or a -task with labels)")
    share, more = divmod(wanted, len(labels.counts))
    sizes = [share + (position < more) for position in range(len(labels.counts))]
    raise_if_any(
        f"-train_rows {wanted} -balance_labels: takes {size:,} rows of each label, and {label!r} has {there:,}"
        for (label, there), size in zip(labels.counts.items(), sizes, strict=True)
        if there < size
    )
    codes = labels.codes[order]
    return np.sort(np.concatenate([order[codes == code][:size] for code, size in enumerate(sizes)]))


def check_weighted_tasks(flag: str, names: Sequence[str]) -> None:
    """Refuse a file of -class_weights that names another task than those of the run; other values are fine."""
    if flag in ("", BALANCED):
        return
    raise_if_any(
        f"-class_weights {flag}: {task!r} is no task of this run{closest(str(task), names)}; known: {', '.join(names)}"
        for task in _file_content(flag)
        if task not in names
    )


def class_weights(flag: str, labels: LabelledRows | None, task: str = "") -> dict[str, float]:
    """The weight of each label by its text, of the value of -class_weights; empty where that is.

    Of several tasks, `task` is the name of this one: a file then holds weights by task. One that it does not name, or
    that has no labels to balance, has none.

    `balanced` is rows / (labels that occur * rows of the label), as scikit-learn has it: the mean weight of a row is 1.

    Raises:
        UserError: a file that cannot be read or names another label, a weight that is no number or beyond
            `HEAVIEST`, a label without a weight; labels that are not one a row.
    """
    content = {} if flag in ("", BALANCED) else _file_content(flag)
    if not flag or (task and (labels is None if flag == BALANCED else task not in content)):
        return {}
    if labels is None:
        raise UserError("-class_weights: needs a task with one label a row (-label_map, or a -task with labels)")
    if flag == BALANCED:
        counts = {text: count for text, count in labels.counts.items() if count}
        total = sum(counts.values())
        return {text: total / (len(counts) * count) for text, count in counts.items()}
    weights = content[task] if task else content
    if not isinstance(weights, dict):
        raise UserError(f"-class_weights {flag}: {task}: expected a mapping from label to weight")
    with errors_at(f"-class_weights {flag}"):
        return _weights_of(weights, labels.label_map)


def _file_content(path: str) -> dict[str, object]:
    """Weights by label, or those by task."""
    if not path.endswith(FILE_SUFFIXES):
        raise UserError(f"-class_weights {path}: give balanced, or a .yaml or .json file of label: weight")
    content = read_mapping_file("-class_weights", path)
    if not isinstance(content, dict):
        raise UserError(f"-class_weights {path}: expected a mapping from label to weight")
    return content


def _weights_of(content: Mapping[object, object], label_map: LabelMap) -> dict[str, float]:
    problems, weights = [], {}
    for name, value in content.items():
        text = label_map.lookup(str(name))
        try:
            weight = float(str(value))
        except ValueError:
            weight = float("nan")
        if text is None:
            problems.append(f"{name!r} is no label; known: {label_map.describe()}")
        elif not 1 / HEAVIEST <= weight <= HEAVIEST:
            problems.append(
                f"the weight of {name!r} must be a number from {1 / HEAVIEST:g} to {HEAVIEST:g}, not {value!r}"
            )
        else:
            weights[text] = weight
    missing = [text for text in label_map.texts if text not in weights]
    if missing and not problems:
        problems.append(f"no weight for {shortened(missing)}")
    raise_if_any(problems)
    return weights


def row_weights(labels: LabelledRows, weights: Mapping[str, float]) -> np.ndarray:
    """The weight of every row; 1 for one without a label."""
    of_labels = np.array([*(weights.get(text, 1.0) for text in labels.label_map.texts), 1.0])
    return np.asarray(of_labels[labels.codes])
