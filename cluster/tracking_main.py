"""The embedded MLflow server: one process, on loopback, that leaves when nobody needs it.

Run as `python -m cluster.tracking_main FOLDER PORT IDLE_S`. MLflow's own `mlflow server` starts
two processes at best; here its application runs in this one, with a watchdog beside it.
"""

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

_WATCH_EVERY_S = 1.0


def settings(folder: Path, port: int) -> dict[str, str]:
    """What MLflow reads from its environment while it is imported."""
    return {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder / 'mlflow.db'}",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "artifacts"),
        "_MLFLOW_SGI_NAME": "uvicorn",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight more processes
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_MODEL_CATALOG_URI": "",
        "MLFLOW_ENABLE_REMOTE_ASSISTANT": "false",
        # A page in the user's browser must not reach this server under another name.
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port},localhost:{port}",
        # A registered version can only point at what this server itself holds.
        "MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX": (
            r"^(models:/m-[0-9a-f]{32}"
            r"|mlflow-artifacts:/[0-9]+/(models/m-[0-9a-f]{32}|[0-9a-f]{32})/artifacts"
            r"(/[\w-][\w.-]*)*)/?\Z"
        ),
    }


class LastRequest:
    """An ASGI application around another that remembers when it was last asked."""

    def __init__(self, app: Any) -> None:
        self.app, self.at_s, self.open = app, time.monotonic(), 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":  # the application's own start and end
            await self.app(scope, receive, send)
            return
        self.at_s, self.open = time.monotonic(), self.open + 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.at_s, self.open = time.monotonic(), self.open - 1


def is_needed(*, idle_s: float, limit_s: float, open_requests: int, is_on_record: bool) -> bool:
    """A server that is idle, or that no command could find any more, should leave."""
    return is_on_record and (open_requests > 0 or idle_s < limit_s)


def _watch(server: Any, asked: LastRequest, record: Path, limit_s: float) -> None:
    own_pid = f'"pid": {os.getpid()}'
    while not server.should_exit:
        time.sleep(_WATCH_EVERY_S)
        try:
            is_on_record = own_pid in record.read_text()
        except OSError:
            is_on_record = False
        server.should_exit = not is_needed(
            idle_s=time.monotonic() - asked.at_s,
            limit_s=limit_s,
            open_requests=asked.open,
            is_on_record=is_on_record,
        )


def main(folder: Path, port: int, idle_s: float) -> None:
    """Serve until told to stop, idle for `idle_s`, or struck from `server.json`."""
    os.environ.update(settings(folder, port))
    os.umask(0o077)
    import uvicorn
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(
        os.environ["_MLFLOW_SERVER_FILE_STORE"], None, os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"]
    )
    from mlflow.server.fastapi_app import app

    asked = LastRequest(app)
    server = uvicorn.Server(
        uvicorn.Config(
            asked,
            host="127.0.0.1",
            port=port,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=3,
        )
    )
    watchdog = threading.Thread(
        target=_watch, args=(server, asked, folder / "server.json", idle_s), daemon=True
    )
    watchdog.start()
    server.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
