"""An evaluation by the packed network against that by the network that learns."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import TASK, VOCABULARY, needs_bf16, tiny_rows

from gpt2cls.config import ModelConfig
from gpt2cls.model.classifier import build_classifier
from gpt2cls.model.packed import PackedGPT2
from gpt2cls.model.vocabulary import UsedRows, keep_used_rows
from gpt2cls.training import evaluating
from gpt2cls.training.compute import Compute
from gpt2cls.training.evaluating import logits_of_rows
from gpt2cls.training.memory import TokenBudget
from gpt2cls.training.ranks import Ranks


def wide_model(vocab_size=VOCABULARY, **settings):
    """Wide enough to be packed."""
    config = ModelConfig(**{"backbone": "gpt2-mini", "dropout": 0.5, "temperature": 1.0} | settings)
    sizes = {"vocab_size": vocab_size, "pad_id": 0, "max_length": 16}
    return build_classifier(config, TASK, seed=3, base_dir=Path(), **sizes).train()


def relative_error(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def evaluated(model, precision="bf16", rows=None):
    rows = rows or tiny_rows(31)
    compute = Compute(Ranks(), precision, TokenBudget(64))
    return logits_of_rows(model, rows, rows.data.lengths, TASK, compute)


@pytest.fixture
def packed_made(monkeypatch):
    """How often a network was packed, and its rows read."""
    made = []

    class Watched(PackedGPT2):
        def _embedded(self, tokens_BT):
            made.append(len(tokens_BT))
            return super()._embedded(tokens_BT)

    monkeypatch.setattr(evaluating, "PackedGPT2", Watched)
    return made


@needs_bf16
@pytest.mark.parametrize("pooling", ["last", "mean", "concat", "attention"])
def test_it_gives_what_the_network_gives_up_to_bf16_and_leaves_it_as_it_was(pooling, packed_made):
    model = wide_model(pooling=pooling)
    exact_NC, fast_NC = evaluated(model, "fp32"), evaluated(model)
    assert sum(packed_made) == 31 + evaluating.CHECKED_ROWS
    assert 0 < relative_error(fast_NC, exact_NC) < 0.02
    assert all(module.training for module in model.modules())


@needs_bf16
def test_rows_of_the_vocabulary_that_take_no_part_are_no_obstacle(packed_made):
    model = wide_model(vocab_size=500)
    before_NC = evaluated(model)
    keep_used_rows(model.backbone, np.arange(VOCABULARY))
    assert isinstance(model.backbone.wte, UsedRows)
    assert torch.equal(evaluated(model), before_NC) and packed_made


@needs_bf16
def test_where_answers_differ_the_network_itself_is_asked(packed_made, monkeypatch):
    model = wide_model()
    packed_NC = evaluated(model)
    monkeypatch.setattr(evaluating, "AGREES_WITHIN", 1e-9)
    packed_made.clear()
    found_NC = evaluated(model)
    assert sum(packed_made) == evaluating.CHECKED_ROWS and not torch.equal(found_NC, packed_NC)
    assert relative_error(found_NC, packed_NC) < 0.02


def test_weights_that_are_no_numbers_give_no_numbers():
    model = wide_model()
    with torch.no_grad():
        model.backbone.h[0].mlp.c_fc.bias[0] = torch.nan
    assert not evaluated(model).isfinite().any()
