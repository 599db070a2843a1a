"""This process among the ranks of a job. Somebody else has formed the process group."""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """Which rank this is, of how many, and where its tensors live."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def add_up(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its sum over all ranks; every rank gets the same bits."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def copy_from_first(self, tensors: list[Tensor]) -> None:
        """Give every rank the values of rank 0."""
        if self.world > 1 and tensors:
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            dist.broadcast(flat, src=0)
            parts = torch.split(flat, [tensor.numel() for tensor in tensors])
            for tensor, values in zip(tensors, parts, strict=True):
                tensor.copy_(values.view_as(tensor))

    def total(self, value: float) -> float:
        """The sum of a number over all ranks; also a point that all ranks reach together."""
        if self.world == 1:
            return value
        return float(
            self.add_up(torch.tensor([value], dtype=torch.float64, device=self.device)).item()
        )
