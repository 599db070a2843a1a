"""A language model on disk: as transformers reads it, and as a backbone of ours."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from gpt2cls.config import ModelConfig
from gpt2cls.data.bpe import train_bpe
from gpt2cls.data.tasks import Split, Task
from gpt2cls.data.tokenizer import TextTokenizer, reads_backward
from gpt2cls.data.tokenizer_source import get_tokenizer
from gpt2cls.errors import ModelError
from gpt2cls.model.classifier import build_classifier
from gpt2cls.model.folder import load_classifier
from gpt2cls.model.language import build_language_model
from gpt2cls.model.language_folder import LanguageInfo, read_language_info, save_language_model

TEXTS = pa.chunked_array([pa.array(["the cat sat", "the dog ate it"], pa.large_string())])
TASK = Task("single_label", ("a", "b"), False)


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([TEXTS], 270)


def saved(tokenizer, folder, objective="causal", backbone="gpt2-tiny"):
    config = ModelConfig(backbone=backbone, dropout=0.0)
    vocab_size = tokenizer.vocab_size
    model = build_language_model(
        config, vocab_size=vocab_size, pad_id=0, max_length=16, seed=3, base_dir=folder
    )
    info = LanguageInfo(
        objective=objective, max_length=16, vocab_size=vocab_size, end_id=0, step=4, metrics={}
    )
    save_language_model(model, tokenizer, info, folder)
    return model


def classifier_on(folder, max_length=16):
    config = ModelConfig(backbone=str(folder), dropout=0.0)
    sizes = {"vocab_size": 270, "pad_id": 0, "seed": 1, "base_dir": Path()}
    return build_classifier(config, TASK, max_length=max_length, **sizes)


def test_transformers_reads_the_same_model_and_the_same_tokenizer(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = saved(tokenizer, tmp_path / "lm")
    theirs, loading = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path / "lm", output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    theirs = theirs.eval()
    tokens_BT = torch.randint(0, 270, (3, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden_BTD = model.eval().backbone(tokens_BT, torch.full((3,), 16))
        ours = hidden_BTD @ model.backbone.wte.weight.t()
        torch.testing.assert_close(theirs(tokens_BT).logits, ours, atol=1e-5, rtol=1e-5)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "lm")
    assert read("the cat ate").input_ids == tokenizer.tokenizer.encode("the cat ate").ids
    assert read.eos_token_id == theirs.config.eos_token_id == 0


@pytest.mark.parametrize("backbone", ["gpt2-tiny", "awd-lstm-tiny"])
def test_a_classifier_takes_its_weights_and_its_tokenizer(tokenizer, tmp_path, backbone):
    model = saved(tokenizer, tmp_path / "lm", backbone=backbone)
    assert read_language_info(tmp_path / "lm").vocab_size == 270
    classifier = classifier_on(tmp_path / "lm")
    for name, weight in model.backbone.state_dict().items():
        assert torch.equal(classifier.backbone.state_dict()[name], weight), name
    found = get_tokenizer(
        ModelConfig(backbone=str(tmp_path / "lm")),
        Split(TEXTS, None, np.zeros(2, np.int64)),
        cache_dir=tmp_path,
        base_dir=Path(),
    )
    assert found.digest == tokenizer.digest


def test_texts_longer_than_its_blocks_are_refused(tokenizer, tmp_path):
    saved(tokenizer, tmp_path / "lm")
    with pytest.raises(ModelError, match=r"max_length = 17.*16 positions"):
        classifier_on(tmp_path / "lm", max_length=17)


def test_a_classifier_on_one_that_reads_backward_is_given_texts_backward(tokenizer, tmp_path):
    saved(tokenizer, tmp_path / "lm", objective="backward")
    config = ModelConfig(backbone=str(tmp_path / "lm"))
    split = Split(TEXTS, None, np.zeros(2, np.int64))
    found = get_tokenizer(config, split, cache_dir=tmp_path, base_dir=Path())
    text = TEXTS[0].as_py()
    forward, cut = (tokenizer.encode([text], None, n)[0][0] for n in (99, 2))
    assert len(forward) > 2
    assert found.encode([text], None, 99)[0][0].tolist() == forward.tolist()[::-1]
    assert found.encode([text], None, 2)[0][0].tolist() == cut.tolist()[::-1]
    assert found.digest != tokenizer.digest
    found.save(tmp_path / "kept")
    assert TextTokenizer.load(tmp_path / "kept").digest == found.digest
    assert reads_backward(tmp_path / "kept")
    assert classifier_on(tmp_path / "lm").backbone.config.vocab_size == 270


def test_one_that_reads_forward_does_not_go_on_backward(tokenizer, tmp_path):
    saved(tokenizer, tmp_path / "lm")
    config = ModelConfig(backbone=str(tmp_path / "lm"))
    sizes = {"vocab_size": 270, "pad_id": 0, "max_length": 16, "seed": 1, "base_dir": Path()}
    assert build_language_model(config, **sizes)
    with pytest.raises(ModelError, match=r"set train\.objective to causal"):
        build_language_model(config, **sizes, objective="backward")


def test_it_is_no_classifier(tokenizer, tmp_path):
    saved(tokenizer, tmp_path / "lm")
    with pytest.raises(ModelError, match="knows no labels"):
        load_classifier(tmp_path / "lm")


def test_an_altered_file_is_found(tokenizer, tmp_path):
    saved(tokenizer, tmp_path / "lm")
    assert read_language_info(tmp_path / "lm").step == 4
    (tmp_path / "lm" / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json: its checksum"):
        read_language_info(tmp_path / "lm")
