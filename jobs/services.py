"""The services that a queue needs on one machine, started and stopped together."""

import getpass
import shutil
import time
from typing import Any

from rich.console import Console

from cluster import tracking_server
from cluster.errors import ClusterError
from cluster.home import Home, Surroundings
from cluster.leftovers import stop_sessions
from cluster.ray_head import head_address, head_service, make_token
from cluster.services import Server, Service, answers
from jobs import access
from jobs.client import ControllerClient, connect, controller_service, keep_token, read_token
from jobs.masking import mask
from jobs.plan import num_cores
from jobs.store import Store

_MLFLOW_IDLE_S = 10.0**9  # it stays until it is stopped
_DRAIN_S = 45.0
_REGISTERED_S = 60.0


def start_all(
    surroundings: Surroundings, console: Console, *, cpus: int | None, gpus: int
) -> dict[str, Any]:
    """Start what does not run yet; returns when all of it answers.

    Raises:
        ClusterError: one of them did not come up; its words say why.
    """
    home = surroundings.home
    started: list[tuple[Service, Server]] = []
    if surroundings.tracking_uri is None:
        service = tracking_server.service_of(home, idle_s=_MLFLOW_IDLE_S)
        started.append((service, service.ensure()))
    if surroundings.ray_address is None:
        make_token(home)
        service = head_service(home, num_cpus=cpus or num_cores(), num_gpus=gpus)
        started.append((service, service.ensure()))
    _ensure_token(home)
    service = controller_service(home)
    started.append((service, service.ensure()))
    for service, server in started:
        service.wait_ready(server)
        console.print(f"{service.name}: {server.uri}")
    _wait_for_nodes(connect(surroundings))
    return status_of(surroundings)


def _wait_for_nodes(client: ControllerClient) -> None:
    """Until the controller acts and has seen the cluster, so that a first job is judged by it."""
    deadline = time.monotonic() + _REGISTERED_S
    while time.monotonic() < deadline:
        status = client.get("/api/status")
        if status["nodes"] or not status["is_acting"]:
            return
        time.sleep(0.2)
    raise ClusterError("the Ray cluster has not told of any node; see `gpt2cls cluster status`")


def _ensure_token(home: Home) -> None:
    """The token of the owner of the state folder, who may do everything."""
    home.controller.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = Store(home).engine()
    token = read_token(home)
    if token is None or access.find_user(engine, token) is None:
        name = _user_name()
        keep_token(home, access.new_token(engine, user=name, role=access.Role.ADMIN))


def _user_name() -> str:
    try:
        name = getpass.getuser().lower()
    except (OSError, KeyError):
        return "owner"
    kept = "".join(c for c in name if c.isascii() and (c.isalnum() or c in "._-"))
    return kept.lstrip("._-")[:63] or "owner"


def stop_all(surroundings: Surroundings, console: Console) -> dict[str, Any]:
    """Stop every service of the state folder; what was at work goes on when they are up again."""
    home = surroundings.home
    controller = controller_service(home)
    if controller.find() is not None:
        _drain(surroundings, console)
    has_controller = controller.stop()
    head = head_service(home)
    has_head = head.stop()
    sessions = stop_sessions(home) + int(has_head)
    shutil.rmtree(home.ray / "gcs", ignore_errors=True)  # its jobs have ended
    has_mlflow = tracking_server.stop_server(home)
    return {"mlflow": has_mlflow, "ray": sessions, "controller": has_controller}


def _drain(surroundings: Surroundings, console: Console) -> None:
    try:
        client = connect(surroundings)
        client.post("/api/drain")
        deadline = time.monotonic() + _DRAIN_S
        is_told = False
        while time.monotonic() < deadline:
            at_work = client.get("/api/status")["num_at_work"]
            if not at_work:
                return
            if not is_told:
                console.print(f"{at_work} job(s) write a checkpoint and go back to the queue")
                is_told = True
            time.sleep(0.3)
    except ClusterError as error:
        console.print(f"{error}; jobs at work are cut off")


def status_of(surroundings: Surroundings) -> dict[str, Any]:
    """Which services run, and where."""
    return {
        "ray": _ray(surroundings),
        "mlflow": _mlflow(surroundings),
        "controller": _controller(surroundings),
    }


def _ray(surroundings: Surroundings) -> dict[str, Any] | None:
    if surroundings.ray_address:
        return {"address": mask(surroundings.ray_address), "embedded": False}
    server = head_service(surroundings.home).find()
    if server is None:
        return None
    address = head_address(surroundings.home.ray)
    return {
        "address": address.address if address else None,
        "uri": server.uri,
        "answers": answers(f"{server.uri}/api/version"),
        "embedded": True,
        "pid": server.pid,
    }


def _mlflow(surroundings: Surroundings) -> dict[str, Any] | None:
    if uri := surroundings.tracking_uri:
        answering = tracking_server.answers(uri)
        return {"uri": mask(uri), "answers": answering, "embedded": False}
    server = tracking_server.find_server(surroundings.home)
    if server is None:
        return None
    answering = tracking_server.answers(server.uri)
    return {"uri": server.uri, "answers": answering, "embedded": True, "pid": server.pid}


def _controller(surroundings: Surroundings) -> dict[str, Any] | None:
    server = controller_service(surroundings.home).find()
    if server is None:
        return None
    document: dict[str, Any] = {"uri": server.uri, "embedded": True, "pid": server.pid}
    try:
        return document | {"answers": True} | connect(surroundings).get("/api/status")
    except ClusterError:
        return document | {"answers": False}
