"""The adaptive softmax against torch's own, and what the head around it promises."""

import numpy as np
import pytest
import torch
from torch import nn

from gpt2cls.config import ModelConfig
from gpt2cls.data.tasks import Task
from gpt2cls.errors import ModelError
from gpt2cls.model.adaptive import AdaptiveSoftmax, cutoffs_of, places_by_frequency
from gpt2cls.model.head import AdaptiveHead, LinearHead, build_head
from gpt2cls.model.head_rules import CLUSTERS_FROM, check_head

WIDTH, NUM_LABELS = 256, 1200
MANY = Task("single_label", tuple(f"{i:04}" for i in range(NUM_LABELS)), False)


def counts(seed: int = 0) -> np.ndarray:
    """As words have them: one over the rank, in no order."""
    ranks = np.random.default_rng(seed).permutation(NUM_LABELS) + 1
    return 10_000 // ranks


def head(width: int = WIDTH, **settings) -> AdaptiveHead:
    torch.manual_seed(0)
    config = ModelConfig(backbone="gpt2-tiny", head="adaptive", **settings)
    made = build_head(config, MANY, width, counts())
    assert isinstance(made, AdaptiveHead)
    with torch.no_grad():
        for parameter in made.parameters():  # those that are drawn hardly differ from zero
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return made.eval()


def of_torch(softmax: AdaptiveSoftmax) -> nn.AdaptiveLogSoftmaxWithLoss:
    """torch's class with the same weights."""
    cutoffs = softmax.cutoffs[:-1]
    theirs = nn.AdaptiveLogSoftmaxWithLoss(
        WIDTH, NUM_LABELS, cutoffs, div_value=4.0, head_bias=True
    )
    theirs.head.load_state_dict(softmax.root.state_dict())
    theirs.tail.load_state_dict(softmax.clusters.state_dict())
    return theirs


