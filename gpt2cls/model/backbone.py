"""The network below the classifier: a built-in shape, a folder of ours, or any AutoModel.

Every backbone has `width`, `blocks` (groups of layers from the bottom to the top) and
`forward(tokens_BT, lengths_B) -> hidden_BTD`, with padding on the right. It is cut below layer i
by `from_block(up_to_block(tokens, lengths, i), lengths, i)`, which is `forward`; of an AutoModel
that has to be tried.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from gpt2cls.config import BUILTIN_SHAPES, ModelConfig
from gpt2cls.data.tokenizer import reads_backward
from gpt2cls.errors import ModelError
from gpt2cls.model.auto import DROPOUTS, AutoBackbone, text_config
from gpt2cls.model.awd_lstm import EMBEDDING_BOUND, AwdLstm, AwdLstmConfig, init_awd_lstm
from gpt2cls.model.awd_lstm_folder import MODEL_TYPE, load_awd_lstm, save_awd_lstm
from gpt2cls.model.gpt2 import GPT2Backbone, GPT2Config, init_gpt2
from gpt2cls.model.gpt2_folder import is_our_gpt2, load_gpt2, save_gpt2
from gpt2cls.pretrained import (
    OUR_FORMAT,
    find_pretrained,
    read_json,
    weight_files,
)

SHAPES = {  # layers, width, heads
    "gpt2-tiny": (2, 64, 2),
    "gpt2-mini": (4, 256, 4),
    "gpt2-small": (12, 768, 12),
}
LSTM_SHAPES = {  # width, hidden, layers
    "awd-lstm-tiny": (128, 256, 2),
    "awd-lstm": (400, 1150, 3),
}
assert {*SHAPES, *LSTM_SHAPES} == set(BUILTIN_SHAPES)

_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx")


OurBackbone = GPT2Backbone | AwdLstm
"""Its token embedding `wte` is also its output as a language model."""
Backbone = OurBackbone | AutoBackbone


def build_backbone(
    model: ModelConfig,
    *,
    vocab_size: int,
    pad_id: int,
    max_length: int,
    base_dir: Path,
    objective: str | None = None,
    num_new: int = 0,
) -> Backbone:
    """The backbone that `model` names; a built-in shape draws from torch's global generator.

    Args:
        model: names it.
        vocab_size: of the tokenizer.
        pad_id: of the tokenizer.
        max_length: tokens of the longest text.
        base_dir: what a relative path is taken from.
        objective: causal or backward: in which order it will be given tokens; None: in its own.
        num_new: ids at the end of the vocabulary that it may lack: it gets new rows for them.

    Raises:
        ModelError: it cannot be had, or `max_length` or the tokenizer do not fit it.
    """
    if model.backbone in SHAPES:
        return _new_gpt2(model.backbone, vocab_size, max_length, model.dropout)
    if model.backbone in LSTM_SHAPES:
        return _new_awd_lstm(model.backbone, vocab_size, model.dropout)
    folder = find_pretrained(model.backbone, base_dir=base_dir, field="model.backbone")
    if objective is not None:
        _refuse_other_direction(folder, model.backbone, objective)
    if (folder / OUR_FORMAT).is_file():
        if not (folder / "backbone").is_dir():
            raise ModelError(
                f"model.backbone = {model.backbone!r}: is an ensemble, without a backbone of "
                "its own; give one of its members"
            )
        folder = folder / "backbone"
    backbone = load_backbone(folder, dropout=model.dropout, pad_id=pad_id)
    if isinstance(backbone, GPT2Backbone) and not backbone.h and model.head != "encdec":
        raise ModelError(
            f"model.backbone = {model.backbone!r}: holds embeddings and no layers, as a model with "
            "model.head = encdec does; set model.head to encdec, or take another backbone"
        )
    check_fits(
        backbone,
        f"model.backbone = {model.backbone!r}",
        vocab_size=vocab_size - num_new,
        max_length=max_length,
    )
    if vocab_size > _limits(backbone)[0]:
        _add_rows(backbone, vocab_size)
    return backbone


def _add_rows(backbone: Backbone, vocab_size: int) -> None:
    """Embeddings of new tokens, drawn as those of a new network are."""
    if isinstance(backbone, AutoBackbone):
        # Not around the mean of the old rows, which is how transformers does it unless told.
        backbone.model.resize_token_embeddings(vocab_size, mean_resizing=False)
        return
    old = backbone.wte.weight.detach()
    new = torch.empty(vocab_size - len(old), old.shape[1])
    if isinstance(backbone, AwdLstm):
        new.uniform_(-EMBEDDING_BOUND, EMBEDDING_BOUND)
    else:
        new.normal_(std=0.02)
    backbone.wte = nn.Embedding(vocab_size, old.shape[1], _weight=torch.cat([old, new]))
    backbone.config = replace(backbone.config, vocab_size=vocab_size)


def _refuse_other_direction(folder: Path, name: str, objective: str) -> None:
    found = "backward" if reads_backward(folder) else "causal"
    if found != objective:
        raise ModelError(
            f"model.backbone = {name!r}: it was trained with train.objective = {found}, and would "
            f"be given texts in the other order; set train.objective to {found}"
        )


def check_fits(backbone: Backbone, name: str, *, vocab_size: int, max_length: int) -> None:
    """Refuse a tokenizer or a length of texts that is too large for the backbone's tables."""
    vocabulary, positions = _limits(backbone)
    if vocab_size > vocabulary:
        raise ModelError(
            f"model.tokenizer has {vocab_size:,} tokens, but {name} "
            f"has embeddings for {vocabulary:,}; leave model.tokenizer out to use its own"
        )
    if positions is not None and max_length > positions:
        raise ModelError(
            f"data.max_length = {max_length}: {name} has "
            f"{positions} positions; set data.max_length to {positions} or less"
        )


