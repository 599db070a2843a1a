"""The layer between the pooled vector and the classes, against plain PyTorch."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from test_gpt2cls_training_ranks import on_ranks
from tiny_training import Log, tiny_config, tiny_model, tiny_rows, tiny_state, tiny_work
from torch import nn

from gpt2cls.config import ModelConfig
from gpt2cls.data.bpe import train_bpe
from gpt2cls.data.tasks import Task
from gpt2cls.errors import ModelError
from gpt2cls.model.choice_head import ChoiceHead
from gpt2cls.model.classifier import build_classifier
from gpt2cls.model.folder import ModelInfo, load_classifier, save_classifier
from gpt2cls.model.head import build_head
from gpt2cls.model.head_rules import CLUSTERS_FROM
from gpt2cls.model.hidden_layer import BatchNorm, HiddenLayer
from gpt2cls.model.value_head import ValueHead
from gpt2cls.training.loop import fit
from gpt2cls.training.ranks import Ranks

N, F, H = 12, 8, 5
TASK = Task("single_label", ("a", "b", "c"), False)


def config(**settings) -> ModelConfig:
    return ModelConfig(
        **{"backbone": "gpt2-tiny", "hidden": H, "dropout": 0.0, "temperature": 1.0, **settings}
    )


def vectors(rows: int = N) -> torch.Tensor:
    return torch.randn(rows, F, generator=torch.Generator().manual_seed(1)) * 3 + 1


def test_it_is_what_pytorch_makes_of_the_same_layers():
    head = build_head(config(), TASK, F)
    plain = nn.Sequential(
        nn.BatchNorm1d(F), nn.Linear(F, H), nn.ReLU(), nn.BatchNorm1d(H), nn.Linear(H, 3)
    )
    plain[1].load_state_dict(head.hidden.linear.state_dict())
    plain[4].load_state_dict(head.linear.state_dict())
    none_cut_B = torch.zeros(N)
    for _ in range(3):  # while training, by the statistics of these rows
        torch.testing.assert_close(head(vectors(), none_cut_B), plain(vectors()))
    head.eval()
    plain.eval()  # and then by those that were seen
    torch.testing.assert_close(head(vectors(2), none_cut_B[:2]), plain(vectors(2)))


def test_the_answer_for_a_text_does_not_depend_on_who_is_asked_with_it():
    head = build_head(config(), TASK, F)
    head(vectors(), torch.zeros(N))
    head.eval()
    together = head(vectors(), torch.zeros(N))
    torch.testing.assert_close(head(vectors()[:1], torch.zeros(1)), together[:1])


@pytest.mark.parametrize("at_once", [1, 2, 7])
def test_a_few_rows_are_normed_by_what_was_seen_which_they_add_to(at_once):
    norm, many = BatchNorm(F), vectors(700)
    for x_NF in many.split(at_once):
        found = norm(x_NF)
    torch.testing.assert_close(norm.running_mean, many.mean(dim=0), atol=0.7, rtol=0)
    torch.testing.assert_close(norm.running_var, many.var(dim=0), atol=0, rtol=0.4)
    torch.testing.assert_close(norm.eval()(x_NF), found)  # alike in training and after


def test_the_gradient_of_a_few_rows_is_that_of_a_constant_scale():
    norm, x_NF = BatchNorm(F), vectors(3).requires_grad_()
    first, second = norm(x_NF), norm(vectors(3))  # as in two micro-batches of one step
    (first.sum() + second.sum()).backward()
    assert x_NF.grad.std() > 0  # by feature, none of it undone by a mean over three rows
    assert torch.equal(x_NF.grad[0], x_NF.grad[1])


@pytest.mark.parametrize("rows", [3, N])
def test_what_overflows_leaves_no_trace(rows):
    norm, x_NF = BatchNorm(F), vectors(rows)
    x_NF[0, 0] = torch.inf
    norm(x_NF)
    assert norm.running_mean.isfinite().all() and norm.running_var.isfinite().all()
    assert norm.running_mean[0] == 0 and norm.running_mean[1] != 0


def test_there_is_dropout_before_both_linear_layers():
    layer = HiddenLayer(F, H, dropout=0.5)
    layer.norm_out = nn.Identity()
    assert not torch.equal(layer(vectors()), layer(vectors()))
    head = build_head(config(dropout=0.5), TASK, F)
    head.hidden = nn.Identity()
    head.linear = nn.Identity()
    assert bool((head(vectors(), torch.zeros(N)) == 0).any())


def test_without_it_a_head_has_the_weights_it_always_had():
    torch.manual_seed(2)
    bare = build_head(config(hidden=0), TASK, F)
    torch.manual_seed(2)
    linear = nn.Linear(F, 3)
    nn.init.normal_(linear.weight, std=0.02)
    assert torch.equal(bare.linear.weight, linear.weight)
    assert set(bare.state_dict()) == {"linear.weight", "linear.bias"}


def test_values_and_answers_have_it_too():
    value = ValueHead(config(), Task("regression", ("value",), False), F)
    assert value.linear.in_features == H and value(vectors(), torch.zeros(N)).shape == (N, 1)
    task = Task("multiple_choice", ("a", "b", "c"), True)
    choice = ChoiceHead(config(truncation_smoothing="learned"), task, F)
    features_BSF = vectors(12).view(4, 3, F).clone()
    features_BSF[3, 2] = 0  # an answer that is not there
    logits_BS = choice(features_BSF, torch.ones(4))
    assert logits_BS.isfinite().tolist() == [[True] * 3] * 3 + [[True, True, False]]
    logits_BS.softmax(dim=1)[:, 0].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in choice.parameters())
    there = BatchNorm(F)
    there(vectors(12)[:11])  # what is not there has no part in the statistics
    torch.testing.assert_close(choice.hidden.norm_in.running_mean, there.running_mean)


def test_a_saved_model_remembers_what_its_norms_have_seen(tmp_path):
    tokenizer = train_bpe([pa.chunked_array([["hello world, good day"]])], 300)
    sizes = {"vocab_size": tokenizer.vocab_size, "pad_id": 0, "max_length": 16}
    model = build_classifier(config(), TASK, seed=1, base_dir=Path(), **sizes)
    asked = torch.randint(0, 200, (9, 7)), torch.arange(9) % 7 + 1, torch.zeros(9)
    before = model(*asked)
    model.eval()
    info = ModelInfo(task=TASK, model=config(), text="text", thresholds=None, **sizes)
    save_classifier(model, tokenizer, info, tmp_path / "model")
    again, _, _ = load_classifier(tmp_path / "model")
    torch.testing.assert_close(again(*asked), model(*asked))
    assert not torch.allclose(again(*asked), before)


def trained(ranks):
    # Weights that hardly move: only the statistics do.
    settings, log = tiny_config(batch_size=16, epochs=3, lr=1e-9), Log()
    state = tiny_state(settings, tiny_model(hidden=H))
    fit(
        state,
        tiny_work(settings, log, rows=tiny_rows(32), ranks=ranks),
        settings,
        ranks,
    )
    return {name: tensor.numpy() for name, tensor in state.model.state_dict().items()}


@pytest.mark.system
def test_ranks_end_with_the_same_statistics_which_are_those_of_all_rows(tmp_path):
    one, other = on_ranks(2, tmp_path, trained)
    assert all((one[name] == other[name]).all() for name in one if "num_batches" not in name)
    alone = trained(Ranks())
    name = "head.hidden.norm_in.running_mean"
    # The mean of two halves is that of the whole.
    assert one[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-4)


def test_clusters_have_layers_of_their_own():
    task = Task("single_label", tuple(f"l{i}" for i in range(CLUSTERS_FROM)), False)
    with pytest.raises(ModelError, match=r"model\.hidden = 5: .* set model\.hidden to 0"):
        build_head(config(head="adaptive"), task, F)
