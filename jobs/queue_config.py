"""What the owner of a queue may decide: `controller.yaml` in the state folder."""

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from gpt2cls.config import Block
from gpt2cls.errors import RequestError
from jobs.schedule import Caps, Policy

CONFIG_FILE = "controller.yaml"
_Count = Annotated[int, Field(ge=0)] | None
_Amount = Annotated[float, Field(ge=0)] | None


class QueueCaps(Block):
    """What may run at once; null: no cap."""

    running: _Count = None
    running_per_user: _Count = None
    cpus_per_user: _Amount = None
    gpus_per_user: _Amount = None

    def caps(self) -> Caps:
        return Caps(**self.model_dump())


class QueueConfig(Block):
    """Caps and bounds of a queue."""

    queues: dict[str, QueueCaps] = Field(default_factory=lambda: {"default": QueueCaps()})
    """The queues that there are, each with its own caps."""
    total: QueueCaps = QueueCaps()
    """For all queues together."""
    max_passed: int = Field(20, ge=0)
    """Jobs that may pass one that waits for room."""
    preempts: bool = True
    """Whether a job of higher priority may send one of lower priority back to the queue."""
    no_progress_s: float | None = Field(1800.0, gt=0)
    """An attempt that shows no sign of progress for so long is ended and tried again."""
    unreachable_note_s: float = Field(5.0, ge=0)
    """A job is shown as UNKNOWN when its cluster has not answered for so long."""

    def policy(self) -> Policy:
        """As `jobs.schedule` takes it."""
        return Policy(
            queues={name: caps.caps() for name, caps in self.queues.items()},
            total=self.total.caps(),
            max_passed=self.max_passed,
            preempts=self.preempts,
        )


def read_config(root: Path) -> QueueConfig:
    """The settings of a state folder; the defaults where there is no file.

    Raises:
        RequestError: the file holds a fault.
    """
    path = root / CONFIG_FILE
    if not path.exists():
        return QueueConfig()
    try:
        return QueueConfig.model_validate(yaml.safe_load(path.read_text()) or {})
    except yaml.YAMLError as error:
        raise RequestError(f"{path}: {error}") from error
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
            for fault in error.errors()
        )
        raise RequestError(f"{path}: {faults}") from error
