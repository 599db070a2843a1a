"""What a run was made with: code, versions, machine."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("gpt2cls", "torch", "ray", "mlflow", "transformers", "tokenizers", "numpy", "datasets")


def run_tags() -> dict[str, str]:
    """MLflow tags: package versions, Python, machine, and the commit of this code if it has one."""
    tags = {f"gpt2cls.version.{name}": found for name in _PACKAGES if (found := _version(name))}
    tags |= {"gpt2cls.python": platform.python_version(), "gpt2cls.host": platform.node()}
    if commit := _commit():
        tags["mlflow.source.git.commit"] = commit
    return tags


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the folder this code lies in; None where it was installed from a package."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
