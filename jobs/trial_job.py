"""The finetune job of one point of a sweep."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from gpt2cls.errors import RequestError
from jobs.search import Fault
from jobs.spec import FinetuneJob, SweepJob


class TrialError(RequestError):
    """A point that makes no job together with what the sweep's file says."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__(faults)  # so that pickle can rebuild it
        self.faults = faults

    def __str__(self) -> str:
        return "\n".join(
            f"{field} = {value}: must be {words}" for field, value, words in self.faults
        )


def trial_job(job: SweepJob, point: Mapping[str, Any], seed: int | None = None) -> FinetuneJob:
    """The job that trains one point; it registers nothing.

    Args:
        job: the sweep.
        point: field -> value, as its space draws them.
        seed: of the training; None: the job's own, or the point's.

    Raises:
        TrialError: a value does not fit its field, or the fields do not fit each other.
    """
    values = job.model_dump(mode="json", by_alias=True, exclude={"space", "search", "registration"})
    values["kind"] = "finetune"
    settings = dict(point) if seed is None else {**point, "train.seed": seed}
    for field, value in settings.items():
        block, _, name = field.partition(".")
        values[block][name] = value
    try:
        return FinetuneJob.model_validate(values)
    except ValidationError as error:
        raise TrialError([*_faults_of(error, settings)]) from error


def worst_cases(job: SweepJob) -> list[Fault]:
    """What the ends of the space make wrong with the rest of the job, each fault once."""
    faults: dict[str, Fault] = {}
    for point in job.search_space.extremes(job.fixed):
        try:
            trial_job(job, point)
        except TrialError as error:
            for field, value, words in error.faults:
                path: tuple[str | int, ...] = ("space", field) if field in point else (str(field),)
                faults.setdefault(f"{field} {words}", (path, value, words))
    return [*faults.values()]


def _faults_of(error: ValidationError, point: Mapping[str, Any]) -> Iterator[Fault]:
    for detail in error.errors(include_url=False):
        if detail["type"] == "rules":
            for field, value, words in detail["ctx"]["faults"]:
                # early_stopping.metric is inside the value of early_stopping
                outer = next((own for own in point if f"{field}.".startswith(f"{own}.")), field)
                yield outer, value, words
        else:
            field = ".".join(str(part) for part in detail["loc"][:2])
            yield field, point.get(field), "a value that this field takes"
