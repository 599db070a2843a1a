"""How a rank computes: where, in which number format, and how much at once."""

from dataclasses import dataclass

from gpt2cls.training.memory import TokenBudget
from gpt2cls.training.precision import Name
from gpt2cls.training.ranks import Ranks


@dataclass(frozen=True)
class Compute:
    ranks: Ranks
    precision: Name
    budget: TokenBudget
