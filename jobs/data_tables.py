"""The data report as a person sees it."""

from rich.console import Group, RenderableType

from gpt2cls.data.report import DataReport
from jobs.tables import plain_table

_MAX_CLASSES = 30


def report_tables(report: DataReport) -> RenderableType:
    """Splits with their lengths, classes with their balance, and what looks wrong."""
    title = f"Data: {report.rows:,} rows, {report.kind.replace('_', '-')}"
    columns = ["split", "rows", "tokens: mean", "median", "95%", "longest", "cut off"]
    tables = [plain_table(columns, [_split_row(report, s) for s in report.splits], title)]
    classes = sorted(report.labels.items(), key=lambda item: -item[1].get("train", 0))
    rows: list[list[object]] = [
        [label, *(n.get(s, 0) for s in report.splits)] for label, n in classes[:_MAX_CLASSES]
    ]
    more = f", the {_MAX_CLASSES} largest" if len(classes) > _MAX_CLASSES else ""
    if report.numbers:
        names = ("mean", "std", "min", "max")
        rows = [[s, *(getattr(n, name) for name in names)] for s, n in report.numbers.items()]
        tables.append(plain_table(["label", *names], rows, "Labels are numbers"))
    else:
        title = f"{len(classes):,} classes{more}"
        tables.append(plain_table(["label", *report.splits], rows, title))
    problems = [[p.kind.replace("_", " "), p.count, "\n".join(p.examples)] for p in report.problems]
    if problems:
        tables.append(plain_table(["problem", "count", "examples"], problems, "Problems"))
    return Group(*tables, *report.notes, "" if problems else "no problems found")


def _split_row(report: DataReport, split: str) -> list[object]:
    tokens = report.tokens.get(split)
    if tokens is None:
        return [split, report.splits[split], None, None, None, None, None]
    lengths = [round(tokens.mean), round(tokens.p50), round(tokens.p95), tokens.max]
    return [split, report.splits[split], *lengths, f"{tokens.share_truncated:.1%}"]
