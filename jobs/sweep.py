"""One sweep, from its job file to the registered winner.

A trial is a finetune job without a registration, in a folder of its own; the sweep reads, checks
and tokenises the data once, and only the best trial is measured on the test split and packaged.
"""

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.home import Surroundings
from cluster.local import RayPlace, ray_session
from gpt2cls.errors import RequestError
from gpt2cls.training.payload import STOP_FILE, RankPayload
from gpt2cls.training.schedule import rhythm_steps, total_steps
from jobs.attempt import (
    Attempt,
    Ready,
    Stopwatch,
    Tell,
    encode_and_check,
    measure_and_register,
    new_job,
    read_data,
    run_attempt,
)
from jobs.backbones import fetched, pinned
from jobs.errors import JobFailed, JobStopped
from jobs.inputs import tokenizer_of, write_labels
from jobs.plan import (
    num_cores,
    refuse_if_never_fits,
    sweep_disk_bytes,
    sweep_plan,
)
from jobs.proposals import new_proposer
from jobs.roster import Roster
from jobs.spec import FinetuneJob, SweepJob
from jobs.spool import Spool, write_json
from jobs.store import Store
from jobs.sweep_document import (
    num_configurations,
    sweep_document,
    write_head,
    write_sweep_document,
)
from jobs.sweep_screen import SweepScreen
from jobs.training import in_a_thread, ray_for, stop_on_signal
from jobs.trial_keeper import TrialKeeper
from jobs.trials import PAYLOAD_FILE, Trial, trial_dir
from jobs.tune_language import with_ready_backbone
from jobs.warm_start import earlier_trials

_FLUSH_S = 30.0


def run_sweep(
    text: str,
    job: SweepJob,
    base_dir: Path,
    surroundings: Surroundings,
    console: Console,
    ray: RayPlace | None,
) -> dict[str, Any]:
    """Run a sweep to its end; the document of `gpt2cls run --json`.

    Raises:
        RequestError: the data, the model or an earlier sweep cannot be used; nothing was created.
        JobFailed, JobStopped: the sweep ended early; its record says so.
    """
    refuse_if_never_fits(job, num_cores())
    watch = Stopwatch()
    job = pinned(job, surroundings)
    with watch.stage("data"):
        ready = read_data(job, base_dir, surroundings)
    refuse_unmeasured(job, ready)
    earlier_trials(job, surroundings)
    job_id = new_job(text, job, base_dir, surroundings)
    return run_attempt(
        job_id,
        job,
        lambda attempt, data: Sweep(attempt, job, data, job.num_trials).run(),
        surroundings=surroundings,
        console=console,
        ray=ray,
        watch=watch,
        ready=ready,
    )


def resume_sweep(
    job_id: str, surroundings: Surroundings, console: Console, *, trials: int | None = None
) -> dict[str, Any]:
    """Go on with a sweep, in the same MLflow runs; `trials`: with so many configurations in all.

    Raises:
        RequestError: there is no such sweep, its state does not allow it, or it has more trials.
    """
    store = Store(surroundings.home)
    row = store.get(job_id)
    job = SweepJob.model_validate(row.spec)
    refuse_if_never_fits(job, num_cores())
    store.start(row.id, by_resume=True, extends=trials is not None)
    return attempt_sweep(row.id, job, surroundings, console, trials=trials)


def attempt_sweep(
    job_id: str,
    job: SweepJob,
    surroundings: Surroundings,
    console: Console,
    tell: Tell | None = None,
    *,
    trials: int | None = None,
) -> dict[str, Any]:
    """Begin a sweep that is written down, or go on with it."""
    job = pinned(job, surroundings, surroundings.home.job_dir(job_id))
    extended = num_configurations(surroundings.home.job_dir(job_id))
    wanted = trials or extended or job.num_trials
    with ray_for(job.cluster, surroundings, is_needed=needs_ray(job)) as ray:
        return run_attempt(
            job_id,
            job,
            lambda attempt, data: Sweep(attempt, job, data, wanted).run(),
            surroundings=surroundings,
            console=console,
            ray=ray,
            watch=Stopwatch(),
            tell=tell,
        )


def needs_ray(job: SweepJob) -> bool:
    """Whether trials get processes of their own; heads over one frozen backbone share one."""
    from jobs.head_trials import are_heads_alone

    return not are_heads_alone(job)


def refuse_unmeasured(job: SweepJob, ready: Ready) -> None:
    """Say no to a metric that trials on this data will never have."""
    from gpt2cls.training.classification import check_metric

    try:
        check_metric(job.search.metric, ready.prepared.validation.labels, ready.prepared.task)
    except RequestError as error:
        raise RequestError(f"search.metric = {job.search.metric}: {error}") from error


