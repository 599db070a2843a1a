"""Looks at a cluster without ever waiting long for it: its answer may come in a later round."""

from collections.abc import Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from cluster.gcs_api import GcsApi
from cluster.ray_api import RayApi, RayJob, RayUnreachableError
from jobs.clock import SteadyClock
from jobs.schedule import Node

_ASK_AGAIN_S = 30.0  # a control service that may not be reached from here at all
LOOK_WITHIN_S = 2.0
"""Longer than a healthy cluster needs; the holder of the lease must go on beating."""


@dataclass(frozen=True)
class ClusterView:
    """What the cluster answered in one look."""

    session: str
    nodes: list[Node]
    jobs: Mapping[str, RayJob]
    asked_unix_s: float
    """When it was asked: what happened later is not in it."""
    draining: Set[str] = frozenset()
    """Nodes that live, and are about to go."""


class Lookout:
    """One look at a time, in a thread of its own."""

    gcs_address: str | None = None
    """Where the cluster's control service is, once an attempt has told."""

    def __init__(self, clock: SteadyClock) -> None:
        self._clock = clock
        self._gcs: GcsApi | None = None
        self._gcs_away_until_unix_s = 0.0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="look")
        self._asked: tuple[RayApi, Future[ClusterView]] | None = None

    def look(self, ray: RayApi | None) -> ClusterView | None:
        """What the cluster answers; None: nothing, or not soon enough for this round."""
        if ray is None:
            return None
        if self._asked is None or self._asked[0] is not ray:
            self._asked = ray, self._pool.submit(self._ask, ray)
        future = self._asked[1]
        if not wait([future], LOOK_WITHIN_S).done:
            return None
        self._asked = None
        try:
            return future.result()
        except RayUnreachableError:
            return None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, ray: RayApi) -> ClusterView:
        asked_unix_s = self._clock.unix_s()
        _, session = ray.version()
        jobs = ray.jobs()
        nodes = [Node(node.id, node.cpus, node.gpus) for node in ray.nodes()]
        return ClusterView(session, nodes, jobs, asked_unix_s, self._draining(ray.token))

    def _draining(self, token: str | None) -> Set[str]:
        """None of them where it cannot be known: then they are lost like any other node."""
        if self.gcs_address is None:
            return frozenset()
        if self._gcs is None or self._gcs.address != self.gcs_address:
            if self._gcs is not None:
                self._gcs.close()
            self._gcs, self._gcs_away_until_unix_s = GcsApi(self.gcs_address, token), 0.0
        if self._clock.unix_s() < self._gcs_away_until_unix_s:
            return frozenset()
        try:
            return self._gcs.draining_nodes()
        except RayUnreachableError:
            self._gcs_away_until_unix_s = self._clock.unix_s() + _ASK_AGAIN_S
            return frozenset()
