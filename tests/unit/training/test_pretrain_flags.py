"""What pretrain.py refuses before anything is read, and how corpora are divided."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import BartConfig, T5Config

from config.flags.pretrain import PretrainConfig
from config.flags.train import TrainConfig
from config.parser import flag_specs, parse_flags
from training.pretraining.checks import check_pretrain
from training.pretraining.setup import held_out_cuts
from training.setup import limit_lines
from utils.errors import UserError

CORPUS = flag_specs(PretrainConfig)


def problems_of(*argv: str) -> list[str]:
    config, given, problems = parse_flags(PretrainConfig, argv)
    check_pretrain(config, given, problems)
    return problems


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("가나다\n", encoding="utf-8")
    return ("-corpus", "texts.txt", "-config_path", "byt5-mini", "-save_path", "run")


def test_steps_are_whole_epochs(run: tuple[str, ...]) -> None:
    assert problems_of(*run, "-max_steps", "2000") == []
    assert problems_of(*run, "-max_steps", "1500") == [
        "-max_steps 1500: not a multiple of -valid_every 1000; give -max_steps 1000 or -max_steps 2000, or -valid_every"
        " 750"
    ]
    assert problems_of(*run, "-max_steps", "7") == [
        "-max_steps 7: not a multiple of -valid_every 1000; give -max_steps 1000, or -valid_every 7"
    ]


@pytest.mark.usefixtures("run")
def test_what_is_missing_or_of_train_is_told_together() -> None:
    assert problems_of("-save_path", "run", "-max_epoch", "3") == [
        "unknown flag -max_epoch; did you mean -max_steps?",
        "-corpus is required: " + next(spec for spec in CORPUS if spec.name == "corpus").help,
        "-max_steps is required: Optimizer steps of the whole run.",
        "give -init_model (pretrained), -config_path (from scratch) or -resume_checkpoint",
    ]
    assert problems_of("-corpus", "texts.txt", "-config_path", "byt5-mini", "-max_steps", "1000") == [
        "-save_path is required: " + next(spec for spec in CORPUS if spec.name == "save_path").help
    ]
    again = problems_of("-save_path", "run", "-resume_checkpoint", "last")
    assert [problem.split(": no such file")[0] for problem in again] == ["-resume_checkpoint last"]


def test_monitors_files_and_folders_are_checked(run: tuple[str, ...]) -> None:
    steps = ("-max_steps", "1000")
    assert problems_of(*run, *steps, "-monitor", "exact_match") == [
        "-monitor exact_match: one of val_loss, token_accuracy, val_loss_no_sentinels expected"
    ]
    assert problems_of(*run, *steps, "-valid_rows", "0", "-early_stopping_patience", "2") == [
        "-early_stopping_patience 2: only with validation rows: -valid_rows above 0"
    ]
    Path("run").mkdir()
    assert [problem.split(":")[0] for problem in problems_of(*run, *steps, "-corpus", "gone.txt")] == ["-corpus"]
    assert problems_of(*run, *steps, "-noise_density", "0.3", "-mean_span_length", "8") == []


@pytest.mark.parametrize("config_class", [TrainConfig, PretrainConfig])
def test_lengths_beyond_the_positions_of_the_model_are_told(config_class: type) -> None:
    config, _, _ = parse_flags(config_class, ["-max_seq_length", "64", "-max_target_length", "65"])
    assert limit_lines(config, BartConfig(max_position_embeddings=64)) == [
        "-max_target_length 65: the model has positions for 64 tokens, which is taken as the limit; give that or less"
    ]
    assert limit_lines(config, BartConfig(max_position_embeddings=63))[0].startswith("-max_seq_length 64: ")
    assert limit_lines(config, T5Config()) == []


def test_pairs_beside_texts_need_fixed_rows_and_say_what_is_theirs(run: tuple[str, ...]) -> None:
    steps, weight = ("-max_steps", "1000"), ("-inverse_cloze_weight", "0.5")
    alone = "only with -objective inverse_cloze or -inverse_cloze_weight: the others make no vectors"
    assert problems_of(*run, *steps, "-pooling", "decoder", "-max_query_length", "32") == [
        "-max_query_length 32: only with -inverse_cloze_weight: no row is a query and a passage",
        f"-pooling decoder: {alone}",
    ]
    fixed = "the loss compares the rows of an optimizer step, whose number must not change; give -batch_size"
    assert problems_of(*run, *steps, *weight, "-max_tokens", "4096", "-monitor", "recall@1") == [
        f"-inverse_cloze_weight 0.5: not with -max_tokens 4096: {fixed}"
    ]
    assert problems_of(*run, *steps, *weight, "-objective", "inverse_cloze") == [
        "-inverse_cloze_weight 0.5: not with -objective inverse_cloze: there it is the only loss"
    ]
    assert problems_of(*run, *steps, *weight, "-pack_documents", "-strategy", "fsdp") == [
        "-inverse_cloze_weight 0.5: not with -pack_documents: the two were not tried together",
        "-inverse_cloze_weight 0.5: not with -strategy fsdp: the two were not tried together; give ddp",
    ]
    own = ("-pooling", "decoder", "-monitor", "val_contrastive_loss", "-max_passage_length", "64")
    assert problems_of(*run, *steps, *weight, *own, "-sentence_order", "0.1") == []


def test_an_encoder_by_itself_writes_nothing(run: tuple[str, ...]) -> None:
    alone = (*run, "-max_steps", "1000", "-objective", "encoder_mlm")
    assert problems_of(*alone, "-inverse_cloze_weight", "0.5", "-pooling", "decoder", "-max_target_length", "64") == [
        "-max_target_length 64: not with -objective encoder_mlm: the decoder writes nothing",
        "-pooling decoder: not with -objective encoder_mlm: the decoder is not trained",
    ]
    assert problems_of(*alone, "-sentence_order", "0.1", "-strategy", "fsdp") == [
        "-sentence_order 0.1: not with -objective encoder_mlm: the decoder writes nothing",
        "-objective encoder_mlm: not with -strategy fsdp: the two were not tried together; give ddp",
    ]
    assert problems_of(*alone, "-inverse_cloze_weight", "0.5", "-noise_density", "0.3", "-monitor", "mrr@10") == []


def stream(tokens: int) -> Any:
    return SimpleNamespace(num_tokens=tokens)


def test_validation_rows_are_cut_off_the_end_or_spaced_in_a_corpus_of_their_own() -> None:
    one, two, other = stream(1000), stream(505), stream(95)
    cuts, ends = held_out_cuts({"a": one, "b": two}, None, 10, 5)
    assert ends == [980, 475]
    assert [(corpus is two, start) for corpus, start in cuts] == [
        *((False, 980), (False, 990), (True, 475), (True, 485), (True, 495))
    ]
    assert held_out_cuts({"a": one}, other, 10, 3) == ([(other, 0), (other, 40), (other, 80)], [1000])
    assert held_out_cuts({"a": one}, other, 10, 100)[0] == [(other, 10 * row) for row in range(9)]
    assert held_out_cuts({"a": one}, None, 10, 0) == ([], [1000])
    with pytest.raises(UserError) as refused:
        held_out_cuts({"a": one, "b": two}, None, 10, 500)
    assert str(refused.value) == (
        "-corpus a: 1,000 tokens are 100 rows of 10; -valid_rows 500 leaves none to train on: give -valid_corpus, or"
        " fewer, such as -valid_rows 10"
    )
    with pytest.raises(UserError, match=r"-corpus a: 95 tokens are 9 rows of 10; .* such as -valid_rows 0$"):
        held_out_cuts({"a": other}, None, 10, 9)
    with pytest.raises(UserError, match="-valid_corpus: its 95 tokens are not one row of 100"):
        held_out_cuts({"a": one}, other, 100, 1)
