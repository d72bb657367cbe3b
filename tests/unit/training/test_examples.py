"""-show_examples: training rows as the model sees them, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.flags.train import TrainConfig
from config.parser import parse_flags
from tests.cli.command import listing
from training.checks import check_train
from training.setup import example_lines


def test_rows_are_shown_as_their_tokens_say_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.tsv").write_text("document\tlabel\n" + "".join(f"가{row}\t{row % 2}\n" for row in range(9)))
    argv = ["-task", "nsmc-prompted", "-train_data", "t.tsv", "-config_path", "byt5-mini", "-max_seq_length", "40"]
    argv += ["-valid_data_proportions", "0.0", "-show_examples", "2"]
    config, given, problems = parse_flags(TrainConfig, argv)
    mixture = check_train(config, given, problems)
    assert problems == []  # also without -save_path
    lines = example_lines(config, mixture, None)
    first, last = lines.index("training row 1"), lines.index("training row 8")  # one of nine validates
    assert lines[first : first + 3] == [
        "training row 1",
        "  source of 36 tokens: nsmc sentiment classification: 가0</s>",
        "  target of 9 tokens: negative</s>",
    ]
    assert last == first + 3
    assert len(lines) == last + 3
    assert set(listing(tmp_path)) == {"t.tsv"}
