"""Verbs that take a job file: run, validate, schema."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cluster.home import Surroundings, from_environment, refuse_if_unwritable
from jobs.cli_use import refuse_early, show_evaluated, show_predicted, show_prepared
from jobs.console import Answer, messages
from jobs.verb import Debug, JobPath, Json, Settings, verb

if TYPE_CHECKING:
    from rich.console import Console

    from jobs.read import JobFile
    from jobs.spec import FinetuneJob, PipelineJob, PretrainJob, SweepJob


@verb
def run(
    job: JobPath, settings: Settings = None, json: Json = False, debug: Debug = False
) -> Answer:
    """Run a whole job here and now, with progress."""
    from jobs.read import read_job

    surroundings = from_environment()
    file = read_job(job, settings or (), data_dir=surroundings.data_dir)
    document, show = _run(file, surroundings)
    return Answer(document, lambda out: show(document, out))


def _run(
    file: "JobFile", surroundings: Surroundings
) -> tuple[dict[str, Any], Callable[[dict[str, Any], "Console"], None]]:
    """Hand the job to the driver of its kind; its document, and how to show it."""
    from jobs.spec import FinetuneJob, PipelineJob, PretrainJob, SweepJob
    from jobs.spec_uses import DeployJob, EnsembleJob, EvaluateJob, PredictJob, PrepareJob

    job, base_dir, say = file.job, file.base_dir, messages()
    if isinstance(job, FinetuneJob | PretrainJob):
        refuse_if_unwritable(surroundings.home)
        return _train(file, job, surroundings), show_end
    if isinstance(job, EvaluateJob):
        refuse_early(job.model, base_dir)

        from jobs.evaluate import run_evaluate

        document = run_evaluate(
            job.model, job.data, base_dir=base_dir, surroundings=surroundings, console=say
        )
        return document, show_evaluated
    if isinstance(job, SweepJob):
        refuse_if_unwritable(surroundings.home)
        return _run_sweep(file, job, surroundings)
    if isinstance(job, PipelineJob):
        refuse_if_unwritable(surroundings.home)

        from jobs.pipeline import run_pipeline

        document = run_pipeline(file.text, job, base_dir, surroundings, say)
        return document, show_pipeline
    if isinstance(job, EnsembleJob):
        for model in job.models:
            refuse_early(model, base_dir)
        refuse_if_unwritable(surroundings.home)

        from jobs.ensemble import run_ensemble

        return run_ensemble(file.text, job, base_dir, surroundings, say), show_end
    if isinstance(job, DeployJob):
        refuse_early(job.model, base_dir)
        refuse_if_unwritable(surroundings.home)

        from jobs.deploy import run_deploy

        return run_deploy(file.text, job, base_dir, surroundings, say), show_end
    if isinstance(job, PrepareJob):
        from jobs.prepare import run_prepare

        return run_prepare(job, base_dir=base_dir, console=say), show_prepared
    assert isinstance(job, PredictJob)
    for output in job.outputs:
        refuse_early(job.model, base_dir, file=job.input, output=output)

    from jobs.predict import run_predict

    document = run_predict(
        job.model,
        job.input,
        job.output,
        base_dir=base_dir,
        surroundings=surroundings,
        console=say,
        spreadsheet_safe=job.spreadsheet_safe,
        low_confidence=job.low_confidence,
    )
    return document, show_predicted


def _train(
    file: "JobFile", job: "FinetuneJob | PretrainJob", surroundings: Surroundings
) -> dict[str, Any]:
    from jobs.spec import FinetuneJob
    from jobs.training import ray_for

    with ray_for(job.cluster, surroundings) as ray:  # comes up while the rest is imported
        more: dict[str, Any] = {"surroundings": surroundings, "console": messages(), "ray": ray}
        if isinstance(job, FinetuneJob):
            from jobs.finetune import run_finetune

            return run_finetune(file.text, job, file.base_dir, **more)
        from jobs.pretrain import run_pretrain

        return run_pretrain(file.text, job, file.base_dir, **more)


def _run_sweep(
    file: "JobFile", job: "SweepJob", surroundings: Surroundings
) -> tuple[dict[str, Any], Callable[[dict[str, Any], "Console"], None]]:
    from jobs.cli_sweep import show_winner
    from jobs.head_trials import are_heads_alone
    from jobs.plan import num_cores, refuse_if_never_fits
    from jobs.training import ray_for

    refuse_if_never_fits(job, num_cores())
    with ray_for(job.cluster, surroundings, is_needed=not are_heads_alone(job)) as ray:
        from jobs.sweep import run_sweep

        document = run_sweep(
            file.text,
            job,
            base_dir=file.base_dir,
            surroundings=surroundings,
            console=messages(),
            ray=ray,
        )
    return document, show_winner


@verb
def validate(
    job: JobPath, settings: Settings = None, json: Json = False, debug: Debug = False
) -> Answer:
    """Check a job file; show every field and the plan."""
    from jobs.plan import num_cores, plan_of, plan_warnings, sweep_plan, sweep_warnings
    from jobs.read import read_job
    from jobs.spec import FinetuneJob, PipelineJob, PretrainJob, SweepJob, dump

    surroundings = from_environment()
    file = read_job(job, settings or (), data_dir=surroundings.data_dir, needs_data=False)
    warnings = [problem.text() for problem in file.missing]
    plan: dict[str, Any] = {}
    if isinstance(file.job, FinetuneJob | PretrainJob):
        plan = plan_of(file.job, num_cores())
        warnings += plan_warnings(file.job, num_cores())
    document: dict[str, Any] = {"job": dump(file.job), "plan": plan, "warnings": warnings}
    if isinstance(file.job, SweepJob):
        document["plan"] = sweep_plan(file.job, num_cores())
        document["space"] = file.job.search_space.table()
        warnings += sweep_warnings(file.job, num_cores())
    if isinstance(file.job, PipelineJob):
        document["stages"] = _stages(file.job)
        warnings += _stage_warnings(file.job)
    return Answer(document, lambda out: _show_plan(document, out))


def _stages(job: "PipelineJob") -> list[dict[str, Any]]:
    """The stages in the order they run."""
    stages: list[dict[str, Any]] = [
        {"stage": name, "kind": job.stages[name].job.kind, "needs": [*needs]}
        for name, needs in job.needs.items()
    ]
    for stage in stages:
        said = job.stages[stage["stage"]]
        if when := said.when:
            limit = f"below {when.below:g}" if when.below is not None else f"above {when.above:g}"
            stage["when"] = f"{when.metric} of {when.stage} is {limit}"
            stage["otherwise"] = said.otherwise
    return stages


def _stage_warnings(job: "PipelineJob") -> list[str]:
    from jobs.plan import num_cores, plan_warnings
    from jobs.spec import FinetuneJob, PretrainJob

    return [
        f"stage {name}: {words}"
        for name, stage in job.stages.items()
        if isinstance(stage.job, FinetuneJob | PretrainJob)
        for words in plan_warnings(stage.job, num_cores())
    ]


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
    if space := document.get("space"):
        from jobs.tables import cell, plain_table

        plan = document["plan"]
        points = "more points than can be counted"
        if plan["points"] is not None:
            points = f"{cell(plan['points'])} points"
        title = f"space: {points}, {cell(plan['trials'])} trials"
        columns = ("field", "kind", "range", "step", "when", "why")
        out.print(plain_table(columns, [[row[name] for name in columns] for row in space], title))
    if stages := document.get("stages"):
        from jobs.pipeline_document import plan_table

        out.print(plan_table(stages))
    for name, value in document["plan"].items():
        if value is not None:
            out.print(f"# {name.replace('_', ' ')}: {value}")
    for warning in document["warnings"]:
        messages().print(f"warning: {warning}")


def show_result(document: dict[str, Any], out: "Console") -> None:
    """The end of a finetune job: the test table, and where the model is."""
    from jobs.tables import beside, metrics_table

    split = "test" if document.get("test") else "validation"
    measured = document.get(split) or {}
    title = f"job {document['job_id']}, {split} split"
    out.print(metrics_table(measured, beside(document), title))
    show_end(document, out)


def show_pipeline(document: dict[str, Any], out: "Console") -> None:
    """The end of a pipeline: its stages, and what to look at."""
    from jobs.pipeline_document import stages_table

    out.print(stages_table(document["stages"]))
    if page := document.get("run_page"):
        out.print(f"MLflow  {page}")


def show_end(document: dict[str, Any], out: "Console") -> None:
    """Where the model is, and what to look at; the table was shown on the way."""
    if model := document.get("model"):
        alias = f", {model['alias']}" if model.get("alias") else ""
        words = f"{model['name']} version {model['version']}{alias}"
        out.print(f"model   {words} (models:/{model['name']}/{model['version']})")
    if folder := document.get("folder"):
        out.print(f"folder  {folder} (for model.backbone, or transformers)")
    if page := document.get("run_page"):
        out.print(f"MLflow  {page}")
        out.print("        later: `gpt2cls cluster status` prints the address, or how to start it")
    if {"baselines", "members", "folder"} & document.keys():
        out.print(f"report  gpt2cls report {document['job_id']} -o report.html")
