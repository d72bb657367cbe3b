"""An HTML page of analysed reviews, their words coloured by their effect on the sentiment: one file, no script, and
nothing that is loaded from elsewhere."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from reports.page import data_text, page, save_page

MOST_WORDS = 300  # shown of a review
MOST_KEYWORDS = 20  # shown of a review
TITLE = "리뷰 분석 · Review analysis"
FULL_COLOUR = 0.1  # loss of probability from which a review's strongest word has the full colour
WEAKEST = 0.02  # share of the strongest effect below which a word has no colour

STYLE = """
article { border-top: 1px solid var(--line); padding: .5rem 0; break-inside: avoid }
h2 { font-size: .85rem; font-weight: normal; color: var(--quiet); margin: .5rem 0 0 }
h3 { font-size: 1rem; margin: .5rem 0 0 }
span[style] { color: var(--ink); border-radius: .2rem; padding: 0 .15rem; -webkit-box-decoration-break: clone;
  box-decoration-break: clone }
.for { background: rgb(var(--for) / calc(var(--effect) * .6)) }
.against { background: rgb(var(--against) / calc(var(--effect) * .6)) }
.first { font-weight: bold; text-decoration: underline; text-underline-offset: .2em }
"""


class Examples:
    """The analyses that go by, of which those with the strongest words are kept: at most `most`, in order of strength.

    The strength of a review is the largest loss of probability without one of its words.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.with_keywords = self.reviews = 0
        self._kept: list[tuple[float, int, dict[str, Any]]] = []

    def seen(self, analyses: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The analyses themselves, while they are looked at."""
        for analysis in analyses:
            self.reviews += 1
            if analysis["keywords"]:
                self.with_keywords += 1
                losses = [word["loss"] for keyword in analysis["keywords"] for word in keyword["words"]]
                entry = (max(losses, default=0.0), -analysis["id"], analysis)  # of equal ones the first
                if len(self._kept) < self.most:
                    heapq.heappush(self._kept, entry)
                else:
                    heapq.heappushpop(self._kept, entry)
            yield analysis

    def save(self, path: Path, overwrite: bool) -> None:
        """Write the page; it appears whole or not at all."""
        save_page(path, self.page(), overwrite)

    def page(self) -> str:
        """The page, which has at most some 60 kB for each review."""
        kept = [analysis for *_, analysis in sorted(self._kept, key=lambda entry: entry[:2], reverse=True)]
        shown = f"{len(kept):,} of {self.with_keywords:,} reviews with a keyword ({self.reviews:,} in all)"
        articles = "".join(map(_article, kept))
        body = f"""<h1>{TITLE}</h1>
<p class="quiet">{shown}, those first whose sentiment depends most on one word.
The probability of the sentiment falls without a word <span class="for" style="--effect:1">that speaks for it</span>
and rises without one <span class="against" style="--effect:1">that speaks against it</span>; the word without which it
falls most is <span class="first">underlined</span>.</p>
<p class="quiet">단어를 뺐을 때 감성의 확률이 내려가면
<span class="for" style="--effect:1">근거가 되는 단어</span>, 올라가면
<span class="against" style="--effect:1">반대되는 단어</span>입니다. 가장 많이 내려가는
단어에 <span class="first">밑줄</span>을 그었습니다.</p>
{articles}"""
        return page(TITLE, body, STYLE, "ko")


def _article(analysis: Mapping[str, Any]) -> str:
    shown = analysis["keywords"][:MOST_KEYWORDS]
    right = analysis["reference"] or {}
    sections = "".join(_keyword(keyword, right) for keyword in shown)
    rest = _rest(analysis["keywords"], shown, "keyword")
    return f"<article>\n<h2>{analysis['id']:,}</h2>\n{sections}{rest}</article>\n"


def _keyword(found: Mapping[str, Any], right: Mapping[str, str | None]) -> str:
    words = found["words"][:MOST_WORDS]
    strongest = max((abs(word["loss"]) for word in found["words"]), default=0.0)
    strongest = max(strongest, FULL_COLOUR)
    losses = [word["loss"] for word in words]
    first = losses.index(max(losses)) if max(losses, default=0.0) > 0 else -1
    spans = " ".join(_word(word, strongest, number == first) for number, word in enumerate(words))
    shares = " · ".join(f"{data_text(label)} {share:.3f}" for label, share in found["sentiment_probabilities"].items())
    wanted = right.get(found["keyword"])
    reference = f" <small>(reference: {data_text(wanted)})</small>" if wanted is not None else ""
    return (
        f"<h3>{data_text(found['keyword'])} <small>{found['probability']:.3f}</small> → {data_text(found['sentiment'])}"
        f"{reference}</h3>\n<p>{spans}</p>\n{_rest(found['words'], words, 'word')}<p><small>{shares}</small></p>\n"
    )


def _word(word: Mapping[str, Any], strongest: float, first: bool) -> str:
    effect, text = abs(word["loss"]) / strongest, data_text(word["word"])
    names = ["for" if word["loss"] > 0 else "against"] * (effect >= WEAKEST) + ["first"] * first
    if not names:
        return text
    return f'<span class="{" ".join(names)}" style="--effect:{effect:.2f}" title="{word["loss"]:+.4f}">{text}</span>'


def _rest(items: list[Any], shown: list[Any], unit: str) -> str:
    more = len(items) - len(shown)
    return f'<p class="quiet">… {more:,} {unit}{"s" * (more > 1)} more</p>\n' if more else ""
