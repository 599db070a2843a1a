"""One trial in its process: what Ray Tune calls, and what it hears of the training.

A trial reports its evaluations to Tune, and lives on when Tune lets it: the call that reports does
not return for a trial that is not to go on. Everything else is in files of the trial's folder.
"""

import json
import math
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from ray import tune

from gpt2cls.training.payload import EVENTS_FILE, STOP_FILE, RankPayload
from jobs.progress import EventTail
from jobs.rank_files import FAILURE_FILE
from jobs.spec import ClusterConfig
from jobs.trials import CHANGES_FILE, PAYLOAD_FILE, measured, trial_dir

SCORE = "score"
NUM_EVALUATIONS = "evaluations"
"""By which schedulers count time."""
GIVEN = "given"
"""The key of a config under which everything is."""
IDS = "ids"
"""Folder in which a file per Tune trial holds the number of ours: schedulers copy configs."""
EXCHANGE = "exchange"
"""Folder, beside those of the trials, with checkpoints that other trials may go on from."""
_KEPT_OF_EACH = 3
_POINTER = "pointer.json"


def run_trial(config: dict[str, Any]) -> None:
    """Train one trial from the start, from its checkpoint, or from that of another one."""
    config = config[GIVEN]
    sweep_dir = Path(config["sweep_dir"])
    number = _number(sweep_dir / IDS, config["number"])
    folder = trial_dir(sweep_dir, number)
    written = RankPayload.model_validate_json((folder / PAYLOAD_FILE).read_text())
    payload = with_params(written, config["params"])
    cluster = ClusterConfig.model_validate(config["cluster"])
    reporter = Reporter(folder, config["metric"], config["mode"], pauses=config["pauses"])
    (folder / FAILURE_FILE).unlink(missing_ok=True)
    (folder / STOP_FILE).unlink(missing_ok=True)
    try:
        if config["pauses"]:
            _take_over(payload, config["params"])
        if cluster.workers == 1:
            _alone(payload, reporter, sweep_dir)
        else:
            _with_workers(payload, cluster, reporter, sweep_dir)
    except Exception as error:  # the boundary of a trial: it must not take others with it
        (folder / FAILURE_FILE).write_text(_words(error))


def _number(ids: Path, given: int) -> int:
    """Of this trial; the config names the trial it was made for, of which it may be a copy."""
    path = ids / tune.get_context().get_trial_id()
    if not path.exists():
        path.write_text(str(given))
    return int(path.read_text())


def with_params(payload: RankPayload, params: dict[str, Any]) -> RankPayload:
    """The payload with sampled values put in their places."""
    blocks: dict[str, dict[str, Any]] = {"model": {}, "train": {}}
    for field, value in params.items():
        block, _, name = field.partition(".")
        if block in blocks:
            blocks[block][name] = value
    return payload.model_copy(
        update={
            "model": payload.model.model_copy(update=blocks["model"]),
            "train": payload.train.model_copy(update=blocks["train"]),
        }
    )


class Reporter:
    """Turns the events of training into reports to Tune."""

    def __init__(self, folder: Path, metric: str, mode: str, *, pauses: bool) -> None:
        self.folder, self.metric, self.mode, self.pauses = folder, metric, mode, pauses
        curve = measured(folder, metric).curve
        self.num_evaluations = len(curve)
        self.last_step = max((step for step, _ in curve), default=0)
        self.values = [value for _, value in curve if math.isfinite(value)]
        self.num_steps = 0
        self.is_new = False

    def __call__(self, event: dict[str, Any]) -> None:
        """Hear one event; does not return when the trial is not to go on."""
        kind, step = event["kind"], event["step"]
        if kind == "start":
            self.num_steps = event["num_steps"]
        elif kind == "eval":
            self._note(event)
            # At the end the best weights are kept first.
            if not self.pauses and step < self.num_steps:
                self._send(step)
        elif kind == "checkpoint" and self.pauses and self.is_new and step < self.num_steps:
            self._send(step, checkpoint=True)
        elif kind == "stop":
            self._send(step)

    def _note(self, event: dict[str, Any]) -> None:
        if not self.pauses and event["step"] <= self.last_step:
            return  # measured before a restart
        self.last_step = event["step"]
        value = event["metrics"].get(f"eval/{self.metric}", math.nan)
        self.num_evaluations += 1
        self.is_new = math.isfinite(value)
        if self.is_new:
            self.values.append(value)

    def _send(self, step: int, *, checkpoint: bool = False) -> None:
        if not self.is_new:
            return
        self.is_new = False
        # Where weights go from trial to trial the present value counts, elsewhere the best one.
        best = max if self.mode == "max" else min
        score = self.values[-1] if self.pauses else best(self.values)
        metrics = {SCORE: score, NUM_EVALUATIONS: self.num_evaluations, "step": step}
        if not checkpoint:
            tune.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            _hand_over(self.folder, step, self.num_evaluations, Path(folder))
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))


