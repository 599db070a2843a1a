"""The encoder-decoder against torch's layers, and what it promises of texts, labels and folders."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from torch import nn

from gpt2cls.config import ModelConfig
from gpt2cls.data.bpe import train_bpe
from gpt2cls.data.tasks import Task
from gpt2cls.errors import ModelError
from gpt2cls.model.classifier import Classifier, build_classifier
from gpt2cls.model.encdec import EncoderDecoder
from gpt2cls.model.folder import ModelInfo, load_classifier, save_classifier
from gpt2cls.model.kernels import gelu_tanh
from gpt2cls.predict import Predictor, fastest_that_agrees

WIDTH, HEADS = 32, 4
SINGLE = Task("single_label", ("a", "b", "c"), False)
MULTI = Task("multi_label", ("a", "b", "c"), False)
SIZES = {"vocab_size": 50, "pad_id": 0, "max_length": 16}


def encoder_decoder() -> EncoderDecoder:
    torch.manual_seed(0)
    return EncoderDecoder(3, width=WIDTH, heads=HEADS, dropout=0.1).eval()


def classifier(task: Task = SINGLE, **settings) -> Classifier:
    config = ModelConfig(**{"backbone": "gpt2-tiny", "head": "encdec", **settings})
    return build_classifier(config, task, **SIZES, seed=1, base_dir=Path()).eval()


def batch(vocab_size: int = 50) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    return torch.randint(0, vocab_size, (3, 6)), torch.tensor([4, 6, 1]), torch.zeros(3)


def copy_attention(mine, theirs: nn.MultiheadAttention) -> None:
    weights = [mine.query.weight, mine.key_value.weight]
    biases = [mine.query.bias, mine.key_value.bias]
    theirs.in_proj_weight.data = torch.cat(weights).detach()
    theirs.in_proj_bias.data = torch.cat(biases).detach()
    theirs.out_proj.load_state_dict(mine.out.state_dict())


def in_torch(layer, kind: type[nn.Module]) -> nn.Module:
    """torch's layer with the weights of ours."""
    theirs = kind(
        WIDTH, HEADS, 4 * WIDTH, 0.0, gelu_tanh, batch_first=True, norm_first=False
    ).eval()
    copy_attention(layer.own, theirs.self_attn)
    norms = [layer.own_norm, layer.norm]
    if layer.text is not None:
        copy_attention(layer.text, theirs.multihead_attn)
        norms.insert(1, layer.text_norm)
    theirs.linear1.load_state_dict(layer.up.state_dict())
    theirs.linear2.load_state_dict(layer.down.state_dict())
    for i, norm in enumerate(norms, start=1):
        getattr(theirs, f"norm{i}").load_state_dict(norm.state_dict())
    return theirs


def test_the_layers_compute_what_torch_s_post_norm_layers_compute():
    ours = encoder_decoder()
    with torch.no_grad():
        for parameter in ours.parameters():  # biases and gains are not drawn
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    hidden_BTD, lengths_B = torch.randn(3, 6, WIDTH), torch.tensor([4, 6, 1])
    is_padding_BT = torch.arange(6) >= lengths_B[:, None]
    text_BTD, x_BCD = hidden_BTD, ours.query_CD.expand(3, -1, -1)
    with torch.no_grad():
        for layer in ours.encoder:
            text_BTD = in_torch(layer, nn.TransformerEncoderLayer)(
                text_BTD, src_key_padding_mask=is_padding_BT
            )
        for layer in ours.decoder:
            x_BCD = in_torch(layer, nn.TransformerDecoderLayer)(
                x_BCD, text_BTD, memory_key_padding_mask=is_padding_BT
            )
        found_BF = ours(hidden_BTD, lengths_B)
    assert found_BF.shape == (3, 3 * WIDTH)
    torch.testing.assert_close(found_BF, x_BCD.flatten(1), atol=1e-5, rtol=1e-5)


