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

    @property
    def pad_to(self) -> int:
        """What lengths are rounded up to: few distinct shapes where a new one is slow.

        Matrix units, and oneDNN's bf16 products, look a shape up once and are fast from then on;
        the CPU's fp32 products take any shape, and padding is only work.
        """
        return 1 if self.precision == "fp32" and self.ranks.device.type == "cpu" else 8
