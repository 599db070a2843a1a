"""Start, delimiter and extract: where they stand, and what a backbone that lacks them gets."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_gpt2cls_forms import opened
from tiny_forms import LENGTH, tiny_job

from gpt2cls.config import ModelConfig
from gpt2cls.data.bpe import train_bpe
from gpt2cls.data.tasks import Task
from gpt2cls.data.tokenizer import GPT1_TOKENS, TextTokenizer, with_gpt1_tokens
from gpt2cls.errors import ModelError
from gpt2cls.model.backbone import build_backbone, save_backbone
from gpt2cls.model.classifier import build_classifier

TEXTS = ["the cat sat on the mat", "the dog ate the cat " * 10]


@pytest.fixture(scope="module")
def plain():
    return train_bpe([pa.chunked_array([pa.array(TEXTS, pa.large_string())])], 300)


@pytest.fixture
def special(plain):
    return with_gpt1_tokens(plain)


def names_of(tokenizer, ids):
    return [tokenizer.tokenizer.id_to_token(int(i)) for i in ids]


def test_texts_and_pairs_stand_between_start_and_extract(plain, special):
    (bare,), _ = plain.encode([TEXTS[0]], None, 64)
    (ids,), full = special.encode([TEXTS[0]], None, 64)
    start, delimiter, extract = range(plain.vocab_size, plain.vocab_size + 3)
    assert ids.tolist() == [start, *bare, extract]
    assert full.tolist() == [len(ids)]
    (pair,), _ = special.encode([TEXTS[0]], [TEXTS[0]], 64)
    assert pair.tolist() == [start, *bare, delimiter, *bare, extract]
    assert names_of(special, [start, delimiter, extract]) == list(GPT1_TOKENS)


def test_a_text_that_is_cut_still_ends_with_the_extract_token(special):
    (ids,), full = special.encode([TEXTS[1]], None, 8)
    assert len(ids) == 8 < full[0]
    assert names_of(special, [ids[0], ids[-1]]) == ["<|start|>", "<|extract|>"]


def test_a_text_that_spells_a_special_token_is_text(special):
    (ids,), _ = special.encode(["a <|extract|> b <|start|>"], None, 64)
    assert [name in GPT1_TOKENS for name in names_of(special, ids)].count(True) == 2


def test_tokens_that_are_there_already_are_not_added_again_and_survive_the_disk(
    plain, special, tmp_path
):
    assert with_gpt1_tokens(special).vocab_size == special.vocab_size == plain.vocab_size + 3
    assert (plain.num_new, special.num_new) == (0, 3)
    special.save(tmp_path)
    loaded = TextTokenizer.load(tmp_path)
    assert loaded.encode(TEXTS, TEXTS, 20)[0][1].tolist() == (
        special.encode(TEXTS, TEXTS, 20)[0][1].tolist()
    )
    assert loaded.digest == special.digest != plain.digest


def backbone_folder(folder, vocab_size):
    config = ModelConfig(backbone="gpt2-tiny")
    torch.manual_seed(5)
    backbone = build_backbone(
        config, vocab_size=vocab_size, pad_id=0, max_length=LENGTH, base_dir=folder
    )
    save_backbone(backbone, folder / "backbone")
    return backbone


def classifier(folder, vocab_size, num_new, seed=0):
    return build_classifier(
        ModelConfig(backbone="backbone"),
        Task("single_label", ("a", "b"), False),
        vocab_size=vocab_size,
        num_new=num_new,
        pad_id=0,
        max_length=LENGTH,
        seed=seed,
        base_dir=folder,
    )


def test_a_pretrained_table_keeps_its_rows_and_gets_three_that_are_drawn(tmp_path):
    old = backbone_folder(tmp_path, 300).wte.weight
    one, again, other = (classifier(tmp_path, 303, 3, seed) for seed in (1, 1, 2))
    table = one.backbone.wte.weight
    assert table.shape == (303, 64) and one.backbone.config.vocab_size == 303
    assert torch.equal(table[:300], old)
    assert 0.01 < float(table[300:].detach().std()) < 0.03
    assert torch.equal(table, again.backbone.wte.weight)
    assert not torch.equal(table[300:], other.backbone.wte.weight[300:])
    assert table.requires_grad


def test_a_tokenizer_of_another_vocabulary_is_refused_as_ever(tmp_path):
    backbone_folder(tmp_path, 300)
    with pytest.raises(ModelError, match="has 301 tokens"):
        classifier(tmp_path, 304, 3)
    with pytest.raises(ModelError, match="has 303 tokens"):
        classifier(tmp_path, 303, 0)


def test_a_table_that_has_the_tokens_stays_as_it_is(tmp_path):
    old = backbone_folder(tmp_path, 303).wte.weight
    assert torch.equal(classifier(tmp_path, 303, 3).backbone.wte.weight, old)


def test_any_transformer_gets_the_rows_too(tmp_path):
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=LENGTH,
    )  # fmt: skip
    LlamaModel(config).save_pretrained(tmp_path / "backbone")
    backbone = classifier(tmp_path, 303, 3).backbone
    assert backbone.model.get_input_embeddings().num_embeddings == 303
    save_backbone(backbone, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["vocab_size"] == 303


def test_the_last_token_that_is_read_is_extract(tmp_path):
    prepared, tokenizer, payload = tiny_job(tmp_path, "special tokens")
    _, data = opened(prepared, payload)
    batch = data.validation.batch(np.arange(24))
    last = batch.tokens_BT[torch.arange(24), batch.lengths_B - 1]
    assert set(names_of(tokenizer, last)) == {"<|extract|>"}
    assert set(names_of(tokenizer, batch.tokens_BT[:, 0])) == {"<|start|>"}
