"""Write the bundled sample: Korean sentences with numbers, and how they are read aloud.

    python samples/generate.py [-output samples] [-seed 11] [-train_rows 12000] [-valid_rows 500] [-test_rows 500]

Gives `<output>/text_normalization/{train,valid,test}.tsv`: no header, source TAB target, no source twice in all
three together. The same arguments give the same bytes, on any machine and Python version. Standard library only.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the script runs from anywhere

from samples.sentences import SHARES, TEMPLATES, WORDS
from samples.slots import SLOTS, UNITS, Pair, counted, pick, uniform

FOLDER = "text_normalization"
SPLITS = ("train", "valid", "test")
MAX_SOURCE_BYTES = 60
MAX_TARGET_BYTES = 110
MAX_MISSES = 10_000  # sentences in a row that are there already: the templates are used up
SLOT = re.compile(r"\{([^{}]+)\}")


def fill(template: str, rng: random.Random) -> Pair:
    """One sentence of a template: (as written, as read aloud)."""
    shared_units = [UNITS[name[1:]] for name in SLOT.findall(template) if name.startswith("#")]
    shared = 0
    if shared_units:
        shared = uniform(rng, max(unit.low for unit in shared_units), min(unit.high for unit in shared_units))
    written, read = [], []
    for index, part in enumerate(SLOT.split(template)):  # odd parts are the names of slots
        if index % 2 == 0:
            pair = part, part
        elif part.startswith("#"):
            pair = UNITS[part[1:]].pair(shared)
        elif part in SLOTS:
            pair = SLOTS[part](rng)
        elif part in UNITS:
            pair = counted(rng, UNITS[part])
        else:
            word = pick(rng, WORDS[part])
            pair = word, word
        written.append(pair[0])
        read.append(pair[1])
    return "".join(written), "".join(read)


def sentence(rng: random.Random) -> tuple[str, str, str]:
    """A random sentence: (category, as written, as read aloud), of any length."""
    categories = [category for category, share in SHARES.items() for _ in range(share)]
    category = pick(rng, categories)
    written, read = fill(pick(rng, TEMPLATES[category]), rng)
    return category, written, read


def sentences(count: int, seed: int) -> list[tuple[str, str, str]]:
    """`count` sentences in random order, no source twice, none longer than the limits in bytes of UTF-8.

    Raises ValueError when the templates do not yield so many.
    """
    rng = random.Random(seed)
    found: dict[str, tuple[str, str, str]] = {}
    misses = 0
    while len(found) < count:
        category, source, target = sentence(rng)
        too_long = len(source.encode()) > MAX_SOURCE_BYTES or len(target.encode()) > MAX_TARGET_BYTES
        if too_long or source in found:
            misses += 1
            if misses == MAX_MISSES:
                raise ValueError(f"the templates yield {len(found)} different sentences, {count} were asked for")
            continue
        misses = 0
        found[source] = (category, source, target)
    made = list(found.values())
    for last in range(count - 1, 0, -1):  # the last ones found are the rarer: every split gets its share of them
        other = uniform(rng, 0, last)
        made[last], made[other] = made[other], made[last]
    return made


def write_splits(output: Path, rows: Sequence[int], seed: int) -> dict[str, Counter[str]]:
    """Write the three files, `rows` lines each, and return how many sentences of each category they hold."""
    made = iter(sentences(sum(rows), seed))
    folder = output / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    counts: dict[str, Counter[str]] = {}
    for split, count in zip(SPLITS, rows, strict=True):
        taken = [next(made) for _ in range(count)]
        text = "".join(f"{source}\t{target}\n" for _, source, target in taken)
        (folder / f"{split}.tsv").write_bytes(text.encode())
        counts[split] = Counter(category for category, _, _ in taken)
    return counts


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; a wrong one ends the program with exit code 2."""
    parser = argparse.ArgumentParser(description="Write the bundled Korean text normalisation sample.")
    parser.add_argument("-output", "--output", type=Path, default=Path(__file__).parent, help="folder to write below")
    parser.add_argument("-seed", "--seed", type=int, default=11, help="seed of the random sentences (default 11)")
    for split, rows in zip(SPLITS, (12_000, 500, 500), strict=True):
        name = f"{split}_rows"
        parser.add_argument(f"-{name}", f"--{name}", type=int, default=rows, help=f"rows (default {rows})")
    options = parser.parse_args(arguments)
    for split in SPLITS:
        if (rows := getattr(options, f"{split}_rows")) < 1:
            parser.error(f"-{split}_rows must be at least 1, not {rows}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files and print how many sentences of each category each split holds."""
    options = parse_arguments(arguments)
    rows = [getattr(options, f"{split}_rows") for split in SPLITS]
    try:
        counts = write_splits(options.output, rows, options.seed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.output / FOLDER}, seed {options.seed}")
    for category in SHARES:
        print(f"  {category:<26}" + "".join(f"{split} {counts[split][category]:>6}  " for split in SPLITS).rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
