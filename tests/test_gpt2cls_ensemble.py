"""Several models in one folder, asked as one."""

import numpy as np
import pytest
from test_gpt2cls_predict import TEXTS, saved_model

from gpt2cls.config import ModelConfig
from gpt2cls.errors import ModelError
from gpt2cls.model.backbone import build_backbone
from gpt2cls.model.folder import load_classifier, read_info, save_ensemble
from gpt2cls.predict import Predictor


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("ensemble")
    return [saved_model(root / name, seed=seed) for seed, name in enumerate(("one", "other"))]


@pytest.fixture
def ensemble(folders, tmp_path):
    save_ensemble(folders, tmp_path / "both")
    return tmp_path / "both"


def test_its_probabilities_are_the_mean_of_those_of_its_members(folders, ensemble):
    alone = [Predictor.load(folder, device="cpu").probabilities(TEXTS) for folder in folders]
    assert np.abs(alone[0] - alone[1]).max() > 0.01
    both = Predictor.load(ensemble, device="cpu")
    np.testing.assert_array_equal(both.probabilities(TEXTS), np.mean(alone, axis=0))
    assert [np.array_equal(*pair) for pair in zip(both.of_each(TEXTS), alone, strict=True)] == [
        True,
        True,
    ]
    labels = both.columns(both.probabilities(TEXTS))["label"]
    assert labels == [both.labels[i] for i in np.mean(alone, axis=0).argmax(axis=1)]


def test_it_may_hold_another_ensemble(folders, ensemble, tmp_path):
    save_ensemble([ensemble, folders[0]], tmp_path / "three")
    of_each = Predictor.load(tmp_path / "three", device="cpu").of_each(TEXTS[:3])
    assert len(of_each) == 3
    np.testing.assert_array_equal(of_each[0], of_each[2])


def test_an_altered_member_is_refused(ensemble):
    (ensemble / "member-1" / "head.safetensors").write_bytes(b"something else")
    with pytest.raises(ModelError, match=r"member-1/head\.safetensors: its checksum"):
        Predictor.load(ensemble)


def test_it_has_no_weights_of_its_own_for_others_to_build_on(ensemble):
    assert read_info(ensemble).members == ("member-0", "member-1")
    with pytest.raises(ModelError, match="an ensemble of 2 models"):
        load_classifier(ensemble)
    config = ModelConfig(backbone=str(ensemble))
    with pytest.raises(ModelError, match="an ensemble"):
        build_backbone(config, vocab_size=300, pad_id=0, max_length=21, base_dir=ensemble)
