"""Label maps: the texts that a classifier may write, one for a row or several joined by a separator. No torch."""

from __future__ import annotations

import dataclasses
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from postprocessors.base import Postprocessor
from utils.errors import UserError, errors_at, raise_if_any, shortened
from utils.escapes import NO_UNICODE, is_unicode
from utils.mapping_files import FILE_SUFFIXES, read_mapping_file

MOST_CODE_POINTS = 20  # that a message shows
_NO_WIDTH = str.maketrans("", "", "\u00ad\u200b\u200c\u200d\u2060\ufeff")


def _looks(text: str) -> str:
    """The same for texts that look the same: composed or not (NFC, NFD), with characters of no width or without."""
    return unicodedata.normalize("NFC", text.translate(_NO_WIDTH))


def code_points(text: str) -> str:
    """`U+AC00 U+0041`: what a text is made of."""
    return " ".join(f"U+{ord(character):04X}" for character in text[:MOST_CODE_POINTS])


def _look_alikes(kind: str, values: Iterable[str]) -> Iterator[str]:
    """A problem for each value that looks like one before it."""
    seen: dict[str, str] = {}
    for value in values:
        other = seen.setdefault(_looks(value), value)
        if other != value:
            shown = [f"{text!r} ({code_points(text)})" for text in (other, value)]
            yield f"label map: {kind}s {shown[0]} and {shown[1]} look the same"


