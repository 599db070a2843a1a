"""GPT-2 weights in a Hugging Face folder: config.json and safetensors."""

import json
from pathlib import Path
from typing import Any

from gpt2cls.errors import ModelError
from gpt2cls.model.gpt2 import ACTIVATIONS, GPT2Backbone, GPT2Config, tensor_shapes
from gpt2cls.pretrained import (
    WEIGHTS,
    fitting_tensors,
    read_json,
    tensor_names,
    weight_files,
    whole_number,
    write_tensors,
)

_UNSUPPORTED = ("reorder_and_upcast_attn", "add_cross_attention")


def is_our_gpt2(raw: dict[str, Any]) -> bool:
    """Whether `GPT2Backbone` computes what this config.json describes."""
    return (
        raw.get("model_type") == "gpt2"
        and raw.get("activation_function", "gelu_new") in ACTIVATIONS
        and not any(raw.get(key) for key in _UNSUPPORTED)
    )


def parse_config(raw: dict[str, Any], *, where: Path) -> GPT2Config:
    """The shape in a config.json; the defaults are those of transformers.GPT2Config."""

    def size(key: str, default: int, least: int = 1) -> int:
        return whole_number({key: default} | raw, key, least=least, where=where)

    width, heads = size("n_embd", 768), size("n_head", 12)
    if width % heads:
        raise ModelError(f"{where}: n_embd = {width} is not a multiple of n_head = {heads}")
    return GPT2Config(
        vocab_size=size("vocab_size", 50257),
        positions=size("n_positions", 1024),
        width=width,
        layers=size("n_layer", 12, least=0),
        heads=heads,
        inner=4 * width if raw.get("n_inner") is None else size("n_inner", 4 * width),
        activation=raw.get("activation_function", "gelu_new"),
        norm_epsilon=float(raw.get("layer_norm_epsilon", 1e-5)),
        scale_attention=bool(raw.get("scale_attn_weights", True)),
        scale_by_layer=bool(raw.get("scale_attn_by_inverse_layer_idx", False)),
        raw=raw,
    )


def load_gpt2(folder: Path, *, dropout: float = 0.0) -> GPT2Backbone:
    """Read a GPT-2 from a Hugging Face folder, as float32.

    Raises:
        ModelError: the folder has no sound safetensors, or they do not fit config.json.
    """
    config = parse_config(read_json(folder / "config.json"), where=folder / "config.json")
    files = weight_files(folder)
    names = {_our_name(name) for file in files for name in tensor_names(file)}
    # Before building anything: a config.json may claim a billion layers.
    has_top = config.layers == 0 or f"h.{config.layers - 1}.ln_1.weight" in names
    if not has_top or f"h.{config.layers}.ln_1.weight" in names:
        raise ModelError(
            f"{folder}: config.json says n_layer = {config.layers}, but {WEIGHTS} holds "
            f"{sum(n.endswith('.ln_1.weight') for n in names)} blocks; "
            "the files do not belong together"
        )
    tensors = fitting_tensors(folder, files, tensor_shapes(config), _our_name)
    # Built after the check, as a config.json may ask for any size. (Building on torch's device
    # "meta" would be as safe, but its first use imports 800 modules: 3 s.)
    model = GPT2Backbone(config, dropout=dropout)
    model.load_state_dict(tensors, assign=True)
    return model


def _our_name(name: str) -> str:
    return name.removeprefix("transformer.")


def save_gpt2(model: GPT2Backbone, folder: Path) -> None:
    """Write config.json and model.safetensors so that transformers.AutoModel reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = config_json(model.config)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    write_tensors(model, folder / WEIGHTS)


def config_json(config: GPT2Config) -> dict[str, Any]:
    own = {
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.positions,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.inner,
        "activation_function": config.activation,
        "layer_norm_epsilon": config.norm_epsilon,
        "scale_attn_weights": config.scale_attention,
        "scale_attn_by_inverse_layer_idx": config.scale_by_layer,
    }
    raw = {key: value for key, value in config.raw.items() if key != "torch_dtype"}
    return {**raw, **own, "architectures": ["GPT2Model"], "dtype": "float32"}
