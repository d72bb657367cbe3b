"""Answers that stand in the passage: which tokens may follow, so that a search writes nothing but a part of it.

What a row's source holds of the passage is found between the words of the template before and after it, in the bytes of
the source's own tokens: as the model reads it, cut where the source is. A node is the places in it to which what has
been written may lead. Branches are found where the search comes by.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import decoders
from torch import Tensor
from transformers import ByT5Tokenizer

from config.templates import Template, Variable
from postprocessors.answers import Answers
from task_utils import Task
from utils.errors import UserError

UNKNOWN = b"\xff"  # what a special token is in a text: no byte of UTF-8
LONGEST_TOKEN = 64  # bytes that a token at the beginning of a span may have
_PREFIX = 3  # bytes by which the lengths of tokens are known

# Row, places in its passage, tokens written of the text for no answer (BEGUN: of another; OPENED: a blank is written).
Node = tuple[int, tuple[int, ...], int]
BEGUN, OPENED = -1, -2


@dataclass(frozen=True)
class PassageRule:
    """Where the passage of a source is, by the words `before` and `after` it; `unanswerable` as in `Answers`."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    unanswerable: str

    @classmethod
    def of(cls, task: Task) -> PassageRule:
        """That of a task whose outputs are answers.

        Raises:
            UserError: it names no passage, or its templates do not show where it is or what an answer looks like.
        """
        place, output = "-label_decoding constrained", task.output
        assert isinstance(output, Answers)
        target = Template(task.target_template, "-target_template")
        if output.two_lines or target.variables != {"target"} or target.render({"target": "a b"}) != "a b":
            raise UserError(f"{place}: the target must be the answer alone, not {task.target_template!r}")
        template = Template(task.input_template, "-input_template")
        parts = template.parts or ()
        found = [part for part in parts if isinstance(part, Variable) and part.name in task.passage_variables]
        if len(found) != 1:
            named = f"{{{{ {task.passage} }}}}" if task.passage else "no passage (key `passage` of a task file)"
            raise UserError(f"{place}: {template.name} must hold the passage once and as it is; here it is {named}")
        at = parts.index(found[0])
        before, after = (
            [tuple(part.split()) if isinstance(part, str) else () for part in side]
            for side in (parts[:at], parts[at + 1 :])
        )
        if (before and not before[-1]) or (len(after) > 1 and not after[0]):
            raise UserError(f"{place}: {template.name} needs a word between the passage and other columns")
        return cls(before[-1] if before else (), after[0] if after else (), output.unanswerable)

    def passage(self, source: bytes) -> bytes:
        """The passage in the text of a source: behind the last words before it, up to the first ones behind it."""
        start = max((found.end() for found in _words(self.before).finditer(source)), default=-1)
        if start < 0:
            return b""
        behind = _words(self.after).search(source, start) if self.after else None
        return source[start : behind.start() if behind else len(source)].rstrip()


def _words(words: Sequence[str]) -> re.Pattern[bytes]:
    return re.compile(rb"\s+".join(re.escape(word.encode()) for word in words) if words else rb"\A")


class PassageSpans:
    """The bytes of a tokenizer's tokens, and the graph of the spans of a batch.

    Args:
        encode: gives the tokens of a target text without special tokens.
    """

    def __init__(self, tokenizer: Any, rule: PassageRule, encode: Callable[[str], list[int]]) -> None:
        self.rule, self.end = rule, int(tokenizer.eos_token_id)
        self.none = encode(rule.unanswerable) if rule.unanswerable else []
        self.texts = token_bytes(tokenizer)
        self.tokens: dict[bytes, list[int]] = {}
        self.lengths: dict[bytes, set[int]] = {}
        for token, text in enumerate(self.texts):
            if UNKNOWN not in text and text:
                self.tokens.setdefault(text, []).append(token)
                self.lengths.setdefault(text[:_PREFIX], set()).add(len(text))
        first = self.texts[encode("a")[0]]
        self.opening = b" " if first.startswith(b" ") else b""  # what targets begin with

    def graph(self, sources: Sequence[Sequence[int]], device: torch.device) -> SpanGraph:
        """What may follow, for rows of source tokens."""
        texts = [self.rule.passage(b"".join(self.texts[token] for token in source)) for source in sources]
        return SpanGraph(self, texts, device)

    def pieces(self, text: bytes, place: int) -> list[tuple[int, int]]:
        """The tokens that the text goes on with at a place, and where each ends."""
        found = []
        for size in range(1, _PREFIX + 1):
            for length in self.lengths.get(text[place : place + size], ()) if place + size <= len(text) else ():
                end = place + length
                if end <= len(text):
                    found += [(token, end) for token in self.tokens.get(text[place:end], ())]
        return found


