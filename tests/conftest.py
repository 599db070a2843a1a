"""What tests of several files start from."""

import pytest


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
