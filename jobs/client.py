"""How a command talks to the controller: HTTP with a token, time limits, and repeats where safe."""

import os
import time
from typing import Any

import httpx

from cluster.errors import ClusterError
from cluster.home import Home, Surroundings
from cluster.services import Service
from gpt2cls.errors import RequestError

_TIMEOUT = httpx.Timeout(15.0, connect=3.0)
_TRIES = 4
_PAUSE_S = 0.3
_TOKEN_FILE = "token"


def controller_service(home: Home) -> Service:
    """The controller of a state folder."""
    return Service(
        name="controller",
        module="jobs.controller_main",
        folder=home.controller,
        health_path="/health",
        environment=home.child_environment() | {"OMP_NUM_THREADS": "1"},
    )


class ControllerClient:
    """One controller, as one user."""

    def __init__(self, uri: str, token: str) -> None:
        self.uri = uri
        # trust_env: a proxy of the environment must not see the token.
        self._http = httpx.Client(
            base_url=uri,
            headers={"Authorization": f"Bearer {token}"},
            timeout=_TIMEOUT,
            trust_env=False,
        )

    def get(self, path: str, **parameters: Any) -> dict[str, Any]:
        """What is there.

        Raises:
            RequestError: the controller will not have it; its own words.
            ClusterError: it does not answer, or does not know the token.
        """
        given = {name: value for name, value in parameters.items() if value is not None}
        return self._ask("GET", path, params=given)

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Make a wish. Every wish may come twice: a lost reply is asked for again.

        Raises:
            RequestError, ClusterError: as `get`.
        """
        return self._ask("POST", path, json=body or {})

    def delete(self, path: str) -> dict[str, Any]:
        return self._ask("DELETE", path)

    def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        for attempt in range(_TRIES):
            try:
                return _document(self._http.request(method, path, **options), self.uri)
            except httpx.HTTPError as error:
                if attempt + 1 == _TRIES:
                    raise ClusterError(
                        f"the controller at {self.uri} does not answer ({type(error).__name__}); "
                        "`gpt2cls cluster status` shows what runs"
                    ) from error
                time.sleep(_PAUSE_S * 2**attempt)
        raise AssertionError("the last try returns or raises")


def _document(reply: httpx.Response, uri: str) -> dict[str, Any]:
    try:
        document = reply.json()
    except ValueError:
        document = {}
    if reply.is_success and isinstance(document, dict):
        return document
    error = document.get("error") if isinstance(document, dict) else None
    message = str((error or {}).get("message") or f"status {reply.status_code}")
    if reply.status_code == 401 or reply.status_code >= 500:
        raise ClusterError(f"the controller at {uri}: {message}")
    raise RequestError(message)


def connect(surroundings: Surroundings) -> ControllerClient:
    """The controller that serves here.

    Raises:
        ClusterError: none runs, or its token is not to be had.
    """
    if surroundings.controller_uri is not None:
        if surroundings.controller_token is None:
            raise ClusterError(
                f"GPT2CLS_CONTROLLER = {surroundings.controller_uri} wants a token: set "
                "GPT2CLS_TOKEN (`gpt2cls cluster token add USER` makes one)"
            )
        return ControllerClient(surroundings.controller_uri, surroundings.controller_token)
    home = surroundings.home
    server = controller_service(home).find()
    token = read_token(home)
    if server is None or token is None:
        raise ClusterError(
            f"no controller runs for {home.root}; `gpt2cls cluster up` starts one, with a Ray "
            "head and an MLflow server (`gpt2cls run JOB` needs none)"
        )
    return ControllerClient(server.uri, token)


def read_token(home: Home) -> str | None:
    """The token of the owner of a state folder."""
    try:
        return (home.controller / _TOKEN_FILE).read_text().strip()
    except OSError:
        return None


def keep_token(home: Home, token: str) -> None:
    """Keep it where only this user reads it."""
    aside = home.controller / f"{_TOKEN_FILE}.{os.getpid()}"
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token)
    aside.replace(home.controller / _TOKEN_FILE)
