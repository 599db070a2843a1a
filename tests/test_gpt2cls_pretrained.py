"""Model files from strangers: nothing is run, nothing large is allocated, every fault is named."""

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gpt2cls.errors import ModelError
from gpt2cls.model.backbone import load_backbone
from gpt2cls.pretrained import find_pretrained, weight_files

GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 5}


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def safetensors_bytes(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start: int, stop: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": [(stop - start) // 4], "data_offsets": [start, stop]}


MALFORMED = {
    "a header of 2^63 bytes": safetensors_bytes({}, length=2**63),
    "overlapping tensors": safetensors_bytes({"a": tensor(0, 8), "b": tensor(4, 12)}, b"x" * 12),
    "a tensor beyond the end": safetensors_bytes({"a": tensor(0, 2**40)}, b"x" * 8),
    "a truncated file": safetensors_bytes({"a": tensor(0, 8)}, b"x" * 8)[:-3],
    "a shape larger than its data": safetensors_bytes(
        {"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 8]}}, b"x" * 8
    ),
    "no header": b"hello",
    "nothing": b"",
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_malformed_safetensors_are_refused(tmp_path, content, model_type):
    (tmp_path / "config.json").write_text(json.dumps(GPT2 | {"model_type": model_type}))
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors: not a sound safetensors file"):
        load_backbone(tmp_path, dropout=0.0, pad_id=0)


def test_a_pickle_named_safetensors_is_refused_and_never_run(tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(ModelError, match="a pickle by that name is not opened"):
        load_backbone(tmp_path, dropout=0.0, pad_id=0)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_folder_with_only_a_pickle_is_refused_with_the_way_out(tmp_path, name):
    canary = tmp_path / "canary"
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    torch.save({"wte.weight": Canary(canary)}, tmp_path / name)
    with pytest.raises(ModelError, match=f"pickle \\({name}\\).*save_pretrained"):
        load_backbone(tmp_path, dropout=0.0, pad_id=0)
    assert not canary.exists()


def test_an_index_may_not_name_files_elsewhere(tmp_path):
    index = {"weight_map": {"wte.weight": "../other.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="must name files of the same folder"):
        weight_files(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    index = {"weight_map": {"wte.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="model-00001-of-00002"):
        weight_files(tmp_path)


def test_tensors_that_are_missing_are_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    save_file({"h.0.ln_1.weight": torch.ones(8)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"15 tensors are missing, the first is h.0.attn"):
        load_backbone(tmp_path, dropout=0.0, pad_id=0)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        load_backbone(tmp_path, dropout=0.0, pad_id=0)


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    canary = tmp_path / "canary"
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModel": "mine.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text(f"open({str(canary)!r}, 'w')\n")
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="without code of its own"):
        load_backbone(tmp_path, dropout=0.0, pad_id=0)
    assert not canary.exists()


def test_a_folder_is_found_relative_to_the_job_file(tmp_path):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    found = find_pretrained("models/mine", base_dir=tmp_path, field="model.backbone")
    assert found == tmp_path / "models" / "mine"


@pytest.mark.parametrize(
    "name",
    [
        "./missing",
        "/no/such/folder",
        "file:///etc/passwd",
        "http://169.254.169.254",
        "a/b/c",
        "../x",
    ],
)
def test_what_is_neither_a_folder_nor_a_name_is_refused_without_a_request(tmp_path, name):
    with pytest.raises(ModelError, match=r"model\.backbone = .* not a Hugging Face name"):
        find_pretrained(name, base_dir=tmp_path, field="model.backbone")


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "gpt2").write_text("")
    with pytest.raises(ModelError, match="is a file; give the folder"):
        find_pretrained("gpt2", base_dir=tmp_path, field="model.backbone")


def test_a_name_that_cannot_be_fetched_says_what_to_do(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    name = "gpt2cls-tests/no-such-model"
    with pytest.raises(
        ModelError, match=r"model.backbone = 'gpt2cls-tests/no-such-model'.*hf downl"
    ):
        find_pretrained(name, base_dir=tmp_path, field="model.backbone")
