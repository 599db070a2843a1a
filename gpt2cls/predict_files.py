"""Predictions for a file of any size: read, predicted and written a chunk at a time.

The output has the input's rows in the input's order and all its columns, then `label`, `score`
and `p_<label>`. A column of the input that has one of these names is kept as `input_<name>`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2cls.data.forms import as_answers, is_choice_of
from gpt2cls.data.stream import CHUNK_ROWS, MISSING, Chunk, read_chunks
from gpt2cls.data.write import as_list, check_output, open_writer
from gpt2cls.errors import DataError
from gpt2cls.least_sure import LeastSure, joined

if TYPE_CHECKING:
    from gpt2cls.predict import Predictor


def predict_file(
    predictor: "Predictor",
    source: Path,
    output: Path,
    *,
    columns: Sequence[str] | None = None,
    spreadsheet_safe: bool = False,
    progress: Callable[[int], None] | None = None,
    chunk_rows: int = CHUNK_ROWS,
    least_sure: LeastSure | None = None,
) -> int:
    """Write `output`, in the format of its ending, and return the number of rows.

    Args:
        predictor: the model.
        source: CSV, TSV, JSONL, JSON or Parquet, each also gzipped.
        output: appears, or replaces what was there, when the last row is written, not before.
        columns: of the text, or of the two texts of a pair; None: as named in training, which that
            of answers to choose from always is.
        spreadsheet_safe: put an apostrophe before texts that a spreadsheet would run.
        progress: told the number of rows done after each chunk.
        chunk_rows: rows held in memory.
        least_sure: is shown every row.

    Raises:
        RequestError: the output cannot be written.
        DataError: the input cannot be read; names the line and the column.
    """
    text_columns = tuple(columns or predictor.text_columns)
    choices, most = predictor.info.choices, len(predictor.labels)
    check_output(output, source)
    rows_done = 0
    chunks = read_chunks(source, chunk_rows=chunk_rows)
    first = next(chunks)  # the faults of a header are found before anything is written
    _check_columns(first, text_columns, source)
    with open_writer(output, spreadsheet_safe=spreadsheet_safe) as write:
        for chunk in _with_first(first, chunks):
            texts = [
                _texts(chunk, name) if name != choices else _answers(chunk, name, most)
                for name in text_columns
            ]
            probs_NC = predictor.ask(texts)
            found = predictor.columns(probs_NC)
            write(joined(chunk.columns, found), len(chunk))
            if least_sure is not None:
                sureness_N = predictor.confidence(probs_NC)
                least_sure.add(chunk.columns, found["label"], sureness_N, rows_done)
            rows_done += len(chunk)
            if progress is not None:
                progress(rows_done)
    return rows_done


def _check_columns(first: Chunk, text_columns: Sequence[str], source: Path) -> None:
    """Raises DataError when a column of the text is not in the file."""
    if not len(first) and not first.columns:
        return  # JSON without a row names no columns
    for name in text_columns:
        if name not in first.columns:
            there = ", ".join(map(repr, list(first.columns)[:20]))
            raise DataError(
                f"{source}: no column {name!r}, which the model reads; there are {there}. "
                "Rename a column, or say which one holds the text"
            )


def _with_first(first: Chunk, rest: Any) -> Any:
    yield first
    yield from rest


def _answers(chunk: Chunk, name: str, most: int) -> list[list[str]]:
    """The column's values, all of them lists of answers."""
    values = [as_answers(value) for value in as_list(chunk.columns.get(name, []))]
    for row, value in enumerate(values or [None] * len(chunk)):
        if not is_choice_of(value, most):
            raise DataError(
                f"{chunk.where(row)}: {value!r:.60} in column {name!r}, where a list of 2 to "
                f"{most} texts is due (which a CSV file cannot hold)"
            )
    return values


def _texts(chunk: Chunk, name: str) -> list[str]:
    """The column's values, all of them strings that can be encoded."""
    if name not in chunk.columns:
        values: Sequence[Any] = [MISSING] * len(chunk)
    else:
        values = as_list(chunk.columns[name])
    for row, value in enumerate(values):
        if not isinstance(value, str):
            found = (
                "no value" if value is None or value is MISSING else f"{value!r:.40}, not a text,"
            )
            raise DataError(f"{chunk.where(row)}: {found} in column {name!r}; fill or drop the row")
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        row = next(row for row, text in enumerate(values) if _is_broken(text))
        raise DataError(
            f"{chunk.where(row)}: half a surrogate pair in column {name!r}; repair the text"
        ) from None
    return list(values)


def _is_broken(text: str) -> bool:
    return any(0xD800 <= ord(character) <= 0xDFFF for character in text)
