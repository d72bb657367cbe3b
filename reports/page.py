"""An HTML page of ours: one file without a script that loads nothing; light, dark and on paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from utils.escapes import printable
from utils.files import run_error, write_file

PAGE_ENDING = ".html"
IMAGES_FLAG = "-report_images"
MOST_LETTERS = 60  # of a text from the data, where nothing else is said

BASE_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --quiet: #57606a; --line: #d0d7de; --soft: #f3f5f8;
  --for: 37 99 235; --against: 217 119 6 }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --ink: #e6e8eb; --quiet: #9aa4af; --line: #343b44;
  --soft: #1d2229; --for: 96 165 250; --against: 251 146 60 } }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --quiet: #444; --line: #bbb; --soft: #f3f5f8;
  --for: 37 99 235; --against: 217 119 6 } }
* { box-sizing: border-box; print-color-adjust: exact; -webkit-print-color-adjust: exact }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--paper); color: var(--ink); line-height: 1.7;
  font-family: system-ui, "Apple SD Gothic Neo", "Malgun Gothic", "Noto Sans KR", "Noto Sans CJK KR", sans-serif }
h1 { font-size: 1.4rem; line-height: 1.3 }
p { margin: .25rem 0; overflow-wrap: anywhere; word-break: keep-all }
small, .quiet { color: var(--quiet); font-size: .85rem; font-weight: normal }
"""


def page(title: str, body: str, style: str = "", language: str = "en") -> str:
    """A whole page; `title` is a text, `body` HTML, and `style` CSS that follows the shared one."""
    return f"""<!doctype html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(printable(title))}</title>
<style>{BASE_STYLE}{style}</style>
</head>
<body>
{body}</body>
</html>
"""


def images_folder(path: Path) -> Path:
    """The folder of the pictures of a page, beside it."""
    return path.with_name(f"{path.stem}_images")


def save_page(path: Path, content: str, overwrite: bool) -> None:
    """Write a page; it appears whole or not at all. Raises `RunError` where the disk refuses it."""
    encoded = content.encode("utf-8", "replace")
    with run_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda file: file.write(encoded), replace=overwrite)


def data_text(text: str, most: int = MOST_LETTERS) -> str:
    """A text of the data as text of the page, in a box of its own, so that no direction of writing leaves it."""
    shown = text if len(text) <= most else f"{text[:most]}…"
    return f"<bdi>{escape(printable(shown))}</bdi>"


def section(title: str, *parts: str, note: str = "") -> str:
    """A part of a page under a heading, its parts being HTML; nothing where they and the note are empty."""
    inner = "".join(parts)
    told = f'<p class="quiet">{escape(note)}</p>\n' if note else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{told}{inner}</section>\n" if inner or told else ""


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table whose cells are HTML; one that is wider than the page is scrolled alone."""
    heads = "".join(f'<th scope="col">{escape(header)}</th>' for header in headers)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    head = f"<thead><tr>{heads}</tr></thead>\n" if headers else ""
    return f'<div class="wide"><table class="{kind}">\n{head}<tbody>\n{lines}</tbody></table></div>\n' if lines else ""
