"""Gradients of the whole classifier against those over the hidden states of transformers."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from gpt2cls.config import ModelConfig
from gpt2cls.data.tasks import Task
from gpt2cls.model.classifier import Classifier, build_classifier

TASK = Task("single_label", ("a", "b", "c"), False)
SIZES = {"n_layer": 3, "n_embd": 48, "n_head": 4, "vocab_size": 101, "n_positions": 40}
POOLINGS = ["last", "mean", "max", "concat", "attention"]
NAMES_OF_PADDING = ["unpadded", "padded"]


def random_gpt2(folder: Path, std: float):
    """A GPT-2 of transformers, random in every tensor, also biases and norms; and its folder."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.GPT2Model(transformers.GPT2Config(**SIZES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * std)
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def rough(tmp_path_factory):
    """Far from how GPT-2 is drawn, so that no part of it hides behind another."""
    return random_gpt2(tmp_path_factory.mktemp("rough"), 0.1)


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """About as GPT-2 is drawn: rounding grows with the size of the weights."""
    return random_gpt2(tmp_path_factory.mktemp("usual"), 0.02)


def classifier(folder: Path, pooling: str) -> Classifier:
    """Ours, with a head whose gradients are not all alike."""
    config = ModelConfig(backbone=str(folder), pooling=pooling, heads=4, dropout=0.0)
    model = build_classifier(
        config, TASK, vocab_size=101, pad_id=0, max_length=40, seed=1, base_dir=Path()
    )
    with torch.no_grad():
        for part in (model.pooling, model.head):
            for parameter in part.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def a_batch(is_padded: bool):
    torch.manual_seed(1)
    lengths_B = torch.tensor([7, 12, 1, 9] if is_padded else [12, 12, 12, 12])
    return torch.randint(0, 101, (4, 16 if is_padded else 12)), lengths_B


def gradients(model: Classifier, tokens_BT, lengths_B, *, is_bf16: bool = False):
    labels_B, none_cut_B = torch.tensor([0, 2, 1, 2]), torch.zeros(4)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        logits_BC = model(tokens_BT, lengths_B, none_cut_B)
    F.cross_entropy(logits_BC, labels_B).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def reference_gradients(hf_model, model: Classifier, tokens_BT, lengths_B):
    """Hidden states of transformers; pooling and head are copies of ours."""
    hf_model, pooling, head = map(deepcopy, (hf_model, model.pooling, model.head))
    mask_BT = (torch.arange(tokens_BT.shape[1]) < lengths_B[:, None]).long()
    hidden_BTD = hf_model(tokens_BT, attention_mask=mask_BT).last_hidden_state
    logits_BC = head(pooling(hidden_BTD, lengths_B), torch.zeros(4))
    F.cross_entropy(logits_BC, torch.tensor([0, 2, 1, 2])).backward()
    parts = {"backbone": hf_model, "pooling": pooling, "head": head}
    return {
        f"{part}.{name}": parameter.grad
        for part, module in parts.items()
        for name, parameter in module.named_parameters()
    }


@pytest.mark.parametrize("is_padded", [False, True], ids=NAMES_OF_PADDING)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_gradient_is_that_over_the_hidden_states_of_transformers(rough, pooling, is_padded):
    reference, folder = rough
    batch, model = a_batch(is_padded), classifier(folder, pooling)
    wanted = reference_gradients(reference, model, *batch)
    found = gradients(model, *batch)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        error = (gradient - wanted[name]).norm() / wanted[name].norm().clamp_min(1e-9)
        assert error <= 1e-5, name


# Not max and concat: which token is the largest is decided by less than bf16 can show, so their
# gradients jump between tokens, in any implementation.
@pytest.mark.parametrize("is_padded", [False, True], ids=NAMES_OF_PADDING)
@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
def test_the_gradient_in_bf16_is_within_a_hundredth(usual, pooling, is_padded):
    reference, folder = usual
    batch, model = a_batch(is_padded), classifier(folder, pooling)
    wanted = reference_gradients(reference, model, *batch)
    found = gradients(model, *batch, is_bf16=True)
    errors = [(found[name] - gradient).norm() for name, gradient in wanted.items()]
    sizes = [gradient.norm() for gradient in wanted.values()]
    assert torch.stack(errors).norm() / torch.stack(sizes).norm() <= 1e-2