class SpanGraph:
    """As a `TokenGraph`, of a batch of rows that each have a passage of their own."""

    def __init__(self, spans: PassageSpans, texts: Sequence[bytes], device: torch.device) -> None:
        self.spans, self.device = spans, device
        self.texts = texts
        self.nodes: list[Node | None] = [None]  # node 0 is behind the end token
        self.numbers: dict[Node, int] = {}
        self.branches: dict[int, list[tuple[int, int]]] = {0: [(spans.end, 0)]}
        self.first = [self._number((row, (), 0)) for row in range(len(texts))]

    def roots(self, count: int, width: int) -> Tensor:  # noqa: ARG002 (as `TokenGraph.roots`)
        """(rows, width) the nodes where outputs begin."""
        return torch.tensor(self.first, device=self.device).unsqueeze(1).repeat(1, width)

    def choices(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What may follow, as `TokenGraph.choices`."""
        found = [self._branches(node) for node in nodes.flatten().tolist()]
        most = max(map(len, found))
        padded = torch.tensor([[*branches, *branches[-1:] * (most - len(branches))] for branches in found])
        counts = torch.tensor([len(branches) for branches in found]).view(*nodes.shape, 1)
        tokens, targets = padded.view(*nodes.shape, most, 2).unbind(-1)
        exists = torch.arange(most) < counts
        return tokens.to(self.device), targets.to(self.device), exists.to(self.device)

    def _number(self, node: Node) -> int:
        if node not in self.numbers:
            self.numbers[node] = len(self.nodes)
            self.nodes.append(node)
        return self.numbers[node]

    def _branches(self, number: int) -> list[tuple[int, int]]:
        if number not in self.branches:
            node = self.nodes[number]
            assert node is not None
            self.branches[number] = sorted(self._next(node).items())
        return self.branches[number]

    def _next(self, node: Node) -> dict[int, int]:
        """The node behind each token that may follow; behind the end token, 0."""
        row, places, written = node
        text, none = self.texts[row], self.spans.none
        reached: dict[int, set[int]] = {}
        for place in places:
            for token, end in self.spans.pieces(text, place):
                reached.setdefault(token, set()).add(end)
        found = {token: (tuple(sorted(ends)), BEGUN) for token, ends in reached.items()}
        if not places and not written:
            found = self._openings(text)
        if 0 <= written < len(none):
            found[none[written]] = (found.get(none[written], ((), BEGUN))[0], written + 1)
        branches = {token: self._number((row, *rest)) for token, rest in found.items()}
        ended = written != OPENED and any(_may_end(text, place) for place in places)
        if ended or written == len(none) > 0 or not branches:
            branches[self.spans.end] = 0
        return branches

    def _openings(self, text: bytes) -> dict[int, tuple[tuple[int, ...], int]]:
        """The tokens that a span may begin with, at any letter that is no blank, and where they lead."""
        opening = self.spans.opening
        starts = [place for place in range(len(text)) if _is_boundary(text, place)]
        starts = [place for place in starts if not text[place : place + 1].isspace() and text[place] != UNKNOWN[0]]
        reached: dict[int, set[int]] = {}
        for start in starts:
            around = opening + text[start : start + LONGEST_TOKEN]
            for token, end in self.spans.pieces(around, 0):
                if end > len(opening):
                    reached.setdefault(token, set()).add(start + end - len(opening))
        found = {token: (tuple(sorted(ends)), BEGUN) for token, ends in reached.items()}
        alone = self.spans.tokens.get(opening, []) if starts else []
        return found | {token: (tuple(starts), OPENED) for token in alone}


def _may_end(text: bytes, place: int) -> bool:
    return _is_boundary(text, place) and not text[place - 1 : place].isspace()


def _is_boundary(text: bytes, place: int) -> bool:
    """Whether a character may begin at a place."""
    return place == len(text) or text[place] & 0xC0 != 0x80


def token_bytes(tokenizer: Any) -> list[bytes]:
    """The text of every token, as it stands in an output; `UNKNOWN` for special tokens."""
    if isinstance(tokenizer, ByT5Tokenizer):
        size = len(tokenizer)
        return [bytes([token - 3]) if 3 <= token < 259 else UNKNOWN for token in range(size)]
    specials = {*tokenizer.all_special_ids}
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    own = _byte_letters if isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel) else _pieces
    return [UNKNOWN if token in specials else own(name) for token, name in enumerate(names)]


def _pieces(name: str) -> bytes:
    """Of SentencePiece."""
    byte = re.fullmatch("<0x([0-9A-F]{2})>", name)
    return bytes([int(byte[1], 16)]) if byte else name.replace("▁", " ").encode()


def _letters() -> dict[str, int]:
    """The letters of byte-level BPE: printable bytes are their own, the others come in order from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_LETTERS = _letters()


def _byte_letters(name: str) -> bytes:
    return bytes(_LETTERS[letter] for letter in name) if set(name) <= _LETTERS.keys() else UNKNOWN
