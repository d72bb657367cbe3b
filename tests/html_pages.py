"""Pages as a reader of HTML sees them."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "wbr"}


class Page(HTMLParser):
    """The names of a page's tags and attributes, and its text; fails where a tag is not closed in its order."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(content)
        assert self.opened == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.opened.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.opened[-1:] != ["style"] else ""
