"""Checkpoints under damage: the table of what a disk and a kill can do to them."""

import json
import resource
import shutil

import pytest
import torch

from gpt2cls.errors import CheckpointError
from gpt2cls.training.checkpoint import (
    find_checkpoint,
    not_needed,
    read_whole,
    remove_half_written,
    save_checkpoint,
    write_whole,
)

TENSORS = {"model": {"w": torch.arange(6.0).view(2, 3)}, "optimizer": {"w:step": torch.ones(())}}


def save(root, step, best_step=None, job="job-1", tensors=TENSORS):
    best = {"step": best_step} if best_step else None
    return save_checkpoint(root, step, tensors, {"job": job, "best": best})


def steps(root):
    return sorted(int(path.name.removeprefix("step-")) for path in root.glob("step-*"))


def test_what_was_saved_is_read_back_equal(tmp_path):
    save(tmp_path, 120, best_step=120)
    found, notes = find_checkpoint(tmp_path, "job-1")
    assert (found.step, found.state["best"], notes) == (120, {"step": 120}, [])
    for name, tensors in TENSORS.items():
        for key, tensor in found.tensors(name).items():
            assert torch.equal(tensor, tensors[key])


def test_without_checkpoints_there_is_nothing_to_say(tmp_path):
    assert find_checkpoint(tmp_path / "none", "job-1") == (None, [])


def flip_a_bit(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def cut_short(folder):
    content = (folder / "optimizer.safetensors").read_bytes()
    (folder / "optimizer.safetensors").write_bytes(content[:-4])


DAMAGES = {
    "a flipped bit": (flip_a_bit, "model.safetensors does not match its checksum"),
    "a file cut short": (cut_short, "optimizer.safetensors does not match its checksum"),
    "a missing file": (lambda f: (f / "state.json").unlink(), "state.json is missing"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "never completed"),
    "an empty manifest": (lambda f: (f / "manifest.json").write_text(""), "cannot be read"),
    "a manifest of something else": (
        lambda f: (f / "manifest.json").write_text("[1]"),
        "cannot be read",
    ),
    "a changed state": (
        lambda f: (f / "state.json").write_text('{"step": 9}'),
        "state.json does not match",
    ),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_newest_is_passed_over_for_the_one_before(tmp_path, damage, words):
    save(tmp_path, 10)
    damage(save(tmp_path, 20))
    found, (note,) = find_checkpoint(tmp_path, "job-1")
    assert found.step == 10
    assert note.startswith("checkpoint of step 20 is damaged (") and words in note


def test_when_all_are_damaged_training_does_not_silently_begin_again(tmp_path):
    for step in (10, 20):
        flip_a_bit(save(tmp_path, step))
    with pytest.raises(CheckpointError, match=r"step 20 .* step 10 .*delete this folder"):
        find_checkpoint(tmp_path, "job-1")


def test_checkpoints_of_another_job_or_version_are_refused(tmp_path):
    folder = save(tmp_path, 10, job="job-2")
    with pytest.raises(CheckpointError, match="'job-2', this job's 'job-1'"):
        find_checkpoint(tmp_path, "job-1")
    write_whole(folder, TENSORS, {"format": 99, "step": 10, "job": "job-1"})
    with pytest.raises(CheckpointError, match="format 99, this version reads format 1"):
        find_checkpoint(tmp_path, "job-1")


RETENTION = {
    "the newest two stay": ({1: None, 2: None, 3: None}, [1]),
    "the best of the newest stays": ({1: 1, 2: 1, 3: 1, 4: 1}, [2]),
    "the best of the one before stays": ({1: 1, 2: 1, 3: 3, 4: 3, 5: 5}, [1, 2]),
    "the newest is the best": ({1: 1, 2: 2, 3: 3}, [1]),
    "a single one": ({1: 1}, []),
    "nothing": ({}, []),
}


@pytest.mark.parametrize(("references", "expected"), RETENTION.values(), ids=RETENTION.keys())
def test_only_what_a_resume_may_need_is_kept(references, expected):
    assert not_needed(references) == expected


def test_saving_deletes_what_nothing_needs(tmp_path):
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 2)):
        save(tmp_path, step, best)
    assert steps(tmp_path) == [2, 4, 5]


def test_a_step_saved_again_replaces_its_damaged_checkpoint(tmp_path):
    flip_a_bit(save(tmp_path, 10))
    save(tmp_path, 10)
    assert find_checkpoint(tmp_path, "job-1")[0].step == 10
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]


def test_half_written_folders_are_cleared_and_never_taken_for_whole_ones(tmp_path):
    whole = save(tmp_path, 10)
    shutil.copytree(whole, tmp_path / ".step-00000020.writing")
    assert find_checkpoint(tmp_path, "job-1")[0].step == 10
    remove_half_written(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path):
    save(tmp_path, 10).rename(tmp_path / ".step-00000010.old")
    remove_half_written(tmp_path)
    assert find_checkpoint(tmp_path, "job-1")[0].step == 10


@pytest.fixture
def small_files_only():
    """The system refuses to write beyond 64 KiB of a file, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_last_good_checkpoint_and_says_how_much_is_free(
    tmp_path, small_files_only
):
    save(tmp_path, 10)
    large = {"model": {"w": torch.zeros(100_000)}}
    with pytest.raises(CheckpointError, match=r"storage full.*step-00000020.*MiB are free") as why:
        save(tmp_path, 20, tensors=large)
    assert "resume" in str(why.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]
    assert find_checkpoint(tmp_path, "job-1")[0].step == 10


def test_a_folder_that_is_not_there_is_a_fault_in_words(tmp_path):
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        read_whole(tmp_path / "best")


def test_a_manifest_names_every_file(tmp_path):
    folder = save(tmp_path, 10)
    names = set(json.loads((folder / "manifest.json").read_text())["sha256"])
    assert names == {"model.safetensors", "optimizer.safetensors", "state.json"}
