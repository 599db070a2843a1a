"""A language model on disk: the folder of its backbone, with a page on how it was made.

config.json              and model.safetensors; transformers.GPT2LMHeadModel reads a GPT-2's
tokenizer.json           and tokenizer_config.json for transformers, tokenizer_meta.json for us
gpt2cls_language.json    LanguageInfo: what was learned and how well, a checksum of every file
"""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from gpt2cls.data.tokenizer import TextTokenizer
from gpt2cls.errors import ModelError
from gpt2cls.model.backbone import save_backbone
from gpt2cls.model.folder import checksums, refuse_altered, write_folder
from gpt2cls.model.gpt2 import GPT2Backbone
from gpt2cls.model.gpt2_folder import config_json
from gpt2cls.model.language import LanguageModel
from gpt2cls.pretrained import LANGUAGE_FORMAT, WEIGHTS, read_json


class LanguageInfo(BaseModel):
    """What gpt2cls_language.json says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    objective: Literal["causal", "backward"]
    """Backward: it reads, and writes, the tokens of a text from right to left."""
    max_length: int = Field(ge=1)
    """Tokens of the blocks that it learned from."""
    vocab_size: int = Field(ge=1)
    end_id: int = Field(ge=0)
    """Of the token between two texts."""
    step: int = Field(ge=0)
    """Of the weights, which are the best ones."""
    metrics: dict[str, float]
    """Of the held-out texts."""
    sha256: dict[str, str] = {}
    """Of each file; filled in by `save_language_model`."""


def save_language_model(
    model: LanguageModel, tokenizer: TextTokenizer, info: LanguageInfo, folder: Path
) -> None:
    """Write the folder; under its name it is whole, or not there, or the former one."""

    def fill(made: Path) -> None:
        save_backbone(model.backbone, made)
        if isinstance(model.backbone, GPT2Backbone):
            _write_json(made / "config.json", _gpt2_config(model.backbone, info))
        tokenizer.save(made)
        _write_json(made / "tokenizer_config.json", _tokenizer_config(tokenizer, info))
        sealed = info.model_copy(update={"sha256": checksums(made)})
        (made / LANGUAGE_FORMAT).write_text(sealed.model_dump_json(indent=1) + "\n", "utf-8")

    write_folder(folder, fill)


def read_language_info(folder: Path) -> LanguageInfo:
    """What gpt2cls_language.json says, once every file is as it says.

    Raises:
        ModelError: it is no such folder, or a file of it is missing or was altered.
    """
    path = folder / LANGUAGE_FORMAT
    try:
        info = LanguageInfo.model_validate(read_json(path))
    except ValueError as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path}: it was altered, or another version wrote it") from error
    refuse_altered(folder, LANGUAGE_FORMAT, info.sha256, required=(WEIGHTS, "config.json"))
    return info


def _gpt2_config(backbone: GPT2Backbone, info: LanguageInfo) -> dict[str, object]:
    ends = {"bos_token_id": info.end_id, "eos_token_id": info.end_id}
    kind = {"architectures": ["GPT2LMHeadModel"], "tie_word_embeddings": True}
    return config_json(backbone.config) | kind | ends


def _tokenizer_config(tokenizer: TextTokenizer, info: LanguageInfo) -> dict[str, object]:
    end = tokenizer.tokenizer.id_to_token(info.end_id)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "model_max_length": info.max_length,
    }


def _write_json(path: Path, document: dict[str, object]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
