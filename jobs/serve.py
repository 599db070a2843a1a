"""One model over HTTP: MLflow's scoring server as a child of this process."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from cluster.home import Surroundings
from gpt2cls.errors import RequestError
from gpt2cls.model.folder import ModelInfo, read_info
from jobs.errors import JobFailed
from jobs.masking import mask
from jobs.models import model_folder

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

_LOOPBACK = "127.0.0.1"
_READY_WITHIN_S = 180.0
_GRACE_S = 10.0
_ERROR = re.compile(r"[\w.]*(Error|Exception)\b: ")


@dataclass(frozen=True)
class Serving:
    """A scoring server that answers."""

    url: str
    process: "subprocess.Popen[bytes]"
    folder: Path
    """The package and the log; removed when the server ends."""

    def wait(self) -> int:
        """Serve until interrupted; the exit code.

        Raises:
            JobFailed: the server ended by itself.
        """
        try:
            code = self.process.wait()
        finally:
            self.end()
        raise JobFailed(f"the scoring server at {self.url} ended with exit code {code}")

    def end(self) -> None:
        """Stop the server and all its workers."""
        _end(self.process)
        shutil.rmtree(self.folder, ignore_errors=True)


def start_serving(
    model: str, *, port: int | None, base_dir: Path, surroundings: Surroundings
) -> Serving:
    """Start the server on the loopback interface and wait until it answers.

    Raises:
        RequestError: there is no such model, or the port is taken.
        JobFailed: the model cannot be loaded.
    """
    source = model_folder(model, surroundings, base_dir=base_dir)
    info = read_info(source)
    chosen = _free_port(port)
    folder = Path(tempfile.mkdtemp(prefix="gpt2cls-serve-"))
    # Else an end by SIGTERM would leave the server running.
    signal.signal(signal.SIGTERM, _interrupt)
    process = None
    try:
        package(source, info, folder / "package")
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                _command(folder / "package", chosen),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(surroundings),
                start_new_session=True,
            )
        serving = Serving(f"http://{_LOOPBACK}:{chosen}", process, folder)
        _wait_ready(serving, model)
    except BaseException:
        if process is not None:
            _end(process)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return serving


def package(source: Path, info: ModelInfo, folder: Path) -> None:
    """A model folder as a package that MLflow can load; its signature refuses other columns."""
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    signature = ModelSignature(
        inputs=Schema(
            [
                ColSpec(Array(DataType.string) if name == info.choices else "string", name)
                for name in info.text_columns
            ]
        ),
        outputs=Schema(
            [ColSpec("string" if n == "label" else "double", n) for n in info.task.output_columns]
        ),
    )
    pyfunc.save_model(
        str(folder),
        python_model=str(Path(__file__).with_name("pyfunc_model.py")),
        artifacts={"model": str(source)},
        signature=signature,
        pip_requirements=[],  # it runs in this very environment
    )


def difference_when_served(
    source: Path,
    frame: "pd.DataFrame",
    expected_probs_NC: "NDArray[Any]",
    *,
    tolerance: float,
    surroundings: Surroundings,
) -> float:
    """Load a model folder in a process of its own as the scoring server does; ask it `frame`.

    Returns:
        The largest difference of a probability.

    Raises:
        ModelDoesNotReload: it does not load, or predicts something else.
    """
    from jobs.package import verify_in_fresh_process

    with tempfile.TemporaryDirectory(prefix="gpt2cls-serve-") as aside:
        package(source, read_info(source), Path(aside) / "package")
        return verify_in_fresh_process(
            str(Path(aside) / "package"),
            tracking_uri=_environment(surroundings)["MLFLOW_TRACKING_URI"],
            frame=frame,
            expected_probs_NC=expected_probs_NC,
            tolerance=tolerance,
            has_own_code=False,
        )


def _command(folder: Path, port: int) -> list[str]:
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(folder)]
    return [*command, "--env-manager", "local", "--host", _LOOPBACK, "--port", str(port)]


def _environment(surroundings: Surroundings) -> dict[str, str]:
    environment = surroundings.home.child_environment()
    # MLflow starts uvicorn by name, and an environment need not be activated to be used.
    path = [str(Path(sys.executable).parent), *filter(None, [environment.get("PATH")])]
    return environment | {
        "PATH": os.pathsep.join(path),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_TRACKING_URI": "file:///dev/null",  # it has nothing to ask there
        "GIT_PYTHON_REFRESH": "quiet",
    }


def _wait_ready(serving: Serving, model: str) -> None:
    deadline = time.monotonic() + _READY_WITHIN_S
    while not _answers(serving.url):
        if serving.process.poll() is not None:
            raise JobFailed(f"model {model}: the scoring server ended: {_last_words(serving)}")
        if time.monotonic() > deadline:
            raise JobFailed(
                f"model {model}: the scoring server did not answer within "
                f"{_READY_WITHIN_S:.0f} s: {_last_words(serving)}"
            )
        time.sleep(0.2)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ping", timeout=2) as reply:
            return int(reply.status) == 200
    except (urllib.error.URLError, OSError):
        return False


def _last_words(serving: Serving) -> str:
    """The line of the log that says why: the first error, for later ones only follow from it."""
    text = (serving.folder / "log").read_text(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    return mask((errors or lines[-1:] or ["it wrote no log"])[0])


def _free_port(wished: int | None) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_LOOPBACK, wished or 0))
        except (OSError, OverflowError) as error:
            raise RequestError(
                f"--port {wished}: cannot be listened on ({error}); name another, or none"
            ) from error
        return int(probe.getsockname()[1])


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the server's whole group: the server starts workers of its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


def _interrupt(number: int, frame: FrameType | None) -> Any:
    raise KeyboardInterrupt
