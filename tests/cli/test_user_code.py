"""-user_code: a metric and an architecture that the product does not know, trained, monitored and predicted with."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.command import ROOT, infer, infer_ok, train_ok
from tests.cli.tiny import T5, flag_list, write_config

CODE = """
from transformers import AutoConfig, AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from metrics.registry import TEXTS, Metric, register


class MyConfig(T5Config):
    model_type = "my-t5"


class MyModel(T5ForConditionalGeneration):
    config_class = MyConfig


class FirstLetter:
    def __init__(self):
        self.rows = self.equal = 0

    def add(self, block):
        self.rows += len(block)
        self.equal += sum(reference[:1] == prediction[:1] for reference, prediction in block)

    def result(self):
        return {"first_letter": self.equal / self.rows}, {}


AutoConfig.register("my-t5", MyConfig)
AutoModelForSeq2SeqLM.register(MyConfig, MyModel)
register(Metric("first_letter", TEXTS, "share of right first letters", lambda *_: FirstLetter(), default=False))
"""


def test_a_metric_and_an_architecture_of_the_user(letters: Path, tmp_path: Path) -> None:
    code = tmp_path / "code_of_mine.py"
    code.write_text(CODE)
    (tmp_path / "task.yaml").write_text("{name: mine, metrics: [first_letter]}")
    flags = {
        "user_code": code,
        "task": tmp_path / "task.yaml",
        "train_data": f"{letters / 'train.tsv'}:4",
        "valid_data": f"{letters / 'valid.tsv'}:4",
        "monitor": "first_letter",
        "config_path": write_config(tmp_path / "config.json", T5, model_type="my-t5"),
        "save_path": tmp_path / "run",
        "batch_size": 10,
        "max_epoch": 1,
    }
    assert "best first_letter 0.0000 at step 5" in train_ok(*flag_list(flags)).out
    predict = ["-model", tmp_path / "run", "-test_data", letters / "test.tsv", "-max_predict_length", 3]
    report = tmp_path / "report.json"
    infer_ok(*predict, "-user_code", code, "-cpu_processes", 2, "-save_report", report)
    assert list(json.loads(report.read_text())["metrics"]) == ["first_letter"]
    without = infer(*predict)
    assert (without.code, len(without.errors)) == (2, 1)
    assert "unknown metric 'first_letter'" in without.errors[0]


def test_the_worked_example_trains_resumes_and_predicts(letters: Path, tmp_path: Path) -> None:
    settings = json.loads((ROOT / "examples" / "gbst_t5.json").read_text())
    flags = {
        "user_code": "examples/gbst_t5.py",
        "train_data": f"{letters / 'train.tsv'}:4",
        "valid_data": f"{letters / 'valid.tsv'}:4",
        "config_path": write_config(tmp_path / "config.json", settings, d_model=32, d_ff=48),
        "save_path": tmp_path / "run",
        "batch_size": 10,
        "max_epoch": 1,
        "max_steps": 3,
    }
    told = train_ok(*flag_list(flags)).out
    assert "a gbst-t5 model is decoded by generate of transformers" in told
    resumed = train_ok(*flag_list({**flags, "max_steps": 0, "resume_checkpoint": "last"})).out
    assert "trained to optimizer step 5" in resumed
    predict = ["-model", tmp_path / "run", "-test_data", letters / "test.tsv", "-max_predict_length", 3]
    infer_ok(*predict, "-user_code", "examples/gbst_t5.py", "-save_output", tmp_path / "out.txt")
    rows = len((letters / "test.tsv").read_text().splitlines()) - 1
    assert len((tmp_path / "out.txt").read_text().splitlines()) == rows
