"""What a prediction tells and refuses before its first row."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BlenderbotConfig, BlenderbotForConditionalGeneration, ByT5Tokenizer, PreTrainedModel

from checkpoints.model_source import inference_models
from config.flags.inference import DecodeFlags, InferenceConfig
from config.parser import parse_flags
from generation.batch_limits import BatchLimits
from generation.engines.labels import LabelDecoding
from generation.engines.pytorch import TorchEngine
from models.adapters.folder import write_adapter
from models.adapters.methods import chosen_adapter
from models.adapters.tuning import apply
from models.loading import from_config
from postprocessors.labels import LabelMap
from prediction.setup import make_engine, prepare, resolve_prediction_task, with_batches
from task_utils import Task, get_task
from tests.small_configs import config_of
from tests.small_models import byte_tokenizer
from tests.trained_models import label_map
from utils.errors import UserError

Prepared = Callable[..., list[str]]


def folder_of(model: PreTrainedModel, folder: Path) -> Path:
    """A from_pretrained folder of the model with the byte tokenizer."""
    model.save_pretrained(folder)
    byte_tokenizer(folder)
    return folder


@pytest.fixture
def told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Prepared:
    """`told(model, FLAG, VALUE, ..., decoding=None)`: the lines printed until the engine is there."""

    def get(*flags: object, decoding: LabelDecoding | None = None) -> list[str]:
        argv = [*map(str, flags), "-test_data", "rows.tsv", "-gpus", "0"]
        config, given, problems = parse_flags(InferenceConfig, argv)
        assert problems == []
        capsys.readouterr()
        make_engine(prepare(config, given, tmp_path), decoding, [])
        return capsys.readouterr().out.splitlines()

    return get


def test_outputs_kept_to_the_passage_have_room_for_the_text_of_no_answer(tmp_path: Path, told: Prepared) -> None:
    t5 = folder_of(from_config(config_of("t5"), seed=1), tmp_path / "t5")
    flags = ("-model", t5, "-task", "squad", "-label_decoding", "constrained", "-max_predict_length")
    told(*flags, 13)
    with pytest.raises(UserError) as caught:
        told(*flags, 12)
    assert caught.value.problems == (
        "-max_predict_length 12: the text for no answer, 'unanswerable', has 13 tokens with its end; give at least"
        " that",
    )


def test_the_end_of_outputs_is_told_where_the_flag_says_more(tmp_path: Path, told: Prepared) -> None:
    bart = folder_of(from_config(config_of("bart"), seed=1), tmp_path / "bart")
    t5 = folder_of(from_config(config_of("t5"), seed=1), tmp_path / "t5")
    assert told("-model", bart)[1:] == []
    assert told("-model", bart, "-max_predict_length", 127)[1:] == []
    assert told("-model", t5, "-max_predict_length", 1000)[1:] == []
    assert told("-model", t5, "-model", bart, "-max_predict_length", 128)[1:] == [
        "-max_predict_length 128: outputs end at 127 tokens, the model's limit"
    ]
    labels = LabelDecoding("constrained", label_map("ab"))
    assert told("-model", bart, "-max_predict_length", 128, decoding=labels)[1:] == []


def test_what_decodes_is_told_in_a_line(tmp_path: Path, told: Prepared) -> None:
    bart = folder_of(from_config(config_of("bart"), seed=1), tmp_path / "bart")
    t5 = folder_of(from_config(config_of("t5"), seed=1), tmp_path / "t5")
    on, rows = "predicting on 1 x cpu, fp32, ", "; batches of 128 rows"
    assert told("-model", bart) == [f"{on}greedy, up to 127 tokens{rows}"]
    assert told("-model", t5) == [f"{on}greedy, up to 512 tokens{rows}"]
    beams = ("-beam_size", 4, "-early_stopping", "-repetition_penalty", 1.2, "-max_tokens", 900)
    assert told("-model", t5, *beams) == [
        f"{on}-max_tokens 900, -beam_size 4, -early_stopping true, -repetition_penalty 1.2, up to 512 tokens{rows}"
    ]
    assert told("-model", t5, "-do_sample", "-top_k", 5, "-max_predict_length", 9) == [
        f"{on}-do_sample true, -top_k 5, up to 9 tokens{rows}"
    ]
    assert told("-model", t5, decoding=LabelDecoding("score", label_map("ab"))) == [f"{on}labels by score{rows}"]


def test_windows_are_searched_by_probability(tmp_path: Path, told: Prepared) -> None:
    """Divided by their length, the log-probabilities of long answers pass that of an empty one."""
    windows = ("-model", folder_of(from_config(config_of("t5"), seed=1), tmp_path / "t5"), "-task", "squad")
    windows += ("-max_seq_length", 64, "-doc_stride", 8, "-beam_size", 2)
    assert ", -beam_size 2, -length_penalty 0.0, up to" in told(*windows)[0]
    assert ", -beam_size 2, -length_penalty 0.5, up to" in told(*windows, "-length_penalty", 0.5)[0]
    assert ", -beam_size 2, up to" in told(*windows, "-length_penalty", 1.0)[0]
    with pytest.raises(UserError, match=r"^-metrics perplexity: not with -doc_stride 8: a window has no reference"):
        told(*windows, "-metrics", "perplexity")  # also where -doc_stride comes from the training


def test_generated_labels_are_little_longer_than_the_longest(tmp_path: Path, told: Prepared) -> None:
    t5 = folder_of(from_config(config_of("t5"), seed=1), tmp_path / "t5")
    told_of = "predicting on 1 x cpu, fp32, greedy, up to {} tokens; batches of 128 rows"
    labels = ("-model", t5, "-label_map", "0=부정,1=긍정적")
    assert told(*labels) == [told_of.format(9 + 1 + 8)]  # bytes of the longest, the end, and the slack
    assert told(*labels, "-target_template", "{{ target }}!!") == [told_of.format(9 + 2 + 1 + 8)]
    assert told(*labels, "-label_separator", ", ") == [told_of.format(6 + 2 + 9 + 1 + 8)]
    assert told(*labels, "-max_predict_length", 300) == [told_of.format(300)]


def test_a_runs_folder_is_taken_and_told(tmp_path: Path, told: Prepared) -> None:
    (tmp_path / "run" / "saved_checkpoints").mkdir(parents=True)
    last = folder_of(from_config(config_of("t5"), seed=1), tmp_path / "run" / "last")
    assert told("-model", tmp_path / "run")[0] == f"-model {tmp_path / 'run'}: {last}"


def test_a_model_that_is_replaced_after_the_command_began_is_refused(tmp_path: Path) -> None:
    """As a training that goes on swaps best/: what was told apart as one model would be predicted by another."""
    for seed, name in enumerate(("best", "next")):
        folder_of(from_config(config_of("t5"), seed=seed), tmp_path / name)
    (model,) = inference_models([str(tmp_path / "best")])
    digest = model.identity()
    assert len(model()) == 2
    (tmp_path / "best").rename(tmp_path / "old")
    (tmp_path / "next").rename(tmp_path / "best")
    told = (
        f"-model {tmp_path}/best: was replaced after this command had begun (a training that goes on does so); wait for"
        " it to end, or give a copy"
    )
    for use in (model, model.identity, pickle.loads(pickle.dumps(model))):
        with pytest.raises(UserError) as refused:
            use()
        assert refused.value.problems == (told,)
    (model,) = inference_models([str(tmp_path / "best")])
    assert model.identity() != digest


def test_an_adapter_that_others_trained_is_told_apart_by_its_base(tmp_path: Path) -> None:
    """It has no digest of its base, as ours have, and the files of the base are no files of its own."""
    digests = []
    for seed in (1, 2):
        model = from_config(config_of("t5"), seed=seed)
        base = folder_of(model, tmp_path / f"base{seed}")
        if seed == 1:
            apply(model, chosen_adapter(model, "lora", (), (), 2, 4, 0.0))
            (tmp_path / "adapter").mkdir()
            write_adapter(tmp_path / "adapter", model)
        (adapted,) = inference_models([str(tmp_path / "adapter")], base=str(base))
        digests.append(adapted.identity())
    assert digests[0] != digests[1]


def test_models_of_other_texts_do_not_decode_together(tmp_path: Path, told: Prepared) -> None:
    for name, template, column in (("a", "{{ source }}", 1), ("b", "읽기: {{ source }}", "document")):
        folder_of(from_config(config_of("t5"), seed=1), tmp_path / name)
        task = {"name": "seq2seq", "input_template": template, "source_column": column}
        (tmp_path / name / "training_state.json").write_text(json.dumps({"task": task, "flags": {}}))
    both = ("-model", tmp_path / "a", "-model", tmp_path / "b")
    other = f"-model {tmp_path}/b: trained on other texts than {tmp_path}/a: "
    with pytest.raises(UserError) as refused:
        told(*both)
    assert refused.value.problems == (
        f"{other}input_template is '읽기: {{{{ source }}}}', not '{{{{ source }}}}'",
        f"{other}source_column is 'document', not 1",
    )
    assert told(*both, "-input_template", "{{ source }}", "-source_column", 1) != []


def test_a_shortest_output_beyond_the_model_is_refused(tmp_path: Path, told: Prepared) -> None:
    bart = folder_of(from_config(config_of("bart"), seed=1), tmp_path / "bart")
    with pytest.raises(UserError) as refused:
        told("-model", bart, "-min_predict_length", 128)
    assert refused.value.problems == (
        "-min_predict_length 128: the model has positions for outputs of 127 tokens; give that or less",
    )
    assert told("-model", bart, "-min_predict_length", 127, "-max_predict_length", 127)[1:] == []


def test_a_search_that_is_not_our_own_is_told(tmp_path: Path, told: Prepared) -> None:
    config = BlenderbotConfig(
        vocab_size=384, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=600, pad_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    blenderbot = folder_of(BlenderbotForConditionalGeneration(config), tmp_path / "blenderbot")
    assert told("-model", blenderbot)[1:] == [
        "a blenderbot model is decoded by generate of transformers: slower than our search, the same texts"
    ]
    with pytest.raises(UserError) as refused:
        told("-model", blenderbot, "-model", blenderbot, "-do_sample")
    end = (
        "not for a blenderbot model, which generate of transformers decodes; docs/architectures.md lists the models"
        " that our own search decodes"
    )
    assert refused.value.problems == (f"-do_sample: {end}", f"several -model: {end}")


def test_layers_that_are_no_plain_ones_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    model = from_config(config_of("bart"), seed=1).eval()

    class Adapted(torch.nn.Linear):
        """A linear layer that adds something of its own."""

    model.model.decoder.layers[0].fc1.__class__ = Adapted

    class Loaded:
        name = "adapted"

        def __call__(self) -> tuple[PreTrainedModel, ByT5Tokenizer]:
            return model, ByT5Tokenizer()

    TorchEngine((Loaded(),), DecodeFlags())(torch.device("cpu"))
    assert capsys.readouterr().out == (
        "-model adapted: its layers are no plain ones, so that generate of transformers decodes\n"
    )


def test_the_name_of_the_checkpoints_task_means_the_checkpoints_task() -> None:
    trained = get_task("seq2seq").with_label_map(LabelMap.parse("0=a,1=b"))
    state = {"task": trained.to_dict()}

    def resolved(*flags: str) -> Task:
        config, _, _ = parse_flags(InferenceConfig, ["-model", "m", "-test_data", "rows.tsv", *flags])
        return resolve_prediction_task(config, state)

    assert resolved() == resolved("-task", "seq2seq") == trained
    assert resolved("-task", "jsonlines") == get_task("jsonlines")
    assert resolved("-task", "seq2seq", "-target_template", "={{ target }}").target_template == "={{ target }}"
    state = {"task": get_task("klue-nli").with_label_map(LabelMap.parse("0=a,1=b")).to_dict()}
    assert resolved("-task", "klue-nli-prompted") == resolved("-task", "klue-nli") == Task.from_dict(state["task"])


def test_a_name_picks_one_of_several_trained_tasks() -> None:
    first, second = get_task("nsmc-prompted"), replace(get_task("seq2seq"), name="own", input_template="> {{ source }}")
    state = {"task": first.to_dict(), "tasks": [first.to_dict(), second.to_dict()]}

    def resolved(*flags: str) -> Task:
        config, _, _ = parse_flags(InferenceConfig, ["-model", "m", "-test_data", "rows.tsv", *flags])
        return resolve_prediction_task(config, state, "-model m")

    assert (resolved("-task", "own"), resolved("-task", "nsmc-prompted")) == (second, first)
    assert resolved("-task", "klue-sts") == get_task("klue-sts")
    with pytest.raises(
        UserError, match=r"^-model m: was trained on several tasks; give one as -task: nsmc-prompted, own$"
    ):
        resolved()
    with pytest.raises(
        UserError, match=r"^-task on: no such task \(did you mean own\?\); -model m was trained on nsmc"
    ):
        resolved("-task", "on")


def test_batches_on_gpus_go_by_tokens_unless_the_user_says_how() -> None:
    given: frozenset[str] = frozenset()
    on_gpus = with_batches(DecodeFlags(beam_size=4), given, "cuda")
    assert on_gpus == DecodeFlags(batch_size=512, max_tokens=32768, beam_size=4)
    assert len(BatchLimits.of(on_gpus).cut(np.full(100, 1024))[0]) == 32
    assert len(BatchLimits.of(on_gpus).cut(np.full(600, 10))[0]) == 512
    assert with_batches(DecodeFlags(), given, "cpu") == DecodeFlags()
    for flag, value in (("batch_size", 128), ("max_tokens", 100)):
        asked = replace(DecodeFlags(), **{flag: value})
        assert with_batches(asked, frozenset({flag}), "cuda") == asked