def rows(num_rows: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    features_BF = torch.randn(num_rows, WIDTH)
    return features_BF, torch.zeros(num_rows), torch.randint(0, NUM_LABELS, (num_rows,))


def test_log_probabilities_loss_and_gradients_are_those_of_torch():
    ours = AdaptiveSoftmax(WIDTH, cutoffs_of(NUM_LABELS))
    theirs = of_torch(ours)
    features_BF, _, places_B = rows()
    warm_B1 = torch.ones(len(features_BF), 1)
    found_BC = ours.log_probabilities(features_BF, warm_B1)
    torch.testing.assert_close(found_BC, theirs.log_prob(features_BF))
    assert set(found_BC.shape) == {40, NUM_LABELS}

    loss = -ours.log_probability(features_BF, warm_B1, places_B).mean()
    wanted = theirs(features_BF, places_B).loss
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(ours.root.weight.grad, theirs.head.weight.grad)
    for mine, other in zip(ours.clusters.parameters(), theirs.tail.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.parametrize("cut_share", [0.0, 0.7])
def test_the_probability_of_one_label_is_the_one_among_all(cut_share):
    warm = head(temperature=0.5, truncation_smoothing=2.0)
    features_BF, cut_share_B, labels_B = rows(200)
    cut_share_B += cut_share
    all_BC = warm(features_BF, cut_share_B)
    own_B = warm.log_probability(features_BF, cut_share_B, labels_B)
    torch.testing.assert_close(own_B, all_BC.gather(1, labels_B[:, None]).squeeze(1))
    torch.testing.assert_close(all_BC.exp().sum(dim=1), torch.ones(200))
    torch.testing.assert_close(warm.probabilities(all_BC), all_BC.exp())


def test_rows_computed_in_parts_have_the_loss_and_gradient_of_the_whole():
    whole, parted = head(), head()
    features_BF, none_cut_B, labels_B = rows()
    whole.log_probability(features_BF, none_cut_B, labels_B).sum().backward()
    for part in torch.arange(40).split(7):
        parted.log_probability(features_BF[part], none_cut_B[part], labels_B[part]).sum().backward()
    for one, other in zip(whole.parameters(), parted.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4)


def test_a_cluster_without_a_row_is_not_computed():
    lazy = head()
    features_BF, none_cut_B, _ = rows()
    frequent = torch.from_numpy(counts().argsort()[-1:].copy()).expand(40)
    lazy.log_probability(features_BF, none_cut_B, frequent).sum().backward()
    assert lazy.softmax.root.weight.grad is not None
    assert all(parameter.grad is None for parameter in lazy.softmax.clusters.parameters())


def test_the_temperature_divides_the_logits_of_the_root_and_of_each_cluster():
    cold, warm = head(temperature=1.0), head(temperature=4.0)
    cold.load_state_dict(warm.state_dict())  # weights begin as the temperature asks for
    with torch.no_grad():
        for layer in (cold.softmax.root.weight, cold.softmax.root.bias):
            layer /= 4
        for cluster in cold.softmax.clusters:
            cluster[1].weight /= 4
        features_BF, none_cut_B, _ = rows()
        torch.testing.assert_close(warm(features_BF, none_cut_B), cold(features_BF, none_cut_B))


def test_labels_keep_their_numbers_and_the_most_frequent_stand_in_the_root():
    made = head()
    assert made.place_C.tolist() == places_by_frequency(counts()).tolist()
    root = counts()[made.place_C.numpy() < made.softmax.cutoffs[0]]
    rest = counts()[made.place_C.numpy() >= made.softmax.cutoffs[0]]
    assert root.min() >= rest.max()
    features_BF, none_cut_B, _ = rows(1)
    by_place = made.softmax.log_probabilities(features_BF, torch.full((1, 1), made.temperature))
    for label in (0, 7, NUM_LABELS - 1):
        found = made(features_BF, none_cut_B)[0, label]
        torch.testing.assert_close(found, by_place[0, made.place_C[label]])


def test_equally_frequent_labels_keep_their_order():
    assert places_by_frequency(np.array([5, 9, 5, 0, 9])).tolist() == [2, 0, 3, 4, 1]


@pytest.mark.parametrize(
    ("num_labels", "cutoffs"),
    [(1_000, [62, 250, 1_000]), (5_000, [312, 1_250, 5_000]), (80_000, [5_000, 20_000, 80_000])],
)
def test_the_number_of_labels_says_where_the_clusters_end(num_labels, cutoffs):
    assert cutoffs_of(num_labels) == cutoffs


def test_clusters_of_a_narrow_network_keep_sixteen_features():
    softmax = AdaptiveSoftmax(64, cutoffs_of(NUM_LABELS))
    assert [cluster[0].out_features for cluster in softmax.clusters] == [16, 16]
    assert [cluster[0].out_features for cluster in head().softmax.clusters] == [64, 16]


def test_the_head_computes_in_float32_under_autocast():
    made = head()
    features_BF, none_cut_B, labels_B = rows()
    wanted = made.log_probability(features_BF, none_cut_B, labels_B)
    with torch.autocast("cpu", torch.bfloat16):
        found = made.log_probability(features_BF, none_cut_B, labels_B)
        assert made(features_BF, none_cut_B).dtype == torch.float32
    assert torch.equal(found, wanted)


def test_the_floor_holds_for_thousands_of_labels_too():
    floor = 0.5 / NUM_LABELS
    made = head(prob_floor=floor)
    features_BF, none_cut_B, _ = rows(3)
    p_BC = made.probabilities(made(features_BF, none_cut_B))
    assert p_BC.min() >= floor
    torch.testing.assert_close(p_BC.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_all_labels_begin_about_as_likely_as_each_other(temperature):
    config = ModelConfig(backbone="gpt2-tiny", head="adaptive", temperature=temperature)
    torch.manual_seed(0)
    fresh = build_head(config, MANY, WIDTH, counts()).eval()
    features_BF, none_cut_B, _ = rows(3)
    with torch.no_grad():
        p_BC = fresh(torch.zeros_like(features_BF), none_cut_B).exp()
    torch.testing.assert_close(p_BC, torch.full_like(p_BC, 1 / NUM_LABELS))


def of(num_labels: int, kind: str = "single_label") -> Task:
    return Task(kind, tuple(map(str, range(num_labels))), False)


ADAPTIVE = ModelConfig(backbone="gpt2-tiny", head="adaptive")


@pytest.mark.parametrize(
    "task", [of(2), of(CLUSTERS_FROM - 1), of(5, "multi_label")], ids=["two", "999", "several"]
)
def test_few_labels_get_one_softmax_or_sigmoids(task):
    check_head(ADAPTIVE, task, label_smoothing=0.1)
    assert isinstance(build_head(ADAPTIVE, task, 8), LinearHead)


def test_what_clusters_cannot_do_is_refused_with_the_field_and_the_way_out():
    with pytest.raises(ModelError, match=r"1,000 labels .* several.* set model\.head to linear"):
        check_head(ADAPTIVE, of(CLUSTERS_FROM, "multi_label"))
    with pytest.raises(ModelError, match=r"train\.label_smoothing = 0\.1: .* set it to 0, or"):
        check_head(ADAPTIVE, of(CLUSTERS_FROM), label_smoothing=0.1)
    check_head(ADAPTIVE, of(CLUSTERS_FROM))
