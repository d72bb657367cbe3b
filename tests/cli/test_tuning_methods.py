"""An adapter from its training to what is deployed: killed and resumed, predicted, exported, on a base that moved."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, ByT5Tokenizer, GenerationConfig

from checkpoints.model_source import InferenceModel
from checkpoints.saved_run import read_run
from models.loading import from_config
from tests.cli.command import infer_ok, run, train
from tests.cli.test_optimizer_runs import begin, resume
from tests.cli.tiny import flag_list
from tests.faults.harness import assert_same_checkpoints, assert_same_end, events_of, run_flags, run_under_fire
from tests.small_configs import config_of
from utils.errors import UserError


@pytest.fixture(scope="session")
def adapted(once: Callable[[str, Callable[[Path], None]], Path], letters: Path) -> Path:
    """A folder with a `base` model, a `whole` run that trained an adapter on it, and a `killed` one."""

    def make(folder: Path) -> None:
        from_config(config_of("t5-untied"), seed=4).save_pretrained(folder / "base")
        ByT5Tokenizer().save_pretrained(folder / "base")
        flags = {
            **run_flags(folder, "whole", "t5-untied", f"{letters / 'train.tsv'}:2", learning_rate=2e-2, max_epoch=1),
            "valid_data": letters / "valid.tsv",
            "config_path": None,
            "init_model": folder / "base",
            "tuning_method": "adalora",
            "lora_r": 4,
            "lora_dropout": 0.1,
            "modules_to_save": "lm_head",
        }
        events = events_of(flags, folder / "events.txt")
        assert run_under_fire({**flags, "save_path": folder / "killed"}, events // 2, random.Random(1), 1).kills == 1

    return once("adapted", make)


def test_a_killed_run_ends_the_same_and_its_files_hold_the_adapter_only(adapted: Path, tmp_path: Path) -> None:
    assert_same_end(adapted / "killed", adapted / "whole")
    assert_same_checkpoints(adapted / "killed", adapted / "whole")
    saved = torch.load(adapted / "whole/saved_checkpoints/last.ckpt", weights_only=True)
    own = sum(value.nbytes for value in saved["state_dict"].values())
    base = sum(value.nbytes for value in InferenceModel(str(adapted / "base"))()[0].state_dict().values())
    assert own < base / 2
    assert not (adapted / "whole/best/config.json").exists()
    for forged in (None, {**saved["s2s_rank_sums"], "uncertainty": {}}):
        torch.save({**saved, "s2s_rank_sums": forged}, tmp_path / "forged.ckpt")
        with pytest.raises(UserError, match=r"s2s_rank_sums are not the sums of the matrices of state_dict$"):
            read_run(tmp_path / "forged.ckpt")
    name, sums = next(iter(saved["s2s_rank_sums"]["uncertainty"].items()))
    sums.fill_(torch.nan)
    torch.save(saved, tmp_path / "forged.ckpt")
    with pytest.raises(UserError, match=f"s2s_rank_sums: uncertainty.{name} holds NaN or infinity; resume from an"):
        read_run(tmp_path / "forged.ckpt")


def test_virtual_tokens_resume_the_same_and_predict_as_in_peft(letters: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    from_config(config_of("bart"), seed=4).save_pretrained(base)
    ByT5Tokenizer().save_pretrained(base)
    method = {"tuning_method": "ptuning", "num_virtual_tokens": 6, "gradient_checkpointing": "true"}
    whole = begin(tmp_path, letters, config_path=None, init_model=base, **method)
    resume(tmp_path, whole, "epoch00-global_step6*")
    assert_same_end(tmp_path / "again", tmp_path / "run")
    last = tmp_path / "run/last"
    assert (last / "adapter_model.safetensors").stat().st_size < 6 * 32 * 4 + 200

    texts = tmp_path / "texts.txt"
    checkpoint = tmp_path / "run/saved_checkpoints/last.ckpt"
    infer_ok("-model", checkpoint, "-test_data", letters / "valid.tsv", "-save_output", texts)
    model = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), str(last)).eval()
    sources = [line.split("\t")[0] for line in (letters / "valid.tsv").read_text().splitlines()[1:]]
    batch = ByT5Tokenizer()(sources, padding=True, return_tensors="pt")
    found = model.generate(**batch, generation_config=GenerationConfig.from_pretrained(last))
    assert texts.read_text().splitlines() == ByT5Tokenizer().batch_decode(found, skip_special_tokens=True)
    for command, told in {
        ("export.py", "-merge", "-save_path", tmp_path / "x"): "-merge: ",
        ("inference.py", "-compile", "-test_data", letters / "valid.tsv", "-save_output", tmp_path / "x"): "-compile: ",
    }.items():
        refused = run("python", *command, "-model", last)
        assert (refused.code, len(refused.errors)) == (2, 1)
        assert refused.errors[0].startswith(told)


def test_peft_loads_best_and_export_merges_it(adapted: Path, tmp_path: Path) -> None:
    best = adapted / "whole/best"
    ids, decoder_ids = torch.arange(3, 30).view(3, 9), torch.arange(40, 55).view(3, 5)
    with torch.no_grad():
        peft_model = PeftModel.from_pretrained(
            AutoModelForSeq2SeqLM.from_pretrained(adapted / "base"), str(best)
        ).eval()
        expected = peft_model(input_ids=ids, decoder_input_ids=decoder_ids).logits
        assert run("python", "export.py", "-model", best, "-merge", "-save_path", tmp_path / "full").code == 0
        merged = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "full").eval()
        found = merged(input_ids=ids, decoder_input_ids=decoder_ids).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert run("python", "export.py", "-model", best, "-save_path", tmp_path / "adapter").code == 0
    for name in ("adapter_model.safetensors", "adapter_config.json", "training_state.json", "tokenizer_config.json"):
        assert (tmp_path / "adapter" / name).read_bytes() == (best / name).read_bytes()


def test_every_form_predicts_the_same_and_another_base_is_refused(adapted: Path, letters: Path, tmp_path: Path) -> None:
    shutil.copytree(adapted / "base", tmp_path / "moved")
    from_config(config_of("t5-untied"), seed=5).save_pretrained(tmp_path / "other")
    test = ("-test_data", letters / "valid.tsv")
    texts = {}
    for name, model in {
        "best": (adapted / "whole/best",),
        "ckpt": (adapted / "whole/saved_checkpoints/last.ckpt",),
        "last": (adapted / "whole/last", "-base_model", tmp_path / "moved"),
    }.items():
        output = tmp_path / f"{name}.txt"
        done = run("python", "inference.py", "-model", *model, *test, "-save_output", output)
        assert done.code == 0, done.err
        texts[name] = output.read_text()
    assert texts["ckpt"] == texts["last"]
    every = ("-all_checkpoints", "-base_model", tmp_path / "moved", "-save_output", tmp_path / "every.txt")
    scored = run("python", "inference.py", "-model", adapted / "whole", *test, *every)
    assert scored.code == 0, scored.err
    assert "\nbest by exact_match: step " in scored.out
    several = run(
        *("python", "inference.py", "-model", adapted / "base", "-adapter", adapted / "whole", *test),
        *("-adapter", adapted / "killed/last", "-save_output", tmp_path / "of-{adapter}.txt"),
    )
    assert several.code == 0, several.err
    assert [(tmp_path / f"of-{name}.txt").read_text() for name in ("whole", "killed")] == [texts["best"], texts["last"]]
    refused = run(
        *("python", "inference.py", "-model", adapted / "whole/best", "-base_model", tmp_path / "other", *test),
        *("-save_output", tmp_path / "x.txt"),
    )
    assert (refused.code, len(refused.errors)) == (2, 1)
    assert refused.errors[0].startswith(
        f"-model {adapted / 'whole/best'}: the adapter was trained on another base model than {tmp_path / 'other'}:"
    )


def test_what_an_adapter_cannot_be_is_told_before_training(adapted: Path, letters: Path, tmp_path: Path) -> None:
    flags = {"train_data": letters / "train.tsv", "save_path": tmp_path / "run", "tuning_method": "lora"}
    best = adapted / "whole/best"
    told = {
        "-tuning_method lora: not with -config_path byt5-mini: an adapter is for a pretrained model; give"
        " -init_model": {"config_path": "byt5-mini"},
        f"-init_model {best}: an adapter, on which -tuning_method lora cannot put another one; write a full model first"
        " with export.py -merge, or give -tuning_method finetune": {"init_model": best},
    }
    for problem, more in told.items():
        done = train(*flag_list({**flags, **more}))
        assert (done.code, done.errors) == (2, [problem])
