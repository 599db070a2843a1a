"""The network as a whole, and its head."""

from pathlib import Path

import pytest
import torch

from gpt2cls.config import ModelConfig
from gpt2cls.data.tasks import Task
from gpt2cls.errors import ModelError
from gpt2cls.model.classifier import Classifier, build_classifier
from gpt2cls.model.head import build_head

SINGLE = Task("single_label", ("a", "b", "c"), False)
MULTI = Task("multi_label", ("a", "b", "c"), False)


def classifier(seed: int = 0, **settings) -> Classifier:
    config = ModelConfig(**{"backbone": "gpt2-tiny", **settings})
    return build_classifier(
        config, SINGLE, vocab_size=50, pad_id=0, max_length=16, seed=seed, base_dir=Path()
    )


def head(task: Task = SINGLE, **settings):
    return build_head(ModelConfig(backbone="gpt2-tiny", **settings), task, 8).eval()


def test_one_seed_gives_one_set_of_weights_and_leaves_the_callers_draws_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = classifier(1), classifier(1), classifier(2)
    assert torch.equal(torch.rand(3), wanted)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert not torch.equal(first.backbone.wte.weight, other.backbone.wte.weight)


@pytest.mark.parametrize("kind", ["last", "mean", "max", "concat", "attention"])
def test_more_padding_gives_the_same_logits(kind):
    model = classifier(pooling=kind).eval()
    lengths_B, none_cut_B = torch.tensor([4, 6]), torch.zeros(2)
    tokens_BT = torch.randint(0, 50, (2, 6))
    padded_BT = torch.cat([tokens_BT, torch.randint(0, 50, (2, 10))], dim=1)
    with torch.no_grad():
        short = model(tokens_BT, lengths_B, none_cut_B)
        long = model(padded_BT, lengths_B, none_cut_B)
    torch.testing.assert_close(long, short, atol=1e-6, rtol=1e-5)


def test_logits_are_float32_also_under_autocast():
    model = classifier()
    tokens_BT, lengths_B = torch.zeros(1, 2, dtype=torch.long), torch.tensor([2])
    with torch.autocast("cpu", torch.bfloat16):
        logits_BC = model(tokens_BT, lengths_B, torch.zeros(1))
    assert logits_BC.dtype == torch.float32


def test_the_temperature_divides_and_rises_with_the_share_that_was_cut_off():
    features_BF, cut_share_B = torch.randn(2, 8), torch.tensor([0.0, 0.5])
    warm = head(temperature=0.5, truncation_smoothing=3.0)
    with torch.no_grad():
        plain = warm.linear(features_BF)
        found = warm(features_BF, cut_share_B)
    torch.testing.assert_close(found[0], plain[0] / 0.5)
    torch.testing.assert_close(found[1], plain[1] / (0.5 * (1 + 3.0 * 0.5)))


def test_learned_smoothing_learns_only_from_texts_that_were_cut():
    learning = head(truncation_smoothing="learned")
    for share, moves in ((0.0, False), (0.5, True)):
        learning.zero_grad()
        learning(torch.randn(2, 8), torch.full((2,), share)).square().sum().backward()
        assert bool(learning.smoothing.grad) is moves
    assert "smoothing" in dict(learning.named_parameters())


@pytest.mark.parametrize(
    ("task", "outcomes"), [(SINGLE, 3), (MULTI, 2)], ids=["one label", "several labels"]
)
def test_the_floor_keeps_every_probability_above_it_and_the_sum_at_one(task, outcomes):
    logits_BC = torch.tensor([[50.0, -50.0, 0.0]])
    p_BC = head(task, prob_floor=0.1).probabilities(logits_BC)
    assert p_BC.min() == pytest.approx(0.1)
    assert p_BC.max() == pytest.approx(1 - (outcomes - 1) * 0.1, abs=1e-6)
    if task is SINGLE:
        assert p_BC.sum() == pytest.approx(1.0)
    assert p_BC.argmax() == 0


def test_a_floor_that_leaves_no_room_is_refused():
    with pytest.raises(ModelError, match=r"model\.prob_floor = 0\.4: 3 outcomes .* below 0\.333"):
        head(prob_floor=0.4)


def test_dropout_before_the_head_is_active_only_while_training():
    model = classifier(dropout=0.5)
    features_BF, none_cut_B = torch.ones(1, 64), torch.zeros(1)
    with torch.no_grad():
        model.train()
        first, second = (model.head_logits(features_BF, none_cut_B) for _ in range(2))
        model.eval()
        third, fourth = (model.head_logits(features_BF, none_cut_B) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(third, fourth)
