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
    # Howard and Ruder 2018: fine-tune the language model, then the classifier from the top down.
    # Rates are for a GPT-2 and AdamW; the paper's 0.004 and 0.01 are for its LSTM.
    "ulmfit": {
        "model": {"pooling": "concat", "head": "linear", "dropout": 0.1, "temperature": 1.0},
        "train": {
            "epochs": 10,
            "batch_size": 32,
            "lr": 1.0e-3,
            "layer_decay": 2.6,
            "schedule": "slanted_triangular",
            "warmup": 0.1,
            "weight_decay": 0.01,
            "freeze": "gradual",
            "lm_epochs": 3,
            "lm_lr": 5.0e-4,
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
