import numpy as np
import pyarrow as pa
import pytest

from gpt2cls.data.tasks import Task
from gpt2cls.mistakes import worst_mistakes

SINGLE = Task("single_label", ("good", "bad"), False)
MULTI = Task("multi_label", ("joy", "anger", "fear"), False)


def test_the_surest_mistake_comes_first_and_right_rows_are_left_out():
    probs = np.array([[0.6, 0.4], [0.99, 0.01], [0.2, 0.8]])
    found = worst_mistakes(probs, np.array([1, 1, 1]), ["mild", "sure", "right"], 5, task=SINGLE)
    assert (found["rows"], found["wrong"]) == (3, 2)
    assert [m["text"] for m in found["mistakes"]] == ["sure", "mild"]
    worst = found["mistakes"][0]
    assert (worst["row"], worst["true"], worst["predicted"]) == (1, "bad", "good")
    assert (worst["probability"], worst["probability_true"]) == (0.99, 0.01)
    assert worst["loss"] == pytest.approx(-np.log(0.01))


def test_several_labels_are_joined_and_the_thresholds_are_used():
    probs = np.array([[0.4, 0.3, 0.1], [0.4, 0.1, 0.1]])
    labels = np.array([[True, False, True], [True, False, False]])
    found = worst_mistakes(probs, labels, ["x", "y"], 5, task=MULTI, thresholds=[0.35, 0.25, 0.5])
    assert [(m["true"], m["predicted"]) for m in found["mistakes"]] == [("joy|fear", "joy|anger")]


def test_arrow_texts_are_cut_and_pairs_are_kept():
    texts, pairs = pa.chunked_array([["y" * 1000]]), pa.chunked_array([["second"]])
    found = worst_mistakes(
        np.array([[0.9, 0.1]]), np.array([1]), texts, 1, task=SINGLE, pairs=pairs
    )
    assert found["mistakes"][0]["text"] == "y" * 300 + " ..."
    assert found["mistakes"][0]["pair"] == "second"
