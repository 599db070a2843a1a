"""What is kept of trials: the folder, the settings and the MLflow run of each, and its weights.

Called as trials begin, report and end, from one thread at a time.
"""

import json
import shutil
from pathlib import Path

from gpt2cls.errors import RequestError
from gpt2cls.training.payload import RankPayload
from jobs.attempt import Attempt, Ready
from jobs.backbones import fetched
from jobs.inputs import payload_of, tokenizer_of, tokens_of
from jobs.job_folder import RESOLVED_FILE
from jobs.plan import cpus_per_trial_worker
from jobs.rank_files import FAILURE_FILE
from jobs.roster import Roster
from jobs.spec import FinetuneJob, SweepJob
from jobs.spool import Spool, write_json
from jobs.sweep_screen import SweepScreen
from jobs.trial_job import trial_job
from jobs.trials import CHANGES_FILE, PAYLOAD_FILE, Trial, child_id, trial_dir
from jobs.tune_language import with_tuned


class TrialKeeper:
    """Makes a trial's folder and run when it begins, and completes them when it ends."""

    def __init__(
        self,
        attempt: Attempt,
        job: SweepJob,
        local: SweepJob,
        ready: Ready,
        labels: dict[str, Path],
        roster: Roster,
        screen: SweepScreen,
    ) -> None:
        self.attempt, self.job, self.ready, self.labels = attempt, job, ready, labels
        self.local = local
        """The job as ranks take it: its backbone is a folder here."""
        self.roster, self.screen = roster, screen
        self.dir, self.record, self.search = attempt.dir, attempt.record, job.search
        self.spools: dict[int, Spool] = {}
        """Of the trials that are begun and not over."""
        self.num_told: dict[int, int] = {}
        """Changes of a trial's settings that its run has."""

    def take_over(self, trial: Trial) -> None:
        """See to it that the run of a trial that an earlier process saw the end of says so.

        A kill may have come before anybody wrote down the end, or before all was delivered; what
        was left behind then says KILLED.
        """
        folder = trial_dir(self.dir, trial.number)
        if Spool(folder).head().get("ended") == trial.status:
            self.record.follow(folder)
            return
        self.spools[trial.number] = self._open_run(trial)
        self.ended(trial)

    def _open_run(self, trial: Trial) -> Spool:
        return self.record.child(
            trial_dir(self.dir, trial.number),
            job_id=child_id(self.attempt.job_id, trial.number),
            run_name=f"trial {trial.number}",
        )

    def begin(self, trial: Trial) -> bool:
        """Make the folder of a trial ready, and its run; False: its settings cannot be."""
        folder = trial_dir(self.dir, trial.number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FAILURE_FILE).unlink(missing_ok=True)
        self.spools[trial.number] = spool = self._open_run(trial)
        spool.params({"train.seed": trial.seed} | trial.params)
        spool.tags({"gpt2cls.sweep_id": self.attempt.job_id, "gpt2cls.trial": str(trial.number)})
        try:
            job = self.job_of(trial)
            payload = self.payload_of(trial, job)
        except RequestError as error:
            (folder / FAILURE_FILE).write_text(str(error))
            self.ended(self.roster.ended(trial.number))
            return False
        write_json(folder / RESOLVED_FILE, job.model_dump(mode="json", by_alias=True))
        (folder / PAYLOAD_FILE).write_text(payload.model_dump_json())
        return True

    def close(self) -> None:
        """Say of the runs that nobody ended that nothing works on them any more."""
        for spool in self.spools.values():
            spool.status("KILLED")

    def started(self, trial: Trial) -> None:
        """A process works on the trial."""
        self._tell_changes(trial)

    def reported(self, trial: Trial, score: float) -> None:
        """The trial measured itself, and goes on unless the scheduler says no."""
        trial.metric = score
        self._tell_changes(trial)

    def ended(self, trial: Trial) -> None:
        """Write down how a trial ended, and free what it needs no more."""
        self._tell_changes(trial)
        spool = self.spools.pop(trial.number)
        tags = {"gpt2cls.pruned": "true" if trial.pruned else "false"}
        spool.tags(tags | ({"gpt2cls.cause": trial.cause} if trial.cause else {}))
        if trial.metric is not None:
            spool.metrics({f"best/{self.search.metric}": trial.metric}, step=trial.step)
        spool.status(trial.status)
        spool.close()
        self._tidy()
        self.screen.ended(trial)
        best = self.roster.best
        if best is not None and best.metric is not None:
            best_so_far = {f"best/{self.search.metric}": best.metric}
            self.record.metrics(best_so_far, step=self.roster.num_ended)

    def job_of(self, trial: Trial) -> FinetuneJob:
        """The finetune job of a trial, registered as the sweep is."""
        seed = None if "train.seed" in trial.params else trial.seed
        job = trial_job(self.job, trial.params, seed)
        rhythm = {"checkpoint_every": job.train.eval_every} if self.search.pauses_trials else {}
        return job.model_copy(
            update={
                "registration": self.job.registration,
                "train": job.train.model_copy(update=rhythm),
            }
        )

    def payload_of(self, trial: Trial, job: FinetuneJob) -> RankPayload:
        """What the trial's process is told; tokens are made only where a trial needs other ones."""
        ready, attempt = self.ready, self.attempt
        tokenizer = ready.tokenizer
        if self.job.train.lm_epochs:  # once for all of them, before the first
            local = with_tuned(job, Path(self.local.model.backbone))
        else:
            local = fetched(job, attempt.surroundings, attempt.base_dir)
        deciding = ("tokenizer", "backbone", "embedding_init")
        if any(getattr(job.model, f) != getattr(self.job.model, f) for f in deciding):
            tokenizer = tokenizer_of(local, ready.prepared, attempt.surroundings, attempt.base_dir)
        payload = payload_of(
            local,
            ready.prepared,
            tokenizer,
            tokens_of(local, ready.prepared, tokenizer, attempt.surroundings),
            self.labels,
            job_dir=trial_dir(self.dir, trial.number),
            base_dir=attempt.base_dir,
            cache_dir=attempt.surroundings.home.cache,
            threads=max(int(cpus_per_trial_worker(job.cluster)), 1),
        )
        return payload.model_copy(update={"select_metric": self.search.metric})

    def _tell_changes(self, trial: Trial) -> None:
        """What a scheduler changed under way, as metrics over steps."""
        path = trial_dir(self.dir, trial.number) / CHANGES_FILE
        if not path.exists() or trial.number not in self.spools:
            return
        lines, told = path.read_text().splitlines(), self.num_told.get(trial.number, 0)
        self.num_told[trial.number] = len(lines)
        for line in lines[told:]:
            change = json.loads(line)
            numbers = {
                f"param/{field}": float(value)
                for field, value in change["params"].items()
                if isinstance(value, int | float)
            }
            self.spools[trial.number].metrics(numbers, step=change["step"])

    def _tidy(self) -> None:
        """Keep the best weights of the `search.keep` best trials, and checkpoints of live ones."""
        sign = 1 if self.search.best_mode == "max" else -1
        over = [t for t in self.roster.trials if t.is_final]
        scored = sorted(
            (t for t in over if t.is_scored and not t.pruned),
            key=lambda t: (-sign * (t.metric or 0.0), t.number),
        )
        best = self.roster.best
        keep = {t.number for t in scored[: self.search.keep]} | ({best.number} if best else set())
        for trial in over:
            folder = trial_dir(self.dir, trial.number)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            if trial.number not in keep:
                shutil.rmtree(folder / "best", ignore_errors=True)
