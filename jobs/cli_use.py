"""Verbs that use a model: predict, evaluate, serve."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.home import from_environment
from gpt2cls.errors import RequestError
from jobs.console import Answer, messages
from jobs.verb import Debug, Json, ModelArgument, TextColumns, columns_of, verb

if TYPE_CHECKING:
    from rich.console import Console


@verb
def predict(
    model: ModelArgument,
    source: Annotated[str, typer.Argument(metavar="INPUT", help="CSV, TSV, JSON(L), Parquet.")],
    output: Annotated[str, typer.Option("-o", "--output", help="File to write.")],
    spreadsheet_safe: Annotated[
        bool, typer.Option("--spreadsheet-safe", help="No cell becomes a formula.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Predict every row of a file."""
    refuse_early(model, Path.cwd(), file=source, output=output)

    from jobs.predict import run_predict

    document = run_predict(
        model,
        source,
        output,
        base_dir=Path.cwd(),
        surroundings=from_environment(),
        console=messages(),
        spreadsheet_safe=spreadsheet_safe,
    )
    return Answer(document, lambda out: show_predicted(document, out))


@verb
def evaluate(
    model: ModelArgument,
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file, folder, or name.")],
    text: TextColumns = None,
    label: Annotated[str, typer.Option(help="Column of the label.")] = "label",
    separator: Annotated[str | None, typer.Option(help="Splits several labels.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Measure a model on labelled data."""
    refuse_early(model, Path.cwd(), data=data)

    from jobs.evaluate import run_evaluate
    from jobs.spec_uses import EvaluationData

    wanted = EvaluationData(
        test=data, text=columns_of(text), label=label, separator=separator or None
    )
    document = run_evaluate(
        model,
        wanted,
        base_dir=Path.cwd(),
        surroundings=from_environment(),
        console=messages(),
    )
    return Answer(document, lambda out: show_evaluated(document, out))


@verb
def serve(
    model: ModelArgument,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: a free one.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Serve a model over HTTP on this machine until interrupted."""
    refuse_early(model, Path.cwd())

    from jobs.serve import start_serving

    messages().print(f"loading {model}")
    serving = start_serving(model, port=port, base_dir=Path.cwd(), surroundings=from_environment())
    document = {"url": serving.url, "model": model, "pid": serving.process.pid}
    return Answer(document, lambda out: _show_serving(document, out), then=serving.wait)


def refuse_early(
    model: str,
    base_dir: Path,
    *,
    data: str | None = None,
    file: str | None = None,
    output: str | None = None,
) -> None:
    """Say no before anything heavy is imported.

    Raises:
        RequestError: the model is none that can be used, the data is not there, or what comes
            of it cannot be written.
    """
    from gpt2cls.data.locate import check_source_exists
    from jobs.models import parse_model

    parse_model(model, base_dir=base_dir)
    if data is not None and (fault := check_source_exists(data, base_dir=base_dir)):
        raise RequestError(fault)
    if file is not None and not (base_dir / file).is_file():
        raise RequestError(f"INPUT = {file}: no such file ({base_dir / file})")
    if file is not None and output is not None:
        from gpt2cls.data.write import check_output

        check_output(base_dir / output, base_dir / file)


def show_predicted(document: dict[str, Any], out: "Console") -> None:
    out.print(f"{document['rows']:,} rows predicted: {document['output']}")
    if low := document.get("low_confidence"):
        out.print(
            f"{low['rows']:,} of them with a confidence below {low['below']:g}, the "
            f"{low['written']:,} least sure: {low['output']}"
        )


def show_prepared(document: dict[str, Any], out: "Console") -> None:
    report = document["report"]
    out.print(f"{report['texts']:,} texts, {report['labelled']:,} of them labelled, and "
              f"{report['test']:,} to test with: {document['output']}")  # fmt: skip


def show_evaluated(document: dict[str, Any], out: "Console") -> None:
    from jobs.tables import metrics_table, per_class_table

    test = document["test"]
    out.print(metrics_table(test, {}, f"{document['model']} on {document['data']}"))
    if "per_class" in test:
        out.print(per_class_table(test["per_class"]))


def _show_serving(document: dict[str, Any], out: "Console") -> None:
    out.print(f"{document['url']}/invocations answers; Ctrl-C ends it. For example:")
    out.print(
        f"curl {document['url']}/invocations -H 'Content-Type: application/json' "
        """-d '{"dataframe_records": [{"text": "..."}]}'"""
    )
