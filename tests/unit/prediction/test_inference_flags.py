"""Flags of inference.py that exclude each other, or say nothing, are told at once, before anything is imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from config.adapters import each_adapter
from config.flags.inference import InferenceConfig
from config.parser import parse_flags
from prediction.checks import check_inference, of_newest_checkpoint
from tests.cli.tiny import letter_rows, write_tsv


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with rows as TSV and as JSON lines."""
    monkeypatch.chdir(tmp_path)
    write_tsv(tmp_path / "good.tsv", letter_rows(20, 0))
    (tmp_path / "in.jsonl").write_text('{"source": "a"}\n')
    return tmp_path


def problems_of(*flags: str) -> list[str]:
    """The problems of `inference.py` with these flags, and good data where they give none."""
    data = [] if {"-test_data", "-train_data"} & set(flags) else ["-test_data", "good.tsv"]
    model = [] if "-model" in flags else ["-model", "owner/model"]
    config, _, problems = parse_flags(InferenceConfig, [*model, *data, *flags])
    check_inference(config, problems)
    return problems


RULES = ("-no_repeat_ngram_size", "2", "-repetition_penalty", "1.2")
OF_ROWS = (
    *("-strict_data", "-cache_dir", "x", "-max_target_length", "9"),
    *("-do_truncate", "false"),
)
OF_LABELS = ("-label_prior", "domain", "-label_temperature", "2")
TRAINING_SHARE = ("-train_data", "good.tsv", "-test_data_proportions", "0.5")
DECODING = {
    "two outputs of a greedy search": (
        ("-num_return", "2", "-save_output", "o.jsonl"),
        "-num_return 2: at most -beam_size 1 outputs are found; raise -beam_size, or give -do_sample",
    ),
    "lists in plain lines": (
        ("-num_return", "2", "-beam_size", "2", "-save_output", "o.txt"),
        "-num_return 2: a plain line holds one output; give -save_output a .jsonl or .tsv file",
    ),
    "drawing and searching": (
        ("-do_sample", "-beam_size", "2"),
        "-do_sample: not with -beam_size 2: draw, or search",
    ),
    "sampling flags without sampling": (
        ("-top_k", "5", "-temperature", "0.7"),
        "-temperature 0.7, -top_k 5: only with -do_sample: it is about drawing tokens",
    ),
    "an end of the search without one": (
        ("-early_stopping",),
        "-early_stopping: only with -beam_size: greedy search has no beams that end",
    ),
    "lengths": (
        ("-min_predict_length", "9", "-max_predict_length", "8"),
        "-min_predict_length 9 is more than -max_predict_length 8",
    ),
    "arithmetic of the other engine": (
        ("-compute_type", "int8"),
        "-compute_type int8: only with -engine ctranslate2: -engine torch has -float_precision",
    ),
    "arithmetic of this engine": (
        ("-engine", "ctranslate2", "-float_precision", "bf16"),
        "-float_precision bf16: not with -engine ctranslate2: it has -compute_type",
    ),
    "sampling elsewhere": (
        ("-engine", "ctranslate2", "-do_sample"),
        "-do_sample: not with -engine ctranslate2: only -engine torch draws with a seed for each row",
    ),
    "beams that end otherwise": (
        ("-engine", "ctranslate2", "-beam_size", "4"),
        "-engine ctranslate2 ends the search of a row as soon as -beam_size 4 outputs have ended; ask for that with"
        " -early_stopping (-engine torch then gives the same texts), or give -beam_size 1",
    ),
    "rules with beams": (
        (*("-engine", "ctranslate2", "-beam_size", "2", "-early_stopping", "-min_predict_length", "3"), *RULES),
        "-min_predict_length 3, -no_repeat_ngram_size 2, -repetition_penalty 1.2: not with -engine ctranslate2"
        " -beam_size 2: its scores would be others than those of -engine torch; give -beam_size 1",
    ),
    "an ensemble elsewhere": (
        ("-engine", "ctranslate2", "-model", "a", "-model", "b"),
        "-engine ctranslate2 decodes with one -model; several decode together with -engine torch",
    ),
    "a pipe and a file of predictions": (
        ("-test_data", "-", "-save_output", "o.txt", "-save_report", "r.json"),
        "-save_output o.txt, -save_report r.json: not with -test_data -: predictions go to standard output, a line"
        " each; give a file of rows",
    ),
    "a pipe on two processes": (
        ("-test_data", "-", "-cpu_processes", "2"),
        "-test_data -: one device predicts; give -gpus 0 or 1, and no -cpu_processes",
    ),
    "a pipe and a file": (
        ("-test_data", "-", "-test_data", "good.tsv"),
        "-test_data -: standard input stands alone; give no other data",
    ),
    "a pipe and fields": (
        ("-test_data", "-", "-keep_fields"),
        "-keep_fields: not with -test_data -: predictions go to standard output, a line each; give a file of rows",
    ),
    "a pipe has no columns": (
        (
            *("-test_data", "-", "-header", "true", "-source_column", "b", "-target_column", "2", "-strict_data"),
            *OF_ROWS,
        ),
        "-source_column b, -target_column 2, -header true, -strict_data, -cache_dir x, -max_target_length 9,"
        " -do_truncate false: not with -test_data -: a line is a source and nothing else, and is cut where it is too"
        " long; give a file of rows",
    ),
    "a pipe has no probabilities": (
        (*("-test_data", "-", "-label_map", "0=a,1=b", "-task", "seq2seq", "-label_decoding", "score"), *OF_LABELS),
        "-label_prior domain, -label_temperature 2.0: not with -test_data -: a prior and a calibration need all rows,"
        " and a line holds no probabilities",
    ),
    "fields in plain lines": (
        ("-keep_fields", "-test_data", "in.jsonl", "-save_output", "o.txt"),
        "-keep_fields: give -save_output a file that ends in .jsonl or .tsv",
    ),
    "fields of the hub": (
        ("-keep_fields", "-save_output", "o.tsv", "-test_data", "owner/data"),
        "-keep_fields: give -test_data .tsv, .csv, .jsonl or .json files; others are not read again",
    ),
    "answers to requests in plain lines": (
        ("-openai_batch", "-test_data", "in.jsonl", "-save_output", "o.txt"),
        "-openai_batch: give -save_output a file that ends in .jsonl for the answers",
    ),
    "requests in a table": (
        ("-openai_batch", "-save_output", "o.jsonl"),
        "-openai_batch: -test_data good.tsv is no .jsonl file; a batch file has a request on each line",
    ),
    "requests of no file": (
        ("-openai_batch", "-save_output", "o.jsonl", *TRAINING_SHARE),
        "-openai_batch: only with -test_data: its rows are requests",
    ),
    "more than the API's answers hold": (
        ("-openai_batch", "-test_data", "in.jsonl", "-save_output", "o.jsonl", "-beam_size", "2", "-num_return", "2"),
        "-openai_batch: not with -num_return 2: an answer has no place for it",
    ),
    "fields of a share of other rows": (
        ("-keep_fields", *TRAINING_SHARE, "-valid_data", "in.jsonl", "-save_output", "o.jsonl"),
        "-keep_fields reads the records of whole files, and -test_data_proportions 0.5 predicts a share of"
        " -train_data; give the rows as -test_data, or leave -keep_fields out",
    ),
}


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("name", DECODING)
def test_decoding_flags_that_exclude_each_other(name: str) -> None:
    flags, told = DECODING[name]
    assert problems_of(*flags) == [told]


