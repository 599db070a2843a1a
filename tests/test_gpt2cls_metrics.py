import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from sklearn import metrics as sk

from gpt2cls.data.tasks import Task
from gpt2cls.metrics import choose_thresholds, evaluate_probabilities, quick_metrics

SINGLE = Task("single_label", ("a", "b", "c", "d"), False)
MULTI = Task("multi_label", ("a", "b", "c", "d"), False)


def single(num_rows=300, seed=0):
    """Probabilities and labels; class 3 is predicted but never true."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet([0.5] * 4, num_rows), rng.integers(0, 3, num_rows)


def multi(num_rows=300, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.random((num_rows, 4)) < [0.5, 0.3, 0.1, 0.02]
    return (0.6 * rng.random(labels.shape) + 0.4 * labels).astype(np.float32), labels


def test_training_can_import_the_metrics_without_scipy_and_sklearn():
    code = (
        "import sys, gpt2cls.metrics;"
        "bad = {'scipy', 'sklearn', 'torch', 'pandas'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def plain_calibration_error(confidence, is_right):
    """Guo et al. 2017, equation 3, bin by bin."""
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - is_right[inside].mean())
    return error


def test_quick_metrics_of_single_labels_equal_scikit_learns():
    probs, labels = single()
    predicted = probs.argmax(axis=1)
    assert quick_metrics(probs, labels, SINGLE) == pytest.approx(
        {
            "accuracy": sk.accuracy_score(labels, predicted),
            "macro_f1": sk.f1_score(labels, predicted, average="macro"),
            "micro_f1": sk.f1_score(labels, predicted, average="micro"),
            "log_loss": sk.log_loss(labels, probs, labels=range(4)),
            "ece": plain_calibration_error(probs.max(axis=1), labels == predicted),
        }
    )


def test_quick_metrics_of_several_labels_equal_scikit_learns():
    probs, labels = multi()
    chosen = probs >= 0.5
    losses = [sk.log_loss(labels[:, c], probs[:, c].astype(np.float64)) for c in range(4)]
    assert quick_metrics(probs, labels.astype(np.float32), MULTI) == pytest.approx(
        {
            "accuracy": sk.accuracy_score(labels, chosen),
            "exact_match": sk.accuracy_score(labels, chosen),
            "macro_f1": sk.f1_score(labels, chosen, average="macro", zero_division=0),
            "micro_f1": sk.f1_score(labels, chosen, average="micro"),
            "log_loss": np.mean(losses),
            "ece": plain_calibration_error(probs.ravel(), labels.ravel() > 0),
        }
    )


def test_a_probability_of_zero_for_the_truth_is_a_large_but_finite_loss():
    found = quick_metrics(np.array([[1.0, 0, 0, 0]]), np.array([1]), SINGLE)
    assert found["log_loss"] == pytest.approx(-np.log(1e-15))


@pytest.mark.parametrize(
    ("probs", "labels", "says"),
    [
        pytest.param(np.ones((2, 3)), np.zeros(2, int), "do not fit", id="too few columns"),
        pytest.param(np.ones((2, 4)), np.zeros(3, int), "do not fit", id="too few rows"),
        pytest.param(np.ones((2, 4)), np.zeros((2, 4)), "do not fit", id="labels of another task"),
        pytest.param(np.ones((0, 4)), np.zeros(0, int), "no rows", id="no rows"),
        pytest.param(np.full((1, 4), np.nan), np.zeros(1, int), "not a finite", id="NaN"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(probs, labels, says):
    with pytest.raises(ValueError, match=says):
        quick_metrics(probs, labels, SINGLE)


def test_the_test_table_agrees_with_the_quick_metrics_and_with_scikit_learn_per_class():
    probs, labels = single()
    table = evaluate_probabilities(probs, labels, SINGLE, resamples=20)
    quick = quick_metrics(probs, labels, SINGLE)
    assert {name: table[name] for name in quick} == pytest.approx(quick)

    predicted = probs.argmax(axis=1)
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        labels, predicted, labels=range(4), zero_division=0
    )
    for c, row in enumerate(table["per_class"]):
        assert row["label"] == SINGLE.labels[c]
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx(
            (precision[c], recall[c], f1[c])
        )
        assert row["support"] == support[c]
    assert table["confusion"] == sk.confusion_matrix(labels, predicted, labels=range(4)).tolist()


def test_the_table_of_several_labels_has_average_precision_and_uses_the_thresholds():
    probs, labels = multi()
    thresholds = [0.4, 0.5, 0.6, 0.7]
    table = evaluate_probabilities(probs, labels, MULTI, thresholds, resamples=20)
    for c, row in enumerate(table["per_class"]):
        expected = sk.average_precision_score(labels[:, c], probs[:, c])
        assert row["average_precision"] == pytest.approx(expected)
        assert row["f1"] == pytest.approx(sk.f1_score(labels[:, c], probs[:, c] >= thresholds[c]))
    assert table["exact_match"] == sk.accuracy_score(labels, probs >= thresholds)
    assert table["thresholds"] == thresholds
    assert "confusion" not in table


def test_average_precision_counts_equal_probabilities_as_one():
    probs = np.array([[0.5], [0.5], [0.5], [0.2]], np.float32)
    labels = np.array([[True], [False], [True], [True]])
    table = evaluate_probabilities(probs, labels, Task("multi_label", ("a",), False), resamples=5)
    expected = sk.average_precision_score(labels[:, 0], probs[:, 0])
    assert table["average_precision"] == pytest.approx(expected)


def test_a_label_that_no_row_has_gets_no_average_precision():
    probs, labels = multi()
    labels[:, 3] = False
    table = evaluate_probabilities(probs, labels, MULTI, resamples=5)
    assert table["per_class"][3]["average_precision"] is None
    assert table["average_precision"] == pytest.approx(
        np.mean([row["average_precision"] for row in table["per_class"][:3]])
    )


def test_calibration_error_equals_the_formula_written_out():
    probs, labels = single()
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == labels
    expected = 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
    table = evaluate_probabilities(probs, labels, SINGLE, resamples=5)
    assert table["ece"] == pytest.approx(expected)
    assert sum(row["count"] for row in table["reliability"]) == len(labels)


def test_intervals_equal_those_from_copying_the_drawn_rows():
    probs, labels = single(num_rows=200)
    table = evaluate_probabilities(probs, labels, SINGLE, resamples=300, seed=7)
    rng = np.random.default_rng(7)
    scores = []
    for _ in range(300):
        rows = rng.integers(0, 200, size=200, dtype=np.int32)
        scores.append(quick_metrics(probs[rows], labels[rows], SINGLE))
    for name in ("accuracy", "macro_f1", "micro_f1", "log_loss"):
        ends = np.percentile([score[name] for score in scores], (2.5, 97.5))
        assert table[f"{name}_ci"] == pytest.approx(ends.tolist())


def test_the_same_seed_gives_the_same_table_and_the_interval_holds_the_value():
    probs, labels = multi()
    table = evaluate_probabilities(probs, labels, MULTI, seed=3, resamples=200)
    assert table == evaluate_probabilities(probs, labels, MULTI, seed=3, resamples=200)
    for name in ("accuracy", "macro_f1", "micro_f1", "log_loss", "exact_match"):
        low, high = table[f"{name}_ci"]
        assert low <= table[name] <= high


def test_intervals_of_many_rows_need_little_memory():
    probs, labels = single(num_rows=100_000)
    tracemalloc.start()
    evaluate_probabilities(probs, labels, SINGLE, resamples=50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6  # all 50 resamples' indices, labels and probabilities: 240 MB


def test_thresholds_have_the_highest_f1_that_any_threshold_has():
    probs, labels = multi(num_rows=80)
    for c, threshold in enumerate(choose_thresholds(probs, labels)):
        best = max(sk.f1_score(labels[:, c], probs[:, c] >= t) for t in probs[:, c])
        assert sk.f1_score(labels[:, c], probs[:, c] >= threshold) == pytest.approx(best)


def test_a_label_without_rows_keeps_the_threshold_of_one_half():
    probs, labels = multi()
    labels[:, 1] = False
    assert choose_thresholds(probs, labels)[1] == 0.5


def test_more_than_a_thousand_labels_get_a_table_without_a_matrix():
    task = Task("single_label", tuple(map(str, range(1_001))), False)
    labels = np.arange(1_001)
    probs = np.random.default_rng(0).dirichlet(np.ones(1_001), 1_001)
    table = evaluate_probabilities(probs, labels, task, resamples=10)
    assert "confusion" not in table
    assert len(table["per_class"]) == 1_001
