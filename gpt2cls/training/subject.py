"""What is learned, and from what: all in which the kinds of training differ."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from gpt2cls.data.batches import Batch
from gpt2cls.training.compute import Compute
from gpt2cls.training.loop import StepData


@dataclass(frozen=True)
class Subject:
    """What the session of a rank asks for; `learn_labels` and `learn_language` make one."""

    model: nn.Module
    names: set[str]
    """Of the parameters that learn at some time."""
    steps_per_epoch: int
    select_metric: str
    """The evaluation metric by which the best weights are chosen."""
    compute: Compute
    data_of_step: Callable[[int, int], StepData]
    """Of a step (0 is the first) and a token budget."""
    loss_sum: Callable[[nn.Module, Batch], Tensor]
    evaluate: Callable[[int], dict[str, float]]
    """The metrics after so many steps; every rank calls it, and gets the same."""
    notes: tuple[str, ...] = ()
    """Sentences on what was decided while it was made."""
