"""How many tokens go through the model at once, and what happens when that was too much."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from gpt2cls.training.precision import Name

T = TypeVar("T")

FEATURES_ON_CPU = 2**19
"""Tokens x width. With more, what a layer keeps for its gradient leaves the processor's cache:
15% slower for a width of 256, 30% for 768. In bf16 most of it takes half the space."""
TOKENS_ON_GPU = 32_768
SMALLEST = 16


@dataclass
class TokenBudget:
    """Rows x padded length of one micro-batch, at most; shrinks and stays shrunk."""

    tokens: int

    @classmethod
    def for_device(
        cls,
        device: torch.device,
        width: int,
        tokens: int | None = None,
        precision: Name = "fp32",
    ) -> "TokenBudget":
        """Of a backbone of this width; `tokens`, where given, says it outright."""
        if tokens is None:
            features = FEATURES_ON_CPU * (1 if precision == "fp32" else 2)
            on_cpu = max(features // width, SMALLEST)
            tokens = on_cpu if device.type == "cpu" else TOKENS_ON_GPU
        return cls(tokens)


def halve_until_it_fits(budget: TokenBudget, attempt: Callable[[int], T]) -> T:
    """`attempt(budget)`, again with half the budget each time the device's memory is exhausted.

    Raises:
        torch.OutOfMemoryError: not even a few tokens fit.
    """
    while True:
        try:
            return attempt(budget.tokens)
        except torch.OutOfMemoryError:
            if budget.tokens // 2 < SMALLEST:
                raise
        # Outside the handler, whose traceback would keep the failed attempt's tensors alive.
        budget.tokens //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
