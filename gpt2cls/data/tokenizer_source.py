"""Which tokenizer a model takes: the backbone's own, another folder's, or one trained here."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from gpt2cls.config import BUILTIN_SHAPES, ModelConfig, TrainedTokenizer
from gpt2cls.data.bpe import END, trained_tokenizer
from gpt2cls.data.tasks import Split
from gpt2cls.data.tokenizer import (
    FILE,
    META,
    TextTokenizer,
    read_tokenizer,
    reads_backward,
    with_gpt1_tokens,
)
from gpt2cls.errors import ModelError
from gpt2cls.pretrained import find_pretrained, read_json


def get_tokenizer(
    model: ModelConfig,
    train: Split,
    *,
    cache_dir: Path,
    base_dir: Path,
    special_tokens: str = "none",
) -> TextTokenizer:
    """The tokenizer that `model` asks for; a trained one is made once per set of texts."""
    tokenizer = _plain_tokenizer(model, train, cache_dir, base_dir)
    return with_gpt1_tokens(tokenizer) if special_tokens == "gpt1" else tokenizer


def _plain_tokenizer(
    model: ModelConfig, train: Split, cache_dir: Path, base_dir: Path
) -> TextTokenizer:
    wanted = model.tokenizer
    is_builtin = model.backbone in BUILTIN_SHAPES
    if wanted is None and is_builtin:
        wanted = TrainedTokenizer()
    if isinstance(wanted, TrainedTokenizer):
        if not is_builtin:
            raise ModelError(
                f"model.tokenizer = {{train: {wanted.train}}}: the embeddings of model.backbone = "
                f"{model.backbone!r} belong to its own vocabulary; leave model.tokenizer out, or "
                f"choose one of {', '.join(BUILTIN_SHAPES)}"
            )
        return trained_tokenizer(wanted.train, train, cache_dir)
    field_name = "model.backbone" if wanted is None else "model.tokenizer"
    folder = find_pretrained(wanted or model.backbone, base_dir=base_dir, field=field_name)
    tokenizer = tokenizer_of_folder(folder)
    if is_builtin:
        return replace(tokenizer, is_backward=False)
    # The weights say in which order they read, whoever made the tokenizer.
    backbone = find_pretrained(model.backbone, base_dir=base_dir, field="model.backbone")
    return replace(tokenizer, is_backward=reads_backward(backbone))


def tokenizer_of_folder(folder: Path) -> TextTokenizer:
    """The tokenizer of a model folder of ours, or of a Hugging Face folder."""
    if (folder / META).is_file():
        return TextTokenizer.load(folder)
    is_fast = (folder / FILE).is_file()
    tokenizer = read_tokenizer(folder / FILE) if is_fast else _converted(folder)
    tokenizer.encode_special_tokens = False
    tokenizer.no_truncation()
    tokenizer.no_padding()
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    special = _special_ids(tokenizer, folder)
    eos = _first(special, ("eos_token", "sep_token", "pad_token", "bos_token"), default=0)
    return TextTokenizer(
        tokenizer,
        pad_id=_first(special, ("pad_token",), default=eos),
        sep_id=_first(special, ("sep_token",), default=eos),
        prefix=tuple(whole[:start]),
        suffix=tuple(whole[start + len(bare) :]),
        source=str(folder),
    )


def _converted(folder: Path) -> Tokenizer:
    """The tokenizer of a folder in one of the older layouts, by way of transformers."""
    import transformers

    try:
        loaded = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    except Exception as error:  # dozens of tokenizer classes raise anything
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"{folder}: has no {FILE}, and transformers cannot make one: {reason}. "
            "Give a folder with tokenizer.json in model.tokenizer."
        ) from error


def _special_ids(tokenizer: Tokenizer, folder: Path) -> dict[str, int]:
    """The ids of the special tokens that the folder's settings name."""
    named: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            named |= read_json(folder / file)
    contents = {
        key: v["content"] if isinstance(v, dict) and "content" in v else v
        for key, v in named.items()
    }
    ids = {
        key: tokenizer.token_to_id(value)
        for key, value in contents.items()
        if key.endswith("_token") and isinstance(value, str)
    }
    ids.setdefault("eos_token", tokenizer.token_to_id(END))  # GPT-2's folders may name none
    return {key: value for key, value in ids.items() if value is not None}


def _first(ids: dict[str, int], keys: tuple[str, ...], *, default: int) -> int:
    return next((ids[key] for key in keys if key in ids), default)
