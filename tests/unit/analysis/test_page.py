"""The page of examples: harmless whatever a review holds, bounded, and self-contained."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

from analysis.page import MOST_WORDS, Examples
from reports.page import MOST_LETTERS


def analysis(number: int, words: list[tuple[str, float]], **more: Any) -> dict[str, Any]:
    keyword = {
        "keyword": "가격",
        "probability": 0.75,
        "sentiment": "긍정",
        "sentiment_probabilities": {"부정": 0.25, "긍정": 0.75},
        "highlight": words[0][0] if words else None,
        "words": [{"word": word, "loss": loss} for word, loss in words],
        **more,
    }
    return {"id": number, "review": "", "reference": {"가격": "부정"}, "keywords": [keyword]}


def page(*rows: dict[str, Any], most: int = 100) -> str:
    examples = Examples(most)
    assert list(examples.seen(rows)) == list(rows)
    return examples.page()


class Tags(HTMLParser):
    """The tags of a page, and its text outside the style."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.opened.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.opened[-1:] != ["style"] else ""


def parsed(content: str) -> Tags:
    tags = Tags()
    tags.feed(content)
    assert tags.opened == []
    return tags


def test_what_a_review_holds_is_text_and_nothing_else() -> None:
    evil = "<script>alert(1)</script>\"'&amp;</p><img src=x onerror=alert(1)>"
    words = [(evil, 0.5), ('"><b>', -0.2), ("\x00\u202e\ud800", 0.1)]
    tags = parsed(page(analysis(0, words, keyword=evil[:40], sentiment="</style>")))
    usual = "html head meta title style body h1 h2 h3 p span small article bdi"
    assert sorted(tags.names) == sorted(usual.split(" "))
    assert tags.attributes == {"lang", "charset", "name", "content", "http-equiv", "class", "style", "title"}
    assert "<script>alert(1)</script>\"'&amp;</p><img src=x" in tags.text
    assert r"\u0000" in tags.text
    assert not re.search(r"https?:|url\(|@import|<link|src=(?!x onerror)", page(analysis(0, [("싸다", 0.1)])))


def test_words_have_the_colour_of_their_effect() -> None:
    content = page(analysis(0, [("싸고", 0.2), ("좋지만", -0.4), ("그", 0.001), ("싸고", 0.1)]))
    assert '<span class="for first" style="--effect:0.50" title="+0.2000"><bdi>싸고</bdi></span>' in content
    assert '<span class="against" style="--effect:1.00" title="-0.4000"><bdi>좋지만</bdi></span>' in content
    assert "</span> <bdi>그</bdi> <span" in content
    assert "<small>(reference: <bdi>부정</bdi>)</small>" in content
    assert "<bdi>부정</bdi> 0.250 · <bdi>긍정</bdi> 0.750" in content
    assert 'class="for first"' not in page(analysis(0, [("늦", -0.1)]))
    assert '<span class="for first" style="--effect:0.10"' in page(analysis(0, [("가", 0.01)]))  # a little is pale


def test_the_strongest_reviews_are_shown_and_counted() -> None:
    rows = [analysis(number, [("가", loss)]) for number, loss in enumerate((0.1, 0.9, 0.3, 0.9, -0.5))]
    rows += [analysis(5, []), {"id": 6, "review": "x", "reference": None, "keywords": []}]
    content = page(*rows, most=3)
    assert re.findall(r"<h2>(\d+)</h2>", content) == ["1", "3", "2"]
    assert "3 of 6 reviews with a keyword (7 in all)" in content


def test_long_reviews_are_cut() -> None:
    content = page(analysis(0, [("가" * 5000, 0.1)] * 9000))
    assert len(content.encode("utf-8")) < 120_000
    assert "… 8,700 words more" in content
    assert content.count("가" * MOST_LETTERS + "…") == MOST_WORDS


def test_a_page_without_examples_says_so() -> None:
    assert "0 of 0 reviews with a keyword (1 in all)" in page(
        {"id": 0, "review": "", "reference": None, "keywords": []}
    )
