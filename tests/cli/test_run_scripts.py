"""Every recipe of run_scripts/ that takes its model from the environment, offline on tiny models and tiny data."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from config.flags.inference import InferenceConfig
from config.flags.train import TrainConfig
from config.parser import parse_flags
from tests.cli.command import ROOT, Result, make_environment, run
from tests.cli.tiny import BART, T5, letter_rows, write_tsv
from tests.small_models import KOREAN_CORPUS, byte_tokenizer, kobart_tokenizer, unigram_tokenizer

CORPUS = (*KOREAN_CORPUS, "negative positive")
SET_UP_THEMSELVES = {"environment.sh", "recipe.sh", "quickstart.sh", "test.sh"}
MODELS: dict[str, tuple[dict[str, Any], Callable[[Path], Any]]] = {
    "kobart": ({**BART, "vocab_size": 512}, kobart_tokenizer),
    "byt5": (T5, byte_tokenizer),
    "mt5": ({**T5, "model_type": "mt5", "vocab_size": 512}, partial(unigram_tokenizer, corpus=CORPUS)),
}
TRAIN_NSMC = {
    "train_nsmc_skt-kobart-v2.sh": "kobart",
    "train_nsmc_kebyt5-small.sh": "byt5",
    "train_nsmc_byt5-small.sh": "byt5",
    "train_nsmc_lora.sh": "byt5",
    "train_nsmc_mT5-small.sh": "mt5",
}
NER = "## klue-ner-v1_train_{0}-nsmc\t<김하늘:PS> 최고\n김\tB-PS\n하\tI-PS\n늘\tI-PS\n \tO\n최\tO\n고\tO\n\n"
DP = (
    "## klue-dp-v1_train_{0}_wikitree\t나는 밥을 먹었다.\n1\t나는\t나 는\tNP+JX\t3\tNP_SBJ\n"
    "2\t밥을\t밥 을\tNNG+JKO\t3\tNP_OBJ\n3\t먹었다.\t먹 었 다 .\tVV+EP+EF+SF\t0\tVP\n\n"
)
PAIRS = ("source_language\ttarget_language\tsource\ttarget\n", "ko\ten\t비\train\n", "en\tko\train\t비\n")


def nli(count: int) -> str:
    """KLUE-NLI's layout."""
    labels = ("entailment", "neutral", "contradiction")
    rows = [
        {
            "guid": f"n{number}",
            "premise": "비가 온다.",
            "hypothesis": f"날씨 {number}",
            "gold_label": labels[number % 3],
        }
        for number in range(count)
    ]
    return json.dumps(rows, ensure_ascii=False)


def squad(count: int) -> str:
    """The layout of SQuAD, KorQuAD and KLUE-MRC."""
    answers = [{"text": "서울", "answer_start": 4}]
    questions = [{"id": f"q{n}", "guid": f"q{n}", "question": f"수도 {n}?", "answers": answers} for n in range(count)]
    paragraph = {"context": "수도는 서울이다." + " 아주 긴 글이다." * 20, "qas": questions}
    return json.dumps({"version": "1", "data": [{"title": "도시", "paragraphs": [paragraph]}]}, ensure_ascii=False)


