"""Runs that many tests share: trained once for the whole test session, also with several pytest workers."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.command import train_ok
from tests.cli.tiny import BART, flag_list, letter_rows, write_config, write_tsv

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow ones: a worker that ends with them works alone for minutes."""
    items.sort(key=lambda item: "slow" not in item.keywords)


@pytest.fixture(autouse=True)
def _environment_stays() -> Iterator[None]:
    """What commands set for the processes that they start is gone afterwards: with MKL_CBWR sums are other sums."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """`once(name, make)`: the folder `name` that `make(folder)` filled, made by the first worker that asks."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def get(name: str, make: Callable[[Path], None]) -> Path:
        folder = root / f"shared-{name}"
        with open(root / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = folder / ".done"
            if not done.exists():
                folder.mkdir(exist_ok=True)
                make(folder)
                done.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def letters(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A folder with train.tsv (200 rows), valid.tsv (40), test.tsv (30): a word of a to d, and its first letter."""

    def make(folder: Path) -> None:
        for seed, (name, count) in enumerate((("train", 200), ("valid", 40), ("test", 30))):
            write_tsv(folder / f"{name}.tsv", letter_rows(count, seed))

    return once("letters", make)


@pytest.fixture(scope="session")
def copy_run(once: Callable[[str, Callable[[Path], None]], Path], letters: Path) -> Path:
    """A finished run on `letters` that predicts every row right; `stdout.txt` holds what it printed."""

    def make(folder: Path) -> None:
        config = write_config(folder / "bart.json", BART)
        flags = {
            "train_data": letters / "train.tsv",
            "valid_data": letters / "valid.tsv",
            "test_data": letters / "test.tsv",
            "config_path": config,
            "save_path": folder / "run",
            "batch_size": 16,
            "max_epoch": 6,
            "learning_rate": 4e-3,
            "lr_scheduler": "linear",
            "warmup_steps": 0.1,
            "log_every": 10,
            "monitor": "exact_match",
        }
        (folder / "stdout.txt").write_text(train_ok(*flag_list(flags)).out, encoding="utf-8")

    return once("copy_run", make)


@pytest.fixture(scope="session")
def label_run(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A finished run of a label task: columns text and label (0, 1), texts `부정` and `긍정`, input `평가: TEXT`."""

    def make(folder: Path) -> None:
        rows = [(word, "1" if word[0] in "ab" else "0") for word, _ in letter_rows(200, 5)]
        write_tsv(folder / "train.tsv", rows[:160], ("document", "label"))
        write_tsv(folder / "test.tsv", rows[160:], ("document", "label"))
        flags = {
            "train_data": folder / "train.tsv",
            "valid_data_proportions": 0.1,
            "test_data": folder / "test.tsv",
            "source_column": "document",
            "target_column": "label",
            "label_map": "0=부정,1=긍정",
            "input_template": "평가: {{ document }}",
            "target_template": "{{ target }}.",
            "config_path": write_config(folder / "bart.json", BART),
            "save_path": folder / "run",
            "max_tokens": 200,
            "grad_acc": 2,
            "max_epoch": 14,
            "learning_rate": 4e-3,
            "lr_scheduler": "linear",
            "warmup_steps": 0.1,
            "float_precision": 16,
            "gpus": 0,
        }
        (folder / "stdout.txt").write_text(train_ok(*flag_list(flags)).out, encoding="utf-8")

    return once("label_run", make)
