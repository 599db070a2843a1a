"""Tell MLflow what a spool holds, in order, each point once.

A class because it holds a connection and a position; it has no thread and no clock of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from jobs.masking import mask
from jobs.spool import Point, Position, Spool, points_of, read_lines
from jobs.tracking import (
    NotOnServer,
    RefusedByServer,
    RunDeleted,
    ServerAway,
    connect,
    drop_extra_runs,
    experiment_of,
    find_or_create_run,
    sorted_faults,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

_T = TypeVar("_T")
_METRICS_PER_BATCH = 1000  # MLflow's own limits
_SETTINGS_PER_BATCH = 100
_LIVE = ("RUNNING", "SCHEDULED")
_TEXT_SUFFIXES = frozenset({".yaml", ".yml", ".json", ".jsonl", ".log", ".txt", ".html", ".csv"})
_MASKED_TEXT_BYTES = 4 << 20  # what is larger is data, not settings


class Delivery:
    """One spool on its way to one server. The caller holds the spool's delivery lock."""

    def __init__(self, spool: Spool, find_uri: Callable[[], str | None]) -> None:
        self.spool = spool
        self.position = Position()
        """Points passed since this object was made, repeated ones included."""
        self.notes: list[str] = []
        """What the server refused for good, in words."""
        self._find_uri = find_uri
        self._client: MlflowClient | None = None
        self._uri: str | None = None
        self._run_id = ""

    def run(self) -> None:
        """Deliver everything there is now.

        Raises:
            ServerAway: not everything arrived; call again later.
        """
        self.position = self.spool.position()  # another process may have delivered since
        try:
            self._deliver_all()
        except NotOnServer:
            # The server lost its database: nothing of ours is there any more, so all of it is
            # told again.
            self.position = Position()
            self.spool.set_position(self.position)
            self.spool.set_head(run_id=None)
            self._run_id = ""
            self._deliver_all()

    def _deliver_all(self) -> None:
        self._connect()
        while self._deliver_file("events") or self._deliver_file("spool"):
            pass

    def _connect(self) -> None:
        uri = self._find_uri()
        if uri is None:
            raise ServerAway("no MLflow server runs")
        if self._client is None or uri != self._uri:
            self._client, self._uri = connect(uri), uri
        if not self._run_id:
            head = self.spool.head()
            self._run_id = head.get("run_id") or find_or_create_run(
                self._client,
                experiment=head["experiment"],
                job_id=head["job_id"],
                run_name=head["run_name"],
                start_ms=head["start_ms"],
                parent_run_id=self._parent_run_id(head),
            )
            experiment_id = experiment_of(self._client, self._run_id)
            self.spool.set_head(run_id=self._run_id, experiment_id=experiment_id)

    def _parent_run_id(self, head: Mapping[str, Any]) -> str | None:
        if "parent_dir" not in head:
            return None
        parent = Spool(self.spool.job_dir / head["parent_dir"]).head()
        if not parent.get("run_id"):
            raise ServerAway(f"the run of {parent.get('job_id')} is not there yet")
        return str(parent["run_id"])

    @property
    def client(self) -> "MlflowClient":
        assert self._client is not None, "_connect() comes first"
        return self._client

    def _deliver_file(self, name: Literal["events", "spool"]) -> bool:
        """Deliver up to a megabyte of one file; False if there was nothing new."""
        path = self.spool.events_path if name == "events" else self.spool.path
        start: int = getattr(self.position, name)
        lines, end = read_lines(path, start)
        draft, points = deepcopy(self.position), list[Point]()
        for offset, line in lines:
            if name == "events" or line.get("op") == "metrics":
                points += draft.accept(points_of(line))
                setattr(draft, name, offset)
                if len(points) >= _METRICS_PER_BATCH:
                    self._commit(draft, points)
            else:
                self._commit(draft, points)
                self._do(line)
                draft = deepcopy(self.position)
                setattr(draft, name, offset)
        setattr(draft, name, end)
        if end > start:
            self._commit(draft, points)
        return end > start

    def _commit(self, draft: Any, points: list[Point]) -> None:
        """Send the points, then note where that brought us."""
        for batch in _slices(points, _METRICS_PER_BATCH):
            self._send_points(batch)
        points.clear()
        self.position = deepcopy(draft)
        self.spool.set_position(self.position)

    def _do(self, line: Mapping[str, Any]) -> None:
        actions = {
            "params": self._send_params,
            "tags": self._send_tags,
            "artifact": self._send_artifact,
            "status": self._send_status,
            "reopen": self._reopen,
        }
        action = actions.get(line.get("op", ""))
        if action is None:  # written by a later version of this program
            return
        try:
            with sorted_faults():
                action(line)
        except RefusedByServer as error:
            self.notes.append(f"{line['op']}: {error}")

    def _send_points(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        batch = [Metric(p.key, p.value, p.time_ms, p.step) for p in points]
        try:
            with sorted_faults():
                self.client.log_batch(self._run_id, metrics=batch)
        except RefusedByServer as error:
            if len(points) == 1 or isinstance(error, RunDeleted):
                self.notes.append(f"metric {points[0].key}: {error}")
                return
            for point in points:  # one bad point must not hold up the others
                self._send_points([point])

    def _send_params(self, line: Mapping[str, Any]) -> None:
        """A param is written once; what a resumed attempt says anew is left as it was."""
        from mlflow.entities import Param

        known = self.client.get_run(self._run_id).data.params
        new = [Param(k, v) for k, v in line["values"].items() if k not in known]
        for key, value in line["values"].items():
            if known.get(key, value) != value:
                self.notes.append(f"param {key} was {known[key]!r} and stays so, not {value!r}")
        for batch in _slices(new, _SETTINGS_PER_BATCH):
            self.client.log_batch(self._run_id, params=batch)

    def _send_tags(self, line: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(k, v) for k, v in line["values"].items()]
        for batch in _slices(tags, _SETTINGS_PER_BATCH):
            self.client.log_batch(self._run_id, tags=batch)

    def _send_artifact(self, line: Mapping[str, Any]) -> None:
        path = self.spool.job_dir / line["path"]
        if not path.exists():
            self.notes.append(f"artifact {path.name}: the file is gone")
            return
        folder = line["folder"] or None
        if path.is_dir():
            self.client.log_artifacts(self._run_id, str(path), folder)
            return
        with _masked_copy(path) as shown:
            self.client.log_artifact(self._run_id, str(shown), folder)

    def _send_status(self, line: Mapping[str, Any]) -> None:
        """The end comes after all else, and an end that stands is not overwritten."""
        while self._deliver_file("events"):
            pass
        drop_extra_runs(self.client, self._run_id, self.spool.head()["job_id"])
        if self.client.get_run(self._run_id).info.status in _LIVE:
            self.client.set_terminated(self._run_id, line["status"], line["time_ms"])

    def _reopen(self, _line: Mapping[str, Any]) -> None:
        if self.client.get_run(self._run_id).info.status not in _LIVE:
            self.client.update_run(self._run_id, status="RUNNING")


@contextmanager
def _masked_copy(path: Path) -> Iterator[Path]:
    """The file itself, or a copy of the same name without the secrets in it."""
    is_text = path.suffix in _TEXT_SUFFIXES and path.stat().st_size <= _MASKED_TEXT_BYTES
    text = path.read_text(errors="surrogateescape") if is_text else ""
    shown = mask(text)
    if shown == text:
        yield path
        return
    with TemporaryDirectory(prefix="gpt2cls-") as folder:
        copy = Path(folder) / path.name
        copy.write_text(shown, errors="surrogateescape")
        yield copy


def _slices(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
