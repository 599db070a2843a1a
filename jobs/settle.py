"""Give jobs whose process is gone their true end. Done by the next command that looks."""

from cluster.home import Surroundings
from cluster.processes import host_name, is_alive
from cluster.tracking_server import answers, tracking_uri
from jobs.record import deliver_pending, end_left_over
from jobs.states import FINAL, RUN_STATUS, State
from jobs.store import Job, Store


def settle(store: Store, surroundings: Surroundings) -> list[Job]:
    """Mark orphaned jobs FAILED, and tell MLflow what their processes no longer could.

    What cannot be delivered now, because no server runs or answers, stays for the next time.
    Cheap when there is nothing to do: MLflow is not even imported.

    Returns:
        The jobs that were found orphaned.
    """
    orphans = [job for job in store.live_jobs() if job.is_orphan]
    for job in orphans:
        reason = (
            f"its process {job.owner_pid} on {job.owner_host} died; "
            f"`gpt2cls resume {job.id}` continues it"
        )
        store.finish(job.id, State.FAILED, reason)
    for job in store.jobs():
        # Orphans, and jobs that died between their own end and that of their run.
        if job.state in FINAL and not (job.owner_pid and _is_busy(job)):
            run_id = end_left_over(surroundings.home.job_dir(job.id), RUN_STATUS[job.state])
            if run_id:
                store.set_run_id(job.id, run_id)
    uri = tracking_uri(surroundings)
    if uri is not None and answers(uri):
        deliver_pending(surroundings)
    return [store.get(job.id) for job in orphans]


def _is_busy(job: Job) -> bool:
    """The process that owns the job lives and will tell its end itself."""
    return job.owner_host != host_name() or is_alive(job.owner_pid, job.owner_birth)
