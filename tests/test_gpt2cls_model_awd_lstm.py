"""The AWD-LSTM: its size, its recurrence against torch.nn.LSTM, its dropouts, its folder."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

from gpt2cls.config import ModelConfig
from gpt2cls.errors import ModelError
from gpt2cls.model.awd_lstm import (
    AwdLstm,
    AwdLstmConfig,
    Layer,
    Rates,
    awd_lstm_shapes,
    init_awd_lstm,
    locked_dropout,
)
from gpt2cls.model.backbone import build_backbone, load_backbone, save_backbone

V = 50
SHAPE = AwdLstmConfig(vocab_size=V, width=12, hidden=20, layers=3)


def a_model(dropout=0.0, seed=3):
    model = AwdLstm(SHAPE, dropout=dropout)
    torch.manual_seed(seed)
    init_awd_lstm(model)
    return model


def some_tokens(rows=4, length=9):
    draw = torch.Generator().manual_seed(2)
    return torch.randint(0, V, (rows, length), generator=draw)


def hidden_of(model, tokens_BT, seed=None):
    if seed is not None:
        torch.manual_seed(seed)
    return model(tokens_BT, torch.full((len(tokens_BT),), tokens_BT.shape[1]))


def plain_layers(model):
    """The same layers as nn.LSTM; one after the other they are the recurrence without dropout."""
    layers = []
    for layer, (num_in, num_out) in zip(model.h, SHAPE.sizes(), strict=True):
        plain = nn.LSTM(num_in, num_out, batch_first=True)
        plain.load_state_dict({f"{name}_l0": t for name, t in layer.state_dict().items()})
        layers.append(plain)
    return layers


@pytest.mark.parametrize("vocab_size", [10_000, 33_278])
def test_the_reference_shape_has_as_many_weights_as_published(vocab_size):
    sizes = {"pad_id": 0, "max_length": 70, "base_dir": Path()}
    backbone = build_backbone(ModelConfig(backbone="awd-lstm"), vocab_size=vocab_size, **sizes)
    counted = sum(parameter.numel() for parameter in backbone.parameters())
    gates = [(400, 1150), (1150, 1150), (1150, 400)]
    assert counted == 400 * vocab_size + sum(4 * b * (a + b + 2) for a, b in gates)
    # Merity et al. 2017, tables 1 and 2, where an output bias of vocab_size is counted too.
    assert round((counted + vocab_size) / 1e6, 1) == {10_000: 24.2, 33_278: 33.6}[vocab_size]


def test_the_shapes_known_beforehand_are_those_of_the_built_model():
    built = {name: tuple(tensor.shape) for name, tensor in a_model().state_dict().items()}
    assert awd_lstm_shapes(SHAPE) == built


def test_without_dropout_states_and_gradients_are_those_of_lstm_layers_of_pytorch():
    model, tokens_BT = a_model(), some_tokens()
    x_BTD = model.wte(tokens_BT)
    plain = plain_layers(model)
    for layer in plain:
        x_BTD, _ = layer(x_BTD)
    ours = hidden_of(model, tokens_BT)
    torch.testing.assert_close(ours, x_BTD)
    ours.square().sum().backward()
    table_grad, model.wte.weight.grad = model.wte.weight.grad, None
    x_BTD.square().sum().backward()
    torch.testing.assert_close(table_grad, model.wte.weight.grad)
    for layer, theirs in zip(model.h, plain, strict=True):
        torch.testing.assert_close(layer.weight_hh.grad, theirs.weight_hh_l0.grad)


def test_padding_changes_no_real_token_not_even_with_dropout():
    model, tokens_BT = a_model(dropout=0.4), some_tokens(length=6)
    padded_BT = torch.nn.functional.pad(tokens_BT, (0, 7), value=5)
    lengths_B = torch.full((4,), 6)
    for is_training in (False, True):
        model.train(is_training)
        torch.manual_seed(1)
        alone = model(tokens_BT, lengths_B)
        torch.manual_seed(1)
        torch.testing.assert_close(model(padded_BT, lengths_B)[:, :6], alone)


def test_gradients_reach_the_first_token_and_every_weight():
    model, tokens_BT = a_model(dropout=0.4).train(), some_tokens(rows=16, length=70)
    tokens_BT[:, 0] = 7
    tokens_BT[:, 1:][tokens_BT[:, 1:] == 7] = 8
    hidden_of(model, tokens_BT, seed=1)[:, -1].sum().backward()
    assert float(model.wte.weight.grad[7].abs().sum()) > 0
    assert all(bool(p.grad.any()) for p in model.parameters())


def test_a_reference_dropout_gives_the_published_rates_and_others_their_ratios():
    published = Rates(words=0.05, into=0.4, between=0.3, weights=0.5, out=0.4)
    assert Rates.of(0.4) == published
    for name, rate in asdict(Rates.of(0.1)).items():
        assert rate == pytest.approx(getattr(published, name) / 4), name
    assert Rates.of(0.99).weights == 0.9
    assert Rates.of(0.0) == Rates(0, 0, 0, 0, 0)


def test_the_rates_stand_where_the_paper_has_them():
    layers = a_model(dropout=0.4).h
    places = [(layer.drop_in, layer.drop_weights, layer.drop_out) for layer in layers]
    assert places == [(0.4, 0.5, 0.0), (0.3, 0.5, 0.0), (0.3, 0.5, 0.4)]


def test_dropout_is_drawn_anew_while_training_and_never_else():
    model, tokens_BT = a_model(dropout=0.4), some_tokens()
    model.train()
    first, second = hidden_of(model, tokens_BT, seed=1), hidden_of(model, tokens_BT, seed=2)
    assert not torch.equal(first, second)
    # Only torch's generator decides: what a resumed run needs.
    assert torch.equal(first, hidden_of(model, tokens_BT, seed=1))
    without = hidden_of(a_model(dropout=0.0), tokens_BT)
    before = torch.get_rng_state()
    assert torch.equal(hidden_of(model.eval(), tokens_BT), without)
    assert torch.equal(torch.get_rng_state(), before)


def test_locked_dropout_drops_the_same_features_at_all_tokens_of_a_row():
    torch.manual_seed(1)
    kept_BTD = locked_dropout(torch.ones(8, 5, 1000), 0.3)
    assert torch.equal(kept_BTD, kept_BTD[:, :1].expand(-1, 5, -1))
    assert not torch.equal(kept_BTD[0], kept_BTD[1])
    # 8,000 draws: five standard deviations are 0.026.
    assert float((kept_BTD == 0).float().mean()) == pytest.approx(0.3, abs=0.026)
    assert float(kept_BTD.max()) == pytest.approx(1 / 0.7, rel=1e-3)


def test_only_what_one_state_passes_to_the_next_loses_weights():
    layer = Layer(12, 20, into=0.0, weights=0.5, out=0.0).train()
    torch.manual_seed(1)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x_BTD = torch.randn(6, 2, 12)
    dropped, whole = layer(x_BTD), layer.eval()(x_BTD)
    # The state before the first token is zero, so nothing can be lost there.
    torch.testing.assert_close(dropped[:, 0], whole[:, 0])
    assert float((dropped[:, 1] - whole[:, 1]).detach().abs().min()) > 0


def test_a_dropped_word_is_dropped_wherever_it_stands():
    model = a_model(dropout=0.4).train()
    model.rates = Rates(words=0.5, into=0, between=0, weights=0, out=0)
    torch.manual_seed(1)
    x_BTD = model._embedded(some_tokens(rows=30, length=30))
    is_dropped = (x_BTD == 0).all(dim=2).flatten()
    tokens = some_tokens(rows=30, length=30).flatten()
    by_word = {int(token): {bool(d) for d in is_dropped[tokens == token]} for token in tokens}
    assert all(len(fates) == 1 for fates in by_word.values())
    assert 5 < sum(True in fates for fates in by_word.values()) < len(by_word) - 5


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_under_autocast_states_and_gradients_stay_near_those_in_fp32(precision):
    grads, tokens_BT = [], some_tokens(length=40)
    for enabled in (False, True):
        model = a_model()
        with torch.autocast("cpu", precision, enabled=enabled):
            hidden = hidden_of(model, tokens_BT)
        hidden.float().square().sum().backward()
        grads.append([hidden.detach().float(), *(p.grad for p in model.parameters())])
    for exact, rounded in zip(*grads, strict=True):
        # bf16 has 8 bits: one rounding is up to 0.004, and there are several on the way.
        assert float((exact - rounded).norm() / exact.norm()) < 0.03
        assert rounded.dtype == torch.float32


def test_a_folder_is_read_back_without_transformers(tmp_path, monkeypatch):
    model = a_model()
    save_backbone(model, tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    read = load_backbone(tmp_path, dropout=0.2, pad_id=0)
    assert isinstance(read, AwdLstm) and read.config == SHAPE and read.rates == Rates.of(0.2)
    for name, tensor in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"layers": 10**9}, "layers = 1000000000, but model.safetensors holds 3"),
        ({"layers": 2}, "layers = 2, but model.safetensors holds 3"),
        ({"hidden": 21}, r"bias_hh is \[80\]; config.json asks for \[84\]"),
        ({"width": "12"}, "width = '12': must be a whole number from 1"),
        ({"vocab_size": None}, "vocab_size = None: must be a whole number from 1"),
    ],
)
def test_a_folder_whose_files_do_not_belong_together_is_refused(tmp_path, change, words):
    save_backbone(a_model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=words):
        load_backbone(tmp_path, dropout=0.0, pad_id=0)


def test_texts_of_any_length_and_no_larger_vocabulary_fit_it(tmp_path):
    save_backbone(a_model(), tmp_path)
    sizes = {"pad_id": 0, "base_dir": Path()}
    config = ModelConfig(backbone=str(tmp_path))
    build_backbone(config, vocab_size=V, max_length=100_000, **sizes)
    with pytest.raises(ModelError, match="has embeddings for 50"):
        build_backbone(config, vocab_size=V + 1, max_length=8, **sizes)