@pytest.mark.usefixtures("place")
def test_a_missing_package_is_told_with_the_other_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    assert problems_of("-engine", "ctranslate2", "-do_sample") == [
        "-do_sample: not with -engine ctranslate2: only -engine torch draws with a seed for each row",
        "-engine ctranslate2 needs the package ctranslate2, which is missing; install it: pip install"
        " ctranslate2==4.8.5",
    ]


@pytest.mark.usefixtures("place")
def test_what_older_scripts_give_is_accepted() -> None:
    """The flags of inference.py that the tool before this one had, with values that mean something or nothing."""
    lengths = ("-max_seq_length", "0", "-do_truncate", "true", "-max_predict_length", "128", "-beam_size", "1")
    assert problems_of(*lengths, "-seed", "-1", "-batch_size", "128", "-gpus", "0", "-float_precision", "32") == []
    shares = ("-train_data", "good.tsv", "-valid_data_proportions", "0.1", "-test_data_proportions", "0.1")
    assert problems_of(*shares, "-seed", "123456") == []


@pytest.mark.usefixtures("place")
def test_one_kind_of_device() -> None:
    told = ["-cpu_processes 2 and -gpus 1 exclude each other; leave one of them out"]
    assert problems_of("-cpu_processes", "2", "-gpus", "1") == told