@dataclass(frozen=True)
class LabelMap:
    """Ordered bijection between label ids (values of the data) and label texts (what the model writes).

    With a `separator` a row may have several labels: its text is their texts joined by the separator, each once and in
    declared order. In the data, and in outputs to be corrected, blanks around separators and the order do not count.

    Raises `UserError` when there is no entry, when an id or a text is empty, occurs twice or is not Unicode, or when a
    separator could be taken for a part of a label: one with a letter or digit, or one that an id or a text holds.
    """

    entries: tuple[tuple[str, str], ...]
    separator: str = ""

    name = "label"
    kind = "labels"
    correction = "nearest label by edit distance"

    def __post_init__(self) -> None:
        problems = [] if self.entries else ["label map: no entry; write it as 0=부정,1=긍정"]
        for kind, values in (("id", self.ids), ("text", self.texts)):
            problems += [f"label map: empty {kind} in entry {n}" for n, v in enumerate(values, 1) if not v.strip()]
            problems += [f"label map: {kind} {v!r} {NO_UNICODE}" for v in values if not is_unicode(v)]
            counts = Counter(value.strip() for value in values if value.strip())
            problems += [f"label map: {kind} {v!r} occurs more than once" for v, count in counts.items() if count > 1]
            problems += _look_alikes(kind, counts)
            if self.separator:
                problems += [
                    f"label map: {kind} {value!r} holds the label separator {self.separator!r}, or ends like it; choose"
                    " another"
                    for value in values
                    if len(self.parts(value)) > 1 or self._runs_into_separator(value)
                ]
        if not is_unicode(self.separator):
            problems.append(f"label separator {self.separator!r} {NO_UNICODE}")
        if any(character.isalnum() for character in self.separator):
            problems.append(
                f"label separator {self.separator!r}: letters and digits could belong to a label; use marks and blanks,"
                " for example ', '"
            )
        raise_if_any(problems)

    @classmethod
    def parse(cls, value: str) -> LabelMap:
        """Read the value of `-label_map`: `0=부정,1=긍정`, or a .json/.yaml/.yml file.

        The file holds a mapping from id to text, or a list of texts (their ids are then 0, 1, ...).
        """
        if value.endswith(FILE_SUFFIXES) and ("=" not in value or os.path.exists(value)):
            return cls._of(read_mapping_file("-label_map", value), f"-label_map {value}")
        pairs = []
        for number, item in enumerate(value.split(","), 1):
            label_id, equals, text = item.partition("=")
            if not equals:
                raise UserError(
                    f"-label_map {value!r}: entry {number} ({item.strip()!r}) is not ID=TEXT; write 0=부정,1=긍정, "
                    "or name a .json or .yaml file (needed for texts that hold a comma)"
                )
            pairs.append((label_id.strip(), text.strip()))
        with errors_at(f"-label_map {value!r}"):
            return cls(tuple(pairs))

    @classmethod
    def _of(cls, content: object, place: str) -> LabelMap:
        """Build a label map from a mapping id -> text or a list of texts; `place` opens the error messages."""
        if isinstance(content, dict):
            pairs = list(content.items())
        elif isinstance(content, list | tuple):
            pairs = [(str(number), text) for number, text in enumerate(content)]
        else:
            raise UserError(f"{place}: expected a mapping from id to text, or a list of texts, not {content!r}")
        for label_id, text in pairs:
            if isinstance(text, bool) or not isinstance(text, str | int | float):
                raise UserError(f"{place}: the text of label {str(label_id)!r} must be plain text, not {text!r}")
        with errors_at(place):
            return cls(tuple((str(key).strip(), str(text).strip()) for key, text in pairs))

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Label ids in declared order."""
        return tuple(label_id for label_id, _ in self.entries)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Label texts in declared order."""
        return tuple(text for _, text in self.entries)

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts; none where a row may have several, as there are too many combinations."""
        return () if self.separator else self.texts

    @property
    def longest_texts(self) -> Sequence[str]:
        """The texts that a row may have, of joined ones the longest alone."""
        return [self.separator.join(self.texts)] if self.separator else self.texts

    @cached_property
    def _by_text(self) -> dict[str, str]:
        return {text: label_id for label_id, text in self.entries}

    @cached_property
    def _by_value(self) -> dict[str, str]:
        return {**{text.strip(): text for text in self.texts}, **{key.strip(): text for key, text in self.entries}}

    def look_alike(self, value: str) -> str:
        """What tells `value` from an id or text that looks the same, for a message; empty when none does."""
        looks = _looks(value.strip())
        known = next((known for known in (*self.texts, *self.ids) if _looks(known.strip()) == looks), None)
        return (
            "" if known is None else f" (it only looks like {known!r}: {code_points(value)}, not {code_points(known)})"
        )

    def joined_by(self, separator: str) -> LabelMap:
        """The same labels, any number of them in a row; "" is one label a row."""
        return dataclasses.replace(self, separator=separator)

    def lookup(self, value: str) -> str | None:
        """Text of a data value: of an id, else of a text, or of several of them; None if unknown or one occurs twice.

        Blanks around ids and texts are ignored.
        """
        if not self.separator:
            return self._by_value.get(value.strip())
        labels = [self._by_value.get(part) for part in self.parts(value)]
        return self.join(labels) if len(set(labels)) == len(labels) else None

    def value(self, text: str) -> tuple[str, ...] | None:
        """The labels that a text names, in declared order; None when it is not exactly as the model should write it."""
        if not self.separator:
            return (text,) if text in self._by_text else None
        labels = tuple(text.split(self.separator))
        return labels if self.join(labels) == text else None

    def join(self, labels: Sequence[str | None]) -> str | None:
        """The text of these label texts, whatever their order; None when one of them is no label."""
        if not set(labels) <= self._by_text.keys():
            return None
        return self.separator.join(text for text in self.texts if text in labels)

    def nearest(self, text: str, max_distance: int | None = None) -> str | None:
        """Label text with the smallest edit distance (characters) to `text`; ties go to the first declared.

        None when no label lies within `max_distance`; no limit when that is None. With a separator this is done part by
        part, empty ones left out, and the text is that of all labels found; None when a part has none.
        """
        if not self.separator:
            return self._nearest_label(text, max_distance)
        parts = [part for part in self.parts(text) if part] or [""]
        return self.join([self._nearest_label(part, max_distance) for part in parts])

    def _nearest_label(self, text: str, max_distance: int | None) -> str | None:
        if text in self._by_text:
            return text
        import editdistance

        distance, best = min(
            ((int(editdistance.eval(text, label)), label) for label in self.texts), key=lambda pair: pair[0]
        )
        return best if max_distance is None or distance <= max_distance else None

    def parts(self, text: str) -> list[str]:
        """`text` cut at the separator, without blanks around; a separator of blanks is any run of blanks."""
        mark = self.separator.strip()
        return [part.strip() for part in text.split(mark)] if mark else text.split() or [""]

    def _runs_into_separator(self, value: str) -> bool:
        """Whether the end of `value` makes a separator with the beginning of the one behind it: `a-` before `--`."""
        marks = filter(None, (self.separator, self.separator.strip()))
        return any((value + mark).split(mark) != [value, ""] for mark in marks)

    def correct(self, predictions: Sequence[str], max_distance: int | None = None) -> list[str | None]:
        """`nearest` of every prediction, worked out once per unique string."""
        known = {text: self.nearest(text, max_distance) for text in set(predictions)}
        return [known[text] for text in predictions]

    def reference_problem(self, reference: str) -> str:
        """It must be as the model should write it."""
        return "reference is no label text" if self.value(reference) is None else ""

    def describe(self) -> str:
        """`0=부정, 1=긍정`: the map as shown in messages, of many labels the first."""
        shown = shortened([f"{label_id}={text}" for label_id, text in self.entries])
        return f"{shown}; a row may have several, joined by {self.separator!r}" if self.separator else shown

    def to_dict(self) -> dict[str, str]:
        """Primitives for checkpoints and JSON: id -> text, in declared order; the separator is kept apart."""
        return dict(self.entries)

    @classmethod
    def from_dict(cls, state: Mapping[str, str]) -> LabelMap:
        """Inverse of `to_dict`."""
        return cls(tuple((str(key), str(text)) for key, text in state.items()))


def allowed_labels(postprocessor: Postprocessor) -> LabelMap | None:
    """What constrained decoding keeps outputs to, as labels; None where any text may come."""
    if isinstance(postprocessor, LabelMap):
        return postprocessor
    return LabelMap(tuple((text, text) for text in postprocessor.choices)) if postprocessor.choices else None
