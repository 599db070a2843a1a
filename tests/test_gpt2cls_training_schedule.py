import math

import pytest
from tiny_training import tiny_config

from gpt2cls.training.schedule import lr_at, rhythm_steps, total_steps, warmup_note, warmup_steps

CASES = {  # schedule, warm-up, {update: share of lr} in a run of 100
    "linear rises to lr and falls": ("linear", 10, {1: 0.1, 10: 1, 11: 1, 56: 0.5, 100: 1 / 90}),
    "linear without warm-up": ("linear", 0, {1: 1, 51: 0.5, 100: 0.01}),
    "a share of the steps": ("linear", 0.2, {1: 0.05, 20: 1, 21: 1, 61: 0.5}),
    "cosine": ("cosine", 10, {5: 0.5, 10: 1, 11: 1, 56: 0.5, 100: 0.000305}),
    "constant": ("constant", 4, {1: 0.25, 4: 1, 100: 1}),
    "noam peaks at lr": ("noam", 25, {1: 0.04, 25: 1, 100: 0.5}),
    "noam without warm-up": ("noam", 0, {1: 1, 4: 0.5}),
    # Howard and Ruder 2018: p = 0.1 at update 1 of 10, and 1/32 of the rate at the end.
    "slanted triangular": (
        "slanted_triangular",
        0.1,
        {1: (1 + 0.1 * 31) / 32, 10: 1, 55: (1 + 0.5 * 31) / 32, 100: 1 / 32, 150: 1 / 32},
    ),
    "a warm-up longer than the run is a tenth of it": ("linear", 10_000, {1: 0.1, 10: 1}),
}


@pytest.mark.parametrize(("schedule", "warmup", "expected"), CASES.values(), ids=CASES.keys())
def test_the_rate_of_an_update_is(schedule, warmup, expected):
    config = tiny_config(schedule=schedule, warmup=warmup)
    for update, share in expected.items():
        assert lr_at(update, 100, config) == pytest.approx(share, abs=1e-6), update


@pytest.mark.parametrize("schedule", ["linear", "cosine", "slanted_triangular", "noam", "constant"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 50])
@pytest.mark.parametrize("warmup", [0, 0.1, 0.99, 1, 2, 1000])
def test_no_rate_is_zero_or_above_lr(schedule, num_steps, warmup):
    config = tiny_config(schedule=schedule, warmup=warmup)
    shares = [lr_at(update, num_steps, config) for update in range(1, num_steps + 1)]
    assert all(0 < share <= 1 and math.isfinite(share) for share in shares)


def test_a_scaled_warmup_is_told():
    config = tiny_config(warmup=10_000)
    assert warmup_note(config, 100) == (
        "train.warmup = 10000 steps, but the run has 100: warm-up scaled to 10 steps"
    )
    assert warmup_note(tiny_config(warmup=0.5), 1) is None
    assert warmup_note(config, 10_001) is None
    assert warmup_steps(config, 10_001) == 10_000


def test_steps_are_counted_from_epochs_unless_a_limit_is_lower():
    assert total_steps(tiny_config(epochs=3), 7) == 21
    assert total_steps(tiny_config(epochs=3, max_steps=5), 7) == 5
    assert total_steps(tiny_config(epochs=1, max_steps=50), 7) == 7


@pytest.mark.parametrize(
    ("rhythm", "steps"), [("1 epoch", 7), ("2 epochs", 14), ("1 step", 1), ("500 steps", 500)]
)
def test_a_rhythm_in_steps(rhythm, steps):
    assert rhythm_steps(rhythm, 7) == steps
