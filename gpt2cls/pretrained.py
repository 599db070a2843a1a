"""Find the folder of a pretrained backbone or tokenizer, and read weights from it safely.

Weights come from safetensors files only: a pickle can run code while it is being read.
Knows the Hugging Face layout of a folder; knows no architecture.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from gpt2cls.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
OUR_FORMAT = "gpt2cls.json"  # marks a model folder of this project (see folder.py)
LANGUAGE_FORMAT = "gpt2cls_language.json"  # marks a language model of this project
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_MAX_JSON_BYTES = 256 * 2**20


def find_pretrained(name: str, *, base_dir: Path, field: str) -> Path:
    """The local folder of `name`: a folder (relative to `base_dir`), or a Hugging Face name.

    A name is downloaded once into Hugging Face's own cache, without pickles and code.

    Raises:
        ModelError: there is no such folder, or the name cannot be fetched.
    """
    folder = base_dir / Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{field} = {name!r}: {folder} is a file; give the folder that holds it")
    if not _HUB_NAME.fullmatch(name):
        raise ModelError(
            f"{field} = {name!r}: no such folder ({folder}), and not a Hugging Face name "
            "(owner/name). Give a folder, a Hugging Face name, or a built-in shape."
        )
    return _download(name, folder, field)


def _download(name: str, folder: Path, field: str) -> Path:
    import huggingface_hub as hub

    try:
        return Path(hub.snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # it lets through whatever the network layer raises
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelError(
            f"{field} = {name!r}: no folder {folder}, and the Hugging Face Hub did not give it: "
            f"{reason} Check the name and the network, or download the model elsewhere "
            f"(hf download {name}) and give its folder."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; anything else is a ModelError that names the file."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ModelError(f"{path}: larger than {_MAX_JSON_BYTES:,} bytes; not a settings file")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path.parent}: has no {path.name}; is this a model folder?") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds {type(value).__name__} where a JSON object belongs")
    return value


def whole_number(raw: dict[str, Any], key: str, *, where: Path, least: int = 1) -> int:
    """The size by the name `key` in a config.json; `where` is told if it is none."""
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
        raise ModelError(f"{where}: {key} = {value!r}: must be a whole number from {least}")
    return value


def objective_of(folder: Path) -> str | None:
    """What a language model of ours has learned; None: the folder is of another kind."""
    path = folder / LANGUAGE_FORMAT
    return str(read_json(path).get("objective")) if path.is_file() else None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a Hugging Face folder, each checked for a sound header."""
    files = _listed_files(folder)
    for file in files:
        tensor_names(file)
    return files


def _listed_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX).get("weight_map")
        names = sorted(set(index.values())) if isinstance(index, dict) else []
        if not names or any(not isinstance(n, str) or Path(n).name != n for n in names):
            raise ModelError(f"{folder / INDEX}: weight_map must name files of the same folder")
        return [folder / name for name in names]
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder}: has weights only as a pickle ({pickles[0]}), which can run code when read, "
            "and is not opened. Convert it where you trust it: AutoModel.from_pretrained(folder)"
            ".save_pretrained(new_folder) writes model.safetensors."
        )
    raise ModelError(f"{folder}: has no {WEIGHTS}; is this a model folder?")


def tensor_names(file: Path) -> list[str]:
    """The names in a safetensors file; its header is checked, no tensor is read."""
    with _opened(file) as tensors:
        return list(tensors.keys())


def read_tensors(file: Path) -> Iterator[tuple[str, "Tensor"]]:
    """Every tensor of the file, one at a time, as a copy that no longer needs the file."""
    with _opened(file) as tensors:
        for name in tensors.keys():  # noqa: SIM118 - it is no mapping
            yield name, tensors.get_tensor(name).clone()


def fitting_tensors(
    folder: Path,
    files: list[Path],
    wanted: dict[str, tuple[int, ...]],
    our_name: Callable[[str], str] = str,
) -> "dict[str, Tensor]":
    """The tensors of the files that have the names and shapes `wanted`, as float32.

    Args:
        folder: is named where something is missing.
        files: hold other tensors as well, which are passed over.
        wanted: the shape of every tensor.
        our_name: of a tensor, from that in a file.

    Raises:
        ModelError: a tensor is missing or of another shape.
    """
    found = {}
    for file in files:
        for full_name, tensor in read_tensors(file):
            name = our_name(full_name)
            if name not in wanted:
                continue  # an lm_head, a score, an old causal mask
            if tensor.shape != wanted[name]:
                raise ModelError(
                    f"{file}: {full_name} is {list(tensor.shape)}; config.json asks for "
                    f"{list(wanted[name])}; the files do not belong together"
                )
            found[name] = tensor.float()
    if missing := sorted(set(wanted) - set(found)):
        raise ModelError(f"{folder}: {len(missing)} tensors are missing, the first is {missing[0]}")
    return found


def write_tensors(model: "nn.Module", file: Path) -> None:
    """Every tensor of `model` in a safetensors file, as float32."""
    from safetensors.torch import save_file

    tensors = {
        name: t.detach().float().cpu().contiguous() for name, t in model.state_dict().items()
    }
    save_file(tensors, file, metadata={"format": "pt"})


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file}: not a sound safetensors file: {error}. "
            "Copy it again from where it came from; a pickle by that name is not opened."
        ) from error
