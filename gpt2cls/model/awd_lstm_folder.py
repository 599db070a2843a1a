"""AWD-LSTM weights in a folder: config.json and safetensors, read without transformers."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpt2cls.errors import ModelError
from gpt2cls.model.awd_lstm import AwdLstm, AwdLstmConfig, awd_lstm_shapes
from gpt2cls.pretrained import (
    WEIGHTS,
    fitting_tensors,
    read_json,
    tensor_names,
    weight_files,
    whole_number,
    write_tensors,
)

MODEL_TYPE = "gpt2cls-awd-lstm"


def load_awd_lstm(folder: Path, *, dropout: float = 0.0) -> AwdLstm:
    """Read an AWD-LSTM as float32.

    Raises:
        ModelError: the folder has no sound safetensors, or they do not fit config.json.
    """
    config = parse_awd_lstm(read_json(folder / "config.json"), where=folder / "config.json")
    files = weight_files(folder)
    names = {name for file in files for name in tensor_names(file)}
    # Before building anything: a config.json may claim a billion layers.
    if f"h.{config.layers - 1}.weight_ih" not in names or f"h.{config.layers}.weight_ih" in names:
        raise ModelError(
            f"{folder}: config.json says layers = {config.layers}, but {WEIGHTS} holds "
            f"{sum(name.endswith('.weight_ih') for name in names)}; "
            "the files do not belong together"
        )
    tensors = fitting_tensors(folder, files, awd_lstm_shapes(config))
    model = AwdLstm(config, dropout=dropout)
    model.load_state_dict(tensors, assign=True)
    return model


def parse_awd_lstm(raw: dict[str, Any], *, where: Path) -> AwdLstmConfig:
    """The shape in a config.json."""
    keys = ("vocab_size", "width", "hidden", "layers")
    return AwdLstmConfig(**{key: whole_number(raw, key, where=where) for key in keys})


def save_awd_lstm(model: AwdLstm, folder: Path) -> None:
    """Write config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model_type": MODEL_TYPE, **asdict(model.config)}
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    write_tensors(model, folder / WEIGHTS)
