"""The number format of the computation. Weights and optimizer are always fp32."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

Name = Literal["fp32", "bf16", "fp16"]

INITIAL_SCALE = 2.0**16
GOOD_STEPS_TO_GROW = 2000
MAX_SKIPS_IN_A_ROW = 50
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_precision(setting: str, device: torch.device) -> tuple[Name, str]:
    """The precision to compute in, and why."""
    if setting != "auto":
        return setting, "as the job says"  # type: ignore[return-value]
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU computes bf16 natively"
        return "fp16", "the GPU has no bf16"
    return pick_for_cpu(_cpu_flags())


def pick_for_cpu(flags: frozenset[str]) -> tuple[Name, str]:
    for flag in ("amx_bf16", "avx512_bf16"):
        if flag in flags:
            return "bf16", f"the processor has {flag}"
    return "fp32", "the processor has neither amx_bf16 nor avx512_bf16"


def _cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    try:
        text = cpuinfo.read_text()
    except OSError:  # not Linux: unknown, which is not an error
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())


def autocast(precision: Name, device: torch.device) -> AbstractContextManager[object]:
    """Matrix products in `precision` within the block; nothing changes for fp32."""
    return torch.autocast(
        device.type,
        _DTYPES.get(precision, torch.bfloat16),
        enabled=precision != "fp32",
        cache_enabled=True,
    )


@dataclass
class LossScale:
    """Dynamic loss scaling for fp16, whose gradients would vanish below 6e-8.

    Source: Micikevicius et al. 2018, "Mixed Precision Training", section 3.2.
    """

    scale: float = INITIAL_SCALE
    good_steps: int = 0
    skips_in_a_row: int = 0

    def update(self, *, overflowed: bool) -> None:
        if overflowed:
            self.scale /= 2
            self.good_steps = 0
            self.skips_in_a_row += 1
            return
        self.skips_in_a_row = 0
        self.good_steps += 1
        if self.good_steps == GOOD_STEPS_TO_GROW:
            self.scale *= 2
            self.good_steps = 0

    @property
    def is_hopeless(self) -> bool:
        """True when smaller scales do not help: the loss itself is not finite."""
        return self.scale < 1 or self.skips_in_a_row >= MAX_SKIPS_IN_A_ROW
