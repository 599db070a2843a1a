"""What a job says: to the person who watches, and to the log in the job's folder."""

from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console, RenderableType

from jobs.console import console_of
from jobs.masking import mask


class JobLog:
    """Every line is shown and kept; a table is shown, and kept as text."""

    def __init__(self, path: Path, console: Console) -> None:
        self.path, self.console = path, console

    def say(self, text: str) -> None:
        self.console.print(mask(text), markup=False, highlight=False, soft_wrap=True)
        self.write(text)

    def show(self, table: RenderableType) -> None:
        self.console.print(table)
        with self.path.open("a", encoding="utf-8") as file:
            console_of(file).print(table)

    def write(self, text: str) -> None:
        """To the log only."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {mask(text)}\n")
