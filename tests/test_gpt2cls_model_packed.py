"""The GPT-2 packed for prediction against the one it was made of."""

from pathlib import Path

import pytest
import torch
from tiny_training import needs_bf16

from gpt2cls.config import ModelConfig
from gpt2cls.data.tasks import Task
from gpt2cls.model.backbone import build_backbone
from gpt2cls.model.classifier import Classifier, build_classifier
from gpt2cls.model.folder import ModelInfo
from gpt2cls.model.gpt2 import GPT2Backbone, GPT2Config, init_gpt2
from gpt2cls.model.packed import PackedGPT2, can_pack, few_sizes
from gpt2cls.predict import AGREES_WITHIN, fastest_that_agrees

TASK = Task("single_label", ("a", "b", "c"), False)
CONFIG = ModelConfig(backbone="gpt2-mini", pooling="mean", temperature=1.0)
INFO = ModelInfo(task=TASK, model=CONFIG, max_length=40, vocab_size=101, pad_id=0)


@pytest.fixture(autouse=True)
def a_processor_with_bf16(monkeypatch):
    monkeypatch.setattr("gpt2cls.predict.pick_precision", lambda *_: ("bf16", "as the test says"))


def a_gpt2(**settings) -> GPT2Backbone:
    sizes = {"vocab_size": 101, "positions": 40, "width": 128, "layers": 3, "heads": 4}
    backbone = GPT2Backbone(GPT2Config(**(sizes | {"inner": 512} | settings)), dropout=0.1)
    torch.manual_seed(0)
    init_gpt2(backbone)
    return backbone.eval()


def a_classifier() -> Classifier:
    model = build_classifier(
        CONFIG, TASK, vocab_size=101, pad_id=0, max_length=40, seed=0, base_dir=Path()
    )
    return model.eval()


def a_batch(num_rows: int = 5, num_tokens: int = 13):
    torch.manual_seed(1)
    tokens_BT = torch.randint(0, 101, (num_rows, num_tokens))
    return tokens_BT, torch.randint(1, num_tokens + 1, (num_rows,))


def relative_error(found, wanted) -> float:
    return float((found - wanted).norm() / wanted.norm())


@needs_bf16
@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu"])
@pytest.mark.parametrize("num_rows", [1, 5, 37])
def test_hidden_states_are_those_of_the_backbone_up_to_bf16(activation, num_rows):
    backbone, (tokens_BT, lengths_B) = a_gpt2(activation=activation), a_batch(num_rows)
    mask_BT = torch.arange(13) < lengths_B[:, None]
    with torch.inference_mode():
        packed = PackedGPT2(backbone)
        wanted_BTD = backbone(tokens_BT, lengths_B)
        found_BTD = packed(tokens_BT, lengths_B)
        last_BD = packed.last_hidden(tokens_BT, lengths_B)
    # bf16 rounds by 2 ** -9 at most, a few times per layer.
    assert relative_error(found_BTD[mask_BT], wanted_BTD[mask_BT]) < 0.02
    wanted_BD = wanted_BTD[torch.arange(num_rows), lengths_B - 1]
    assert relative_error(last_BD, wanted_BD) < 0.02
    assert found_BTD.dtype == last_BD.dtype == torch.float32


@needs_bf16
@pytest.mark.parametrize("num_tokens", [1, 8, 13, 128, 129])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_single_row_is_read_as_it_is_among_others(num_tokens, layers):
    backbone = a_gpt2(positions=160, layers=layers)
    tokens_BT, _ = a_batch(3, num_tokens)
    lengths_B = torch.full((3,), num_tokens)
    with torch.inference_mode():
        packed = PackedGPT2(backbone)
        among_BTD = packed(tokens_BT, lengths_B)
        alone_BTD = packed(tokens_BT[:1], lengths_B[:1])
        last_BD = packed.last_hidden(tokens_BT[:1], lengths_B[:1])
    assert relative_error(alone_BTD, among_BTD[:1]) < 0.01
    assert relative_error(last_BD, among_BTD[:1, -1]) < 0.02


@needs_bf16
def test_packing_serves_a_gpt2():
    assert can_pack(a_gpt2())


def test_what_packing_does_not_serve_stays_as_it_is():
    assert not can_pack(a_gpt2(activation="silu"))
    assert not can_pack(a_gpt2(width=64))
    assert not can_pack(torch.nn.Linear(2, 2))


@needs_bf16
def test_a_model_is_packed_where_its_answers_agree():
    model = a_classifier()
    fast = fastest_that_agrees(model, INFO)
    assert isinstance(fast.backbone, PackedGPT2)
    batch = (*a_batch(), torch.zeros(5))
    with torch.inference_mode():
        difference = fast.probabilities(fast(*batch)) - model.probabilities(model(*batch))
    assert difference.abs().max() <= AGREES_WITHIN


def test_a_model_whose_answers_would_differ_stays_in_fp32(monkeypatch):
    model = a_classifier()
    monkeypatch.setattr("gpt2cls.predict.AGREES_WITHIN", 1e-7)
    assert fastest_that_agrees(model, INFO) is model


def test_a_processor_without_bf16_stays_in_fp32(monkeypatch):
    monkeypatch.setattr("gpt2cls.predict.pick_precision", lambda *_: ("fp32", "as the test says"))
    model = a_classifier()
    assert fastest_that_agrees(model, INFO) is model


def test_sizes_are_few_and_little_larger():
    assert [few_sizes(size) for size in (1, 8, 9, 64, 65, 2028)] == [1, 8, 16, 64, 72, 2048]
    sizes = {few_sizes(size) for size in range(1025, 2049)}
    assert len(sizes) == 16
    assert all(size <= few_sizes(size) <= 1.07 * size for size in range(128, 4096))


def test_the_built_in_shape_that_is_too_small_to_gain_is_not_packed():
    tiny = ModelConfig(backbone="gpt2-tiny")
    backbone = build_backbone(tiny, vocab_size=101, pad_id=0, max_length=40, base_dir=Path())
    assert not can_pack(backbone)
