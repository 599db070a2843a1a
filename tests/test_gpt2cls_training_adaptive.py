"""An adaptive head trained by ranks: on real texts, with resume, ranks, freezing and a folder."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from next_words import next_word_fields
from safetensors.torch import load_file, save_file
from test_gpt2cls_training_ranks import on_ranks
from test_gpt2cls_training_session import best_bytes, events_of, payload_of
from tiny_training import Log, tiny_config, tiny_model, tiny_rows, tiny_state, tiny_work

from gpt2cls.config import ModelConfig
from gpt2cls.data.bpe import train_bpe
from gpt2cls.data.cache import sha256
from gpt2cls.data.tasks import Task
from gpt2cls.errors import ModelError, RequestError
from gpt2cls.model.classifier import build_classifier
from gpt2cls.model.folder import ModelInfo, load_classifier, save_classifier
from gpt2cls.training.loop import fit
from gpt2cls.training.ranks import Ranks
from gpt2cls.training.session import load_best, run_rank

ADAPTIVE = {"head": "adaptive", "temperature": 1.0, "dropout": 0.0, "pooling": "last"}
NUM_LABELS = 1_024


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return next_word_fields(tmp_path_factory.mktemp("words"), NUM_LABELS, 8_000)


def payload(words, folder, **train):
    fields, task = words
    train = {"epochs": 1, "batch_size": 32, "lr": 3e-3, **train}
    return payload_of(fields, folder, model=ADAPTIVE, task=task, **train)


def test_it_learns_which_word_comes_next_and_says_how_labels_are_clustered(words, tmp_path):
    assert run_rank(payload(words, tmp_path, epochs=2)) == "finished"
    losses = [e["metrics"]["eval/log_loss"] for e in events_of(tmp_path, "eval")]
    shares = np.bincount(np.load(words[0]["train_labels"]), minlength=NUM_LABELS) + 1
    validation = np.load(words[0]["validation_labels"])
    by_frequency = -np.log(shares / shares.sum())[validation].mean()
    # Better than the frequencies of the words, which are all that a bias could learn.
    assert min(losses) < by_frequency - 0.1
    (note,) = (e["text"] for e in events_of(tmp_path, "note") if "adaptive" in e["text"])
    assert (
        "1,024 labels: the 64 most frequent in the root, the rest in clusters of 192, 768" in note
    )
    start = events_of(tmp_path, "start")[0]
    assert start["parameters"] == sum(start["parameters_of"].values())
    # root 66 x 64 and its bias; clusters of 16 features
    sizes = 66 * 65 + 2 * 64 * 16 + 16 * (192 + 768)
    assert start["parameters_of"] == start["parameters_of"] | {"head": sizes, "pooling": 0}


def test_a_run_that_was_stopped_ends_with_the_weights_of_an_unbroken_one(words, tmp_path):
    run_rank(payload(words, tmp_path / "unbroken", max_steps=12))
    polls = iter([False] * 5 + [True])
    broken = payload(words, tmp_path / "broken", max_steps=12)
    assert run_rank(broken, should_stop=lambda: next(polls)) == "stopped"
    assert run_rank(broken) == "finished"
    assert best_bytes(tmp_path / "broken") == best_bytes(tmp_path / "unbroken")


def test_the_labels_of_the_best_weights_are_those_of_the_training(words, tmp_path):
    run_rank(payload(words, tmp_path, max_steps=3))
    fields, task = words
    sizes = {"vocab_size": fields["vocab_size"], "pad_id": fields["pad_id"], "max_length": 16}
    model = build_classifier(
        payload(words, tmp_path).model, task, **sizes, seed=0, base_dir=tmp_path
    )
    load_best(tmp_path, model)
    counts = np.bincount(np.load(fields["train_labels"]), minlength=NUM_LABELS)
    by_place = counts[model.head.place_C.argsort().numpy()]
    assert (np.diff(by_place) <= 0).all() and by_place[0] > by_place[-1]


def test_a_head_over_a_frozen_network_learns_from_what_is_kept_of_it(words, tmp_path):
    assert run_rank(payload(words, tmp_path, freeze="head_only", max_steps=20)) == "finished"
    losses = [e["metrics"]["train/loss"] for e in events_of(tmp_path, "step")]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert any("features" in e["text"] for e in events_of(tmp_path, "note"))


def test_label_smoothing_over_clusters_is_refused_before_the_first_step(words, tmp_path):
    with pytest.raises(RequestError, match=r"train\.label_smoothing = 0\.1: 1,024 labels"):
        run_rank(payload(words, tmp_path, label_smoothing=0.1))


LABELS = Task("single_label", tuple(map(str, range(1_200))), False)


def trained(ranks, settings):
    config, log = tiny_config(batch_size=7, epochs=4, **settings), Log()
    rows = tiny_rows(31)
    rows.labels[:] = np.arange(31) * 37 % 1_200  # in the root and in both clusters
    state = tiny_state(config, tiny_model(LABELS, head="adaptive"))
    work = tiny_work(config, log, rows=rows, ranks=ranks, task=LABELS)
    fit(state, work, config, ranks)
    weights = torch.cat([p.detach().reshape(-1) for p in state.model.parameters()])
    return log.losses(), weights.numpy().tobytes()


@pytest.mark.system
@pytest.mark.parametrize("settings", [{}, {"class_weights": {"0": 5.0, "37": 0.5}}])
def test_two_ranks_learn_what_one_learns_and_end_alike(tmp_path, settings):
    alone, _ = trained(Ranks(), settings)
    (losses, weights), (other_losses, other_weights) = on_ranks(2, tmp_path, trained, settings)
    assert weights == other_weights
    assert losses == other_losses
    assert losses[0] == pytest.approx(alone[0], abs=1e-5)
    assert losses[-1] == pytest.approx(alone[-1], abs=1e-3)


def test_class_weights_count_as_over_all_labels():
    rows = tiny_rows(31)
    rows.labels[:] = np.arange(31) * 37 % 1_200
    model = tiny_model(LABELS, head="adaptive").eval()
    log, config = Log(), tiny_config(class_weights={"0": 5.0, "37": 0.5})
    work = tiny_work(config, log, rows=rows, task=LABELS)
    (batch,) = rows.batches(np.arange(31), 1 << 20)
    weights_C = torch.ones(1_200)
    weights_C[0], weights_C[37] = 5.0, 0.5
    logits_BC = model(batch.tokens_BT, batch.lengths_B, batch.cut_share_B)
    wanted = torch.nn.functional.cross_entropy(
        logits_BC, batch.labels, weight=weights_C, reduction="sum"
    )
    torch.testing.assert_close(work.loss_sum(model, batch), wanted)


@pytest.fixture
def saved(tmp_path):
    """A model folder, and the model that is in it."""
    tokenizer = train_bpe([pa.chunked_array([["hello world"]])], 300)
    sizes = {"vocab_size": tokenizer.vocab_size, "pad_id": 0, "max_length": 16}
    config = ModelConfig(backbone="gpt2-tiny", **ADAPTIVE)
    model = build_classifier(
        config,
        LABELS,
        **sizes,
        seed=1,
        base_dir=tmp_path,
        label_counts_C=np.random.default_rng(0).permutation(1_200),
    ).eval()
    info = ModelInfo(task=LABELS, model=config, **sizes)
    save_classifier(model, tokenizer, info, tmp_path / "model")
    return tmp_path / "model", model


def test_a_saved_model_gives_every_label_its_probability_again(saved):
    folder, model = saved
    again, _, _ = load_classifier(folder)
    assert load_file(folder / "head.safetensors")["head.place_C"].dtype == torch.int64
    batch = torch.randint(0, 250, (2, 5)), torch.tensor([3, 5]), torch.zeros(2)
    with torch.no_grad():
        assert torch.equal(again(*batch), model(*batch))


def test_a_folder_that_gives_two_labels_one_place_is_refused(saved):
    folder, _ = saved
    file = folder / "head.safetensors"
    tensors = load_file(file)
    tensors["head.place_C"][0] = tensors["head.place_C"][1]
    save_file(tensors, file)
    document = json.loads((folder / "gpt2cls.json").read_text())
    document["sha256"]["head.safetensors"] = sha256(file)
    (folder / "gpt2cls.json").write_text(json.dumps(document))
    with pytest.raises(ModelError, match=r"head\.place_C does not give every label a place"):
        load_classifier(folder)
