"""Virtual tokens in front of the sources: search, label scoring and the loss are those of `peft` with the same adapter,
on the encoder of the library and on our own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from config.flags.inference import DecodeFlags
from generation.decoder import Decoder, generation_config
from generation.incremental.decoder import StepModel
from generation.incremental.weights import Tables, encoder_weights
from generation.label_scoring import LabelScorer
from models.adapters.folder import write_adapter
from models.adapters.methods import chosen_adapter
from models.adapters.tuning import apply, merge
from models.adapters.virtual_tokens import with_virtual_tokens
from models.kernels.accelerate import accelerate
from models.losses.objective import batch_loss
from models.special_tokens import encoded_target
from tests.trained_models import TOKENIZER, encoded, half_trained, words
from tests.unit.generation.test_label_scoring import brute_force
from utils.padding import IGNORE_INDEX

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the library's loading
LONGEST = 12  # tokens written


def prompted(name: str, method: str, folder: Path) -> tuple[PreTrainedModel, Any]:
    """Our model with virtual tokens, and what `peft` makes of its folder."""
    model = copy.deepcopy(half_trained(name))
    model.save_pretrained(folder / "base")
    torch.manual_seed(3)
    apply(model, chosen_adapter(model, method, (), (), 0, 0, 0.0, 5))
    accelerate(model)
    with torch.no_grad():
        for parameter in filter(lambda one: one.requires_grad, model.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    (folder / "best").mkdir()
    write_adapter(folder / "best", model.eval())
    whole = AutoModelForSeq2SeqLM.from_pretrained(folder / "base")
    return model, peft.PeftModel.from_pretrained(whole, str(folder / "best")).eval()


@pytest.mark.parametrize(("name", "method"), [("t5-untied", "ptuning"), ("bart", "prompt"), ("mbart", "ptuning")])
def test_search_scores_and_loss_are_those_of_peft(name: str, method: str, tmp_path: Path) -> None:
    model, theirs = prompted(name, method, tmp_path)
    ids, mask = encoded(words(9, seed=2))
    assert not mask.all()

    labels = ids.masked_fill(mask == 0, IGNORE_INDEX)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "target_index": mask.flatten().nonzero()[:, 0]}
    count = int(mask.sum())
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask, labels=labels).loss * count
        torch.testing.assert_close(batch_loss(model, batch)[0], expected, rtol=1e-5, atol=0)

    merge(model)  # as for a prediction
    for beams in (1, 3):
        flags = DecodeFlags(beam_size=beams, max_predict_length=LONGEST)
        config = generation_config(model, TOKENIZER, flags)
        found = theirs.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        decoder = Decoder(model, TOKENIZER, flags)
        assert decoder.own
        assert decoder(ids, mask) == TOKENIZER.batch_decode(found, skip_special_tokens=True)

    texts = ["a", "ab", "긍정"]
    scores = LabelScorer(model, TOKENIZER, texts)(ids, mask)
    for label, text in enumerate(texts):
        expected = brute_force(theirs, ids, mask, encoded_target(TOKENIZER, text))
        torch.testing.assert_close(scores[:, label], expected, rtol=1e-6, atol=1e-4)

    step_model = StepModel(model, torch.float32)
    by_library = step_model._encoded(ids, mask)
    step_model.encoder, step_model.encoder_weights = None, encoder_weights(model, Tables(torch.float32))
    read = step_model._seen(mask).bool()
    torch.testing.assert_close(step_model._encoded(ids, mask)[read], by_library[read], rtol=0, atol=1e-5)


def test_a_mask_without_the_virtual_tokens_is_refused(tmp_path: Path) -> None:
    model, _ = prompted("t5-untied", "prompt", tmp_path)
    ids, mask = encoded(["ab", "c"])
    with pytest.raises(ValueError, match="is without the 5 virtual tokens"):
        model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids)


def test_training_goes_on_while_the_vectors_are_written(tmp_path: Path) -> None:
    """A pass over the model in the midst of a save reaches the weights that are trained, and not those that are saved:
    with them in its place, the network would get no gradient."""
    model, _ = prompted("bart", "ptuning", tmp_path)
    saved = {name: value.detach().clone() for name, value in model.state_dict().items()}
    network = model.get_encoder().virtual_tokens
    ids, mask = encoded(words(3, seed=2))
    gradients = []

    def train(module: Any, places: Any, vectors: Any) -> None:
        del module, places, vectors
        hook.remove()
        with torch.enable_grad():
            model(input_ids=ids, attention_mask=with_virtual_tokens(model, mask), labels=ids).loss.backward()
        gradients.extend(parameter.grad for parameter in network.parameters())

    hook = network.mlp_head[0].register_forward_hook(train)
    write_adapter(tmp_path / "best", model, saved)
    assert len(gradients) == 7
    assert all(gradient is not None and gradient.any() for gradient in gradients)
