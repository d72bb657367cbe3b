"""Training runs as a user starts them: what they write, print and learn."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.command import listing, train, train_ok
from tests.cli.tiny import BART, T5, flag_list, json_lines, letter_rows, write_config

GENERATED = ["exact_match", "chrf", "bleu", "rouge1", "rouge2", "rougeL"]
LABEL_FIGURES = ["exact_match", "accuracy", "accuracy_corrected", "macro_f1", "micro_f1"]


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


# ---- the shared run on letters: a BART from scratch, validation and test files, -monitor exact_match


def test_it_learns_to_copy_the_first_letter(copy_run: Path) -> None:
    log = read_json(copy_run / "run" / "log.json")
    assert log[-1]["exact_match"] == 1.0
    assert read_json(copy_run / "run" / "test_report.json")["metrics"]["exact_match"] == 1.0
    assert "  exact_match          1.0000\n" in (copy_run / "stdout.txt").read_text(encoding="utf-8")


def test_files_of_a_run(copy_run: Path) -> None:
    run = copy_run / "run"
    assert sorted(path.name for path in run.iterdir()) == [
        "best",
        "cache",
        "config.json",
        "last",
        "lightning_logs",
        "log.json",
        "metrics.jsonl",
        "report.html",
        "saved_checkpoints",
        "test_report.json",
    ]
    exported = [
        "added_tokens.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer_config.json",
        "training_state.json",
    ]
    for name in ("best", "last"):
        assert sorted(path.name for path in (run / name).iterdir()) == exported
    assert len(list((run / "lightning_logs").iterdir())) == 1


def test_checkpoint_names_and_the_five_best(copy_run: Path) -> None:
    folder = copy_run / "run" / "saved_checkpoints"
    names = sorted(path.name for path in folder.iterdir())
    pattern = re.compile(r"epoch0(\d)-global_step(\d+)-val_loss(\d+\.\d{4})_endofepoch\.ckpt")
    matches = [pattern.fullmatch(name) for name in names if name != "last.ckpt"]
    assert [(int(m[1]), int(m[2])) for m in matches if m] == [(1, 26), (2, 39), (3, 52), (4, 65), (5, 78)]
    losses = {entry["global_step"]: entry["val_loss"] for entry in read_json(copy_run / "run" / "log.json")}
    assert [m[3] for m in matches if m] == [f"{losses[step]:.4f}" for step in (26, 39, 52, 65, 78)]
    assert (folder / "last.ckpt").samefile(folder / names[-2])


def test_checkpoint_is_self_contained_and_plain(copy_run: Path) -> None:
    path = copy_run / "run" / "saved_checkpoints" / "last.ckpt"
    content = torch.load(path, map_location="cpu", weights_only=True)["s2s"]
    assert content["task"]["name"] == "seq2seq"
    assert content["flags"]["monitor"] == "exact_match"
    assert json.loads(content["model"]["model_config"])["model_type"] == "bart"
    assert "tokenizer_config.json" in content["tokenizer"]


def test_resolved_configuration_is_saved(copy_run: Path, letters: Path) -> None:
    config = read_json(copy_run / "run" / "config.json")
    assert config["train_data"] == [str(letters / "train.tsv")]
    assert (config["batch_size"], config["learning_rate"], config["max_epoch"]) == (16, 0.004, 6)
    assert (config["grad_acc"], config["seed"], config["float_precision"]) == (1, 123456, "auto")


def test_logs_of_steps_and_epochs(copy_run: Path) -> None:
    lines = json_lines(copy_run / "run" / "metrics.jsonl")
    trained = [line["step"] for line in lines if line["phase"] == "train"]
    assert trained == [10, 13, 20, 26, 30, 39, 40, 50, 52, 60, 65, 70, 78]
    assert [line["step"] for line in lines if line["phase"] == "valid"] == [13, 26, 39, 52, 65, 78]
    assert list(lines[0]) == [
        "step",
        "epoch",
        "phase",
        "loss",
        "learning_rate",
        "tokens_per_second",
        "rows_per_second",
        "padding_share",
        "peak_memory_gb",
        "gradient_norm",
    ]
    assert lines[0]["learning_rate"] == pytest.approx(0.004 * (78 - 9) / (78 - 8))
    log = read_json(copy_run / "run" / "log.json")
    assert [(entry["epoch"], entry["global_step"], entry["complete"], entry["rows"]) for entry in log] == [
        (epoch, 13 * (epoch + 1), True, 200) for epoch in range(6)
    ]
    assert list(log[0]) == [
        "epoch",
        "global_step",
        "complete",
        "train_loss",
        "val_loss",
        "token_accuracy",
        *GENERATED,
        "learning_rate",
        "rows",
        "seconds",
    ]


def test_best_is_what_the_monitor_says(copy_run: Path) -> None:
    run = copy_run / "run"
    first = next(entry for entry in read_json(run / "log.json") if entry["exact_match"] == 1.0)
    best, last = (read_json(run / name / "training_state.json") for name in ("best", "last"))
    assert best["monitor"] == "exact_match"
    assert (best["best_score"], best["best_step"]) == (1.0, first["global_step"])
    assert best["global_step"] == first["global_step"]
    assert (last["global_step"], last["epoch"], last["micro_batches_of_epoch"]) == (78, 6, 0)
    assert last["task"]["name"] == "seq2seq"
    assert last["label_map"] is None
    config = read_json(run / "config.json")
    assert config.pop("resolved")["steps"] == 78
    assert last["flags"] == config


def test_exported_folders_load_with_transformers(copy_run: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    weights = torch.load(copy_run / "run" / "saved_checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    model = AutoModelForSeq2SeqLM.from_pretrained(copy_run / "run" / "last")
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[f"model.{name}"]), name
    tokenizer = AutoTokenizer.from_pretrained(copy_run / "run" / "best")
    best = AutoModelForSeq2SeqLM.from_pretrained(copy_run / "run" / "best")
    output = best.generate(**tokenizer(["cab", "d"], return_tensors="pt", padding=True), max_new_tokens=5)
    assert tokenizer.batch_decode(output, skip_special_tokens=True) == ["c", "d"]


def test_exported_generation_config_knows_the_models_limit(copy_run: Path) -> None:
    """Not the shorter limit that validation uses."""
    config = read_json(copy_run / "run" / "best" / "generation_config.json")
    assert config["max_new_tokens"] == 63
    assert (config["decoder_start_token_id"], config["eos_token_id"], config["pad_token_id"]) == (0, 1, 0)


def test_tensorboard_shows_the_curves_and_samples(copy_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(copy_run / "run" / "lightning_logs"))
    events.Reload()
    tags = events.Tags()
    training = ["loss", "learning_rate", "tokens_per_second", "rows_per_second", "padding_share", "gradient_norm"]
    training.append("peak_memory_gb")
    validation = ["val_loss", "token_accuracy", *GENERATED]
    assert sorted(tags["scalars"]) == sorted(
        [*(f"train/{name}" for name in training), *(f"valid/{name}" for name in validation)]
    )
    assert [event.step for event in events.Scalars("valid/val_loss")] == [13, 26, 39, 52, 65, 78]
    assert tags["tensors"] == ["valid/samples/text_summary"]
    table = events.Tensors("valid/samples/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert table.splitlines()[0] == "| source | reference | prediction |"
    assert len(table.splitlines()) == 10


def test_plain_progress_lines_when_the_output_is_no_terminal(copy_run: Path) -> None:
    out = (copy_run / "stdout.txt").read_text(encoding="utf-8")
    bar, times = r"█+[▏▎▍▌▋▊▉]? *", r"\d\d:\d\d<\d\d:\d\d, +\S+(it/s|s/it)"
    line = rf"\[Epoch 0\] \[TRAIN\]:  77%\|{bar}\| 10/13 \[{times}, loss=\S+, lr=0\.0039\]"
    assert re.search(f"^{line}$", out, re.MULTILINE)
    assert re.search(r"^\[Epoch 5\] \[VALID\]: 100%\|█{20}\| 3/3 .*exact_match=1\.0000", out, re.MULTILINE)
    assert "200 training rows, 40 validation rows, 30 test rows\n" in out
    assert "batches of 16 rows x 1 accumulated x 1 devices, 13 optimizer steps an epoch, 78 in all" in out
    assert "optimizer adam, learning rate 0.004, linear, warm-up of 8 steps, gradients clipped at 1\n" in out
    assert "trained to optimizer step 78; best exact_match 1.0000 at step 39\n" in out
    assert re.search(
        r"^took 0:0\d:\d\d; [\d,]+ tokens/s without padding, padding \d\.\d%; peak memory \d\.\d GB$", out, re.M
    )


def test_a_profile_shows_where_the_time_went_and_changes_nothing(copy_run: Path, letters: Path, tmp_path: Path) -> None:
    """It ends with the run when that is stopped before."""
    flags = read_json(copy_run / "run" / "config.json")
    names = ("train_data", "config_path", "batch_size", "max_epoch", "learning_rate", "lr_scheduler", "warmup_steps")
    flags = {name: flags[name] for name in names} | {"train_data": letters / "train.tsv", "log_every": 10}
    flags |= {"save_path": tmp_path / "run", "max_steps": 10, "profile": 9}
    done = train_ok(*flag_list(flags))
    assert "USDT" not in done.err  # lines of PyTorch's tracer
    out = done.out.splitlines()
    trace = tmp_path / "run" / "profile" / "trace.json.gz"
    told = f"where the time of a step went, 5 steps after a warm-up of 5 (-profile 9 asked for more); {trace} is for"
    at = next(number for number, line in enumerate(out) if line.startswith(told))
    parts = ["data", "forward", "backward", "optimizer", "waiting", "other", "step"]
    assert [line.split()[0] for line in out[at + 2 : at + 9]] == parts
    with gzip.open(trace) as file:
        names_of_trace = [entry.get("name") for entry in json.load(file)["traceEvents"]]
    assert names_of_trace.count("step: forward") == 5
    ours, plain = (json_lines(folder / "run" / "metrics.jsonl")[0] for folder in (tmp_path, copy_run))
    assert (ours["step"], ours["loss"], ours["gradient_norm"]) == (10, plain["loss"], plain["gradient_norm"])


# ---- the shared label run: label map, templates, -max_tokens, -grad_acc, bf16, validation rows by proportion


def test_label_task_learns_the_rendered_labels(label_run: Path) -> None:
    report = read_json(label_run / "run" / "test_report.json")
    assert report["metrics"]["accuracy"] == 1.0
    assert [(row["label"], row["f1"]) for row in report["per_class"]] == [("부정.", 1.0), ("긍정.", 1.0)]
    state = read_json(label_run / "run" / "best" / "training_state.json")
    assert state["label_map"] == {"0": "부정.", "1": "긍정."}
    assert state["task"]["label_map"] == {"0": "부정", "1": "긍정"}
    assert (state["task"]["input_template"], state["task"]["target_template"]) == (
        "평가: {{ document }}",
        "{{ target }}.",
    )


def test_label_task_logs_its_metrics(label_run: Path) -> None:
    valid = [line for line in json_lines(label_run / "run" / "metrics.jsonl") if line["phase"] == "valid"]
    assert list(valid[0])[5:] == LABEL_FIGURES
    assert valid[-1]["accuracy"] == 1.0


def test_proportions_token_budget_and_bf16(label_run: Path) -> None:
    out = (label_run / "stdout.txt").read_text(encoding="utf-8")
    assert "144 training rows, 16 validation rows, 40 test rows\n" in out
    assert "labels: 0=부정, 1=긍정\n" in out
    assert "devices 1 x cpu, precision bf16\n" in out
    assert re.search(
        r"^batches of 200 padded tokens x 2 accumulated x 1 devices, \d+ optimizer steps an epoch", out, re.M
    )
    weights = torch.load(label_run / "run" / "saved_checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_uneven_labels_are_chosen_evenly_and_weighted(label_run: Path, tmp_path: Path) -> None:
    """A run goes on with its own weights alone."""
    (tmp_path / "weights.yaml").write_text("{0: 1, 1: 2.5}", encoding="utf-8")
    flags = {
        "train_data": label_run / "train.tsv",
        "source_column": "document",
        "target_column": "label",
        "label_map": "0=부정,1=긍정",
        "train_rows": 40,
        "balance_labels": "true",
        "class_weights": tmp_path / "weights.yaml",
        "config_path": label_run / "bart.json",
        "save_path": tmp_path / "run",
        "max_steps": 1,
        "batch_size": 10,
    }
    out = train_ok(*flag_list(flags)).out
    assert "labels of the training rows: 부정 20, 긍정 20\n" in out
    assert "-class_weights: 부정 1, 긍정 2.5\n" in out
    more = {"resume_checkpoint": "last", "max_steps": 2}
    (tmp_path / "weights.yaml").write_text("{0: 1, 1: 3}", encoding="utf-8")
    refused = train(*flag_list({**flags, **more}))
    assert refused.code == 2
    assert re.search(r"^  weights of the labels +부정=1.0, 긍정=2.5 +부정=1.0, 긍정=3.0$", refused.err, re.M), (
        refused.err
    )


# ---- a T5 without validation rows


def t5_flags(folder: Path, letters: Path) -> dict[str, Any]:
    return {
        "train_data": f"{letters / 'train.tsv'}:4",
        "config_path": folder / "t5.json",
        "save_path": folder / "deep" / "run",
        "batch_size": 10,
        "max_epoch": 2,
        "log_every": 5,
    }


@pytest.fixture(scope="session")
def t5_run(once: Callable[[str, Callable[[Path], None]], Path], letters: Path) -> Path:
    """50 rows, 5 steps an epoch; adafactor's own rate; encoder frozen; a checkpoint every 2 steps, 3 are kept."""

    def make(folder: Path) -> None:
        write_config(folder / "t5.json", T5)
        more = {"optim": "adafactor", "freeze": "encoder", "save_every": 2, "save_last_k": 3}
        result = train_ok(*flag_list({**t5_flags(folder, letters), **more}))
        (folder / "stdout.txt").write_text(result.out, encoding="utf-8")

    return once("t5_run", make)


