import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from tiny_training import needs_bf16

from gpt2cls.config import ModelConfig
from gpt2cls.data.bpe import train_bpe
from gpt2cls.data.tasks import Task
from gpt2cls.errors import ModelError, RequestError
from gpt2cls.model.classifier import build_classifier
from gpt2cls.model.folder import ModelInfo, save_classifier
from gpt2cls.model.packed import PackedGPT2
from gpt2cls.predict import Predictor

SENTENCE = "the market fell today while a team won its second game of the season in rain"
WORDS = SENTENCE.split()
TEXTS = [" ".join(WORDS[i % 7 : i % 7 + 1 + i % 9]) * (1 + i % 3) for i in range(60)]


def saved_model(
    folder,
    *,
    labels=("business", "sport", "world"),
    thresholds=None,
    pair=False,
    backbone="gpt2-tiny",
    seed=0,
):
    """A folder with a small model of random weights."""
    task = Task("single_label" if thresholds is None else "multi_label", labels, pair)
    tokenizer = train_bpe([pa.chunked_array([TEXTS], pa.large_string())], 300)
    config = ModelConfig(backbone=backbone, temperature=0.1)
    shape = {"vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id, "max_length": 21}
    model = build_classifier(config, task, **shape, seed=seed, base_dir=folder)
    text = ("first", "second") if pair else "text"
    info = ModelInfo(task=task, model=config, text=text, thresholds=thresholds, **shape)
    save_classifier(model, tokenizer, info, folder)
    return folder


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor.load(saved_model(tmp_path_factory.mktemp("single") / "model"), device="cpu")


@pytest.fixture(scope="module")
def multi_predictor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("multi") / "model"
    saved_model(folder, labels=("anger", "joy"), thresholds=[0.5, 2.0])
    return Predictor.load(folder, device="cpu")


def test_probabilities_come_in_the_order_of_the_texts_whatever_the_batches(predictor, monkeypatch):
    alone = np.concatenate([predictor.probabilities([text]) for text in TEXTS])
    monkeypatch.setattr("gpt2cls.training.memory.FEATURES_ON_CPU", 100 * 64)
    monkeypatch.setattr("gpt2cls.predict.ROWS_ENCODED_AT_ONCE", 23)
    together = predictor.probabilities(TEXTS)
    # Sums over a batch are made in another order than over one row.
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert np.ptp(together, axis=0).max() > 0.01  # the rows do differ
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-5)


@needs_bf16
def test_threads_that_share_the_batches_of_a_packed_model_change_no_bit(tmp_path, monkeypatch):
    monkeypatch.setattr("gpt2cls.predict.pick_precision", lambda *_: ("bf16", "as the test says"))
    monkeypatch.setattr("gpt2cls.training.memory.FEATURES_ON_CPU", 100 * 256)
    packed = Predictor.load(saved_model(tmp_path / "model", backbone="gpt2-mini"), device="cpu")
    assert isinstance(packed.model.backbone, PackedGPT2)
    before, found = torch.get_num_threads(), {}
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found[threads] = packed.probabilities(TEXTS)
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(torch.get_num_threads).result() == threads
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found[1], found[3])


def test_probabilities_equal_those_of_the_model_asked_by_hand(predictor):
    (ids,), _ = predictor.tokenizer.encode([TEXTS[5]], None, 21)
    with torch.inference_mode():
        logits = predictor.model(torch.tensor(ids)[None], torch.tensor([len(ids)]), torch.zeros(1))
    expected = torch.softmax(logits[0], dim=0).numpy()
    np.testing.assert_allclose(predictor.probabilities([TEXTS[5]])[0], expected, atol=1e-6)


def test_no_text_at_all_and_an_empty_text_are_answered(predictor):
    assert predictor.probabilities([]).shape == (0, 3)
    assert np.isfinite(predictor.probabilities(["", "a"])).all()


def test_a_text_longer_than_the_model_reads_is_cut(predictor):
    long = " ".join(WORDS * 10)
    cut = predictor.tokenizer.encode([long], None, 21)[0][0]
    assert len(cut) == 21
    assert np.isfinite(predictor.probabilities([long, long])).all()


def test_a_frame_gets_label_score_and_a_column_per_label_under_its_own_index(predictor):
    frame = pd.DataFrame({"id": range(60), "text": TEXTS}, index=range(100, 160))
    found = predictor.predict_frame(frame)
    assert list(found.columns) == ["label", "score", "p_business", "p_sport", "p_world"]
    assert found.index.equals(frame.index)
    probs = found[["p_business", "p_sport", "p_world"]].to_numpy()
    assert found["label"].tolist() == [predictor.labels[c] for c in probs.argmax(axis=1)]
    assert found["score"].tolist() == probs.max(axis=1).tolist()


def test_several_labels_are_those_above_their_thresholds_and_may_be_none(multi_predictor):
    found = multi_predictor.predict_frame(pd.DataFrame({"text": TEXTS}))
    expected = np.where(found["p_anger"] >= 0.5, "anger", "")  # a threshold of 2 is never reached
    assert found["label"].tolist() == expected.tolist()
    assert found["score"].tolist() == found[["p_anger", "p_joy"]].max(axis=1).tolist()


def test_pairs_are_read_from_two_columns_and_the_second_matters(tmp_path):
    predictor = Predictor.load(saved_model(tmp_path / "model", pair=True), device="cpu")
    frame = pd.DataFrame({"first": ["the market", "the market"], "second": ["fell", "won"]})
    found = predictor.predict_frame(frame)
    assert found["p_sport"].nunique() == 2
    with pytest.raises(RequestError, match="no column 'second'"):
        predictor.predict_frame(frame[["first"]])


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        pytest.param({"body": ["x"]}, "no column 'text'.*'body'", id="column missing"),
        pytest.param({}, "no column 'text'.*none", id="no columns"),
        pytest.param({"text": ["x", None]}, "row 1, column 'text'", id="null"),
        pytest.param({"text": ["x", float("nan")]}, "row 1, column 'text': nan", id="NaN"),
        pytest.param({"text": [5]}, "row 0, column 'text': 5 .*int", id="number"),
    ],
)
def test_a_frame_that_cannot_be_read_is_refused_by_column_and_row(predictor, frame, says):
    with pytest.raises(RequestError, match=says):
        predictor.predict_frame(pd.DataFrame(frame))


def test_an_unknown_device_and_a_folder_without_a_model_are_refused(tmp_path):
    with pytest.raises(RequestError, match="device = 'tpu'"):
        Predictor.load(tmp_path, device="tpu")
    with pytest.raises(ModelError):
        Predictor.load(tmp_path, device="cpu")


@pytest.mark.system
def test_a_gpt2_model_is_loaded_without_transformers(tmp_path):
    folder = saved_model(tmp_path / "model")
    code = (
        "import sys; from pathlib import Path; from gpt2cls.predict import Predictor;"
        f"p = Predictor.load(Path({str(folder)!r}), device='cpu'); p.probabilities(['a game']);"
        "bad = {'transformers', 'datasets', 'sklearn', 'matplotlib'} & set(sys.modules);"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
