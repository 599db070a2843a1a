"""What a run was made with."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from jobs import provenance

REPOSITORY = Path(__file__).parent.parent


def test_versions_python_and_machine_are_told():
    tags = provenance.run_tags()
    for package in ("gpt2cls", "torch", "ray", "mlflow", "transformers"):
        assert tags[f"gpt2cls.version.{package}"] == version(package)
    assert tags["gpt2cls.python"] == platform.python_version()
    assert tags["gpt2cls.host"] == platform.node()
    assert all(isinstance(value, str) and value for value in tags.values())


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="not a git checkout")
def test_the_commit_is_that_of_this_code_wherever_the_command_runs(monkeypatch, tmp_path):
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.chdir(tmp_path)
    assert provenance.run_tags()["mlflow.source.git.commit"] == commit


def test_without_git_or_a_package_the_tag_is_left_out(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(provenance, "_PACKAGES", ("no-such-package",))
    tags = provenance.run_tags()
    assert set(tags) == {"gpt2cls.python", "gpt2cls.host"}
