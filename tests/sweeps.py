"""Small sweeps on real text, for the tests of whole commands."""

from typing import Any

from commands import Commands, write_job

LR = {"log_uniform": [1.0e-3, 2.0e-2]}
SPACE = {"train.lr": LR, "model.dropout": {"uniform": [0.0, 0.3], "step": 0.05}}


def write_sweep(commands: Commands, **changes: Any) -> str:
    settings = {
        "kind": "sweep",
        "name": "sweep",
        "space": SPACE,
        "data__max_length": 24,
        "train__epochs": 3,
        "train__batch_size": 64,
        "model__tokenizer": {"train": 1000},
        **changes,
    }
    return str(write_job(commands.folder / f"{settings['name']}.yaml", **settings))


def children(commands: Commands, document: dict[str, Any]) -> list[Any]:
    """The runs under that of a sweep."""
    client = commands.mlflow()
    experiment = client.get_run(document["run_id"]).info.experiment_id
    words = f"tags.`mlflow.parentRunId` = '{document['run_id']}'"
    return list(client.search_runs([experiment], words))
