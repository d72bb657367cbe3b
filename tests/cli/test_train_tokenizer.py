"""`train_tokenizer.py` as a process, and what the other commands make of its folder."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from models.tokenizers import load_tokenizer
from tests.cli.command import ROOT, infer_ok, run, start_until, train_ok
from tests.cli.tiny import T5, write_config
from utils.errors import EXIT_TERMINATED

SAMPLE = ROOT / "samples" / "text_normalization"


def test_a_model_is_trained_from_nothing_with_a_tokenizer_of_ones_own(tmp_path: Path) -> None:
    rows = (SAMPLE / "train.tsv").read_text(encoding="utf-8").splitlines()[:400]
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(cell for row in rows for cell in row.split("\t")), encoding="utf-8")
    folder = tmp_path / "tokenizer"
    done = run(sys.executable, "train_tokenizer.py", "-data", corpus, "-save_path", folder, "-vocab_size", "640")
    assert done.code == 0, done.out + done.err
    assert done.err == ""
    assert "640 pieces (256 single bytes" in done.out
    assert "a model needs 896 embeddings" in done.out

    data = tmp_path / "rows.tsv"
    data.write_text("\n".join(rows[:6]) + "\n", encoding="utf-8")
    config = write_config(tmp_path / "t5.json", T5, vocab_size=896, pad_token_id=0, decoder_start_token_id=0)
    common = ("-task", "seq2seq", "-cpu_processes", 1, "-source_column", 1, "-target_column", 2)
    train_ok(
        *("-config_path", config, "-tokenizer", folder, "-train_data", data, "-valid_data", data, *common),
        *("-save_path", tmp_path / "run", "-batch_size", 3, "-max_steps", 2, "-max_target_length", 16),
    )
    infer_ok(
        *("-model", tmp_path / "run", "-test_data", data, "-save_output", tmp_path / "out.txt", "-cpu_processes", 1),
        *("-beam_size", 1, "-max_target_length", 16),
    )
    kept = load_tokenizer(str(tmp_path / "run" / "best"))
    processor = SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    assert kept(rows, add_special_tokens=False)["input_ids"] == processor.encode(rows)


def test_a_training_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    flags = ["-data", str(SAMPLE / "train.tsv"), "-corpus_format", "text", "-vocab_size", "4000"]
    stopped = start_until(
        "train_tokenizer.py", [*flags, "-save_path", str(tmp_path / "t")], "training 4,000", signal.SIGTERM
    )
    assert stopped.code == EXIT_TERMINATED
    assert stopped.out.splitlines()[-1] == "terminated"
    assert list(tmp_path.iterdir()) == []
