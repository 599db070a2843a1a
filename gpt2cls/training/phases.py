"""What each epoch reads: tokens, or what its frozen layers have made of them once."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import nn

from gpt2cls.data.batches import RowSource, SequenceRows, TokenRows
from gpt2cls.training.classification import Classification
from gpt2cls.training.freezing import Depth, frozen_depth, trainable_names
from gpt2cls.training.loop import StepData


@dataclass
class Phases:
    """The data of a job by step. All is opened when a step first asks for it.

    So a resumed run opens what the unbroken one would read at this step, and nothing else.
    """

    data: Classification
    """As tokens."""
    model: nn.Module
    freeze: str
    keep: Callable[[TokenRows | SequenceRows, Depth], RowSource]
    """The same rows, with what stands at a depth; every rank calls it at the same steps."""
    _kept: dict[str, tuple[Depth, RowSource]] = field(default_factory=dict)
    _depths: dict[int, Depth | None] = field(default_factory=dict)
    """By epoch: walking through the model takes as long as a step of the head alone."""

    def data_of_step(self, step: int, token_budget: int) -> StepData:
        """Of a step (0 is the first) and a token budget."""
        train = self._rows("train", self.data.train, step)
        return replace(self.data, train=train).data_of_step(step, token_budget)

    def evaluate(self, num_steps: int) -> dict[str, float]:
        """The metrics after so many steps, with what the last of them read.

        The end of an epoch is evaluated as that epoch, also by a run that resumes there.
        """
        rows = self._rows("validation", self.data.validation, max(num_steps - 1, 0))
        return replace(self.data, validation=rows).evaluate(self.model)

    def _rows(self, name: str, tokens: RowSource, step: int) -> RowSource:
        epoch = step // self.data.plan.steps_per_epoch
        if epoch not in self._depths:
            names = trainable_names(self.model, self.freeze, epoch)
            self._depths[epoch] = frozen_depth(self.model, names)
        depth = self._depths[epoch]
        if depth is None:
            self._kept.pop(name, None)
            return tokens
        if name not in self._kept or self._kept[name][0] != depth:
            assert isinstance(tokens, TokenRows | SequenceRows), "what was kept is not kept again"
            self._kept[name] = depth, self.keep(tokens, depth)
        return self._kept[name][1]
