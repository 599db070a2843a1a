"""A model folder as an MLflow model: packaged, stored beside its run, and tried out.

MLflow stores, registers and calls READY a model that cannot be loaded. So what was stored is
fetched again by a fresh process that must reproduce predictions which are known.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import gpt2cls
from gpt2cls.pretrained import LANGUAGE_FORMAT, OUR_FORMAT
from jobs.errors import JobFailed
from jobs.models import CONTENT_TAG, PACKAGED_FOLDER, packaged_of_run
from jobs.tracking import patiently, sorted_faults

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

_HERE = Path(__file__).resolve().parent
_PACKAGES = ("mlflow", "numpy", "pandas", "pydantic", "safetensors", "tokenizers")
_ALLOWED_FILES = frozenset({".json", ".safetensors", ".yaml", ".txt", ".py", ".typed"})


class ModelDoesNotReload(JobFailed):
    """What was packaged is not what was trained; it must not be registered."""


def requirements(*, is_generic: bool) -> list[str]:
    """Exact versions of what a packaged model imports; transformers only for other backbones."""
    names = [*_PACKAGES, "torch", *(["transformers"] if is_generic else [])]
    # A build such as 2.13.0+cpu is known to one index only.
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]


def store_package(
    client: "MlflowClient",
    *,
    run_id: str,
    model_folder: Path,
    example: "pd.DataFrame",
    example_output: "pd.DataFrame",
    pip_requirements: list[str],
) -> str:
    """Package a model folder and store it with the run; twice the same content stores it once.

    Args:
        client: of the server that has the run.
        run_id: the run the model came from.
        model_folder: as `gpt2cls.model` writes it.
        example: a few rows as a caller would send them.
        example_output: what the model answers to them; gives the signature.
        pip_requirements: as `requirements` gives them.

    Returns:
        `models:/m-...`, by which MLflow loads it.
    """

    def write(folder: Path, model: Any) -> None:
        _write_package(
            folder, model, run_id, model_folder, example, example_output, pip_requirements
        )

    return patiently(lambda: _store(client, run_id, content_of(model_folder), write))


def content_of(model_folder: Path) -> str:
    """By which the same model is known again: the checksum of the page that has all others."""
    return hashlib.sha256((model_folder / OUR_FORMAT).read_bytes()).hexdigest()


def store_language_model(client: "MlflowClient", *, run_id: str, model_folder: Path) -> str:
    """Store a language model with the run; twice the same content stores it once.

    It has no pyfunc form, because it predicts no labels: MLflow keeps and registers it, and
    `model.backbone` or transformers read its folder.

    Returns:
        `models:/m-...`, by which MLflow knows it.
    """

    def write(folder: Path, model: Any) -> None:
        from mlflow.models import Model

        shutil.copytree(model_folder, folder / PACKAGED_FOLDER)
        page = Model(
            artifact_path=model.artifact_location,
            model_uuid=model.model_id,
            model_id=model.model_id,
            run_id=run_id,
        )
        page.add_flavor("gpt2cls_language", folder=PACKAGED_FOLDER)
        page.save(str(folder / "MLmodel"))

    content = hashlib.sha256((model_folder / LANGUAGE_FORMAT).read_bytes()).hexdigest()
    return patiently(lambda: _store(client, run_id, content, write))


def _store(
    client: "MlflowClient", run_id: str, content: str, write: Callable[[Path, Any], None]
) -> str:
    with sorted_faults():
        for model in packaged_of_run(client, run_id):
            if model.tags.get(CONTENT_TAG) == content:
                return f"models:/{model.model_id}"
        model = client.create_logged_model(
            client.get_run(run_id).info.experiment_id,
            name="model",
            source_run_id=run_id,
            tags={CONTENT_TAG: content},
        )
        with TemporaryDirectory(prefix="gpt2cls-package-") as aside:
            folder = Path(aside) / "package"
            write(folder, model)
            refuse_unknown_files(folder)
            client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, "READY")
    return f"models:/{model.model_id}"


def _write_package(
    folder: Path,
    model: Any,
    run_id: str,
    model_folder: Path,
    example: "pd.DataFrame",
    example_output: "pd.DataFrame",
    pip_requirements: list[str],
) -> None:
    # Not `log_model`: that loads the model into this process and needs an active run, whose
    # status it then writes.
    from mlflow import pyfunc
    from mlflow.models import Model, infer_signature

    with TemporaryDirectory(prefix="gpt2cls-code-") as aside, warnings.catch_warnings():
        # MLflow looks for the example before it has saved it, and says that there is none.
        warnings.filterwarnings("ignore", message=".*An input example was not provided")
        pyfunc.save_model(
            str(folder),
            python_model=str(_HERE / "pyfunc_model.py"),
            artifacts={"model": str(model_folder)},
            code_paths=[str(_copy_of_library(Path(aside)))],
            signature=infer_signature(example, example_output),
            input_example=example,
            pip_requirements=pip_requirements,
            mlflow_model=Model(
                artifact_path=model.artifact_location,
                model_uuid=model.model_id,
                model_id=model.model_id,
                run_id=run_id,
            ),
        )


def _copy_of_library(aside: Path) -> Path:
    """The source files of the library and nothing that lies beside them."""
    source = Path(gpt2cls.__file__).resolve().parent
    for file in sorted(source.rglob("*.py")):
        copy = aside / "gpt2cls" / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    return aside / "gpt2cls"


def refuse_unknown_files(folder: Path) -> None:
    """A package holds text and safetensors; anything else could run when it is read.

    Raises:
        ModelDoesNotReload: names the files.
    """
    files = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    unknown = [
        str(path.relative_to(folder))
        for path in sorted(files)
        if path.is_symlink() or (path.name != "MLmodel" and path.suffix not in _ALLOWED_FILES)
    ]
    if unknown:
        raise ModelDoesNotReload(
            f"model folder {folder}: {', '.join(unknown[:5])} may not be in a package, which "
            f"holds {', '.join(sorted(_ALLOWED_FILES))} files only; remove them"
        )


def verify_in_fresh_process(
    model_uri: str,
    *,
    tracking_uri: str,
    frame: "pd.DataFrame",
    expected_probs_NC: NDArray[Any],
    tolerance: float = 1e-4,
    timeout_s: float = 600.0,
    has_own_code: bool = True,
) -> float:
    """Load the stored model in a new process without unpickling, and compare its predictions.

    `has_own_code`: that it uses the code that travels with it is part of the check.

    Returns:
        The largest difference of a probability.

    Raises:
        ModelDoesNotReload: it does not load, or predicts something else.
    """
    with TemporaryDirectory(prefix="gpt2cls-reload-") as aside:
        frame_file, output = Path(aside) / "frame.json", Path(aside) / "probs.npy"
        frame_file.write_text(json.dumps(frame.to_dict("list")))
        command = [sys.executable, "-P", str(_HERE / "reload_check.py")]
        command += [model_uri, str(frame_file), str(output), str(int(has_own_code))]
        settings = {
            "MLFLOW_TRACKING_URI": tracking_uri,
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        }
        try:
            ended = subprocess.run(
                command,
                cwd=aside,
                env=dict(os.environ) | settings,
                capture_output=True,
                text=True,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired:
            raise ModelDoesNotReload(
                f"model {model_uri}: not loaded within {timeout_s:.0f} s; it was not registered"
            ) from None
        if ended.returncode != 0:
            why = (ended.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
            raise ModelDoesNotReload(
                f"model {model_uri}: a fresh process cannot use it: {why}; it was not registered"
            )
        return _difference(model_uri, np.load(output), np.asarray(expected_probs_NC), tolerance)


def _difference(
    model_uri: str, found_NC: NDArray[Any], expected_NC: NDArray[Any], tolerance: float
) -> float:
    if found_NC.shape != expected_NC.shape:
        raise ModelDoesNotReload(
            f"model {model_uri}: predicts {found_NC.shape} probabilities after reloading, "
            f"{expected_NC.shape} before; it was not registered"
        )
    difference_N = np.abs(found_NC - expected_NC).max(axis=1, initial=0.0)
    num_wrong = int(np.count_nonzero(~(difference_N <= tolerance)))
    if num_wrong:
        raise ModelDoesNotReload(
            f"model {model_uri}: after reloading, {num_wrong} of {len(found_NC)} predictions "
            f"differ by more than {tolerance:g} (up to {difference_N.max():.3g}) from those of "
            "the trainer; it was not registered"
        )
    return float(difference_N.max(initial=0.0))