def _alone(payload: RankPayload, reporter: Reporter, sweep_dir: Path) -> None:
    from gpt2cls.training.session import StopFile, run_rank

    own, of_all = StopFile(payload.job_dir / STOP_FILE), StopFile(sweep_dir / STOP_FILE)
    run_rank(payload, should_stop=lambda: own() or of_all(), watch=reporter)


def _with_workers(
    payload: RankPayload, cluster: ClusterConfig, reporter: Reporter, sweep_dir: Path
) -> None:
    """Ray Train runs the ranks; this process only follows what they write."""
    from jobs.plan import cpus_per_trial_worker
    from jobs.rank import train_on_ray

    stop_file, of_all = payload.job_dir / STOP_FILE, sweep_dir / STOP_FILE
    tail = EventTail(payload.job_dir / EVENTS_FILE, from_end=True)
    caught: list[Exception] = []

    def train() -> None:
        try:
            train_on_ray(
                payload.model_dump(mode="json"),
                workers=cluster.workers,
                cpus_per_worker=cpus_per_trial_worker(cluster),
                gpus_per_worker=cluster.gpus_per_worker,
                retries=cluster.retries,
            )
        except Exception as error:  # raised again below, in the thread that waits
            caught.append(error)

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    try:
        _follow(thread, tail, reporter, stop_file, of_all)
    finally:  # also when the trial is not to go on: its workers give everything back first
        stop_file.touch()
        thread.join()
    if caught:
        raise caught[0]


def _follow(
    thread: threading.Thread, tail: EventTail, reporter: Reporter, stop_file: Path, of_all: Path
) -> None:
    is_over = False
    while not is_over:
        is_over = not thread.is_alive()  # after the end, one more look
        if of_all.exists():
            stop_file.touch()
        for event in tail.read_new():
            reporter(event)
        time.sleep(0 if is_over else 0.1)


def _hand_over(folder: Path, step: int, count: int, pointer_dir: Path) -> None:
    """Leave the checkpoint of a step where other trials find it, and a pointer for Tune.

    Tune's own copies would be overwritten: it numbers them anew for a trial that was changed.
    """
    from gpt2cls.training.checkpoint import checkpoint_path
    from gpt2cls.training.saves import CHECKPOINTS

    exchange, name = folder.parent / EXCHANGE, folder.name
    left = exchange / f"{name}-{count:06d}"
    if not left.exists():
        source = checkpoint_path(folder / CHECKPOINTS, step)
        shutil.copytree(source, left, copy_function=os.link)
    for old in sorted(exchange.glob(f"{name}-*"))[:-_KEPT_OF_EACH]:
        shutil.rmtree(old, ignore_errors=True)
    (pointer_dir / _POINTER).write_text(json.dumps({"trial": name, "left": left.name}))


def _take_over(payload: RankPayload, params: dict[str, Any]) -> None:
    """Go on from the checkpoint that the scheduler hands over, if it is not the trial's own."""
    from gpt2cls.training.saves import adopt

    given, step = tune.get_checkpoint(), 0
    if given is not None:
        exchange = payload.job_dir.parent / EXCHANGE
        with given.as_directory() as folder:
            pointer = json.loads(Path(folder, _POINTER).read_text())
        left = exchange / pointer["left"]
        if not left.exists():  # its trial has gone on a long way since
            left = max(exchange.glob(f"{pointer['trial']}-*"))
        step = adopt(left, payload.job_dir, payload.fingerprint)
    line = json.dumps({"step": step, "params": params})
    with (payload.job_dir / CHANGES_FILE).open("a") as file:
        file.write(line + "\n")


def _words(error: Exception) -> str:
    text = str(error).strip() or "no further words"
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return f"out of memory: {text.splitlines()[-1][:1000]}"
    from gpt2cls.errors import CheckpointError, NonFiniteLoss, RequestError
    from jobs.errors import JobFailed

    if isinstance(error, CheckpointError | NonFiniteLoss | RequestError | JobFailed):
        return text
    return f"{type(error).__name__}: {text.splitlines()[-1][:1000]}"