def test_a_token_is_seen_by_those_before_it_and_after_it():
    model = classifier()
    tokens_BT, lengths_B, _ = batch()
    other_BT = tokens_BT.clone()
    other_BT[1, 5] = (other_BT[1, 5] + 1) % 50
    with torch.no_grad():
        states = [
            model.pooling.encoded(model.backbone(tokens, lengths_B), lengths_B)
            for tokens in (tokens_BT, other_BT)
        ]
    changed_BT = (states[0] - states[1]).abs().amax(dim=2) > 1e-6
    assert changed_BT[1].all()
    assert not changed_BT[0].any()


def test_padding_changes_nothing_even_if_it_holds_infinities():
    ours = encoder_decoder()
    hidden_BTD, lengths_B = torch.randn(3, 6, WIDTH), torch.tensor([4, 6, 1])
    padded = torch.cat([hidden_BTD, torch.zeros(3, 5, WIDTH)], dim=1)
    for row, length in enumerate(lengths_B):
        padded[row, length:] = torch.inf
    with torch.no_grad():
        found, wanted = ours(padded, lengths_B), ours(hidden_BTD, lengths_B)
        alone = ours(hidden_BTD[:1, :4], lengths_B[:1])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(wanted[:1], alone, atol=1e-5, rtol=1e-5)


def test_every_weight_learns_and_no_gradient_reaches_padding():
    ours = encoder_decoder()
    hidden_BTD, lengths_B = torch.randn(3, 6, WIDTH, requires_grad=True), torch.tensor([4, 6, 1])
    (ours(hidden_BTD, lengths_B) * torch.randn(3 * WIDTH)).sum().backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    for row_TD, length in zip(hidden_BTD.grad, lengths_B, strict=True):
        assert row_TD[:length].abs().sum() > 0
        assert row_TD[length:].abs().sum() == 0


def test_each_label_has_the_logit_of_its_own_query():
    model = classifier(temperature=0.5)
    with torch.no_grad():
        model.head.linear.weight.normal_()
        before_BC = model(*batch())
        vectors_BCD = model.features(*batch()[:2]).view(3, 3, -1)
        wanted_B = (vectors_BCD[:, 1] @ model.head.linear.weight[1]) / 0.5
        torch.testing.assert_close(before_BC[:, 1], wanted_B)
        model.head.linear.weight[1].zero_()
        after_BC = model(*batch())
    assert (after_BC[:, 1] == 0).all()
    assert torch.equal(after_BC[:, [0, 2]], before_BC[:, [0, 2]])


def test_it_is_made_of_three_and_three_layers_above_the_embeddings_of_the_backbone():
    model = classifier()
    plain = classifier(head="linear")
    assert (len(model.pooling.encoder), len(model.pooling.decoder)) == (3, 3)
    assert len(model.backbone.h) == 0
    assert torch.equal(model.backbone.wte.weight, plain.backbone.wte.weight)
    assert torch.equal(model.backbone.wpe.weight, plain.backbone.wpe.weight)
    again = classifier()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_dropout_is_active_only_while_training():
    model, given = classifier(dropout=0.3).eval(), batch()
    model.head.dropout.p = model.backbone.dropout = 0.0  # only that of the layers is asked about
    with torch.no_grad():
        assert torch.equal(model(*given), model(*given))
        model.train()
        assert not torch.equal(model(*given), model(*given))


def test_in_bf16_the_probabilities_are_near_those_in_fp32():
    model = classifier()
    with torch.no_grad():
        wanted = model.probabilities(model(*batch()))
        with torch.autocast("cpu", torch.bfloat16):
            found = model.probabilities(model(*batch()))
    torch.testing.assert_close(found, wanted, atol=0.01, rtol=0)


@pytest.fixture
def tokenizer():
    return train_bpe([pa.chunked_array([["hello world, good day"]])], 300)


