"""Models of other kinds, cut at a layer: the two parts are together what the model is whole."""

import pytest
import torch

from gpt2cls.config import ModelConfig
from gpt2cls.data.tasks import Task
from gpt2cls.model.auto import AutoBackbone, HalfAutoBackbone
from gpt2cls.model.classifier import with_new_head
from gpt2cls.model.folder import ModelInfo
from gpt2cls.predict import fastest_that_agrees

TASK = Task("single_label", ("a", "b", "c"), False)

SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 60}
ALSO = {"intermediate_size": 48, "max_position_embeddings": 32}
KINDS = {
    "Llama": ALSO,
    "Gemma2": {**ALSO, "head_dim": 8, "num_key_value_heads": 2, "sliding_window": 4},
    "Qwen2": {**ALSO, "num_key_value_heads": 2},
    "GPTNeoX": ALSO,
    "Bert": ALSO,
    "Roberta": ALSO,
    "Electra": {**ALSO, "embedding_size": 16},
    "DistilBert": {"dim": 32, "hidden_dim": 48, "n_layers": 4, "n_heads": 4, "vocab_size": 60},
}
LENGTHS_B = torch.tensor([9, 12, 1])


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def backbone_of(transformers, kind):
    torch.manual_seed(0)
    settings = KINDS[kind] if kind == "DistilBert" else {**SMALL, **KINDS[kind]}
    config = getattr(transformers, f"{kind}Config")(pad_token_id=0, **settings)
    return AutoBackbone(getattr(transformers, f"{kind}Model")(config)).eval()


@pytest.fixture
def tokens():
    tokens_BT = torch.randint(2, 60, (3, 12), generator=torch.Generator().manual_seed(1))
    places_T = torch.arange(12)
    return tokens_BT.where(places_T < LENGTHS_B[:, None], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_token_embedding_is_found_whatever_the_model_calls_it(transformers, kind):
    backbone = backbone_of(transformers, kind)
    assert backbone.wte.weight.shape[0] == 60
    assert any(parameter is backbone.wte.weight for parameter in backbone.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [0, 1, 3])
def test_two_parts_are_what_the_model_is_whole(transformers, kind, block, tokens):
    backbone = backbone_of(transformers, kind)
    with torch.no_grad():
        wanted_BTD = backbone(tokens, LENGTHS_B)
        below_BTD = backbone.up_to_block(tokens, LENGTHS_B, block)
        found_BTD = backbone.from_block(below_BTD, LENGTHS_B, block)
        again_BTD = backbone(tokens, LENGTHS_B)
    for row, length in enumerate(LENGTHS_B):
        assert torch.equal(found_BTD[row, :length], wanted_BTD[row, :length])
    assert below_BTD.shape[2] == backbone.width_below(block)
    assert not torch.equal(below_BTD, wanted_BTD)
    assert torch.equal(again_BTD, wanted_BTD)  # the model is left as it was


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_all_of_the_blocks_above_the_cut_and_nothing_below(
    transformers, kind, tokens
):
    backbone = backbone_of(transformers, kind)
    with torch.no_grad():
        below_BTD = backbone.up_to_block(tokens, LENGTHS_B, 2)
    backbone.from_block(below_BTD, LENGTHS_B, 2).sum().backward()
    above = [module for block in backbone.blocks[3:] for module in block]
    expected = {id(p) for module in above for p in module.parameters()}
    pooler = {id(p) for n, p in backbone.named_parameters() if "pooler" in n}  # not read here
    assert {id(p) for p in backbone.parameters() if p.grad is not None} == expected - pooler
    assert not backbone.computes_above(tokens, LENGTHS_B, 2)


def test_what_is_computed_before_the_layers_is_below_them(transformers):
    below, *_, top = backbone_of(transformers, "Electra").blocks
    assert [type(module).__name__ for module in below] == ["ElectraEmbeddings", "Linear"]
    assert len(top) == 1


def test_a_layer_that_fails_leaves_the_model_as_it_was(transformers, tokens):
    backbone = backbone_of(transformers, "Llama")
    with torch.no_grad():
        whole_BTD = backbone(tokens, LENGTHS_B)
    with pytest.raises(RuntimeError):
        backbone.from_block(torch.zeros(3, 12, 7), LENGTHS_B, 2)
    with torch.no_grad():
        assert torch.equal(backbone(tokens, LENGTHS_B)[1], whole_BTD[1])


def test_a_model_whose_lower_part_needs_the_upper_one_is_known(transformers, tokens):
    backbone = backbone_of(transformers, "Llama")
    backbone.model.layers[0].input_layernorm = backbone.model.norm
    assert backbone.computes_above(tokens, LENGTHS_B, 1)


def a_classifier(transformers, **settings):
    torch.manual_seed(0)
    sizes = {**SMALL, **ALSO, "hidden_size": 128, "intermediate_size": 256, **settings}
    backbone = AutoBackbone(
        transformers.LlamaModel(transformers.LlamaConfig(pad_token_id=0, **sizes))
    )
    config = ModelConfig(backbone="folder", pooling="mean", temperature=1.0)
    info = ModelInfo(task=TASK, model=config, max_length=32, vocab_size=60, pad_id=0)
    return with_new_head(backbone, config, TASK).eval(), info


@pytest.fixture
def a_processor_with_bf16(monkeypatch):
    monkeypatch.setattr("gpt2cls.predict.pick_precision", lambda *_: ("bf16", "as the test says"))


def test_to_be_asked_its_weights_are_bf16_where_answers_agree(
    transformers, a_processor_with_bf16, monkeypatch, tokens
):
    model, info = a_classifier(transformers)
    fast = fastest_that_agrees(model, info)
    assert {p.dtype for p in fast.backbone.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in fast.backbone.buffers()} == {torch.float32}
    assert {p.dtype for p in model.backbone.parameters()} == {torch.float32}
    with torch.no_grad():
        exact, found = (m.backbone(tokens, LENGTHS_B)[0, :9] for m in (model, fast))
    assert found.dtype == torch.float32
    assert 0 < (found - exact).norm() < 0.02 * exact.norm()
    monkeypatch.setattr("gpt2cls.predict.AGREES_WITHIN", 1e-7)
    assert fastest_that_agrees(model, info) is model


def test_a_narrow_one_or_one_that_cannot_compute_in_bf16_stays_as_it_is(
    transformers, a_processor_with_bf16, monkeypatch
):
    model, info = a_classifier(transformers, hidden_size=32)
    assert fastest_that_agrees(model, info) is model
    model, info = a_classifier(transformers)

    def refuse(*_):
        raise RuntimeError("not implemented for 'BFloat16'")

    monkeypatch.setattr(HalfAutoBackbone, "forward", refuse)
    assert fastest_that_agrees(model, info) is model
