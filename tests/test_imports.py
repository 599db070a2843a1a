"""Imports go one way; what that means is written in pyproject.toml."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINT = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]


def test_imports_go_one_way():
    done = subprocess.run(LINT, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("line", ["import ray", "import jobs.cli", "import cluster.home"])
def test_an_import_the_wrong_way_is_found(tmp_path, line):
    for room in ("cluster", "gpt2cls", "jobs", "tune_spaces"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").touch()
    for module in ("jobs/cli.py", "cluster/home.py"):
        (tmp_path / module).touch()
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / "gpt2cls" / "config.py").write_text(f"{line}\n")
    done = subprocess.run(LINT, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "1 broken" in done.stdout