def _new_gpt2(shape: str, vocab_size: int, max_length: int, dropout: float) -> GPT2Backbone:
    layers, width, heads = SHAPES[shape]
    config = GPT2Config(
        vocab_size=vocab_size,
        positions=max_length,
        width=width,
        layers=layers,
        heads=heads,
        inner=4 * width,
    )
    backbone = GPT2Backbone(config, dropout=dropout)
    init_gpt2(backbone)
    return backbone


def _new_awd_lstm(shape: str, vocab_size: int, dropout: float) -> AwdLstm:
    width, hidden, layers = LSTM_SHAPES[shape]
    backbone = AwdLstm(AwdLstmConfig(vocab_size, width, hidden, layers), dropout=dropout)
    init_awd_lstm(backbone)
    return backbone


def load_backbone(folder: Path, *, dropout: float, pad_id: int) -> Backbone:
    """Read a backbone from a folder; transformers is imported only if it is none of ours."""
    raw = read_json(folder / "config.json")
    if is_our_gpt2(raw):
        return load_gpt2(folder, dropout=dropout)
    if raw.get("model_type") == MODEL_TYPE:
        return load_awd_lstm(folder, dropout=dropout)
    weight_files(folder)  # refuses pickles and damaged headers before transformers sees them
    return _load_auto(folder, dropout, pad_id)


def _load_auto(folder: Path, dropout: float, pad_id: int) -> AutoBackbone:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        for key in DROPOUTS:
            if isinstance(getattr(config, key, None), float | int):
                setattr(config, key, dropout)
        config.pad_token_id = pad_id
        model = transformers.AutoModel.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
        )
    except Exception as error:  # a library for hundreds of architectures raises anything
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"{folder}: transformers cannot load this model: {type(error).__name__}: {reason}. "
            "It must be a text model that AutoModel knows, without code of its own."
        ) from error
    return AutoBackbone(model)


def save_backbone(backbone: Backbone, folder: Path) -> None:
    """Write config.json and one safetensors file, but for an AWD-LSTM in Hugging Face's format."""
    if isinstance(backbone, GPT2Backbone):
        save_gpt2(backbone, folder)
    elif isinstance(backbone, AwdLstm):
        save_awd_lstm(backbone, folder)
    else:
        backbone.model.save_pretrained(folder, max_shard_size="100TB")


def _limits(backbone: Backbone) -> tuple[int, int | None]:
    """The size of the vocabulary and the number of positions (None: no limit known)."""
    if isinstance(backbone, GPT2Backbone):
        return backbone.config.vocab_size, backbone.config.positions
    if isinstance(backbone, AwdLstm):
        return backbone.config.vocab_size, None
    config = text_config(backbone.model.config)
    positions = [getattr(config, name, None) for name in _POSITIONS]
    vocabulary = backbone.model.get_input_embeddings().num_embeddings
    return vocabulary, next((p for p in positions if isinstance(p, int) and p > 0), None)
