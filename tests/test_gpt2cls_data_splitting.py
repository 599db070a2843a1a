"""A share is held out of every class, and equal texts stay on one side."""

import numpy as np
import pyarrow as pa
import pytest

from gpt2cls.data.keys import fingerprint, row_keys
from gpt2cls.data.splitting import hold_out


def unique_keys(num_rows: int) -> np.ndarray:
    return np.random.default_rng(7).permutation(num_rows).astype(np.uint64)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.5, 0.9])
def test_every_class_gives_its_share_and_the_sum_comes_out_right(share):
    labels = np.repeat(np.arange(7), [1000, 500, 250, 100, 50, 20, 10])
    held = hold_out(unique_keys(len(labels)), labels, share, seed=(0,))
    per_class = np.bincount(labels[held], minlength=7)
    assert held.sum() == round(len(labels) * share)
    assert np.all(np.abs(per_class - np.bincount(labels) * share) <= 1)


def test_equal_texts_stay_on_one_side():
    rng = np.random.default_rng(3)
    keys = rng.integers(0, 300, 2000).astype(np.uint64)
    labels = rng.integers(0, 4, 2000)
    held = hold_out(keys, labels, 0.2, seed=(0,))
    assert not set(keys[held]) & set(keys[~held])
    assert 0.1 < held.mean() < 0.3


def test_a_text_repeated_very_often_does_not_stop_the_rest_from_being_held_out():
    keys = np.r_[np.zeros(500), np.arange(1, 501)].astype(np.uint64)
    held = hold_out(keys, np.repeat([0, 1], 500), 0.1, seed=(0,))
    mixed = hold_out(keys, np.arange(1000) % 2, 0.1, seed=(0,))
    assert held.sum() == 50
    assert mixed.sum() == 100 and not mixed[0]


def test_a_class_with_one_row_stays_in_training():
    labels = np.r_[np.zeros(50), np.ones(50), [2]].astype(np.int64)
    for seed in range(20):
        assert not hold_out(unique_keys(101), labels, 0.5, seed=(seed,))[100]


def test_no_label_is_lost_even_where_texts_have_several():
    rng = np.random.default_rng(1)
    for seed in range(30):
        labels = rng.random((60, 8)) < 0.1
        keys = rng.integers(0, 40, 60).astype(np.uint64)
        held = hold_out(keys, labels, 0.5, seed=(seed,))
        assert np.array_equal(labels.any(axis=0), labels[~held].any(axis=0))
        assert not set(keys[held]) & set(keys[~held])


def test_no_class_is_lost_where_a_text_has_one_class_here_and_another_there():
    keys = np.array([0, 0, 1, 1, 2, 3, 4, 5], np.uint64)
    labels = np.array([0, 1, 0, 1, 1, 1, 1, 1])
    for seed in range(30):
        held = hold_out(keys, labels, 0.5, seed=(seed,))
        assert set(labels[~held]) == {0, 1}


def test_the_rare_labels_of_several_are_held_out_in_their_share():
    labels = np.zeros((1000, 3), bool)
    labels[:, 0] = True
    labels[:20, 1] = True
    labels[10:60, 2] = True
    held = hold_out(unique_keys(1000), labels, 0.1, seed=(0,))
    assert labels[held].sum(axis=0).tolist() == [100, 2, pytest.approx(5, abs=1)]


def test_the_same_seed_draws_the_same_texts_in_whatever_order_they_come():
    keys, labels = unique_keys(500), np.arange(500) % 3
    held = hold_out(keys, labels, 0.1, seed=(4,))
    order = np.random.default_rng(0).permutation(500)
    again = hold_out(keys[order], labels[order], 0.1, seed=(4,))
    other = hold_out(keys, labels, 0.1, seed=(5,))
    assert set(keys[held]) == set(keys[order][again])
    assert set(keys[held]) != set(keys[other])


def test_one_row_is_held_out_of_a_small_set_and_none_where_none_can_be():
    assert hold_out(unique_keys(4), np.array([0, 0, 1, 1]), 0.1, seed=(0,)).sum() == 1
    assert hold_out(unique_keys(3), np.array([0, 1, 2]), 0.5, seed=(0,)).sum() == 0


def texts(*chunks: list[str]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(chunk, pa.large_string()) for chunk in chunks])


def test_keys_are_equal_for_equal_texts_only_and_do_not_depend_on_chunks():
    whole = row_keys(texts(["a", "", "b", "a", "\u00e9"]))
    parts = row_keys(texts(["a", ""], [], ["b", "a", "\u00e9"]))
    sliced = row_keys(texts(["x", "a", "", "b", "a", "\u00e9"]).slice(1))
    assert np.array_equal(whole, parts) and np.array_equal(whole, sliced)
    assert whole[0] == whole[3] and len(set(whole)) == 4


def test_the_order_within_a_pair_matters():
    one = row_keys(texts(["a", "b", "a"]), texts(["b", "a", "a"]))
    assert len(set(one)) == 3


def test_a_fingerprint_tells_where_one_part_ends():
    assert fingerprint([b"ab", b"c"]) != fingerprint([b"a", b"bc"])
    assert fingerprint([np.arange(3), b"x"]) == fingerprint([np.arange(6)[:3], b"x"])