TRAIN_STRUCTURED: dict[str, tuple[str, Callable[[int], str], str]] = {  # ending of the files, content, first metric
    "train_klue_nli.sh": ("json", nli, "accuracy"),
    "train_klue_ner.sh": ("tsv", lambda count: "".join(map(NER.format, range(count))), "entity_macro_f1"),
    "train_klue_dp.sh": ("tsv", lambda count: "".join(map(DP.format, range(count))), "uas_macro_f1"),
    "klue_mrc_train_test.sh": ("json", squad, "klue_em"),
    "korquad_train_test.sh": ("json", squad, "korquad_em"),
    "train_translation.sh": ("tsv", lambda count: PAIRS[0] + "".join(PAIRS[1:] * (count // 2)), "bleu"),
}


def script(name: str, *flags: str, **variables: str | Path) -> Result:
    result = run("bash", f"run_scripts/{name}", *flags, env={key: str(value) for key, value in variables.items()})
    assert result.code == 0, result.out + result.err
    return result


def make_model(folder: Path, kind: str) -> Path:
    """A tiny `from_pretrained` folder of that kind, tokenizer included."""
    from models.loading import from_config

    config, tokenizer = MODELS[kind]
    from_config({**config, "eos_token_id": 1} if kind != "kobart" else kobart_config(config), 1).save_pretrained(folder)
    tokenizer(folder)
    return folder


def kobart_config(config: dict[str, Any]) -> dict[str, Any]:
    """`<s>` 0, `<pad>` 1, `</s>` 2, as the tokenizer has them."""
    return {**config, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}


@pytest.fixture(scope="session")
def nsmc(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """ratings_train.txt (60 rows) and ratings_test.txt (12) with NSMC's columns, quotes included."""

    def make(folder: Path) -> None:
        reviews = [("최고의 영화입니다", "1"), ('"지루하다', "0"), ("다시 보고 싶어요!", "1"), ("돈이 아깝다...", "0")]
        rows = [(str(number), *reviews[number % 4]) for number in range(72)]
        for name, part in (("train", rows[:60]), ("test", rows[60:])):
            write_tsv(folder / f"ratings_{name}.txt", part, ("id", "document", "label"))

    return once("nsmc", make)


def test_every_script_is_tested_here() -> None:
    names = {path.name for path in (ROOT / "run_scripts").glob("*.sh")} - SET_UP_THEMSELVES
    others = {"nsmc_test.sh", "train_s2s_kebyt5-small.sh", "inference_s2s_kebyt5-small.sh", "evaluate_klue_ner.sh"}
    several = {
        "bench_ko.sh",
        "pretrain_nsmc.sh",
        "train_review_analysis.sh",
        "train_klue_mixture.sh",
        "distill_nsmc.sh",
    }
    assert names == {*TRAIN_NSMC, *TRAIN_STRUCTURED, *others, *several}


@pytest.mark.parametrize("name", TRAIN_NSMC)
def test_nsmc_scripts(name: str, nsmc: Path, tmp_path: Path) -> None:
    data = {"TRAIN_DATA": nsmc / "ratings_train.txt", "TEST_DATA": nsmc / "ratings_test.txt", "GPUS": "0"}
    model = make_model(tmp_path / "model", TRAIN_NSMC[name])
    result = script(name, "-max_epoch", "1", MODEL=model, SAVE_PATH=tmp_path / "run", **data)
    assert "labels: 0=negative, 1=positive\n" in result.out
    assert "59 training rows, 1 validation row, 12 test rows\n" in result.out
    report = json.loads((tmp_path / "run" / "test_report.json").read_text(encoding="utf-8"))
    assert report["rows"] == 12
    assert [row["support"] for row in report["per_class"]] == [6, 6]
    if name != "train_nsmc_skt-kobart-v2.sh":
        return
    script("nsmc_test.sh", MODEL=tmp_path / "run" / "best", OUTPUT=tmp_path / "test", **data)
    again = json.loads((tmp_path / "test.report.json").read_text(encoding="utf-8"))
    assert again["metrics"] == report["metrics"]
    assert (tmp_path / "test.references.txt").read_text().split() == ["positive", "negative"] * 6
    assert len((tmp_path / "test.predictions.txt").read_text(encoding="utf-8").split("\n")) == 13


def test_the_distillation_script_gives_accuracy_and_speed_of_teacher_and_student(nsmc: Path, tmp_path: Path) -> None:
    data = {"TRAIN_DATA": nsmc / "ratings_train.txt", "TEST_DATA": nsmc / "ratings_test.txt", "GPUS": "0"}
    made = {"TEACHER": make_model(tmp_path / "teacher", "byt5"), "SAVE_PATH": tmp_path / "run"}
    layers = {"ENCODER_LAYERS": "1", "DECODER_LAYERS": "1"}
    result = script("distill_nsmc.sh", "-max_epoch", "1", **made, **layers, **data)
    assert result.out.count("12 rows predicted in ") == 2
    assert result.out.count("accuracy  ") == 2


def test_the_pretraining_script_ends_with_two_accuracies(nsmc: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(CORPUS * 20), encoding="utf-8")
    (tmp_path / "model.json").write_text(json.dumps(T5), encoding="utf-8")
    given = {"TRAIN_DATA": nsmc / "ratings_train.txt", "TEST_DATA": nsmc / "ratings_test.txt", "GPUS": "0"}
    given |= {"CORPUS": tmp_path / "texts.txt", "MODEL": tmp_path / "model.json", "SAVE_PATH": tmp_path / "runs"}
    sizes = {"VOCAB": "400", "STEPS": "4", "ROWS": "20", "EVERY": "1"}
    result = script("pretrain_nsmc.sh", "-valid_rows", "2", **given, **sizes)
    found = [line.split() for line in result.out.splitlines()[-2:]]
    assert [start for start, _ in found] == ["pretrained", "scratch"]
    assert all(0 <= float(accuracy) <= 1 for _, accuracy in found)
    assert "trained to optimizer step 4" in result.out


@pytest.mark.parametrize("name", [*TRAIN_NSMC, "nsmc_test.sh", "pretrain_nsmc.sh"])
def test_without_nsmc_one_line_says_where_it_is_to_be_had(name: str, tmp_path: Path) -> None:
    names = ["TEST_DATA"] if name == "nsmc_test.sh" else ["TRAIN_DATA", "TEST_DATA"]
    missing = {name: str(tmp_path / "none.txt") for name in names}
    result = run("bash", f"run_scripts/{name}", env={**missing, "VENV": str(tmp_path / "venv")})
    assert (result.code, result.out) == (2, "")
    assert result.errors == [
        f"no such file: {' '.join(f'{name}={path}' for name, path in missing.items())}; NSMC is at"
        " https://github.com/e9t/nsmc: put its ratings_train.txt and ratings_test.txt into data/nsmc/,"
        f" or set {' '.join(names)}"
    ]


def test_without_packages_the_recipes_use_the_environment_of_the_quickstart(tmp_path: Path) -> None:
    make_environment(tmp_path / "bare", "exit 1")
    make_environment(tmp_path / "venv", 'echo "started: $*"')
    path = f"{tmp_path / 'bare' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    variables = {"PATH": path, "VENV": str(tmp_path / "venv"), "PYTHON": sys.executable, "MODEL": "m", "OUTPUT": "o"}
    result = run("bash", "run_scripts/inference_s2s_kebyt5-small.sh", env=variables)
    assert result.out.startswith("started: inference.py -model m -test_data samples/text_normalization/test.tsv")


def test_seq2seq_scripts(letters: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "byt5")
    data = {"TRAIN_DATA": letters / "train.tsv", "VALID_DATA": letters / "valid.tsv", "GPUS": "0"}
    result = script("train_s2s_kebyt5-small.sh", "-max_epoch=1", MODEL=model, SAVE_PATH=tmp_path / "run", **data)
    assert "200 training rows, 40 validation rows\n" in result.out
    best = shutil.copytree(tmp_path / "run" / "best", tmp_path / "moved")
    predicted = {"MODEL": best, "TEST_DATA": letters / "test.tsv", "OUTPUT": tmp_path / "test", "GPUS": "0"}
    script("inference_s2s_kebyt5-small.sh", "-max_predict_length", "6", **predicted)
    report = json.loads((tmp_path / "test.report.json").read_text(encoding="utf-8"))
    assert (report["rows"], report["settings"]["beam_size"]) == (30, 4)
    references = [target for _, target in letter_rows(30, 2)]
    assert (tmp_path / "test.references.txt").read_text().split() == references
    assert len((tmp_path / "test.predictions.txt").read_text(encoding="utf-8").split("\n")) == 31


@pytest.mark.parametrize("name", TRAIN_STRUCTURED)
def test_scripts_of_published_corpora(name: str, tmp_path: Path) -> None:
    ending, content, metric = TRAIN_STRUCTURED[name]
    for split, count in (("train", 60), ("dev", 6)):
        (tmp_path / f"{split}.{ending}").write_text(content(count), encoding="utf-8")
    data = {"TRAIN_DATA": tmp_path / f"train.{ending}", "TEST_DATA": tmp_path / f"dev.{ending}", "GPUS": "0"}
    model = make_model(tmp_path / "model", "byt5")
    windows = ["-max_seq_length", "320", "-doc_stride", "80"] if content is squad else []
    result = script(name, "-max_epoch", "1", *windows, MODEL=model, SAVE_PATH=tmp_path / "run", **data)
    counts = "59 training rows, 1 validation row, 6 test rows"
    if name == "klue_mrc_train_test.sh":  # its prompt takes half of a window
        counts = "295 training windows of 59 rows, 5 validation windows of 1 row, 30 test windows of 6 rows"
    if name == "korquad_train_test.sh":
        counts = "118 training windows of 59 rows, 2 validation windows of 1 row, 12 test windows of 6 rows"
    assert f"{counts}\n" in result.out
    report = json.loads((tmp_path / "run" / "test_report.json").read_text(encoding="utf-8"))
    assert (report["scored_rows"], next(iter(report["metrics"]))) == (6, metric)
    if name == "train_klue_ner.sh":
        del data["TRAIN_DATA"]
        script("evaluate_klue_ner.sh", MODEL=tmp_path / "run", OUTPUT=tmp_path / "dev", **data)
        assert (tmp_path / "dev.references.txt").read_text(encoding="utf-8") == "<김하늘:PS> 최고\n" * 6
        again = json.loads((tmp_path / "dev.report.json").read_text(encoding="utf-8"))
        assert again["metrics"] == report["metrics"]


def test_review_analysis_trains_both_steps_and_analyses(tmp_path: Path) -> None:
    keywords = [{"text": "싸고 좋아요", "labels": "가격", "sentiments": "긍정"}, {"text": "그냥", "labels": "없음"}]
    sentiments = [{"review": "싸고 좋아요", "keyword": "가격", "sentiment": "긍정"}] * 2
    data: dict[str, str | Path] = {"LABELS": "1=가격,0=없음", "GPUS": "0"}
    for name, rows in (("KEYWORD_DATA", keywords), ("VALID_DATA", keywords), ("SENTIMENT_DATA", sentiments)):
        data[name] = tmp_path / f"{name}.jsonl"
        lines = [f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows * 6]
        data[name].write_text("".join(lines), encoding="utf-8")
    model, out = make_model(tmp_path / "model", "byt5"), tmp_path / "run"
    flags = ("-max_epoch", "1")
    script("train_review_analysis.sh", *flags, MODEL=model, SAVE_PATH=out, TEST_DATA=data["VALID_DATA"], **data)
    assert len((out / "analyses.jsonl").read_text(encoding="utf-8").splitlines()) == 12
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert [row["label"] for row in report["keywords"]["per_class"]] == ["가격", "없음"]
    assert (out / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_one_model_of_three_tasks(tmp_path: Path) -> None:
    """The mixture of the recipe, beside data of its own."""
    mixture = tmp_path / "recipes" / "klue_mixture.yaml"
    mixture.parent.mkdir()
    shutil.copy(ROOT / "run_scripts" / "klue_mixture.yaml", mixture)
    (tmp_path / "data" / "klue").mkdir(parents=True)
    for name, (ending, content, _) in TRAIN_STRUCTURED.items():
        task = name.removeprefix("train_").removesuffix(".sh").replace("_", "-")
        for split, count in (("train", 50), ("dev", 4)):
            file = tmp_path / "data" / "klue" / f"{task}-v1.1_{split}.{ending}"
            file.write_text(content(count), encoding="utf-8")
    flags = {"MODEL": make_model(tmp_path / "model", "byt5"), "SAVE_PATH": tmp_path / "run", "GPUS": "0"}
    result = script("train_klue_mixture.sh", "-max_epoch", "1", TRAIN_TASK=mixture, **flags)
    assert "klue-dp: 49 training rows, 1 validation row, 4 test rows\n" in result.out
    report = json.loads((tmp_path / "run" / "test_report.json").read_text(encoding="utf-8"))
    first = {task: next(iter(part["metrics"])) for task, part in report["tasks"].items()}
    assert first == {"klue-nli": "accuracy", "klue-ner": "entity_macro_f1", "klue-dp": "uas_macro_f1"}


def test_the_korean_benchmark_writes_one_table_and_goes_on(tmp_path: Path) -> None:
    """Two seeds of one task; done again it trains nothing and writes the same."""
    header = ("genre", "filename", "year", "id", "score", "sentence1", "sentence2")
    rows = [("g", "f", "2012", str(n), f"{n % 6}.000", f'"문장 {n}', "다른 문장") for n in range(12)]
    (tmp_path / "data").mkdir()
    for name in ("train", "dev", "test"):
        write_tsv(tmp_path / "data" / f"sts-{name}.tsv", rows, header)
    variables = {"SEEDS": "1 2", "OUT": tmp_path / "out", "EVERY": "2"}
    flags = ("-max_epoch", "1", "-gpus", "0")
    model = make_model(tmp_path / "model", "byt5")
    first = script("bench_ko.sh", str(model), str(tmp_path / "data"), *flags, **variables)
    assert f"klue-nli: left out, {tmp_path / 'data'} does not hold klue-nli-v1.1_train.json, " in first.out
    table = (tmp_path / "out" / "bench.md").read_text(encoding="utf-8")
    assert [line.split(" | ")[:3] for line in table.splitlines()[4:]] == [
        ["| korsts", "6", "spearman"],
        ["| korsts", "6", "pearson"],
    ]
    figures = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))["figures"]
    assert [len(figure["values"]) for figure in figures] == [2, 2]
    again = script("bench_ko.sh", str(model), str(tmp_path / "data"), *flags, **variables)
    assert "[TRAIN]" not in again.out
    assert (tmp_path / "out" / "bench.md").read_text(encoding="utf-8") == table
    other = {name: str(value) for name, value in {**variables, "EVERY": "3"}.items()}
    refused = run("bash", "run_scripts/bench_ko.sh", str(model), str(tmp_path / "data"), *flags, env=other)
    assert (refused.code, refused.err.splitlines()[-1].split()) == (2, ["EVERY", "2", "3"])
    twice = run("bash", "run_scripts/bench_ko.sh", "m", str(tmp_path), env={"SEEDS": "1 1"})
    assert twice.errors == ["SEEDS '1 1': give different whole numbers, for example SEEDS='1 2 3'"]
    wrong = run("bash", "run_scripts/bench_ko.sh", str(model), str(tmp_path), env={"TASKS": "klue-nl"})
    assert (wrong.code, wrong.errors[0][:60]) == (2, "TASKS: no such task 'klue-nl' (did you mean klue-nli?); know")


def test_slurm_scripts(tmp_path: Path) -> None:
    """What they start on two nodes of four GPUs; and that a prediction which runs out of time is queued again."""
    stubs = {
        "srun": 'shift 2; shift; printf "%s\\n" "$@"; [ "$1" = train.py ] || kill -USR1 $PPID\n',
        "scontrol": 'echo "scontrol $*"\n',
    }
    for name, content in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{content}")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "77", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4"}
    job["PATH"] = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    started = script("slurm/train.sh", "-seed", "5", **job).out.split()
    assert started[0] == "train.py"
    config, _, problems = parse_flags(TrainConfig, started[1:])
    assert problems == []
    assert (config.device.num_nodes, config.device.gpus) == (2, 4)
    assert (config.run.requeue, config.run.resume_checkpoint, config.run.seed) == (True, "auto", 5)
    ended = run("bash", "run_scripts/slurm/predict.sh", "-beam_size", "4", env={**job, "MODEL": "runs/mine"})
    assert "scontrol requeue 77\n" in ended.out
    started = ended.out.replace("scontrol requeue 77\n", "").split()
    assert started[0] == "inference.py"
    inference, _, problems = parse_flags(InferenceConfig, started[1:])
    assert problems == []
    assert inference.decode.beam_size == 4
