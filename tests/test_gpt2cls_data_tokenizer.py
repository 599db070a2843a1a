"""Texts to ids: trained and borrowed tokenizers, pairs, cutting."""

import json

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from gpt2cls.config import ModelConfig, TrainedTokenizer
from gpt2cls.data import bpe
from gpt2cls.data.tasks import Split
from gpt2cls.data.tokenizer import TextTokenizer, longest_first
from gpt2cls.data.tokenizer_source import get_tokenizer
from gpt2cls.errors import ModelError

TEXTS = [
    "the cat sat on the mat",
    "the dog ate the cat",
    "今天天气很好 我们去公园",
    "naïve 😀\x00",
]


def split(texts=TEXTS, pairs=None) -> Split:
    second = None if pairs is None else pa.chunked_array([pa.array(pairs, pa.large_string())])
    column = pa.chunked_array([pa.array(texts, pa.large_string())])
    return Split(column, second, np.zeros(len(texts), np.int64))


def trained(texts=TEXTS, size: int = 300) -> TextTokenizer:
    return bpe.train_bpe([split(texts).texts], size)


@pytest.mark.parametrize(
    "text", [*TEXTS, "words never seen: žluťoučký", "  two  spaces\n\t", "\ufffd"]
)
def test_every_text_comes_back_from_its_ids(text):
    tokenizer = trained()
    (ids,), _ = tokenizer.encode([text], None, 512)
    assert tokenizer.tokenizer.decode(ids.tolist(), skip_special_tokens=False) == text


def test_training_is_the_same_every_time_and_learns_from_chinese():
    first, second = trained(TEXTS * 50, 400), trained(TEXTS * 50, 400)
    assert first.digest == second.digest
    assert first.encode_lengths(["今天天气很好"])[0] <= 2  # 18 bytes


def test_a_special_token_in_a_text_is_text():
    tokenizer = trained()
    (ids,), _ = tokenizer.encode(["a<|sep|>b<|endoftext|>"], None, 512)
    assert not {tokenizer.pad_id, tokenizer.sep_id} & set(ids.tolist())


def test_an_empty_text_becomes_one_padding_token():
    tokenizer = trained()
    (ids,), full = tokenizer.encode([""], None, 8)
    assert (ids.tolist(), full.tolist()) == ([tokenizer.pad_id], [1])
    assert tokenizer.encode_lengths([""]).tolist() == [1]


def test_a_long_text_is_cut_and_its_full_length_kept():
    tokenizer = trained()
    rows, full = tokenizer.encode(["the cat " * 100, "the"], None, 5)
    assert [len(row) for row in rows] == [5, 1]
    assert full.tolist() == tokenizer.encode_lengths(["the cat " * 100, "the"]).tolist()
    assert full[0] >= 200


def test_a_pair_is_joined_by_the_separator_and_the_longer_text_is_cut_first():
    tokenizer = trained()
    long, short = "the cat " * 20, "dog"
    (ids,), full = tokenizer.encode([long], [short], 12)
    (short_ids,), _ = tokenizer.encode([short], None, 12)
    at = ids.tolist().index(tokenizer.sep_id)
    assert ids[at + 1 :].tolist() == short_ids.tolist()
    assert len(ids) == 12
    assert full[0] == tokenizer.encode_lengths([long], [short])[0]


@pytest.mark.parametrize(
    ("first", "second", "room", "kept"),
    [
        (3, 4, 9, (3, 4)),
        (10, 2, 6, (4, 2)),
        (2, 10, 6, (2, 4)),
        (9, 9, 7, (4, 3)),
        (5, 3, 0, (0, 0)),
    ],
    ids=["both fit", "first is longer", "second is longer", "equally long", "no room"],
)
def test_the_longer_of_a_pair_is_cut_until_both_fit(first, second, room, kept):
    assert longest_first(first, second, room) == kept


def test_tokens_do_not_depend_on_how_texts_are_batched(monkeypatch):
    tokenizer = trained()
    whole, _ = tokenizer.encode(TEXTS * 5, TEXTS[::-1] * 5, 20)
    monkeypatch.setattr("gpt2cls.data.tokenizer._BATCH_CHARS", 30)
    parts, _ = tokenizer.encode(TEXTS * 5, TEXTS[::-1] * 5, 20)
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert len(parts) == 20


def test_a_large_corpus_is_sampled_over_its_whole_length(monkeypatch):
    monkeypatch.setattr(bpe, "_TRAIN_CHARS", 2_000)
    texts = ["aaaa"] * 3_000 + ["bbbb"] * 3_000
    sample = [text for part in bpe._sample([split(texts).texts]) for text in part]
    assert len(sample) == 500
    assert sample.count("aaaa") == sample.count("bbbb")


