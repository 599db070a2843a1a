"""Where a command reads about jobs: the state folder of this machine, or a controller elsewhere."""

import time
from collections.abc import Iterator
from typing import Any, Protocol

from cluster.errors import ClusterError
from cluster.home import Surroundings
from gpt2cls.errors import RequestError
from jobs.client import ControllerClient, connect
from jobs.names import check_job_id

_POLL_S = 0.4
_PAGE = 1000


class Source(Protocol):
    """What can be read of jobs; the documents are those of `jobs.views`."""

    def jobs(self) -> dict[str, Any]:
        """Every job, the newest first."""

    def show(self, reference: str) -> dict[str, Any]:
        """One job."""

    def lines(self, reference: str, asked: dict[str, Any], *, follow: bool) -> Iterator[Any]:
        """What a job has said; with `follow` until it has ended."""


def open_source(surroundings: Surroundings) -> Source:
    """The place that this command reads from."""
    if surroundings.controller_uri is not None:
        return There(connect(surroundings))
    return Here(surroundings)


class Here:
    """The store and the folders of this machine; needs no controller."""

    def __init__(self, surroundings: Surroundings) -> None:
        self.surroundings = surroundings

    def jobs(self) -> dict[str, Any]:
        from jobs.cli_jobs import settled_store
        from jobs.views import row_of

        return {"jobs": [row_of(job) for job in settled_store(self.surroundings).jobs()]}

    def show(self, reference: str) -> dict[str, Any]:
        from jobs.cli_jobs import settled_store
        from jobs.queue_store import QueueStore
        from jobs.views import job_document

        store = settled_store(self.surroundings)
        job = store.get(check_job_id(reference))
        document = job_document(job, QueueStore(store), self.surroundings)
        if job.request is not None and document["state"] in ("QUEUED", "RETRYING"):
            document["reason"] = self._why(job.id, job.reason)
        return document

    def _why(self, job_id: str, reason: str) -> str:
        """Why a job waits, as its controller says."""
        try:
            return str(connect(self.surroundings).get(f"/api/jobs/{job_id}")["reason"])
        except (ClusterError, RequestError):
            words = "no controller answers; `gpt2cls cluster up` starts one"
            return "; ".join(filter(None, [reason, words]))

    def lines(self, reference: str, asked: dict[str, Any], *, follow: bool) -> Iterator[Any]:
        from dataclasses import asdict

        from jobs import log_reader
        from jobs.states import FINAL
        from jobs.store import Store

        store = Store(self.surroundings.home)
        job_id = store.get(check_job_id(reference)).id
        folder, after, tail = self.surroundings.home.job_dir(job_id), None, asked["tail"]
        some = {name: asked[name] for name in ("attempt", "grep")}
        while lines := log_reader.read_lines(folder, after=after, tail=tail, **some):
            yield from map(asdict, lines)
            after, tail = lines[-1].cursor, None
        if follow:
            is_over = lambda: store.get(job_id).state in FINAL  # noqa: E731
            found = log_reader.follow(folder, is_over, poll_s=_POLL_S, after=after, **some)
            yield from map(asdict, found)


class There:
    """A controller that somebody else runs."""

    def __init__(self, client: ControllerClient) -> None:
        self.client = client

    def jobs(self) -> dict[str, Any]:
        return self.client.get("/api/jobs", limit=100_000)

    def show(self, reference: str) -> dict[str, Any]:
        return self.client.get(f"/api/jobs/{check_job_id(reference)}")

    def lines(self, reference: str, asked: dict[str, Any], *, follow: bool) -> Iterator[Any]:
        path = f"/api/jobs/{self.show(reference)['job_id']}/logs"
        after, num_quiet, tail = None, 0, asked["tail"]
        some = {name: asked[name] for name in ("attempt", "grep")}
        while num_quiet < 2:
            page = self.client.get(path, after=after, tail=tail, limit=_PAGE, **some)
            yield from page["lines"]
            if page["lines"]:
                after, tail, num_quiet = page["lines"][-1]["cursor"], None, 0
                continue
            if not follow:
                return
            # What came in the last moment is still on its way: after the end it looks once more.
            num_quiet = num_quiet + 1 if page["state"] in ("SUCCEEDED", "FAILED", "STOPPED") else 0
            time.sleep(_POLL_S)
