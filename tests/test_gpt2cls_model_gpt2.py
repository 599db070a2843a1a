"""Our GPT-2 against the one of transformers."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from gpt2cls.config import ModelConfig
from gpt2cls.errors import ModelError
from gpt2cls.model.auto import AutoBackbone
from gpt2cls.model.backbone import build_backbone
from gpt2cls.model.gpt2 import GPT2Backbone, tensor_shapes
from gpt2cls.model.gpt2_folder import load_gpt2, save_gpt2


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def reference(transformers, **settings):
    """A GPT-2 of transformers whose every tensor is random, also biases and norms."""
    config = transformers.GPT2Config(
        **{"n_layer": 12, "n_embd": 48, "n_head": 4, "vocab_size": 101, "n_positions": 40}
        | settings
    )
    torch.manual_seed(0)
    model = transformers.GPT2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def hf_model(transformers):
    return reference(transformers)


@pytest.fixture(scope="module")
def hf_folder(hf_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf-gpt2")
    hf_model.save_pretrained(folder)
    return folder


def a_batch(padding: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    lengths_B = torch.tensor([7, 12, 1]) if padding else torch.tensor([12, 12, 12])
    tokens_BT = torch.randint(0, 101, (3, 12 + padding))
    return tokens_BT, lengths_B


def real_tokens(hidden_BTD, lengths_B):
    mask_BT = torch.arange(hidden_BTD.shape[1]) < lengths_B[:, None]
    return hidden_BTD[mask_BT]


@pytest.mark.parametrize("padding", [0, 5], ids=["unpadded", "padded"])
def test_hidden_states_are_those_of_transformers(hf_model, hf_folder, padding):
    tokens_BT, lengths_B = a_batch(padding)
    mask_BT = (torch.arange(tokens_BT.shape[1]) < lengths_B[:, None]).long()
    with torch.no_grad():
        wanted = hf_model(tokens_BT, attention_mask=mask_BT).last_hidden_state
        found = load_gpt2(hf_folder)(tokens_BT, lengths_B)
    difference = real_tokens(found, lengths_B) - real_tokens(wanted, lengths_B)
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"activation_function": "relu"},
        {"n_inner": 60, "layer_norm_epsilon": 1e-3},
    ],
    ids=["attention scaled by layer", "attention not scaled", "relu", "other inner width"],
)
def test_unusual_settings_of_gpt2_are_honoured(transformers, tmp_path, settings):
    model = reference(transformers, n_layer=2, **settings)
    model.save_pretrained(tmp_path)
    tokens_BT, lengths_B = a_batch()
    with torch.no_grad():
        wanted = model(tokens_BT).last_hidden_state
        found = load_gpt2(tmp_path)(tokens_BT, lengths_B)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_gradients_are_those_of_transformers(hf_model, hf_folder):
    tokens_BT, lengths_B = a_batch(5)
    ours = load_gpt2(hf_folder)
    mask_BT = (torch.arange(tokens_BT.shape[1]) < lengths_B[:, None]).long()
    weights = torch.randn(int(lengths_B.sum()), 48)
    (real_tokens(ours(tokens_BT, lengths_B), lengths_B) * weights).sum().backward()
    output = hf_model(tokens_BT, attention_mask=mask_BT).last_hidden_state
    (real_tokens(output, lengths_B) * weights).sum().backward()
    wanted = {name: parameter.grad for name, parameter in hf_model.named_parameters()}
    for name, parameter in ours.named_parameters():
        error = (parameter.grad - wanted[name]).norm() / wanted[name].norm().clamp_min(1e-6)
        assert error < 1e-5, name
    hf_model.zero_grad()


def test_the_last_hidden_state_alone_is_that_of_the_whole_pass_with_the_same_gradients(hf_folder):
    tokens_BT, lengths_B = a_batch(5)
    whole, short = load_gpt2(hf_folder), load_gpt2(hf_folder)
    wanted_BD = whole(tokens_BT, lengths_B)[torch.arange(3), lengths_B - 1]
    found_BD = short.last_hidden(tokens_BT, lengths_B)
    torch.testing.assert_close(found_BD, wanted_BD, atol=1e-5, rtol=0)
    weights = torch.randn(3, 48)
    (wanted_BD * weights).sum().backward()
    (found_BD * weights).sum().backward()
    for (name, one), other in zip(whole.named_parameters(), short.parameters(), strict=True):
        assert (one.grad - other.grad).norm() / one.grad.norm().clamp_min(1e-6) < 1e-5, name


def test_a_saved_folder_is_read_by_automodel_with_equal_tensors(
    transformers, hf_model, hf_folder, tmp_path
):
    save_gpt2(load_gpt2(hf_folder), tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path)
    assert type(again) is type(hf_model)
    wanted = hf_model.state_dict()
    assert again.state_dict().keys() == wanted.keys()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    assert json.loads((tmp_path / "config.json").read_text())["resid_pdrop"] == 0.1


def test_a_language_model_folder_in_bf16_is_read(transformers, tmp_path):
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=8)
    model = transformers.GPT2LMHeadModel(config).bfloat16()
    model.save_pretrained(tmp_path)
    ours = load_gpt2(tmp_path)
    assert ours.wte.weight.dtype == torch.float32
    assert torch.equal(ours.wte.weight, model.transformer.wte.weight.float())


def test_a_sharded_folder_is_read(transformers, hf_model, tmp_path):
    hf_model.save_pretrained(tmp_path, max_shard_size="400KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert torch.equal(load_gpt2(tmp_path).wte.weight, hf_model.wte.weight)


def test_dropout_is_active_only_while_training(hf_folder):
    model = load_gpt2(hf_folder, dropout=0.5)
    tokens_BT, lengths_B = a_batch()
    with torch.no_grad():
        first, second = model.train()(tokens_BT, lengths_B), model(tokens_BT, lengths_B)
        third, fourth = model.eval()(tokens_BT, lengths_B), model(tokens_BT, lengths_B)
    assert not torch.equal(first, second)
    assert torch.equal(third, fourth)


def build(backbone: str | Path, *, max_length: int = 40, vocab_size: int = 101):
    config = ModelConfig(backbone=str(backbone))
    return build_backbone(
        config, vocab_size=vocab_size, pad_id=0, max_length=max_length, base_dir=Path("/nowhere")
    )


def test_padding_beyond_the_position_table_is_cut_and_a_text_beyond_it_refused():
    backbone = build("gpt2-tiny", max_length=6).eval()
    tokens_BT = torch.zeros(1, 8, dtype=torch.long)
    assert backbone(tokens_BT, torch.tensor([6])).shape == (1, 6, 64)
    with pytest.raises(ValueError, match="a text of 7 tokens; the backbone has 6 positions"):
        backbone(tokens_BT, torch.tensor([7]))


def test_blocks_hold_every_parameter_once(hf_folder):
    backbone = build(hf_folder)
    inside = [p for block in backbone.blocks for part in block for p in part.parameters()]
    assert len(backbone.blocks) == 13
    assert {id(p) for p in inside} == {id(p) for p in backbone.parameters()}
    assert len(inside) == len(list(backbone.parameters()))


def test_a_length_beyond_the_positions_is_refused_with_both_numbers(hf_folder):
    with pytest.raises(ModelError, match=r"max_length = 512: .* has 40 positions"):
        build(hf_folder, max_length=512)


def test_a_tokenizer_larger_than_the_embeddings_is_refused(hf_folder):
    with pytest.raises(ModelError, match=r"500 tokens, but .* embeddings for 101"):
        build(hf_folder, vocab_size=500)


def copy_of(folder: Path, target: Path, **changes: object) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_a_config_that_does_not_fit_the_weights_is_refused(hf_folder, tmp_path):
    with pytest.raises(ModelError, match=r"n_layer = 1000000000, but .* 12 blocks"):
        build(copy_of(hf_folder, tmp_path / "a", n_layer=10**9))
    with pytest.raises(ModelError, match=r"wte.weight is \[101, 48\]; .* \[1000000000, 48\]"):
        build(copy_of(hf_folder, tmp_path / "b", vocab_size=10**9))
    with pytest.raises(ModelError, match=r"n_head = 'four': must be a whole number"):
        build(copy_of(hf_folder, tmp_path / "c", n_head="four"))


def test_what_our_gpt2_does_not_compute_goes_to_transformers(hf_folder, tmp_path):
    folder = copy_of(hf_folder, tmp_path / "a", reorder_and_upcast_attn=True)
    backbone = build(folder).eval()
    assert isinstance(backbone, AutoBackbone)
    assert backbone.width == 48
    tokens_BT, lengths_B = a_batch(5)
    with torch.no_grad():
        found, wanted = backbone(tokens_BT, lengths_B), load_gpt2(hf_folder)(tokens_BT, lengths_B)
    difference = real_tokens(found, lengths_B) - real_tokens(wanted, lengths_B)
    assert difference.abs().max() < 1e-5


def test_another_decoder_works_through_the_generic_path(transformers, tmp_path):
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=101,
        max_position_embeddings=64,
    )
    transformers.LlamaModel(config).save_pretrained(tmp_path)
    backbone = build(tmp_path).eval()
    tokens_BT, _ = a_batch(5)
    with torch.no_grad():
        padded = backbone(tokens_BT, torch.tensor([7, 12, 1]))
        alone = backbone(tokens_BT[:1, :7], torch.tensor([7]))
    torch.testing.assert_close(padded[:1, :7], alone, atol=1e-5, rtol=0)
    assert len(backbone.blocks) == 4
    inside = [p for block in backbone.blocks for part in block for p in part.parameters()]
    assert {id(p) for p in inside} == {id(p) for p in backbone.parameters()}
    with pytest.raises(ModelError, match="has 64 positions"):
        build(tmp_path, max_length=65)


def test_a_built_in_shape_has_the_size_it_is_named_for():
    backbone = build("gpt2-mini", max_length=16)
    assert isinstance(backbone, GPT2Backbone)
    assert (len(backbone.h), backbone.width, backbone.h[0].attn.heads) == (4, 256, 4)
    assert backbone.wpe.weight.shape == (16, 256)


def test_the_shapes_known_beforehand_are_those_of_the_built_model():
    backbone = build("gpt2-tiny")
    built = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    assert tensor_shapes(backbone.config) == built
