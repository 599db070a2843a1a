"""What a sweep learns from an earlier one."""

from typing import Any

from cluster.home import Surroundings
from gpt2cls.errors import RequestError
from jobs.spec import SweepJob
from jobs.store import Store
from jobs.sweep_document import sweep_document


def earlier_trials(job: SweepJob, surroundings: Surroundings) -> list[dict[str, Any]]:
    """The scored trials of the sweep that this one begins with.

    Raises:
        RequestError: it is no sweep, or compared by another metric, or of other fields.
    """
    reference = job.search.warm_start
    if reference is None:
        return []
    row = Store(surroundings.home).get(reference)
    if row.kind != "sweep":
        raise RequestError(f"search.warm_start = {reference}: job {row.id} is a {row.kind}")
    earlier = SweepJob.model_validate(row.spec)
    if earlier.search.metric != job.search.metric:
        raise RequestError(
            f"search.warm_start = {reference}: that sweep compared {earlier.search.metric}, this "
            f"one {job.search.metric}; name a sweep with the same search.metric"
        )
    found = sweep_document(surroundings.home.job_dir(row.id))["trials"]
    fields = set(job.search_space)
    known = [t for t in found if t["metric"] is not None and set(t["params"]) <= fields]
    if not known:
        raise RequestError(
            f"search.warm_start = {reference}: job {row.id} has no scored trial with fields of "
            "this space only"
        )
    return known
