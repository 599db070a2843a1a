"""A process that is given no more memory: the kernel then ends it, as on a machine that is full."""

import os
import uuid
from pathlib import Path

import pytest

_FIRST = Path("/sys/fs/cgroup/memory")  # of the first version of control groups
_SECOND = Path("/sys/fs/cgroup")
_LIMIT_BYTES = 64 << 10  # of what it asks for from now on


def starve(pid: int) -> None:
    """Let the kernel end this process at its next larger wish for memory; skips where it cannot."""
    root, name = (_FIRST, "memory.limit_in_bytes") if _FIRST.is_dir() else (_SECOND, "memory.max")
    if not os.access(root, os.W_OK) and os.geteuid() != 0:
        pytest.skip("control groups of this machine cannot be written to")
    group = root / f"gpt2cls-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
        (group / name).write_text(str(_LIMIT_BYTES))
    except OSError as error:
        pytest.skip(f"control groups of this machine cannot limit memory: {error}")
    (group / "cgroup.procs").write_text(str(pid))