def test_of_one_long_text_more_than_its_beginning_is_read():
    text = "the cat sat on the mat " * 1_000 + "a quokka slept " * 2_000
    tokenizer = trained([text]).tokenizer
    assert len(tokenizer.encode(" quokka").ids) == 1


def test_a_saved_tokenizer_is_read_back_equal(tmp_path):
    tokenizer = trained()
    tokenizer.save(tmp_path)
    again = TextTokenizer.load(tmp_path)
    assert (again.digest, again.vocab_size, again.pad_id, again.sep_id) == (
        tokenizer.digest,
        tokenizer.vocab_size,
        0,
        1,
    )


def get(model: ModelConfig, tmp_path, texts=TEXTS) -> TextTokenizer:
    return get_tokenizer(model, split(texts), cache_dir=tmp_path / "cache", base_dir=tmp_path)


def test_a_built_in_shape_gets_a_tokenizer_trained_once_per_content(tmp_path):
    model = ModelConfig(backbone="gpt2-tiny", tokenizer=TrainedTokenizer(train=300))
    first, second = get(model, tmp_path), get(model, tmp_path)
    assert first.digest == second.digest
    get(model, tmp_path, ["other texts"])
    folders = [path for path in (tmp_path / "cache" / "tokenizers").iterdir() if path.is_dir()]
    assert len(folders) == 2


def test_a_torn_trained_tokenizer_is_trained_again(tmp_path):
    model = ModelConfig(backbone="gpt2-tiny", tokenizer=TrainedTokenizer(train=300))
    first = get(model, tmp_path)
    (file,) = (tmp_path / "cache" / "tokenizers").glob("*/tokenizer.json")
    file.write_text(file.read_text()[:100])
    assert get(model, tmp_path).digest == first.digest


def test_a_trained_tokenizer_for_pretrained_embeddings_is_refused(tmp_path):
    model = ModelConfig(backbone="some/model", tokenizer=TrainedTokenizer(train=300))
    with pytest.raises(ModelError, match=r"model\.tokenizer = \{train: 300\}: the embeddings of"):
        get(model, tmp_path)


def hf_folder(folder, **settings):
    """A tokenizer folder as transformers leaves it, with BOS put before every text."""
    words = ["[UNK]", "<s>", "</s>", "hello", "world", "cat"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_the_tokenizer_of_a_hugging_face_folder_keeps_its_own_special_tokens(tmp_path):
    hf_folder(tmp_path, bos_token="<s>", eos_token={"content": "</s>", "lstrip": False})
    tokenizer = get(ModelConfig(backbone="gpt2-tiny", tokenizer=str(tmp_path)), tmp_path)
    assert (tokenizer.pad_id, tokenizer.sep_id, tokenizer.prefix) == (2, 2, (1,))
    rows, full = tokenizer.encode(["hello world cat", ""], None, 3)
    assert [row.tolist() for row in rows] == [[1, 3, 4], [1]]
    assert full.tolist() == [4, 1]
    (pair,), _ = tokenizer.encode(["hello"], ["cat"], 9)
    assert pair.tolist() == [1, 3, 2, 5]
    with pytest.raises(ModelError, match=r"data\.max_length = 1: the tokenizer puts 1 tokens"):
        tokenizer.encode(["hello"], None, 1)


def test_a_tokenizer_that_encodes_to_nothing_is_refused(tmp_path):
    Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match="'hello world' encodes to nothing"):
        get(ModelConfig(backbone="gpt2-tiny", tokenizer=str(tmp_path)), tmp_path)


def test_a_damaged_tokenizer_file_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "mod')
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a tokenizer"):
        get(ModelConfig(backbone="gpt2-tiny", tokenizer=str(tmp_path)), tmp_path)


def test_a_folder_in_the_old_layout_is_converted(tmp_path):
    pytest.importorskip("transformers")
    words = ["<|endoftext|>", "h", "e", "l", "o", "w", "r", "d", "\u0120", "he", "ll"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\nl l\n")
    settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    tokenizer = get(ModelConfig(backbone="gpt2-tiny", tokenizer=str(tmp_path)), tmp_path)
    (ids,), _ = tokenizer.encode(["hello world"], None, 20)
    assert ids.tolist() == [9, 10, 4, 8, 5, 4, 6, 3, 7]
    assert tokenizer.pad_id == 0
