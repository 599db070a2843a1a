"""The one door to Hugging Face `datasets`: a name on the hub, or a folder saved to disk.

Nothing here runs a data set's own code: `datasets` no longer has loading scripts, and saved
folders are Arrow files and JSON.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

from gpt2cls.data.rows import Columns, Place, Rows
from gpt2cls.data.tables import Collected, check_columns
from gpt2cls.errors import DataError

BATCH_ROWS = 8192


def read_hub(source: str, columns: Columns) -> dict[str, Rows]:
    """All splits of hf:<name>[/<config>].

    Raises:
        DataError: no such data set, no connection and not in the cache, or not of this form.
    """
    import datasets

    faults = []
    for name, config in _readings(source.removeprefix("hf:").split("/")):
        if Path(name).exists():  # load_dataset would read that instead, and not say so
            raise DataError(
                f"{source}: {name!r} is also a file or folder here. Start gpt2cls from another "
                "folder, or give the path of the files"
            )
        try:
            return _read(datasets.load_dataset(name, config), columns, source)
        except datasets.exceptions.DatasetNotFoundError as error:
            faults.append(str(error))
        except (OSError, ValueError, RuntimeError) as error:
            if isinstance(error, DataError):
                raise
            faults.append(str(error).strip().partition("\n")[0] or type(error).__name__)
    raise DataError(
        f"{source}: {'; '.join(faults)}. Check the name, or without a connection save the data "
        "set to a folder elsewhere (save_to_disk) and name that"
    )


def read_saved(folder: Path, name: str, columns: Columns) -> dict[str, Rows]:
    """All splits of a folder written by `save_to_disk`; a lone data set is its "train".

    Raises:
        DataError: the folder is damaged.
    """
    import datasets

    try:
        return _read(datasets.load_from_disk(str(folder)), columns, name)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{name}: not a folder that `datasets` saved whole: {error}. Save it again"
        ) from error


def _readings(parts: list[str]) -> list[tuple[str, str | None]]:
    """What the name can mean, likeliest first: hf:a/b is user a's data set b, or a's config b."""
    if len(parts) == 3:
        return [(f"{parts[0]}/{parts[1]}", parts[2])]
    if len(parts) == 1:
        return [(parts[0], None)]
    return [("/".join(parts), None), (parts[0], parts[1])]


def _read(loaded: Any, columns: Columns, name: str) -> dict[str, Rows]:
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    return {split: _read_split(data, columns, f"{name}[{split}]") for split, data in splits.items()}


def _read_split(data: Any, columns: Columns, name: str) -> Rows:
    check_columns(data.column_names, columns, name, num_rows=len(data))
    label_names = _class_names(data.features, columns.label)
    collected, num_rows = Collected(columns), 0
    batches = data.select_columns(list(columns.wanted)).with_format("arrow")
    for table in batches.iter(batch_size=BATCH_ROWS):
        first = num_rows + 1
        found = {wanted: table.column(wanted) for wanted in columns.wanted}
        collected.add(found, lambda row: f"{name} row {first + row}", class_names=label_names)  # noqa: B023
        num_rows += table.num_rows
    return collected.rows(Place(name, num_rows))


def _class_names(features: Any, label: str | None) -> list[str] | None:
    """Names behind a column of class numbers, or of lists of them."""
    if label is None:
        return None
    feature = getattr(features[label], "feature", features[label])
    return list(feature.names) if type(feature).__name__ == "ClassLabel" else None
