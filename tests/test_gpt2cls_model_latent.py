"""An embedding that begins with what texts say about their words."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_gpt2cls_training_session import events_of, payload_of

from gpt2cls.data.bpe import train_bpe
from gpt2cls.data.encode import TokenSet, encode_split
from gpt2cls.data.tasks import Split, Task
from gpt2cls.model import latent
from gpt2cls.model.latent import LatentVectors, begin_with, latent_vectors
from gpt2cls.training.session import run_rank

TASK = Task("single_label", ("sky", "soil"), False)
KNOWN = (("cloud", "star"), ("root", "worm"))
"""The words of the texts with labels."""
UNKNOWN = (("moon", "comet", "planet"), ("beet", "clay", "manure"))
"""Words that stand beside those only in texts without labels, and alone in the validation texts."""


def token_set(*texts) -> TokenSet:
    lengths = [len(text) for text in texts]
    tokens = np.array([token for text in texts for token in text], np.uint16)
    return TokenSet(tokens, np.concatenate([[0], np.cumsum(lengths)]), np.array(lengths), None)


def likeness(found: LatentVectors, a: int, b: int) -> float:
    rows = {int(token): row for token, row in zip(found.tokens_M, found.vectors_MD, strict=True)}
    return float(rows[a] @ rows[b] / np.linalg.norm(rows[a]) / np.linalg.norm(rows[b]))


def two_topics(num_texts=200):
    draw = np.random.default_rng(0)
    return [draw.integers(10 * (i % 2), 10 * (i % 2) + 8, 12) for i in range(num_texts)]


def test_tokens_of_the_same_texts_are_alike():
    found = latent_vectors([token_set(*two_topics())], 16)
    assert found.tokens_M.tolist() == [*range(8), *range(10, 18)]
    assert found.vectors_MD.shape == (16, 16) and found.vectors_MD.dtype == np.float32
    first = found.vectors_MD[:8]
    within = [likeness(found, a, b) for a in range(8) for b in range(a)]
    across = [abs(likeness(found, a, b)) for a in range(8) for b in range(10, 18)]
    assert max(across) < 1e-3 and np.mean(within) > 0.01
    narrow = latent_vectors([token_set(*two_topics())], 2)  # a dimension for each topic
    assert min(likeness(narrow, a, b) for a in range(8) for b in range(a)) > 0.99
    # Turned: no dimension stands for the first singular value alone.
    assert np.abs(first).mean(axis=0).max() < 4 * np.abs(first).mean()


def test_several_sets_are_read_as_one_and_equal_texts_give_equal_vectors():
    texts = two_topics()
    whole, parts = (
        latent_vectors(sets, 16)
        for sets in ([token_set(*texts)], [token_set(*texts[:50]), token_set(*texts[50:])])
    )
    assert np.array_equal(whole.tokens_M, parts.tokens_M)
    assert np.array_equal(whole.vectors_MD, parts.vectors_MD)


def test_a_token_of_one_text_has_no_vector_and_too_few_texts_have_none():
    found = latent_vectors([token_set([1, 2, 9, 9], [1, 2], [2, 3, 3], [3, 1])], 8)
    assert found.tokens_M.tolist() == [1, 2, 3] and found.vectors_MD.shape == (3, 8)
    assert np.isfinite(found.vectors_MD).all()
    for texts in ([], [[1, 2, 3]], [[1], [2]], [[], []]):
        assert len(latent_vectors([token_set(*texts)], 8).tokens_M) == 0


@pytest.mark.parametrize(("limit", "value"), [("MOST_TEXTS", 100), ("MOST_TOKENS", 200)])
def test_of_many_texts_evenly_spaced_ones_are_read(limit, value, monkeypatch):
    monkeypatch.setattr(latent, limit, value)
    texts = [[i % 5 + 20 * (i % 3 == 0), 7] for i in range(300)]
    found = latent_vectors([token_set(*texts)], 4)
    expected = latent_vectors([token_set(*texts[::3])], 4)
    assert found.num_texts == expected.num_texts == 100
    assert np.array_equal(found.tokens_M, expected.tokens_M) and 7 in found.tokens_M
    assert np.array_equal(found.vectors_MD, expected.vectors_MD)


def test_the_rows_are_as_widely_spread_as_they_were_drawn_and_the_others_stay():
    table = torch.randn(30, 16) * 0.02
    before = table.clone()
    found = latent_vectors([token_set(*two_topics())], 16)
    begin_with(table, found)
    rows = torch.from_numpy(found.tokens_M)
    assert table[rows].square().mean().sqrt().item() == pytest.approx(before.std().item(), rel=1e-4)
    others = torch.ones(30, dtype=torch.bool).index_fill(0, rows, False)
    assert torch.equal(table[others], before[others])
    begin_with(before, LatentVectors(0, np.empty(0, np.int64), np.empty((0, 16), np.float32)))
    assert torch.equal(table[others], before[others])


def split_of(texts, labels) -> Split:
    return Split(pa.chunked_array([pa.array(texts, pa.large_string())]), None, np.array(labels))


@pytest.fixture(scope="module")
def few_labels(tmp_path_factory):
    """Twelve texts with labels, 300 without, and validation texts of words that only those have."""
    folder, draw = tmp_path_factory.mktemp("few"), np.random.default_rng(0)
    labels = np.arange(12) % 2
    splits = {
        "train": split_of([" ".join(draw.choice(KNOWN[c], 6)) for c in labels], labels),
        "validation": split_of(
            [" ".join(draw.choice(UNKNOWN[c], 6)) for c in np.arange(40) % 2], np.arange(40) % 2
        ),
        "unlabelled": split_of(
            [" ".join(draw.choice(KNOWN[i % 2] + UNKNOWN[i % 2], 8)) for i in range(300)], [0] * 300
        ),
    }
    tokenizer = train_bpe([splits["unlabelled"].texts], 500)
    fields = {"vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id, "max_length": 16}
    for name, split in splits.items():
        fields[f"{name}_tokens"] = encode_split(split, tokenizer, max_length=16, cache_dir=folder)
        if name != "unlabelled":
            fields[f"{name}_labels"] = folder / f"{name}.npy"
            np.save(folder / f"{name}.npy", split.labels)
    return fields


def accuracy_after(few_labels, folder: Path, **fields) -> float:
    """In the last of 20 epochs on the twelve texts."""
    model = {"embedding_init": "lsa", "pooling": "mean", **fields.pop("model", {})}
    payload = payload_of({**few_labels, **fields}, folder, task=TASK, model=model, epochs=20)
    folder.mkdir()
    run_rank(payload)
    return events_of(folder, "eval")[-1]["metrics"]["eval/accuracy"]


def test_what_a_label_says_of_a_word_holds_for_its_neighbours_in_texts_without(
    few_labels, tmp_path
):
    assert accuracy_after(few_labels, tmp_path / "lsa") > 0.9
    (note,) = events_of(tmp_path / "lsa", "note")
    assert note["text"].endswith("tokens begin with what 312 texts say of them")
    assert accuracy_after(few_labels, tmp_path / "labelled", unlabelled_tokens=None) < 0.8
    assert accuracy_after(few_labels, tmp_path / "random", model={"embedding_init": "random"}) < 0.8


@pytest.mark.parametrize("backbone", ["awd-lstm-tiny", "gpt2-tiny"])
def test_every_shape_with_random_weights_takes_it(backbone, few_labels, tmp_path):
    payload = payload_of(
        few_labels, tmp_path, task=TASK, model={"backbone": backbone, "embedding_init": "lsa"}
    )
    assert run_rank(payload) == "finished"


def test_a_job_without_it_goes_on_and_other_texts_are_another_job(few_labels, tmp_path):
    with_it, without = (
        payload_of(few_labels, tmp_path, task=TASK, model={"embedding_init": init})
        for init in ("lsa", "random")
    )
    other = with_it.model_copy(update={"unlabelled_tokens": tmp_path / "other"})
    assert len({p.fingerprint for p in (with_it, without, other)}) == 3