@pytest.mark.parametrize("task", [SINGLE, MULTI], ids=["one label", "several labels"])
def test_a_saved_model_comes_back_equal_and_predicts_by_the_one_path(task, tmp_path, tokenizer):
    settings = ModelConfig(backbone="gpt2-mini", head="encdec", truncation_smoothing="learned")
    sizes = {"vocab_size": tokenizer.vocab_size, "pad_id": 0, "max_length": 16}
    model = build_classifier(settings, task, **sizes, seed=1, base_dir=tmp_path).eval()
    info = ModelInfo(task=task, model=settings, **sizes)
    save_classifier(model, tokenizer, info, tmp_path / "model")
    again, _, _ = load_classifier(tmp_path / "model")
    assert fastest_that_agrees(again, info) is again  # has no blocks that could be packed
    with torch.no_grad():
        assert torch.equal(again(*batch()), model(*batch()))
    predictor = Predictor.load(tmp_path / "model", device="cpu")
    probs_NC = predictor.probabilities(["hello world", "day", "good day, world"])
    assert probs_NC.shape == (3, 3)
    one = predictor.probabilities(["day"])
    torch.testing.assert_close(torch.tensor(one[0]), torch.tensor(probs_NC[1]))


def test_transformers_reads_the_backbone_of_a_saved_model(tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": tokenizer.vocab_size, "pad_id": 0, "max_length": 16}
    settings = ModelConfig(backbone="gpt2-tiny", head="encdec")
    model = build_classifier(settings, SINGLE, **sizes, seed=1, base_dir=tmp_path).eval()
    save_classifier(
        model, tokenizer, ModelInfo(task=SINGLE, model=settings, **sizes), tmp_path / "model"
    )
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "model" / "backbone").eval()
    tokens_BT, lengths_B, _ = batch(tokenizer.vocab_size)
    with torch.no_grad():
        found = model.backbone(tokens_BT, lengths_B)
        torch.testing.assert_close(theirs(tokens_BT).last_hidden_state, found)


def test_a_model_of_embeddings_alone_is_no_backbone_for_another_head(tmp_path, tokenizer):
    sizes = {"vocab_size": tokenizer.vocab_size, "pad_id": 0, "max_length": 16}
    settings = ModelConfig(backbone="gpt2-tiny", head="encdec")
    model = build_classifier(settings, SINGLE, **sizes, seed=1, base_dir=tmp_path).eval()
    save_classifier(
        model, tokenizer, ModelInfo(task=SINGLE, model=settings, **sizes), tmp_path / "model"
    )
    again = ModelConfig(backbone=str(tmp_path / "model"), head="encdec")
    next_one = build_classifier(again, SINGLE, **sizes, seed=2, base_dir=tmp_path)
    assert torch.equal(next_one.backbone.wte.weight, model.backbone.wte.weight)
    plain = ModelConfig(backbone=str(tmp_path / "model"))
    with pytest.raises(ModelError, match=r"embeddings and no layers.*set model\.head to encdec"):
        build_classifier(plain, SINGLE, **sizes, seed=2, base_dir=tmp_path)


def test_another_backbone_than_a_gpt2_is_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    llama = transformers.LlamaConfig(**sizes, **heads, vocab_size=300, max_position_embeddings=32)
    transformers.LlamaModel(llama).save_pretrained(tmp_path / "llama")
    with pytest.raises(ModelError, match=r"embeddings of a GPT-2; name one, or set model\.head"):
        classifier(backbone=str(tmp_path / "llama"))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ModelError, match=r"model\.heads = 3: the backbone is 64 wide"):
        classifier(heads=3)


def test_too_many_labels_for_queries_are_refused_with_another_head():
    for kind, way_out in (("single_label", "adaptive"), ("multi_label", "linear")):
        task = Task(kind, tuple(map(str, range(1_001))), False)
        with pytest.raises(ModelError, match=f"1,001 labels .* set model.head to {way_out}"):
            classifier(task)