@pytest.mark.usefixtures("place")
def test_each_adapter_is_a_prediction_of_its_own() -> None:
    argv = ["-model", "base", "-adapter", "runs/a/best", "-adapter", "runs/b", "-test_data", "good.tsv"]
    config, _, problems = parse_flags(InferenceConfig, [*argv, "-save_output", "{adapter}.txt"])
    found = each_adapter(config, problems)
    assert problems == []
    assert [(one.model.model, one.model.base_model, one.output.save_output) for one in found] == [
        (("runs/a/best",), "base", "a.txt"),
        (("runs/b",), "base", "b.txt"),
    ]
    config, _, problems = parse_flags(
        InferenceConfig, [*argv, "-adapter", "a", "-save_output", "o", "-base_model", "x", "-model", "other"]
    )
    each_adapter(config, problems)
    assert problems == [
        "-base_model x: with -adapter the base model is -model",
        "-adapter runs/a/best: give its base model as one -model, not -model base -model other",
        "-adapter a: two adapters have the name a; give a link or a copy another name",
        "-save_output o: each adapter writes a file of its own; put {adapter} into the name",
    ]


def test_all_checkpoints_are_those_of_one_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place / "run/saved_checkpoints"
    folder.mkdir(parents=True)
    (place / "empty/saved_checkpoints").mkdir(parents=True)
    for name in ("epoch0-global_step9-val_loss1.ckpt", "epoch0-global_step10-val_loss1.ckpt"):
        (folder / name).touch()

    def told(*flags: str) -> tuple[list[str], list[str]]:
        config, _, problems = parse_flags(InferenceConfig, ["-all_checkpoints", "-test_data", "good.tsv", *flags])
        configs = of_newest_checkpoint(config, problems)
        for one in configs:
            check_inference(one, problems)
        return [name for one in configs for name in one.model.model], problems

    newest = str(Path("run/saved_checkpoints/epoch0-global_step10-val_loss1.ckpt"))
    assert told("-model", "run", "-save_output", "run/predictions.txt") == ([newest], [])
    (place / "o.tsv").touch()
    assert told("-model", "run", "-save_output", "o.tsv")[1] == ["-save_output o.tsv: exists; -overwrite replaces it"]
    (place / "o.checkpoint-9.tsv.parts").mkdir()
    (place / "o.checkpoint-9.tsv.parts/manifest.json").touch()  # killed when all was written but the report
    assert told("-model", "run", "-save_output", "o.tsv")[1] == []
    refused = "-all_checkpoints: give one run with checkpoints in saved_checkpoints/, not"
    for models in (("owner/name",), ("empty",), ("run/saved_checkpoints",), (newest,), ("run", "empty"), ("missing",)):
        named = [part for model in models for part in ("-model", model)]
        assert told(*named) == ([], [f"{refused} {' '.join(named)}"])
    assert [problem.partition(":")[0] for problem in told()[1]] == ["-model is required"]
    for flags, words in {
        ("-engine", "ctranslate2"): "-engine ctranslate2: it would convert every checkpoint; find the best first",
        ("-adapter", "run"): "-adapter run: give the run of the adapter as -model",
    }.items():
        assert told("-model", "run", *flags)[1] == [f"-all_checkpoints: not with {words}"]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert told("-model", "run")[1] == [
        "-all_checkpoints: not where torchrun or srun starts several processes; give -gpus or -cpu_processes"
    ]
