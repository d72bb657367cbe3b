"""The token sequences of several labels joined by a separator, as a graph that a search walks like a label trie.

A text is labels of the map, each once, in declared order. So what may follow depends on the latest label only: one of
those declared after it, either as the last (then the end token) or with the separator behind it (then the next one).
No beam has to remember what it has written.

The tokens are those of the whole joined text, as training encodes it. A label has up to four forms: alone, at the
beginning with a separator behind it, in the middle, and last. They are found by encoding pairs and triples of labels.
That all texts are made of these forms is checked on every pair, on some triples and on the longest text; were there one
that is not, its forms would still be read as this text, only the model would have learned other tokens for it.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from generation.constraints import ROOT, Branches, LabelTrie, TokenGraph

PROBES = ("0", "가", "Z")  # texts that do not begin alike, so that nothing of a follower is taken for the separator's
MOST_BRANCHES = 2**20  # of the graph while it is made: some 200 MB
TRIPLES_CHECKED = 300

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Forms:
    """Token sequences of the labels, by number, wherever they may stand."""

    alone: list[list[int]]
    first: list[list[int]]  # with the separator behind
    middle: list[list[int]]
    last: list[list[int]]

    def of(self, begins: bool, goes_on: bool) -> list[list[int]]:
        """The form of labels at the beginning or later, with others behind them or not."""
        if goes_on:
            return self.first if begins else self.middle
        return self.alone if begins else self.last


@dataclass(frozen=True)
class Place:
    """Somewhere in a form of a label: `written` tokens of it are there already."""

    label: int
    begins: bool
    goes_on: bool
    written: int = 0


class JoinedLabels:
    """What may follow what in label texts joined by `separator`, and which text a sequence of tokens is.

    What has been written may be the beginning of several texts, so that a node stands for all the places where it may
    have led (the subset construction of automata).

    Args:
        encode: gives the tokens of a target text without the end token and without a fixed first token.
        texts: two labels or more, in declared order.

    Attributes:
        graph: what may follow each node.

    Raises:
        ValueError: labels whose tokens depend on their neighbours; different texts of the same tokens; too many labels.
    """

    def __init__(self, encode: Encode, texts: Sequence[str], separator: str, end_token: int) -> None:
        self.texts = texts
        self.separator = separator
        forms = label_forms(encode, texts, separator)
        LabelTrie(texts, forms.alone, end_token)  # refuses labels that one alone cannot be told by
        self.graph = _graph(forms, texts, end_token)
        labels = range(len(texts))
        # What ends a text, and what goes on: tokens -> label, at the beginning of a text (True) and later (False). The
        # last declared label never goes on, and the first declared one stands at the beginning only.
        self._ending = {
            True: {tuple(forms.alone[label]): label for label in labels},
            False: {tuple(forms.last[label]): label for label in labels[1:]},
        }
        self._going_on = {
            True: {tuple(forms.first[label]): label for label in labels[:-1]},
            False: {tuple(forms.middle[label]): label for label in labels[1:-1]},
        }
        self._lengths = {begins: sorted({len(form) for form in known}) for begins, known in self._going_on.items()}

    def text(self, tokens: Sequence[int]) -> str:
        """The joined label texts of these tokens (without the end token); `KeyError` for others.

        There is only one such text: two of the same tokens were refused.
        """
        whole = tuple(tokens)
        waiting: list[tuple[int, tuple[int, ...]]] = [(0, ())]  # tokens read, and the labels that they are
        while waiting:
            begin, labels = waiting.pop()
            latest, rest = labels[-1] if labels else -1, whole[begin:]
            ending = self._ending[not labels].get(rest, -1)
            if ending > latest:
                return self.separator.join(self.texts[label] for label in (*labels, ending))
            for length in self._lengths[not labels]:
                label = self._going_on[not labels].get(rest[:length], -1)
                if label > latest:
                    waiting.append((begin + length, (*labels, label)))
        raise KeyError(whole)


def _graph(forms: Forms, texts: Sequence[str], end_token: int) -> TokenGraph:
    count = len(texts)
    start = frozenset(_openings(-1, count))
    nodes = {start: ROOT}
    children: list[Branches] = []
    ends: list[int] = []
    waiting, made = [start], 0
    for places in waiting:  # which grows meanwhile
        branches: Branches = {}
        ended = [place for place in places if not place.goes_on and not _next_tokens(forms, place)]
        if ended:
            _check_one(ended, texts)
            ends.append(nodes[places])
        for token, reached in _steps(forms, places, texts).items():
            if reached not in nodes:
                nodes[reached] = len(nodes)
                waiting.append(reached)
            branches[token] = nodes[reached]
        children.append(branches)
        made += len(branches)
        if made > MOST_BRANCHES:
            raise ValueError(
                f"{count} labels are too many, or too long, to be joined: more than {MOST_BRANCHES:,} tokens may follow"
                " here or there"
            )
    return TokenGraph(children, ends, end_token, _longest(forms))


def _openings(latest: int, count: int) -> list[Place]:
    """Where a text may go on behind the separator of label `latest`, or begin (-1)."""
    labels = range(latest + 1, count)
    return [Place(label, latest < 0, goes_on) for label in labels for goes_on in (False, True)[: count - label]]


def _next_tokens(forms: Forms, place: Place) -> list[int]:
    """The token that follows; none at the end of a form."""
    return forms.of(place.begins, place.goes_on)[place.label][place.written :][:1]


def _steps(forms: Forms, places: Collection[Place], texts: Sequence[str]) -> dict[int, frozenset[Place]]:
    """Every token that may follow, with the places that it leads to."""
    reached: dict[int, set[Place]] = {}
    behind: dict[int, list[Place]] = {}  # labels whose separator is complete with a token
    for place in places:
        for token in _next_tokens(forms, place):
            step = replace(place, written=place.written + 1)
            if step.goes_on and not _next_tokens(forms, step):
                behind.setdefault(token, []).append(step)
                reached.setdefault(token, set()).update(_openings(step.label, len(texts)))
            else:
                reached.setdefault(token, set()).add(step)
    for complete in behind.values():
        _check_one(complete, texts)
    return {token: frozenset(found) for token, found in reached.items()}


def _check_one(complete: Sequence[Place], texts: Sequence[str]) -> None:
    """Refuse places that were reached by the same tokens and at which labels end: they are different texts.

    Two texts of the same tokens have such places: at their ends, or where the last labels that differ end.
    """
    if len(complete) > 1:
        names = " and ".join(sorted({repr(texts[place.label]) for place in complete}))
        raise ValueError(
            f"the tokenizer writes different joined texts with the same tokens, as far as {names}, and the model cannot"
            " tell them apart; change these labels in the label map, or the separator"
        )


def _longest(forms: Forms) -> int:
    """Tokens of the longest text, the end token included."""
    count = len(forms.alone)
    to_come: dict[int, int] = {}  # behind the separator of a label, or at the beginning (-1)
    for latest in range(count - 2, -2, -1):
        going_on, last = (forms.first, forms.alone) if latest < 0 else (forms.middle, forms.last)
        ending = [len(last[label]) + 1 for label in range(latest + 1, count)]
        to_come[latest] = max(
            ending + [len(going_on[label]) + to_come[label] for label in range(latest + 1, count - 1)]
        )
    return to_come[-1]


def label_forms(encode: Encode, texts: Sequence[str], separator: str) -> Forms:
    """The forms of every label; those that cannot occur (the last declared one at the beginning) are like the others.

    Raises:
        ValueError: a text among those of `_checked` that is not made of these forms.
    """
    count = len(texts)
    joined = separator.join
    followers = (*PROBES, *texts)  # the same behind every label, so that all forms end at the same place
    first = [_common([encode(joined((text, other))) for other in followers]) for text in texts]
    middle, last = [], []
    for label, text in enumerate(texts):
        leader = 1 if label == 0 else 0
        begin = len(first[leader])
        whole = [encode(joined((texts[leader], text, other))) for other in followers]
        middle.append(_common(whole)[begin:])
        last.append(encode(joined((texts[leader], text)))[begin:])
    forms = Forms([encode(text) for text in texts], first, middle, last)
    for labels in _checked(count):
        made = first[labels[0]] + [token for label in labels[1:-1] for token in middle[label]] + last[labels[-1]]
        text = joined(texts[label] for label in labels)
        if encode(text) != made:
            raise ValueError(
                f"the tokens of {text!r} are not those of its labels one after the other; choose another separator,"
                " for example ', '"
            )
    return forms


def _checked(count: int) -> list[tuple[int, ...]]:
    """The label numbers of all pairs, of all triples or `TRIPLES_CHECKED` drawn from them, and of the longest text."""
    labels = range(count)
    triples: set[tuple[int, ...]] = set()
    if math.comb(count, 3) <= TRIPLES_CHECKED:
        triples.update(itertools.combinations(labels, 3))
    draw = random.Random(0)
    while len(triples) < min(TRIPLES_CHECKED, math.comb(count, 3)):
        triples.add(tuple(sorted(draw.sample(labels, 3))))
    return [*itertools.combinations(labels, 2), *sorted(triples), tuple(labels)]


def _common(sequences: list[list[int]]) -> list[int]:
    """The longest beginning that all share."""
    shortest, longest = min(sequences), max(sequences)
    length = next(
        (place for place, token in enumerate(shortest) if place >= len(longest) or token != longest[place]),
        len(shortest),
    )
    return shortest[:length]
