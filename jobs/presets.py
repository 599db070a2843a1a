"""Published settings under one name. A preset fills what the job file leaves open."""

from copy import deepcopy
from typing import Any

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # GPT-2 with attention pooling and an adaptive softmax with temperature.
    "paper": {
        "model": {
            "backbone": "gpt2",
            "pooling": "attention",
            "head": "adaptive",
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
    # Radford et al. 2018, fine-tuning. Warm-up is 0.2% of the steps; lm_weight is their lambda.
    "gpt1": {
        "data": {"special_tokens": "gpt1"},
        "model": {"pooling": "last", "head": "linear", "dropout": 0.1, "temperature": 1.0},
        "train": {
            "epochs": 3,
            "batch_size": 32,
            "lr": 6.25e-5,
            "warmup": 0.002,
            "schedule": "linear",
            "weight_decay": 0.01,
            "lm_weight": 0.5,
        },
    },
    # Howard and Ruder 2018: fine-tune the language model, then the classifier from the top down.
    # Rates are for a GPT-2 and AdamW; the paper's 0.004 and 0.01 are for its LSTM.
    "ulmfit": {
        "model": {
            "pooling": "concat",
            "head": "linear",
            "hidden": 50,
            "dropout": 0.1,
            "temperature": 1.0,
        },
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
    filled = dict(values)
    for block, settings in _settings(values).items():
        given = values.get(block, {})
        if isinstance(given, dict):
            filled[block] = settings | given
    return filled


def _settings(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the preset says to a job with these values."""
    name = values.get("preset")
    settings = deepcopy(PRESETS.get(name, {})) if isinstance(name, str) else {}
    head = _given(values, "model", "head")
    if settings and head == "encdec":
        del settings["model"]["pooling"]  # its queries read the text themselves
    if settings and head in ("encdec", "adaptive"):
        settings["model"].pop("hidden", None)  # with many labels they have layers of their own
    if name == "paper" and _given(values, "cluster", "gpus_per_worker"):
        settings["train"]["precision"] = "fp16"  # as published; a processor has none that is fast
    return settings


def _given(values: dict[str, Any], block: str, field: str) -> Any:
    settings = values.get(block)
    return settings.get(field) if isinstance(settings, dict) else None
