"""Columns as they were read, made into texts and labels.

A column is a list of Python values (CSV, JSON) or an Arrow array (Parquet, `datasets`).
"""

import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from itertools import islice
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from gpt2cls.data.stream import MISSING
from gpt2cls.errors import DataError

Values: TypeAlias = Sequence[Any] | pa.Array
Where: TypeAlias = Callable[[int], str]

TEXT = pa.large_string()
TEXTS = pa.list_(pa.large_string())
_NOT_A_LABEL = frozenset({"", "nan", "inf", "+inf", "-inf", "infinity", "-infinity"})


def text_array(values: Values, column: str, where: Where) -> pa.Array:
    """Texts without nulls: a null is an empty text, which the data report counts.

    Raises:
        DataError: a value is missing or not text, or holds NUL or half a character.
    """
    texts = (
        _arrow_texts(values, column, where) if _is_arrow(values) else _texts(values, column, where)
    )
    with_nul = pc.match_substring(texts, "\0")
    if pc.any(with_nul).as_py():
        rows = with_nul.to_numpy(zero_copy_only=False).nonzero()[0]
        raise DataError(
            f"{some(rows, where)}: column {column!r} holds a NUL character, which is not text. "
            "Remove it"
        )
    return texts


def label_array(
    values: Values,
    column: str,
    where: Where,
    *,
    separator: str | None = None,
    class_names: Sequence[str] | None = None,
) -> pa.Array:
    """Labels as text, of type TEXT (one a row) or TEXTS (several); null: there is none.

    Whole numbers become their digits ("1" for 1 and for 1.0), truth values "true" and "false".
    Not-a-number, infinity and blank text are no label.

    Raises:
        DataError: numbers with a fraction, or values that cannot be labels.
    """
    if _is_arrow(values):
        labels = _arrow_labels(values, column, where, class_names)
    else:
        labels = _labels(values, column, where)
    if separator is None:
        return labels if pa.types.is_list(labels.type) else _tidy(labels)
    if pa.types.is_list(labels.type):
        raise DataError(
            f"{where(0)}: column {column!r} holds lists of labels, so separator = {separator!r} "
            "has nothing to split. Leave separator out"
        )
    return _split_labels(labels, separator)


def choice_array(values: Values, column: str, where: Where) -> pa.Array:
    """Lists of two texts or more.

    Raises:
        DataError: a row has none, or something else.
    """
    given = _plain(values).to_pylist() if _is_arrow(values) else values
    wrong = [i for i, value in enumerate(given) if not _is_choice(value)]
    if wrong:
        what = given[wrong[0]]
        found = "is missing" if what is MISSING else f"holds {what!r:.60}"
        hint = "; a CSV file has no lists: give JSON or Parquet" if isinstance(what, str) else ""
        raise DataError(
            f"{some(wrong, where)}: column {column!r} {found} where a list of two texts or more is "
            f"due{hint}"
        )
    return pa.array(given, TEXTS)


def _is_choice(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 1
        and all(isinstance(text, str) and _is_whole(text) and "\0" not in text for text in value)
    )


def number_array(values: Values, column: str, where: Where) -> pa.Array:
    """Numbers as float64; null where there is none, or none that is finite.

    Raises:
        DataError: a value is not a number.
    """
    if _is_arrow(values):
        array: Any = _plain(values)
        if pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
            array = array.cast(pa.float64())
            return pc.if_else(pc.is_finite(array), array, pa.scalar(None, pa.float64()))
        values = array.to_pylist()
    found = [_number(value) for value in values]
    wrong = [i for i, number in enumerate(found) if number is not None and math.isnan(number)]
    if wrong:
        raise DataError(
            f"{some(wrong, where)}: column {column!r} holds {values[wrong[0]]!r:.40} where "
            "a number is due, because data.task is regression"
        )
    return pa.array([n if n is None or math.isfinite(n) else None for n in found], pa.float64())


def _number(value: Any) -> float | None:
    """NaN: it is not a number; None or infinite: there is none."""
    if value is None or value is MISSING:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return math.nan
    if isinstance(value, str) and not _is_a_label(value):
        return None
    try:
        number = float(value)
    except ValueError:
        return math.nan
    return math.inf if math.isnan(number) else number


def some(rows: Sequence[int] | Any, where: Where) -> str:
    """Name up to three of the rows."""
    named = ", ".join(where(int(row)) for row in islice(rows, 3))
    return named if len(rows) <= 3 else f"{named} and {len(rows) - 3:,} more"


def _is_arrow(values: Values) -> bool:
    return isinstance(values, pa.Array | pa.ChunkedArray)


