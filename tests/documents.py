"""The pages of the project in the order in which one reads them, and the commands on them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README",
    "docs/data",
    "docs/tasks",
    "docs/mixtures",
    "docs/retrieval",
    "docs/training",
    "docs/pretraining",
    "docs/architectures",
    "docs/resuming",
    "docs/tuning",
    "docs/inference",
    "docs/reviews",
    "docs/labelling",
    "docs/metrics",
    "docs/export",
    "docs/serving",
    "docs/deploy",
    "docs/run-files",
    "docs/troubleshooting",
    "docs/scaling",
    "docs/slurm",
    "docs/flags",
    "docs/benchmarks",
)
LANGUAGES = {"en": ".md", "ko": ".ko.md"}
DOCUMENTS = tuple(page + ending for page in PAGES for ending in LANGUAGES.values())
RUN, SHOWN = "bash", "console"  # fences: commands that a test runs, and commands that need a network, GPUs or hours


def text_of(document: str) -> str:
    """The text of a page, by its path from the root."""
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(text: str, fence: str) -> list[str]:
    """The insides of the ```fence blocks."""
    return re.findall(rf"^```{fence}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str, fence: str = RUN) -> list[str]:
    """The commands of the blocks, one string each; lines that end in a backslash are joined, comments left out."""
    lines = "\n".join(blocks(text, fence)).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
