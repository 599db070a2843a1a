"""Published settings under one name. A preset fills what the job file leaves open."""

from copy import deepcopy
from typing import Any

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # GPT-2 with attention pooling and a softmax with temperature.
    "paper": {
        "model": {
            "backbone": "gpt2",
            "pooling": "attention",
            "head": "linear",
            "heads": 4,
            "dropout": 0.2,
            "temperature": 0.5,
        },
        "train": {
            "epochs": 100,
            "batch_size": 16,
            "lr": 1.0e-4,
            "warmup": 10_000,
            "weight_decay": 0.1,
        },
    },
}


def fill(values: dict[str, Any]) -> dict[str, Any]:
    """The values with those of their preset beneath them; what was given stays."""
    name = values.get("preset")
    preset = PRESETS.get(name) if isinstance(name, str) else None
    filled = dict(values)
    for block, settings in (preset or {}).items():
        given = values.get(block, {})
        if isinstance(given, dict):
            filled[block] = deepcopy(settings) | given
    return filled
