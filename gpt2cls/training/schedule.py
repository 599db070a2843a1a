"""When things happen: how many steps there are, the learning rate of each, what is due when.

Pure functions of the step. A step is a position in the data; step n here is the n-th update,
counted from 1, as in the events.
"""

import math

from gpt2cls.config import TrainConfig

SLANTED_RATIO = 32
"""The highest over the lowest rate. Source: Howard and Ruder 2018, section 3.2."""
SCALED_WARMUP = 0.1
"""Share of the run that a warm-up longer than the run is scaled to."""


def total_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    planned = config.epochs * steps_per_epoch
    return planned if config.max_steps is None else min(planned, config.max_steps)


def warmup_steps(config: TrainConfig, num_steps: int) -> int:
    """The updates until the rate is `lr`; fewer than asked for where the run is not that long."""
    if config.warmup < 1:
        return round(config.warmup * num_steps)
    if config.warmup < num_steps:
        return int(config.warmup)
    return max(1, round(SCALED_WARMUP * num_steps))


def warmup_note(config: TrainConfig, num_steps: int) -> str | None:
    """Words for a warm-up that does not fit the run, or None."""
    if config.warmup < num_steps or config.warmup < 1:
        return None
    return (
        f"train.warmup = {config.warmup} steps, but the run has {num_steps}: "
        f"warm-up scaled to {warmup_steps(config, num_steps)} steps"
    )


def lr_at(update: int, num_steps: int, config: TrainConfig) -> float:
    """The learning rate of an update (1 to num_steps), as a share of `lr`."""
    warmup = warmup_steps(config, num_steps)
    if config.schedule == "slanted_triangular":
        return _slanted(update, num_steps, max(warmup, 1))
    if update <= warmup:
        return update / warmup
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "noam":
        # Vaswani et al. 2017, section 5.3, scaled so that its peak is 1.
        return math.sqrt(max(warmup, 1) / update)
    # The first update after the warm-up still has the full rate, the last one is not wasted on 0.
    done = min((update - 1 - warmup) / max(num_steps - warmup, 1), 1.0)
    return 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2


def _slanted(update: int, num_steps: int, cut: int) -> float:
    """Source: Howard and Ruder 2018, equation 3."""
    p = update / cut if update < cut else 1 - (update - cut) / max(num_steps - cut, 1)
    return (1 + max(p, 0.0) * (SLANTED_RATIO - 1)) / SLANTED_RATIO


def rhythm_steps(rhythm: str, steps_per_epoch: int) -> int:
    """`2 epochs` or `500 steps` as a number of steps."""
    count, unit = rhythm.split()
    return int(count) * (steps_per_epoch if unit.startswith("epoch") else 1)
