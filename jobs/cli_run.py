"""Verbs that take a job file: run, validate, schema."""

from typing import TYPE_CHECKING, Any

from cluster.home import Surroundings, from_environment
from jobs.console import Answer, messages
from jobs.verb import Debug, JobPath, Json, Settings, verb

if TYPE_CHECKING:
    from rich.console import Console

    from jobs.read import JobFile


@verb
def run(
    job: JobPath, settings: Settings = None, json: Json = False, debug: Debug = False
) -> Answer:
    """Run a whole job here and now, with progress."""
    from jobs.read import read_job

    surroundings = from_environment()
    file = read_job(job, settings or (), data_dir=surroundings.data_dir)
    document = _run(file, surroundings)
    return Answer(document, lambda out: _show_result(document, out))


def _run(file: "JobFile", surroundings: Surroundings) -> dict[str, Any]:
    from jobs.spec import FinetuneJob

    job = file.job
    if isinstance(job, FinetuneJob):
        from jobs.finetune import run_finetune

        return run_finetune(file.text, job, file.base_dir, surroundings, messages())
    raise NotImplementedError


@verb
def validate(
    job: JobPath, settings: Settings = None, json: Json = False, debug: Debug = False
) -> Answer:
    """Check a job file; show every field and the plan."""
    from jobs.plan import num_cores, plan_of, plan_warnings
    from jobs.read import read_job
    from jobs.spec import FinetuneJob, dump

    surroundings = from_environment()
    file = read_job(job, settings or (), data_dir=surroundings.data_dir, needs_data=False)
    warnings = [problem.text() for problem in file.missing]
    plan: dict[str, Any] = {}
    if isinstance(file.job, FinetuneJob):
        plan = plan_of(file.job, num_cores())
        warnings += plan_warnings(file.job, num_cores())
    document = {"job": dump(file.job), "plan": plan, "warnings": warnings}
    return Answer(document, lambda out: _show_plan(document, out))


@verb
def schema(json: Json = False, debug: Debug = False) -> Answer:
    """Print the JSON schema of job files, for editors."""
    from jobs.explain import schema_of
    from jobs.spec import Job

    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema_of(Job)}
    return Answer(document, lambda out: out.print_json(data=document))


def _show_plan(document: dict[str, Any], out: "Console") -> None:
    import yaml
    from rich.syntax import Syntax

    text = yaml.safe_dump(document["job"], sort_keys=False, allow_unicode=True)
    out.print(Syntax(text.rstrip(), "yaml", background_color="default"))
    for name, value in document["plan"].items():
        out.print(f"# {name.replace('_', ' ')}: {value}")
    for warning in document["warnings"]:
        messages().print(f"warning: {warning}")


def _show_result(document: dict[str, Any], out: "Console") -> None:
    out.print_json(data=document)