class Sweep:
    """One attempt at a sweep. Its methods are called from one thread at a time."""

    def __init__(
        self, attempt: Attempt, job: SweepJob, ready: Ready, num_configurations: int
    ) -> None:
        self.attempt, self.job, self.ready = attempt, job, ready
        self.dir, self.record, self.log = attempt.dir, attempt.record, attempt.log
        self.space, self.search = job.search_space, job.search
        self.num_configurations = num_configurations
        self.started_unix_s = time.time()

    def run(self) -> dict[str, Any]:
        """All trials, then the winner; the document of the sweep."""
        attempt = self.attempt
        encode_and_check(attempt, self.job, self.ready)
        labels = write_labels(self.ready.prepared, self.dir)
        self.local = with_ready_backbone(attempt, self.job, self.ready)
        self.roster = self._roster()
        self.screen = SweepScreen(self.log, self.roster, self.search)
        self.keeper = TrialKeeper(
            attempt, self.job, self.local, self.ready, labels, self.roster, self.screen
        )
        plan = sweep_plan(self.job, num_cores())
        self.screen.begin(plan, self.space)
        for trial in self.roster.trials:
            if trial.is_final:
                self.keeper.take_over(trial)
        if needs_ray(self.job):
            most = sweep_disk_bytes(self.job, plan["trials_at_a_time"], self._num_trained())
            self.log.say(f"weights and checkpoints will take {most / 1e6:,.0f} MB on disk at most")
        self._write_head()
        (self.dir / STOP_FILE).unlink(missing_ok=True)
        if not self.roster.is_done:
            with attempt.watch.stage("trials"):
                self._train()
        best = self.roster.best
        if best is None:
            raise JobFailed(f"no trial came to a result; {self._first_cause()}")
        self._say_best(best)
        document = self._finish(best)
        self._publish_page(best)
        return document | {"trials": sweep_document(self.dir)["trials"]}

    def _roster(self) -> Roster:
        fixed, search = self.job.fixed, self.search
        proposer = new_proposer(
            search.searcher, self.space, fixed, seed=search.seed, mode=search.best_mode
        )
        known = earlier_trials(self.job, self.attempt.surroundings)
        for trial in known:
            proposer.learn(None, trial["params"], trial["metric"])
        sign = 1 if search.best_mode == "max" else -1
        best = max(known, key=lambda t: sign * t["metric"], default=None)
        return Roster(
            self.dir,
            search,
            proposer,
            num_configurations=self.num_configurations,
            first_seed=self.job.train.seed,
            first_points=[best["params"]] if best else [],
        )

    def _train(self) -> None:
        from jobs.head_trials import are_heads_alone, run_head_trials

        deadline_s = None
        if self.search.time_budget_s is not None:
            deadline_s = time.monotonic() + self.search.time_budget_s
        try:
            with stop_on_signal(self.dir / STOP_FILE), self.screen:
                if are_heads_alone(self.job):
                    in_a_thread(
                        lambda: run_head_trials(self.keeper), lambda: self._look(deadline_s)
                    )
                else:
                    self._on_ray(deadline_s)
        finally:
            self.keeper.close()
        if (self.dir / STOP_FILE).exists():
            done = self.roster.num_ended
            raise JobStopped(f"stopped after {done} of {self.roster.num_trials} trials")

    def _on_ray(self, deadline_s: float | None) -> None:
        assert self.attempt.ray is not None, "needs_ray() said so"
        # Ray puts its own handlers in place of ours; hence once more, within its session.
        with ray_session(self.attempt.ray), stop_on_signal(self.dir / STOP_FILE):
            from jobs.tune import Hooks, run_on_tune

            keeper = self.keeper
            hooks = Hooks(keeper.begin, keeper.started, keeper.reported, keeper.ended)
            plan = sweep_plan(self.job, num_cores())
            in_a_thread(
                lambda: run_on_tune(
                    self.job,
                    self.space,
                    self.roster,
                    hooks,
                    num_at_once=plan["trials_at_a_time"],
                    evaluations_per_trial=self._evaluations_per_trial(),
                ),
                lambda: self._look(deadline_s),
            )

    def _look(self, deadline_s: float | None) -> None:
        """What has to be done between the events of trials."""
        self.screen.refresh()
        if self.roster.why_no_more is None and (self.dir / STOP_FILE).exists():
            self.roster.why_no_more = "the sweep was stopped"
        if deadline_s is not None and time.monotonic() > deadline_s:
            self._wind_down(f"search.time_budget_s = {self.search.time_budget_s:g} is spent")

    def _wind_down(self, why: str) -> None:
        """No trial begins any more, and those under way stop at their next step."""
        if self.roster.why_no_more is None:
            self.roster.why_no_more = why
            self.log.say(f"{why}: the trials under way are stopped")
        for trial in list(self.roster.trials):
            if trial.status == "RUNNING":
                (trial_dir(self.dir, trial.number) / STOP_FILE).touch()

    def _evaluations_per_trial(self) -> int:
        train = self.job.train
        steps_per_epoch = -(-len(self.ready.prepared.train.labels) // train.batch_size)
        num_steps = total_steps(train, steps_per_epoch)
        return -(-num_steps // rhythm_steps(train.eval_every, steps_per_epoch))

    def _num_trained(self) -> int:
        """Weights that a trial learns; also finds out now whether the model can be had."""
        from gpt2cls.model.classifier import build_classifier
        from gpt2cls.training.freezing import ever_trainable

        job, ready = self.local, self.ready
        model = build_classifier(
            job.model,
            ready.prepared.task,
            vocab_size=ready.tokenizer.vocab_size,
            num_new=ready.tokenizer.num_new,
            pad_id=ready.tokenizer.pad_id,
            max_length=job.data.max_length,
            seed=0,
            base_dir=self.attempt.base_dir,
        )
        names = ever_trainable(model, job.train.freeze, job.train.epochs)
        return sum(p.numel() for name, p in model.named_parameters() if name in names)

    def _say_best(self, best: Trial) -> None:
        self.record.tags({"gpt2cls.best_trial": str(best.number)})
        means = "" if self.search.seeds == 1 else f" (the best repeat of {self.search.seeds})"
        self.log.say(
            f"best: trial {best.number}{means}, {self.search.metric} {best.metric:.4f}, "
            + ", ".join(f"{field} {_short(value)}" for field, value in best.params.items())
        )

    def _finish(self, best: Trial) -> dict[str, Any]:
        job = self.keeper.job_of(best)
        payload = RankPayload.model_validate_json(
            (trial_dir(self.dir, best.number) / PAYLOAD_FILE).read_text()
        )
        ready = Ready(self.ready.prepared, self._tokenizer_of(job))
        if self.search.refit:
            payload = self._refit(job, payload, ready, best)
        return measure_and_register(self.attempt, job, ready, payload)

    def _tokenizer_of(self, job: FinetuneJob) -> Any:
        attempt = self.attempt
        local = fetched(job, attempt.surroundings, attempt.base_dir)
        return tokenizer_of(local, self.ready.prepared, attempt.surroundings, attempt.base_dir)

    def _refit(
        self, job: FinetuneJob, payload: RankPayload, ready: Ready, best: Trial
    ) -> RankPayload:
        """Train the winner once more, on train and validation, for as many epochs as were best."""
        from jobs.refit import refit

        with self.attempt.watch.stage("refit"):
            self.log.say(f"training trial {best.number} once more, on train and validation")
            return refit(self.attempt, job, payload, ready, trial_dir(self.dir, best.number))

    def _first_cause(self) -> str:
        failed = next((t for t in self.roster.trials if t.cause), None)
        return f"trial {failed.number}: {failed.cause}" if failed else "none was begun"

    def _write_head(self) -> None:
        write_head(
            self.dir,
            {
                "job_id": self.attempt.job_id,
                "name": self.job.name,
                "state": "RUNNING",
                "metric": self.search.metric,
                "mode": self.search.best_mode,
                "space": self.space.table(),
                "search": self.search.model_dump(mode="json") | {"trials": self.num_configurations},
                "num_trials": self.roster.num_trials,
                "started_unix_s": self.started_unix_s,
                "seconds": round(time.time() - self.started_unix_s, 1),
            },
        )

    def _publish_page(self, best: Trial) -> None:
        from jobs.sweep_page import write_sweep_page

        self.record.flush(_FLUSH_S)  # so that the runs of all trials are known by their ids
        run_id = Spool(trial_dir(self.dir, best.number)).head().get("run_id")
        if run_id:
            self.record.tags({"gpt2cls.best_run_id": run_id})
        self._write_head()
        document = write_sweep_document(self.dir, "SUCCEEDED")
        write_json(self.dir / "trials.json", document["trials"])
        self.record.artifact(self.dir / "trials.json")
        self.record.artifact(write_sweep_page(self.dir, self.dir / "report.html"))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
