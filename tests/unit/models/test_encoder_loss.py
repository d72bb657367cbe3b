"""MLM of an encoder by itself: its loss is that of its states through the output layer, at the chosen places alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datamodules.collate import collate
from models.freezing import freeze_decoder
from models.loading import from_config
from models.losses.objective import Objective
from tests.small_configs import config_of, with_dropout
from utils.errors import UserError
from utils.padding import IGNORE_INDEX

NO = IGNORE_INDEX
ROWS = [
    (np.array([5, 9, 33, 7, 1]), np.array([NO, 8, NO, 7, NO])),
    (np.array([40, 41, 1]), np.array([40, NO, NO])),
]


@pytest.mark.parametrize("kind", ["t5", "t5-untied", "bart"])
def test_the_loss_is_that_of_the_chosen_places(kind: str) -> None:
    model = from_config(config_of(kind), seed=3).eval()
    batch = {**collate(ROWS, 0, 8)}
    assert batch["num_target_tokens"] == 3
    scale, bias = (model.config.d_model**-0.5 if kind == "t5" else 1.0), 0.0
    if kind == "bart":
        model.final_logits_bias = bias = torch.linspace(-1, 1, model.config.vocab_size)[None]
    with torch.no_grad():
        found, correct = Objective(encoder_alone=True).validate(model, batch)
        expected, right = 0.0, 0
        for source, labels in ROWS:
            states = model.get_encoder()(input_ids=torch.tensor(source)[None])[0][0]
            logits = (scale * states @ model.lm_head.weight.T + bias).log_softmax(-1)
            for place in np.flatnonzero(labels != NO).tolist():
                expected -= float(logits[place, labels[place]])
                right += int(logits[place].argmax() == labels[place])
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert int(correct) == right


@pytest.mark.parametrize("rdrop_alpha", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["t5-untied", "bart"])
def test_a_gradient_reaches_all_that_is_trained_and_nothing_of_the_decoder(kind: str, rdrop_alpha: float) -> None:
    """DDP waits for each of them."""
    model = from_config(with_dropout(kind), seed=3).train()
    freeze_decoder(model)
    Objective(rdrop_alpha=rdrop_alpha, encoder_alone=True)(model, {**collate(ROWS, 0)}).backward()  # type: ignore[no-untyped-call]
    assert [name for name, part in model.named_parameters() if part.requires_grad != (part.grad is not None)] == []
    own = {id(part) for part in (*model.get_encoder().parameters(), *model.lm_head.parameters())}
    assert {id(part) for part in model.parameters() if part.grad is not None} == own


def test_a_model_of_which_nothing_is_left_is_refused() -> None:
    model = from_config(config_of("t5"), seed=3)
    model.get_encoder().requires_grad_(False)
    with pytest.raises(UserError, match="-freeze: leaves nothing to train, since -objective encoder_mlm"):
        freeze_decoder(model)
