"""What tests of several files start from."""

from collections.abc import Iterator

import pytest
from commands import Commands


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory with a state folder that is not there yet."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("GPT2CLS_HOME", str(tmp_path / "home"))
    for name in ("GPT2CLS_DATA", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return work


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """The commands of one state folder for all tests of a file; no process of theirs is left."""
    folder = tmp_path_factory.mktemp("commands")
    commands = Commands(folder / "home", folder)
    yield commands
    commands.end()
    assert not commands.processes(), "`cluster down` left processes"