def _plain(array: Any) -> Any:
    """One array with its dictionary, if it had one, looked up."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _arrow_texts(array: Any, column: str, where: Where) -> pa.Array:
    array = _plain(array)
    if not _is_text(array.type) and not pa.types.is_null(array.type):
        raise DataError(f"{where(0)}: column {column!r} holds {array.type}, not text")
    return pc.fill_null(array.cast(TEXT), "")


def _texts(values: Sequence[Any], column: str, where: Where) -> pa.Array:
    wrong = [i for i, value in enumerate(values) if not isinstance(value, str | None)]
    if wrong:
        found = values[wrong[0]]
        what = "is missing" if found is MISSING else f"is {type(found).__name__}, not text"
        raise DataError(f"{some(wrong, where)}: column {column!r} {what}")
    try:
        return pc.fill_null(pa.array(values, TEXT), "")
    except UnicodeEncodeError as error:
        row = next(i for i, value in enumerate(values) if value and not _is_whole(value))
        raise DataError(
            f"{where(row)}: column {column!r} holds half a character (a lone surrogate, such as "
            r"\ud800); write the text anew"
        ) from error


def _is_whole(text: str) -> bool:
    return text.encode("utf-8", "replace").decode() == text


def _arrow_labels(
    array: Any, column: str, where: Where, class_names: Sequence[str] | None
) -> pa.Array:
    array = _plain(array)
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return _arrow_label_lists(array, column, where, class_names)
    if class_names is not None:
        return _named(array, class_names)
    return _arrow_scalars(array, column, where)


def _arrow_scalars(array: Any, column: str, where: Where) -> pa.Array:
    kind = array.type
    if pa.types.is_floating(kind):
        values = array.to_numpy(zero_copy_only=False)
        return _labels(values.tolist(), column, where)
    if _is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return array.cast(TEXT)
    if pa.types.is_null(kind):
        return array.cast(TEXT)
    place = where(0) if len(array) else "an empty table"
    raise DataError(
        f"{place}: column {column!r} holds {kind}; a label is text, a whole number or a list"
    )


def _arrow_label_lists(
    array: Any, column: str, where: Where, class_names: Sequence[str] | None
) -> pa.Array:
    parents = pc.list_parent_indices(array).to_pylist()

    def place(i: int) -> str:
        return where(parents[i])

    labels = _tidy(_arrow_labels(pc.list_flatten(array), column, place, class_names))
    if labels.null_count:
        rows = [parents[i] for i in pc.is_null(labels).to_numpy(zero_copy_only=False).nonzero()[0]]
        raise DataError(f"{some(rows, where)}: a list in column {column!r} holds an empty label")
    offsets = [0, *_running(pc.fill_null(pc.list_value_length(array), 0).to_pylist())]
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), labels, mask=pc.is_null(array) if array.null_count else None
    )


def _running(lengths: Sequence[int]) -> Sequence[int]:
    total, ends = 0, []
    for length in lengths:
        total += length
        ends.append(total)
    return ends


def _named(array: Any, class_names: Sequence[str]) -> pa.Array:
    """Class names for their numbers; -1 is how `datasets` writes a label that is withheld."""
    known = pc.and_(pc.greater_equal(array, 0), pc.less(array, len(class_names)))
    return pc.take(pa.array(class_names, TEXT), pc.if_else(known, array, None))


def _labels(values: Sequence[Any], column: str, where: Where) -> pa.Array:
    if all(isinstance(value, str) for value in values):
        return _text_labels(values, column, where)
    made = [_label(value, column, where, row) for row, value in enumerate(values)]
    lists = [isinstance(value, list) for value in made]
    if any(lists):
        odd = [i for i, is_list in enumerate(lists) if not is_list and made[i] is not None]
        if odd:
            raise DataError(
                f"{some(odd, where)}: column {column!r} holds one label here and a list of labels "
                f"at {where(lists.index(True))}; make every label a list"
            )
        return pa.array(made, TEXTS)
    return _text_labels(made, column, where)


def _text_labels(values: Sequence[Any], column: str, where: Where) -> pa.Array:
    try:
        return pa.array(values, TEXT)
    except UnicodeEncodeError as error:
        row = next(i for i, value in enumerate(values) if value and not _is_whole(value))
        raise DataError(f"{where(row)}: column {column!r} holds half a character") from error


def _label(value: Any, column: str, where: Where, row: int) -> Any:
    if value is None or value is MISSING or isinstance(value, str):
        return None if value is MISSING else value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _whole_number(value, column, where, row)
    if isinstance(value, list):
        return _label_list(value, column, where, row)
    raise DataError(
        f"{where(row)}: column {column!r} holds {type(value).__name__}; a label is text, "
        "a whole number or a list of these"
    )


def _label_list(value: list[Any], column: str, where: Where, row: int) -> list[str]:
    made = [_label(item, column, where, row) for item in value]
    if not all(isinstance(item, str) and _is_a_label(item) for item in made):
        raise DataError(f"{where(row)}: a list in column {column!r} holds an empty label or a list")
    if not all(map(_is_whole, made)):
        raise DataError(f"{where(row)}: column {column!r} holds half a character")
    return made


def _whole_number(value: float, column: str, where: Where, row: int) -> str | None:
    if not math.isfinite(value):
        return None
    if value.is_integer():
        return str(int(value))
    raise DataError(
        f"{where(row)}: column {column!r} holds the number {value:g}, and classes are expected. "
        "Set data.task to regression, or make classes of it, for example low and high"
    )


def _is_a_label(text: str) -> bool:
    return text.strip().lower() not in _NOT_A_LABEL


def _tidy(labels: pa.Array) -> pa.Array:
    """Null in place of what stands for no label."""
    blank = [name for name in pc.unique(labels).to_pylist() if name and not _is_a_label(name)]
    absent = pc.is_in(labels, pa.array(["", *blank], TEXT))
    return pc.if_else(absent, pa.scalar(None, TEXT), labels)


def _split_labels(labels: pa.Array, separator: str) -> pa.Array:
    """Lists of labels. A blank value is an empty list: the row has none of the labels."""
    lists = [_parts(value, separator) for value in labels.to_pylist()]
    return pa.array(lists, TEXTS)


def _parts(value: str | None, separator: str) -> list[str] | None:
    if value is None:
        return None
    parts = [part.strip() for part in value.split(separator) if part.strip()]
    return parts if all(map(_is_a_label, parts)) else None
