"""Ray's job service, through the REST interface of its dashboard, with our own time limits.

The client that Ray brings waits for ever for a dashboard that is frozen. Source of the interface:
Ray 2.60, "Ray Jobs REST API" and "State API".
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from cluster.errors import ClusterError

_TIMEOUT = httpx.Timeout(5.0, connect=2.0)
_SUBMIT_TIMEOUT = httpx.Timeout(30.0, connect=2.0)  # a reply that is late is looked up again

_NOT_UP_YET = "No available agent"
"""Ray's words while the process that starts jobs is on its way, which takes seconds to a minute."""


class RayUnreachableError(ClusterError):
    """The cluster cannot be asked now; says nothing about its jobs."""


class RayRefusedError(ClusterError):
    """The cluster answered, and will never have it."""


class RayFaultError(ClusterError):
    """The cluster answered that something is wrong with it; it may be right later."""


@dataclass(frozen=True)
class RayNode:
    """A living node."""

    id: str
    address: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class RayJob:
    """What Ray says of a submission."""

    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    message: str
    node: str | None
    exit_code: int | None
    error_type: str | None

    @property
    def is_over(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


class RayApi:
    """One cluster. Every call answers or raises within seconds."""

    def __init__(self, uri: str, token: str | None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.uri, self.token = uri.rstrip("/"), token
        # trust_env: a proxy of the environment must not see the token.
        self._http = httpx.Client(
            base_url=self.uri, headers=headers, timeout=_TIMEOUT, trust_env=False
        )

    def close(self) -> None:
        self._http.close()

    def version(self) -> tuple[str, str]:
        """Ray's version and the name of the session, which a new cluster has anew."""
        document = self._json("GET", "/api/version")
        return str(document["ray_version"]), str(document.get("session_name", ""))

    def nodes(self) -> list[RayNode]:
        """The nodes that live."""
        reply = self._json("GET", "/api/v0/nodes", params={"detail": "1", "limit": "10000"})
        rows = ((reply.get("data") or {}).get("result") or {}).get("result")
        if rows is None:
            raise RayUnreachableError(f"Ray at {self.uri} could not list its nodes")
        return [
            RayNode(
                id=row["node_id"],
                address=row["node_ip"],
                cpus=float((row["resources_total"] or {}).get("CPU", 0.0)),
                gpus=float((row["resources_total"] or {}).get("GPU", 0.0)),
            )
            for row in rows
            if row["state"] == "ALIVE"
        ]

    def submit(
        self,
        submission_id: str,
        command: Sequence[str],
        *,
        cpus: float,
        gpus: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start a command under this id; where Ray has it already, nothing happens.

        Raises:
            RayUnreachableError: it may or may not have been started; ask for it.
            RayRefusedError: Ray will never start it.
            RayFaultError: Ray could not start it now.
        """
        body: dict[str, Any] = {
            "entrypoint": shlex.join(command),
            "submission_id": submission_id,
            "entrypoint_num_cpus": cpus,
            "entrypoint_num_gpus": gpus,
        }
        if environment:
            body["runtime_env"] = {"env_vars": dict(environment)}
        reply = self._ask("POST", "/api/jobs/", json=body, timeout=_SUBMIT_TIMEOUT)
        if reply.status_code == 200 or self.job(submission_id) is not None:
            return  # a second submission of an id answers 500
        if _NOT_UP_YET in reply.text:
            raise RayUnreachableError(f"the nodes of Ray at {self.uri} are not up yet")
        family = RayRefusedError if _is_refusal(reply) else RayFaultError
        raise family(f"Ray at {self.uri} refused {submission_id}: {_last_line(reply)}")

    def job(self, submission_id: str) -> RayJob | None:
        """What Ray says of it; None: it does not know it."""
        reply = self._ask("GET", f"/api/jobs/{submission_id}")
        if reply.status_code == 404:
            return None
        return _job(_document(reply))

    def jobs(self) -> dict[str, RayJob]:
        """Every submission that Ray knows."""
        rows = self._json("GET", "/api/jobs/")
        return {row["submission_id"]: _job(row) for row in rows if row.get("submission_id")}

    def stop(self, submission_id: str) -> None:
        """Ask it to leave; Ray kills it when its time is over. What has ended stays as it is.

        Raises:
            RayUnreachableError: it may not have been asked; ask again.
        """
        reply = self._ask("POST", f"/api/jobs/{submission_id}/stop")
        if reply.status_code != 404:  # Ray does not know it any more
            _document(reply)

    def _json(self, method: str, path: str, **options: Any) -> Any:
        return _document(self._ask(method, path, **options))

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            reply = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise RayUnreachableError(
                f"Ray at {self.uri} does not answer ({type(error).__name__})"
            ) from error
        if reply.status_code in (401, 403):
            raise RayUnreachableError(f"Ray at {self.uri} does not accept our token")
        return reply


def _document(reply: httpx.Response) -> Any:
    if reply.status_code != 200:
        raise RayUnreachableError(
            f"{reply.request.method} {reply.request.url.path} of Ray gave {reply.status_code}"
        )
    try:
        return reply.json()
    except ValueError as error:  # something else answers at this address
        raise RayUnreachableError(
            f"{reply.request.method} {reply.request.url.path} of Ray gave no JSON"
        ) from error


def _is_refusal(reply: httpx.Response) -> bool:
    """Whether the request itself is at fault; the dashboard wraps its agent's 400 into a 500."""
    return reply.status_code < 500 or "failed with status code 4" in reply.text


def _job(row: dict[str, Any]) -> RayJob:
    return RayJob(
        status=str(row["status"]),
        message=str(row.get("message") or ""),
        node=row.get("driver_node_id"),
        exit_code=row.get("driver_exit_code"),
        error_type=row.get("error_type"),
    )


def _last_line(reply: httpx.Response) -> str:
    lines = reply.text.strip().splitlines() or [f"status {reply.status_code}"]
    return lines[-1][:300]
