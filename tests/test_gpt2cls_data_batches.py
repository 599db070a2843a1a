import numpy as np
import pytest
import torch
from tiny_training import tiny_rows

from gpt2cls.data.batches import BatchPlan, FeatureRows, micro_batches, padded_length, shard

LENGTHS = np.random.default_rng(0).integers(1, 400, 1003)


@pytest.mark.parametrize(("num_rows", "batch_size"), [(1003, 16), (5, 16), (32, 16), (1, 1)])
def test_every_row_is_seen_once_per_epoch_and_the_last_batch_is_smaller(num_rows, batch_size):
    plan = BatchPlan(LENGTHS[:num_rows], batch_size, seed=1)
    for epoch in range(2):
        first = epoch * plan.steps_per_epoch
        batches = [plan.rows_of_step(first + i) for i in range(plan.steps_per_epoch)]
        assert sorted(np.concatenate(batches)) == list(range(num_rows))
        assert {len(b) for b in batches[:-1]} <= {batch_size}
        assert len(batches[-1]) == num_rows - (len(batches) - 1) * batch_size


def test_a_step_has_the_same_rows_whoever_asks_and_whenever():
    asked_once = BatchPlan(LENGTHS, 16, seed=1)
    asked_before = BatchPlan(LENGTHS, 16, seed=1)
    for step in (0, 200, 3):
        asked_before.rows_of_step(step)
    assert np.array_equal(asked_once.rows_of_step(70), asked_before.rows_of_step(70))
    other_seed = BatchPlan(LENGTHS, 16, seed=2)
    assert not np.array_equal(asked_once.rows_of_step(70), other_seed.rows_of_step(70))


def test_epochs_differ_and_batches_hold_rows_of_like_length():
    plan = BatchPlan(LENGTHS, 16, seed=1)
    assert not np.array_equal(plan.rows_of_step(0), plan.rows_of_step(plan.steps_per_epoch))
    batches = [plan.rows_of_step(step) for step in range(plan.steps_per_epoch - 1)]
    padding = sum(LENGTHS[b].max() * len(b) - LENGTHS[b].sum() for b in batches)
    assert padding < 0.05 * LENGTHS.sum()  # 0.85 of it when rows are taken at random
    longest = [LENGTHS[b].max() for b in batches]
    assert longest != sorted(longest)


def test_ranks_share_the_rows_of_a_step_and_their_work():
    rows = BatchPlan(LENGTHS, 64, seed=1).rows_of_step(4)
    shares = [shard(rows, rank, 3) for rank in range(3)]
    assert sorted(np.concatenate(shares)) == sorted(rows)
    work = [LENGTHS[share].sum() for share in shares]
    assert max(work) < 1.1 * min(work)
    assert len(shard(rows[:2], 2, 3)) == 0


@pytest.mark.parametrize(
    ("length", "limit", "expected"), [(1, None, 8), (8, 8, 8), (9, 12, 12), (9, 64, 16), (0, 4, 0)]
)
def test_padding_reaches_a_multiple_of_eight_but_never_beyond_the_positions(
    length, limit, expected
):
    assert padded_length(length, 8, limit) == expected


def test_micro_batches_stay_within_the_budget_and_keep_the_order():
    rows = np.arange(200)
    parts = list(micro_batches(rows, LENGTHS, 2000, 8))
    assert np.array_equal(np.concatenate(parts), rows)
    for part in parts:
        assert len(part) * padded_length(int(LENGTHS[part].max()), 8) <= 2000
    assert all(len(part) == 1 for part in micro_batches(rows, LENGTHS, 1))
    assert not list(micro_batches(rows[:0], LENGTHS, 100))


def test_micro_batches_of_rounded_lengths_have_few_shapes():
    lengths = np.sort(np.random.default_rng(0).integers(1, 100, 100))
    parts = list(micro_batches(np.arange(100), lengths, 1024, 8))
    assert np.array_equal(np.concatenate(parts), np.arange(100))
    assert all(len(part).bit_count() == 1 for part in parts[:-1])


def test_a_batch_holds_its_rows_padded_on_the_right():
    source = tiny_rows(30)
    rows = np.array([4, 17, 2])
    batch = source.batch(rows)
    assert batch.tokens_BT.shape[1] == int(source.data.lengths[rows].max())
    for i, row in enumerate(rows):
        length, start = source.data.lengths[row], source.data.offsets[row]
        assert batch.lengths_B[i] == length
        expected = source.data.tokens[start : start + length].tolist()
        assert batch.tokens_BT[i, :length].tolist() == expected
        assert (batch.tokens_BT[i, length:] == source.pad_id).all()
    assert batch.labels.tolist() == [1, 2, 2]
    assert tiny_rows(3, is_multi_label=True).batch(rows[2:]).labels.dtype == torch.float32


def test_kept_features_come_in_the_place_of_tokens():
    features = np.random.default_rng(0).random((30, 5), np.float32)
    source = FeatureRows(tiny_rows(30), features)
    (batch,) = source.batches(np.array([3, 1]), 1)
    assert torch.equal(batch.features_BF, torch.from_numpy(features[[3, 1]]))
    assert batch.labels.tolist() == [0, 1]
    assert not list(source.batches(np.array([], np.int64), 1))
