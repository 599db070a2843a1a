"""The verb about data: data check."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.home import Surroundings, from_environment
from gpt2cls.errors import RequestError
from jobs.console import Answer, messages
from jobs.verb import Debug, Json, Settings, TextColumns, columns_of, verb

if TYPE_CHECKING:
    from rich.console import Console

    from gpt2cls.config import DataConfig, ModelConfig

_JOB_ENDINGS = (".yaml", ".yml")
_SHAPE_WITHOUT_DOWNLOAD = "gpt2-mini"

group = typer.Typer(help="Look at data before anything is trained on it.", rich_markup_mode=None)


@group.callback()
def _is_a_group() -> None:
    """With one command alone, Typer would drop the word `check`."""


@group.command()
@verb
def check(
    source: Annotated[str, typer.Argument(metavar="JOB|FILE", help="A job file, or data.")],
    settings: Settings = None,
    text: TextColumns = None,
    label: Annotated[str | None, typer.Option(help="Column of the label.")] = None,
    separator: Annotated[str | None, typer.Option(help="Splits several labels.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Report rows, balance, lengths, duplicates and the like."""
    from jobs.data_check import run_data_check

    surroundings = from_environment()
    columns = {"text": columns_of(text), "label": label, "separator": separator}
    given = {name: value for name, value in columns.items() if value}
    if Path(source).suffix.lower() in _JOB_ENDINGS:
        data, model, seed, base_dir = _of_job(source, settings or [], given, surroundings)
    else:
        data, model, seed, base_dir = _of_source(source, settings or [], given)
    document = run_data_check(
        data,
        model,
        seed=seed,
        base_dir=base_dir,
        surroundings=surroundings,
        console=messages(),
    )
    return Answer(document, lambda out: _show_report(document, out))


def _of_job(
    source: str, settings: list[str], given: dict[str, Any], surroundings: Surroundings
) -> tuple["DataConfig", "ModelConfig", int, Path]:
    from jobs.read import read_job
    from jobs.spec import TrainingJob

    if given:
        raise RequestError(f"--{next(iter(given))} is for a data file; use -s data.KEY=VALUE")
    file = read_job(Path(source), settings, data_dir=surroundings.data_dir)
    if not isinstance(file.job, TrainingJob):
        raise RequestError(
            f"{source}: kind = {file.job.kind}: only finetune and sweep have data to check"
        )
    return file.job.data, file.job.model, file.job.train.seed, file.base_dir


def _of_source(
    source: str, settings: list[str], given: dict[str, Any]
) -> tuple["DataConfig", "ModelConfig", int, Path]:
    from gpt2cls.config import DataConfig, ModelConfig
    from gpt2cls.data.locate import check_source_exists, is_object

    if settings:
        raise RequestError(f"-s {settings[0]} is for a job file; use --text, --label, --separator")
    if not is_object(source) and (fault := check_source_exists(source, base_dir=Path.cwd())):
        raise RequestError(fault)
    data = DataConfig(train=source, **given)
    return data, ModelConfig(backbone=_SHAPE_WITHOUT_DOWNLOAD), 0, Path.cwd()


def _show_report(document: dict[str, Any], out: "Console") -> None:
    from gpt2cls.data.report import DataReport
    from jobs.data_tables import report_tables

    out.print(report_tables(DataReport.model_validate(document)))
