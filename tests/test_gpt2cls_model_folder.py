"""A model folder: what comes back is what was saved, and nothing else is accepted."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt2cls.config import ModelConfig
from gpt2cls.data.bpe import train_bpe
from gpt2cls.data.cache import sha256
from gpt2cls.data.tasks import Task
from gpt2cls.data.tokenizer_source import tokenizer_of_folder
from gpt2cls.errors import ModelError
from gpt2cls.model.backbone import build_backbone
from gpt2cls.model.classifier import build_classifier
from gpt2cls.model.folder import ModelInfo, load_classifier, read_info, save_classifier

TASK = Task("multi_label", ("sport", "经济"), False)
CONFIG = ModelConfig(backbone="gpt2-tiny", pooling="attention", truncation_smoothing="learned")


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([pa.chunked_array([["hello world, good day"]])], 300)


@pytest.fixture
def model(tokenizer):
    return build_classifier(
        CONFIG,
        TASK,
        vocab_size=tokenizer.vocab_size,
        pad_id=0,
        max_length=16,
        seed=1,
        base_dir=Path(),
    ).eval()


@pytest.fixture
def folder(model, tokenizer, tmp_path):
    info = ModelInfo(
        task=TASK,
        model=CONFIG,
        text=("title", "body"),
        max_length=16,
        thresholds=[0.3, 0.6],
        vocab_size=tokenizer.vocab_size,
        pad_id=0,
    )
    save_classifier(model, tokenizer, info, tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_comes_back_equal_to_the_bit(folder, model, tokenizer):
    again, its_tokenizer, info = load_classifier(folder)
    assert (info.task, info.model, info.text) == (TASK, CONFIG, ("title", "body"))
    assert info.thresholds == [0.3, 0.6]
    assert its_tokenizer.digest == tokenizer.digest
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert not again.training


def test_loading_imports_no_transformers_and_leaves_the_callers_draws_alone(folder):
    code = f"""
import sys, pathlib, torch
from gpt2cls.model.folder import load_classifier
torch.manual_seed(0); wanted = torch.rand(1); torch.manual_seed(0)
load_classifier(pathlib.Path({str(folder)!r}))
assert torch.rand(1) == wanted
heavy = {{"transformers", "datasets", "pandas", "sklearn", "sympy"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_saving_over_a_model_replaces_the_whole_folder(folder, model, tokenizer):
    (folder / "stranger").write_text("")
    save_classifier(model, tokenizer, read_info(folder), folder)
    assert not (folder / "stranger").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    load_classifier(folder)


def test_a_failed_save_leaves_the_former_model(folder, model, tokenizer, monkeypatch):
    monkeypatch.setattr("gpt2cls.model.folder.save_file", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_classifier(model, tokenizer, read_info(folder), folder)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    load_classifier(folder)


FILES = [
    "backbone/config.json",
    "backbone/model.safetensors",
    "head.safetensors",
    "tokenizer.json",
    "tokenizer_meta.json",
]


@pytest.mark.parametrize("name", FILES)
def test_an_altered_file_is_refused_by_name(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name}: its checksum is not that of gpt2cls.json"):
        load_classifier(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_by_name(folder, name):
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"{name} is missing; copy the whole model folder"):
        load_classifier(folder)


def change(folder: Path, **values: object) -> None:
    """Alter gpt2cls.json as someone would who means harm: with checksums that fit."""
    document = json.loads((folder / "gpt2cls.json").read_text()) | values
    document["sha256"] = {name: sha256(folder / name) for name in FILES} | values.get("sha256", {})
    (folder / "gpt2cls.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": 2}, "format = 2"),
        ({"max_length": 0}, "max_length = 0"),
        ({"stranger": 1}, "stranger = 1"),
        ({"task": {"kind": "other", "labels": ["a"], "is_pair": False}}, "kind = 'other'"),
        ({"sha256": {"../outside": "0"}}, "'../outside' is outside the model folder"),
        ({"vocab_size": 10}, "tokens, but gpt2cls.json says 10"),
        ({"vocab_size": 9999}, "has 9,999 tokens, but .* embeddings for 2"),
        ({"max_length": 17}, "max_length = 17: .* 16 positions"),
        ({"thresholds": [0.5]}, "1 thresholds for 2 labels"),
        (
            {"task": {"kind": "single_label", "labels": ["a", "b", "c"], "is_pair": False}},
            "2 thresholds for 3",
        ),
    ],
    ids=[
        "format",
        "length",
        "unknown key",
        "task",
        "path outside",
        "vocabulary",
        "embeddings",
        "positions",
        "thresholds",
        "labels",
    ],
)
def test_settings_that_make_no_sense_are_refused(folder, values, message):
    change(folder, **values)
    with pytest.raises(ModelError, match=message):
        load_classifier(folder)


def test_a_pickle_in_the_place_of_the_head_is_never_run(folder):
    canary = folder / "canary"

    class Canary:
        def __reduce__(self):
            return Path.touch, (canary,)

    (folder / "head.safetensors").write_bytes(pickle.dumps(Canary()))
    change(folder)
    with pytest.raises(ModelError, match="not a sound safetensors file"):
        load_classifier(folder)
    assert not canary.exists()


def test_a_head_without_a_tensor_is_refused(folder):
    tensors = load_file(folder / "head.safetensors")
    del tensors["head.linear.bias"]
    save_file(tensors, folder / "head.safetensors")
    change(folder)
    with pytest.raises(ModelError, match="does not fit the settings"):
        load_classifier(folder)


def test_another_folder_is_no_model_folder(tmp_path):
    with pytest.raises(ModelError, match=r"has no gpt2cls\.json; is this a model folder"):
        load_classifier(tmp_path)


def test_a_model_folder_serves_as_the_backbone_of_the_next_model(folder, model, tokenizer):
    config = ModelConfig(backbone=str(folder))
    backbone = build_backbone(
        config, vocab_size=tokenizer.vocab_size, pad_id=0, max_length=16, base_dir=Path()
    )
    assert torch.equal(backbone.wte.weight, model.backbone.wte.weight)
    assert tokenizer_of_folder(folder).digest == tokenizer.digest


def test_a_model_on_a_backbone_of_transformers_is_saved_and_read_back(tmp_path, tokenizer, capfd):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    llama = transformers.LlamaConfig(**sizes, **heads, vocab_size=300, max_position_embeddings=32)
    transformers.LlamaModel(llama).save_pretrained(tmp_path / "llama")
    capfd.readouterr()
    config = ModelConfig(backbone=str(tmp_path / "llama"), pooling="mean")
    size = {"vocab_size": tokenizer.vocab_size, "pad_id": 0, "max_length": 16}
    model = build_classifier(config, TASK, **size, seed=1, base_dir=Path()).eval()
    info = ModelInfo(task=TASK, model=config, **size)
    save_classifier(model, tokenizer, info, tmp_path / "model")
    again, _, _ = load_classifier(tmp_path / "model")
    batch = torch.randint(0, 250, (2, 5)), torch.tensor([3, 5]), torch.zeros(2)
    with torch.no_grad():
        assert torch.equal(again(*batch), model(*batch))
    assert capfd.readouterr() == ("", "")
