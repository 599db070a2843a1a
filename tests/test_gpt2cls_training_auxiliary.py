"""The texts' own loss beside that of their labels, against plain PyTorch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_training import TASK, tiny_model, tiny_rows

from gpt2cls.errors import ModelError
from gpt2cls.training.auxiliary import joint_loss
from gpt2cls.training.objectives import Objective

WEIGHT = 0.5
OBJECTIVE = Objective(is_multi_label=False)
ROWS = np.array([3, 17, 8, 22, 5, 0])


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def ours(model, rows=ROWS):
    loss_sum = joint_loss(model, OBJECTIVE.loss_of_features, WEIGHT)
    return sum(loss_sum(model, batch) for batch in tiny_rows(24).batches(rows, 1 << 20))


def plain(model):
    """Text by text, without padding: the mean over its tokens of -log p(token | those before)."""
    total = 0
    for row in ROWS:
        (batch,) = tiny_rows(24).batches(np.array([row]), 1 << 20)
        tokens_T = batch.tokens_BT[0, : int(batch.lengths_B[0])]
        hidden_TD = model.backbone(tokens_T[None], batch.lengths_B)[0]
        logits_BC = model.head_logits(
            model.pooling(hidden_TD[None], batch.lengths_B), torch.zeros(1)
        )
        total = total + F.cross_entropy(logits_BC, batch.labels, reduction="sum")
        if len(tokens_T) > 1:
            logits_TV = hidden_TD[:-1] @ model.backbone.wte.weight.t()
            total = total + WEIGHT * F.cross_entropy(logits_TV, tokens_T[1:])
    return total


@pytest.mark.parametrize("backbone", ["gpt2-tiny", "awd-lstm-tiny"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_loss_and_gradients_are_those_of_the_plain_formula(pooling, backbone):
    model = tiny_model(backbone=backbone, pooling=pooling, dropout=0.0)
    wanted = plain(model)
    loss = ours(model)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    theirs, mine = gradients(model, wanted), gradients(model, ours(model))
    assert mine.keys() == theirs.keys()
    for name, gradient in theirs.items():
        # The sums are taken in another order.
        torch.testing.assert_close(mine[name], gradient, atol=1e-5, rtol=1e-4)


def test_how_rows_are_cut_into_batches_does_not_matter():
    model = tiny_model(dropout=0.0)
    parts = ours(model, ROWS[:2]) + ours(model, ROWS[2:])
    assert parts.item() == pytest.approx(ours(model).item(), rel=1e-5)


def test_a_text_of_one_token_has_a_label_and_nothing_to_predict():
    model = tiny_model(dropout=0.0)
    (batch,) = tiny_rows(24).batches(ROWS[:1], 1 << 20)
    batch.tokens_BT, batch.lengths_B = batch.tokens_BT[:, :1], torch.ones(1, dtype=torch.int64)
    loss = joint_loss(model, OBJECTIVE.loss_of_features, WEIGHT)(model, batch)
    logits = model(batch.tokens_BT, batch.lengths_B, batch.cut_share_B)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, batch.labels).item(), rel=1e-6)


def test_a_backbone_without_a_known_output_is_refused():
    model = tiny_model(TASK)
    model.backbone = torch.nn.Module()
    with pytest.raises(ModelError, match=r"train\.lm_weight = 0\.5: only a GPT-2"):
        joint_loss(model, OBJECTIVE.loss_of_features, WEIGHT)
