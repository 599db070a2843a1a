import re

import numpy as np
import pytest

from jobs.package import ModelDoesNotReload, _difference, refuse_unknown_files, requirements


def test_requirements_are_exact_and_known_to_every_index():
    for line in requirements(is_generic=True):
        assert re.fullmatch(r"[a-z]+==[0-9][0-9a-z.]*", line)


def test_transformers_is_asked_for_only_where_it_is_used():
    extra = set(requirements(is_generic=True)) - set(requirements(is_generic=False))
    assert [line.partition("==")[0] for line in extra] == ["transformers"]


@pytest.mark.parametrize("name", ["weights.pkl", "model.bin", "model.pt", "run.sh", "noending"])
def test_a_file_that_could_run_is_not_packaged(tmp_path, name):
    (tmp_path / "deep").mkdir()
    (tmp_path / "MLmodel").write_text("")
    (tmp_path / "deep" / "head.safetensors").write_text("")
    refuse_unknown_files(tmp_path)
    (tmp_path / "deep" / name).write_text("")
    with pytest.raises(ModelDoesNotReload, match=f"deep/{name}"):
        refuse_unknown_files(tmp_path)


def test_a_link_is_not_packaged(tmp_path):
    (tmp_path / "secret.json").symlink_to("/etc/hostname")
    with pytest.raises(ModelDoesNotReload, match=r"secret\.json"):
        refuse_unknown_files(tmp_path)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([[0.5, 0.5], [0.1, 0.9]], "1 of 2 predictions"),
        ([[0.5, 0.5], [np.nan, 0.8]], "1 of 2 predictions"),
        ([[0.5, 0.5]], "probabilities after reloading"),
    ],
)
def test_other_predictions_than_the_trainers_are_refused(found, words):
    expected = np.array([[0.5, 0.5], [0.2, 0.8]])
    with pytest.raises(ModelDoesNotReload, match=words):
        _difference("models:/m-1", np.array(found), expected, 1e-4)
