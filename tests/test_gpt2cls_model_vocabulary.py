"""Training on the rows of the embedding that the data use, against training on all of them."""

import numpy as np
import pytest
import torch
from tiny_training import Log, tiny_config, tiny_model, tiny_rows, tiny_state, tiny_work

from gpt2cls.model.vocabulary import (
    UsedRows,
    decay_unused_rows,
    keep_used_rows,
    restore_all_rows,
    used_tokens,
)
from gpt2cls.training.loop import fit
from gpt2cls.training.ranks import Ranks

USED = np.arange(0, 60, 2)


def trained(model, **settings):
    """The model after two epochs on texts of even tokens only."""
    rows = tiny_rows()
    rows.data.tokens[:] = rows.data.tokens // 2 * 2
    config = tiny_config(clip=0.5, schedule="cosine", **settings)
    state = tiny_state(config, model)
    decay_unused_rows(model, state.optimizer)
    fit(state, tiny_work(config, Log(), rows=rows), config, Ranks())
    return state


# The LSTM drops whole words: those that no text uses must make no difference.
LSTM = {"backbone": "awd-lstm-tiny", "dropout": 0.4}


@pytest.mark.parametrize("model", [{}, LSTM], ids=["gpt2", "awd-lstm"])
@pytest.mark.parametrize("embedding_lr", [None, 5e-3])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_the_weights_are_those_of_training_on_all_rows(weight_decay, embedding_lr, model):
    settings = {"weight_decay": weight_decay, "embedding_lr": embedding_lr}
    whole, part = tiny_model(**model), tiny_model(**model)
    keep_used_rows(part.backbone, USED)
    before = whole.backbone.wte.weight.detach().clone()
    trained(whole, **settings)
    trained(part, **settings)
    assert part.backbone.wte.weight.shape == (30, whole.backbone.width)
    restore_all_rows(part)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(part.state_dict()[name], tensor, atol=2e-6, rtol=2e-5)
    moved = (part.backbone.wte.weight - before).abs().amax(dim=1)
    assert moved[USED].min() > 1e-4
    assert (moved[1::2] > 1e-5).all() == (weight_decay > 0)


def test_a_gradient_that_is_not_there_decays_nothing():
    model = tiny_model()
    keep_used_rows(model.backbone, USED)
    trained(model, weight_decay=0.3, freeze="head_only")
    assert float(model.backbone.wte.decay) == 1.0


def test_tokens_are_found_in_all_splits_and_padding_is_always_among_them():
    splits = [np.array([4, 9, 4], np.uint16), np.array([], np.uint16), np.array([2], np.int32)]
    assert used_tokens(splits, 12, pad_id=11).tolist() == [2, 4, 9, 11]


def test_a_table_that_is_used_nearly_whole_stays_as_it_is():
    model = tiny_model()
    keep_used_rows(model.backbone, np.arange(55))
    assert isinstance(model.backbone.wte, torch.nn.Embedding)


def test_a_token_that_was_said_not_to_occur_is_an_error():
    model = tiny_model()
    keep_used_rows(model.backbone, USED)
    assert isinstance(model.backbone.wte, UsedRows)
    with pytest.raises(IndexError):
        model.backbone(torch.tensor([[1]]), torch.tensor([1]))