def test_adafactor_says_that_its_rate_is_automatic(t5_run: Path) -> None:
    out = (t5_run / "stdout.txt").read_text(encoding="utf-8")
    assert "50 training rows\n" in out
    assert "optimizer adafactor, learning rate its own relative step\n" in out


def test_without_validation_best_is_the_last_state(t5_run: Path) -> None:
    run = t5_run / "deep" / "run"
    out = (t5_run / "stdout.txt").read_text(encoding="utf-8")
    assert "trained to optimizer step 10; no validation rows: best/ is the last state\n" in out
    assert (run / "best" / "model.safetensors").read_bytes() == (run / "last" / "model.safetensors").read_bytes()
    assert sorted(path.name for path in (run / "saved_checkpoints").iterdir()) == [
        "epoch00-global_step5_endofepoch.ckpt",
        "epoch01-global_step10.ckpt",
        "epoch01-global_step10_endofepoch.ckpt",
        "epoch01-global_step6.ckpt",
        "epoch01-global_step8.ckpt",
        "last.ckpt",
    ]
    log = read_json(run / "log.json")
    assert [(entry["epoch"], entry["global_step"], entry["rows"]) for entry in log] == [(0, 5, 50), (1, 10, 50)]
    assert "val_loss" not in log[0]


def test_frozen_encoder_stays_and_the_untied_head_survives(t5_run: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM

    from models.loading import from_config, is_untied

    before = from_config(T5, 123456).state_dict()
    model = AutoModelForSeq2SeqLM.from_pretrained(t5_run / "deep" / "run" / "last")
    assert is_untied(model)
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert {name for name in same if ".block." in name} == {name for name in before if name.startswith("encoder.block")}
    assert not same & {"shared.weight", "lm_head.weight"}
    out = (t5_run / "stdout.txt").read_text(encoding="utf-8")
    trained = re.search(r"t5, ([\d,]+) parameters, ([\d,]+) trained", out)
    assert trained is not None
    frozen = int(trained[1].replace(",", "")) - int(trained[2].replace(",", ""))
    layers = {name: value for name, value in before.items() if name.startswith("encoder.")}
    assert frozen == sum(value.numel() for name, value in layers.items() if name != "encoder.embed_tokens.weight")


def test_overwrite_removes_the_run_and_early_stopping_ends_it(t5_run: Path, letters: Path, tmp_path: Path) -> None:
    run = shutil.copytree(t5_run / "deep" / "run", tmp_path / "run")
    flags = {**t5_flags(t5_run, letters), "save_path": run}
    refused = train(*flag_list(flags))
    assert refused.code == 2
    assert refused.errors == [
        f"-save_path {run}: already holds a run; continue it with -resume_checkpoint last, delete it with"
        " -overwrite, or choose another folder"
    ]
    (run / "notes.txt").write_text("mine")
    still = {  # a rate below the resolution of fp32: no validation is better than the first
        "learning_rate": 1e-12,
        "lr_scheduler": "constant",
        "valid_data": letters / "valid.tsv",
        "valid_generate_rows": 0,
        "early_stopping_patience": 2,
        "max_epoch": 10,
    }
    result = train_ok(*flag_list({**flags, **still}), "-overwrite")
    assert "trained to optimizer step 15; best val_loss" in result.out
    assert " at step 5\n" in result.out
    assert (run / "notes.txt").read_text() == "mine"
    names = sorted(path.name for path in (run / "saved_checkpoints").iterdir())
    assert len(names) == 4
    assert all("endofepoch" in name or name == "last.ckpt" for name in names)
    assert [line["step"] for line in json_lines(run / "metrics.jsonl")] == [5, 5, 10, 10, 15, 15]
    assert len(list((run / "lightning_logs").iterdir())) == 1
    # The finished run says so when it is resumed, and touches nothing.
    before = listing(run)
    again = train_ok(*flag_list({**flags, **still}), "-resume_checkpoint", "last")
    assert again.out == (
        "the run is finished: stopped early at optimizer step 15; -early_stopping_patience 0 trains on\n"
    )
    assert listing(run) == before


def test_finetuning_from_a_folder_with_the_other_flags(copy_run: Path, tmp_path: Path) -> None:
    """JSON lines; rows over a limit are discarded; checkpointed activations; nothing on standard error."""
    rows = [json.dumps({"text": word, "label": target}) for word, target in letter_rows(40, 7)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    long = sum(len(word) > 3 for word, _ in letter_rows(40, 7))
    flags = {
        "task": "jsonlines",
        "train_data": tmp_path / "rows.jsonl",
        "test_data_proportions": 0.25,
        "init_model": copy_run / "run" / "best",
        "save_path": tmp_path / "run",
        "max_tokens": 40,
        "max_epoch": 1,
        "max_seq_length": 4,
        "do_truncate": "false",
        "gradient_checkpointing": "true",
        "num_workers": 1,
        "label_smoothing": 0.1,
        "weight_decay": 0.01,
        "learning_rate": 1e-5,
        "optim": "adafactor",
        "lr_scheduler": "inverse_sqrt",
    }
    result = train_ok(*flag_list(flags))
    assert result.err == ""
    assert f"-train_data: {long} rows over a length limit discarded (kept for testing), first at " in result.out
    kept = re.search(r"^(\d+) training rows, 10 test rows$", result.out, re.MULTILINE)
    assert kept is not None
    assert 30 - long <= int(kept[1]) < 30
    assert "optimizer adafactor, learning rate 1e-05, inverse_sqrt, warm-up of 0 steps\n" in result.out
    assert read_json(tmp_path / "run" / "test_report.json")["rows"] == 10
    assert read_json(tmp_path / "run" / "log.json")[0]["rows"] == int(kept[1])


def test_nan_loss_stops_the_run(tmp_path: Path, letters: Path) -> None:
    flags = {
        "train_data": letters / "train.tsv",
        "config_path": write_config(tmp_path / "bart.json", BART),
        "save_path": tmp_path / "run",
        "learning_rate": 1e30,
        "lr_scheduler": "constant",
        "log_every": 2,
        "max_epoch": 1,
    }
    result = train(*flag_list(flags))
    assert result.code == 1
    assert "Traceback" not in result.err
    assert re.search(r"became NaN or infinite at optimizer step [12];", result.err)
    assert "learning rate that is too high" in result.err
    assert not (tmp_path / "run" / "best").exists()
    assert list((tmp_path / "run" / "saved_checkpoints").iterdir()) == []


def test_fp16_is_refused_for_t5(tmp_path: Path, letters: Path) -> None:
    flags = {
        "train_data": letters / "train.tsv",
        "config_path": write_config(tmp_path / "t5.json", T5),
        "save_path": tmp_path / "run",
        "float_precision": "fp16",
    }
    result = train(*flag_list(flags))
    assert result.code == 2
    assert result.errors == ["-float_precision fp16: a t5 model overflows in fp16 and gives NaN; use bf16 or 32"]
    assert not (tmp_path / "run").exists()
