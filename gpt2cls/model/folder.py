"""A classifier on disk: what prediction needs, and nothing that runs code when it is read.

gpt2cls.json           ModelInfo: the task, the settings, a checksum of every other file
backbone/              config.json and model.safetensors, as transformers writes them
head.safetensors       pooling and head
tokenizer.json         and tokenizer_meta.json

An ensemble is a folder with such a folder for each member, and a gpt2cls.json that names them.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from safetensors.torch import save_file

from gpt2cls.config import ModelConfig
from gpt2cls.data.cache import sha256
from gpt2cls.data.tasks import Task
from gpt2cls.data.tokenizer import FILE, META, TextTokenizer
from gpt2cls.errors import ModelError
from gpt2cls.model.backbone import check_fits, load_backbone, save_backbone
from gpt2cls.model.classifier import Classifier, with_new_head
from gpt2cls.model.head import AdaptiveHead
from gpt2cls.pretrained import OUR_FORMAT, WEIGHTS, objective_of, read_json, read_tensors

HEAD = "head.safetensors"
REQUIRED = (f"backbone/{WEIGHTS}", "backbone/config.json", HEAD, FILE, META)


def _task_from_json(value: Any) -> Any:
    return Task.from_json(value) if isinstance(value, dict) else value


class ModelInfo(BaseModel):
    """What gpt2cls.json says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    task: Annotated[Task, BeforeValidator(_task_from_json)]
    model: ModelConfig
    text: str | tuple[str, str] = "text"
    """The column, or the two columns of a pair."""
    choices: str | None = None
    """The column of the answers to choose from."""
    max_length: int = Field(ge=1)
    thresholds: list[float] | None = None
    """Of each label of a multi-label task; None: 0.5."""
    vocab_size: int = Field(ge=1)
    pad_id: int = Field(ge=0)
    members: tuple[str, ...] = ()
    """Folders of the models whose probabilities are averaged; none: this is one model."""
    sha256: dict[str, str] = {}
    """Of each file; filled in by `save_classifier`."""

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that a prediction reads, that of the answers last."""
        texts = (self.text,) if isinstance(self.text, str) else self.text
        return texts if self.choices is None else (*texts, self.choices)

    @model_validator(mode="after")
    def _every_label_has_a_threshold(self) -> "ModelInfo":
        if self.thresholds is not None and len(self.thresholds) != len(self.task.labels):
            num_labels = len(self.task.labels)
            raise ValueError(f"{len(self.thresholds)} thresholds for {num_labels} labels")
        return self


def save_classifier(
    model: Classifier, tokenizer: TextTokenizer, info: ModelInfo, folder: Path
) -> None:
    """Write the model folder; under its name it is whole, or not there, or the former one."""

    def fill(made: Path) -> None:
        save_backbone(model.backbone, made / "backbone")
        save_file(_head_tensors(model), made / HEAD, metadata={"format": "pt"})
        tokenizer.save(made)
        sealed = info.model_copy(update={"sha256": checksums(made)})
        (made / OUR_FORMAT).write_text(sealed.model_dump_json(indent=1) + "\n", encoding="utf-8")

    write_folder(folder, fill)


def save_ensemble(members: Sequence[Path], folder: Path) -> None:
    """Write copies of model folders as one; what it says of its task is what the first one says."""
    names = tuple(f"member-{i}" for i in range(len(members)))

    def fill(made: Path) -> None:
        for name, member in zip(names, members, strict=True):
            shutil.copytree(member, made / name)
        info = read_info(members[0]).model_copy(
            update={"members": names, "sha256": checksums(made)}
        )
        (made / OUR_FORMAT).write_text(info.model_dump_json(indent=1) + "\n", encoding="utf-8")

    write_folder(folder, fill)


def members_of(folder: Path) -> list[Path]:
    """The folders of the members of an ensemble, of members that are ensembles theirs.

    Empty: the folder holds one model.

    Raises:
        ModelError: a file is missing or was altered.
    """
    info = read_info(folder)
    if not info.members:
        return []
    pages = tuple(f"{name}/{OUR_FORMAT}" for name in info.members)
    refuse_altered(folder, OUR_FORMAT, info.sha256, required=pages)
    inner = [folder / name for name in info.members]
    return [each for member in inner for each in members_of(member) or [member]]


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Put what `fill` writes in the place of `folder`, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    made = aside / "model"
    try:
        fill(made)
        if folder.exists():
            os.rename(folder, aside / "former")
        os.rename(made, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def checksums(folder: Path) -> dict[str, str]:
    """Of every file in it, by its path."""
    return {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def load_classifier(folder: Path) -> tuple[Classifier, TextTokenizer, ModelInfo]:
    """Read a model folder, on the CPU and in evaluation mode.

    Raises:
        ModelError: it is no model folder, or a file of it is missing or was altered.
    """
    info = read_info(folder)
    if info.members:
        raise ModelError(
            f"{folder}: is an ensemble of {len(info.members)} models, which has no weights of its "
            f"own; give one of its members, such as {folder / info.members[0]}"
        )
    refuse_altered(folder, OUR_FORMAT, info.sha256, required=REQUIRED)
    tokenizer = TextTokenizer.load(folder)
    if tokenizer.vocab_size > info.vocab_size:
        raise ModelError(
            f"{folder / FILE}: has {tokenizer.vocab_size:,} tokens, but {OUR_FORMAT} says "
            f"{info.vocab_size:,}; the files do not belong together"
        )
    backbone = load_backbone(folder / "backbone", dropout=info.model.dropout, pad_id=info.pad_id)
    check_fits(backbone, str(folder), vocab_size=info.vocab_size, max_length=info.max_length)
    with torch.random.fork_rng(devices=[]):  # the draws are overwritten; the caller's stay
        model = with_new_head(backbone, info.model, info.task)
    _load_head(model, folder / HEAD)
    return model.eval(), tokenizer, info


def read_info(folder: Path) -> ModelInfo:
    """What gpt2cls.json says, without a look at the other files."""
    path = folder / OUR_FORMAT
    if not path.exists() and objective_of(folder) is not None:
        raise ModelError(
            f"{folder}: is a language model, which knows no labels; give it to a finetune job as "
            "model.backbone"
        )
    document = read_json(path)
    try:
        return ModelInfo.model_validate(document)
    except ValidationError as error:
        fault = error.errors()[0]
        where = "".join(f"{part} = {fault['input']!r}: " for part in fault["loc"][-1:])
        raise ModelError(
            f"{path}: {where}{fault['msg']}; it was altered, or another version wrote it"
        ) from error


def refuse_altered(
    folder: Path, page: str, sums: dict[str, str], *, required: tuple[str, ...]
) -> None:
    """Compare every file with the checksum that the folder's own page has of it.

    Raises:
        ModelError: names the first file that is missing or was altered.
    """
    for name in required:
        if name not in sums:
            raise ModelError(f"{folder / page}: has no checksum of {name}")
    for name, wanted in sums.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelError(f"{folder / page}: {name!r} is outside the model folder")
        if not path.is_file():
            raise ModelError(f"{folder}: {name} is missing; copy the whole model folder again")
        if sha256(path) != wanted:
            raise ModelError(
                f"{path}: its checksum is not that of {page}: the file was altered or cut "
                "short after the model was saved; copy the whole model folder again"
            )


def _head_tensors(model: Classifier) -> dict[str, torch.Tensor]:
    return {
        name: _as_stored(tensor.detach()).cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith("backbone.")
    }


def _as_stored(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _load_head(model: Classifier, file: Path) -> None:
    found = dict(read_tensors(file))
    wanted = _head_tensors(model)
    shapes = {name: list(tensor.shape) for name, tensor in found.items()}
    if shapes != {name: list(tensor.shape) for name, tensor in wanted.items()}:
        raise ModelError(f"{file}: holds {shapes}, which does not fit the settings in {OUR_FORMAT}")
    model.load_state_dict(found, strict=False)
    if isinstance(model.head, AdaptiveHead) and not model.head.has_sound_places():
        raise ModelError(f"{file}: head.place_C does not give every label a place of its own")
