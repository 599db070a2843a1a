"""Values in the place of classes: metrics, baselines, data and network."""

import csv

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import stats
from tiny_forms import tiny_job

from gpt2cls.baselines import run_baselines
from gpt2cls.config import DataConfig
from gpt2cls.data.check import check
from gpt2cls.data.prepare import prepare, read_labelled
from gpt2cls.data.tasks import Split, Task
from gpt2cls.errors import DataError
from gpt2cls.metrics import evaluate_probabilities, quick_metrics
from gpt2cls.mistakes import worst_mistakes
from gpt2cls.training.learn_labels import new_model
from gpt2cls.training.objectives import SquaredError
from gpt2cls.training.ranks import Ranks

TASK = Task("regression", ("value",), True)


def some_values(num_rows=400):
    draw = np.random.default_rng(3)
    labels = draw.integers(0, 11, num_rows) / 2  # many ties
    return np.round(labels + draw.normal(0, 1.5, num_rows), 1)[:, None], labels


def test_the_metrics_are_those_of_scipy():
    values, labels = some_values()
    found = quick_metrics(values, labels, TASK)
    assert found == {
        "pearson": pytest.approx(stats.pearsonr(values[:, 0], labels).statistic),
        "spearman": pytest.approx(stats.spearmanr(values[:, 0], labels).statistic),
        "mse": pytest.approx(((values[:, 0] - labels) ** 2).mean()),
    }


def test_large_numbers_lose_no_digits():
    values, labels = some_values()
    near = quick_metrics(values, labels, TASK)
    far = quick_metrics(values + 1e7, labels + 1e7, TASK)
    assert far == pytest.approx(near, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 / 3])
def test_what_never_changes_has_no_correlation(value):
    found = quick_metrics(np.full((400, 1), value), some_values()[1], TASK)
    assert (found["pearson"], found["spearman"]) == (0, 0)


def test_the_interval_of_the_correlation_covers_what_theory_says():
    values, labels = some_values()
    table = evaluate_probabilities(values, labels, TASK, resamples=1000)
    low, high = table["pearson_ci"]
    # Fisher's transformation, 95%.
    middle, half = np.arctanh(table["pearson"]), 1.96 / np.sqrt(len(labels) - 3)
    assert low == pytest.approx(np.tanh(middle - half), abs=0.02)
    assert high == pytest.approx(np.tanh(middle + half), abs=0.02)
    assert table["mse_ci"][0] < table["mse"] < table["mse_ci"][1]
    assert sum(row["count"] for row in table["fit"]) == table["rows"] == 400
    assert [row["value"] for row in table["fit"]] == sorted(row["value"] for row in table["fit"])


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not a finite number"):
        quick_metrics(np.full((3, 1), np.nan), np.zeros(3), TASK)


def texts_of(values):
    return pa.chunked_array([pa.array(values, pa.large_string())])


def test_the_linear_baseline_sees_how_alike_the_texts_of_a_pair_are():
    draw = np.random.default_rng(0)
    words = [f"word{i}" for i in range(50)]

    def split(num_rows):
        firsts, seconds, labels = [], [], []
        for _ in range(num_rows):
            one, shared = draw.choice(words, 6, replace=False), int(draw.integers(0, 7))
            rest = [word for word in words if word not in one]
            other = [*one[:shared], *draw.choice(rest, 6 - shared, replace=False)]
            firsts.append(" ".join(one))
            seconds.append(" ".join(draw.permutation(other)))
            labels.append(float(shared))
        return Split(texts_of(firsts), texts_of(seconds), np.array(labels))

    table = run_baselines(split(300), split(100), TASK)
    assert table["mean"]["pearson"] == 0
    assert table["mean"]["mse"] == pytest.approx(4, rel=0.3)
    assert table["tfidf"]["pearson"] > 0.75  # by the cosine: which words they are says nothing
    assert abs(table["words"]["pearson"]) < 0.4


def test_the_worst_rows_are_those_furthest_from_their_label():
    values, labels = np.array([[1.0], [5.0], [2.0]]), np.array([1.5, 1.0, 2.0])
    found = worst_mistakes(values, labels, ["a", "b", "c"], 2, task=TASK)
    assert [(m["text"], m["true"], m["predicted"]) for m in found["mistakes"]] == [
        ("b", "1", "5"),
        ("a", "1.5", "1"),
    ]
    assert found["mistakes"][0]["error"] == 4


def test_the_loss_is_the_squared_error_in_variances_and_the_answer_in_labels(tmp_path):
    prepared, _, payload = tiny_job(tmp_path, "values")
    task = prepared.task
    assert task.mean == pytest.approx(110, abs=5) and task.std == pytest.approx(10, abs=2)
    model = new_model(payload, task, Ranks()).eval()
    logits = torch.tensor([[0.5], [-1.0]])
    answers = model.probabilities(logits)
    assert answers[:, 0].tolist() == pytest.approx([task.mean + task.std / 2, task.mean - task.std])
    labels = torch.tensor([task.mean, task.mean + task.std])
    loss = SquaredError(task.mean, task.std).loss_of_logits(logits, labels)
    assert float(loss) == pytest.approx(0.25 + 4, rel=1e-5)


def write(folder, name, labels):
    with (folder / name).open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows([f"text {i}", label] for i, label in enumerate(labels))


def config(**more):
    return DataConfig(train="train.csv", task="regression", **more)


def test_numbers_are_read_as_they_are_written_and_rows_divided_without_classes(tmp_path):
    write(tmp_path, "train.csv", ["1", "2.50", "-3e2", *range(97)])
    prepared = prepare(config(validation=0.2), base_dir=tmp_path, seed=0)
    assert prepared.task.kind == "regression"
    assert (len(prepared.train), len(prepared.validation)) == (80, 20)
    found = np.concatenate([prepared.train.labels, prepared.validation.labels])
    assert sorted(found) == sorted([1, 2.5, -300, *range(97)])
    assert prepared.task.mean == pytest.approx(prepared.train.labels.mean())
    report = check(prepared, max_length=16)
    assert report.numbers["train"].mean == pytest.approx(prepared.train.labels.mean())
    assert report.problems == []


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([1.5, "high", 2], r"train.csv:3: column 'label' holds 'high' where a number is due"),
        ([1.5, "", 2], r"1 of 3 rows have no label .*train.csv:3"),
        ([1.5, "inf", 2], r"1 of 3 rows have no label"),
        ([2, 2.0, "2"], r"all 2 training rows have the label 2"),
    ],
    ids=["a word", "nothing", "infinity", "one value"],
)
def test_labels_that_are_no_numbers_to_learn_are_refused(tmp_path, labels, says):
    write(tmp_path, "train.csv", labels)
    with pytest.raises(DataError, match=says):
        prepare(config(validation=0.3), base_dir=tmp_path, seed=0)


def test_the_same_text_with_another_value_is_reported(tmp_path):
    write(tmp_path, "train.csv", np.arange(40) / 4)
    with (tmp_path / "train.csv").open("a") as file:
        file.write("text 0,0.1\n")
    problems = check(prepare(config(), base_dir=tmp_path, seed=0), max_length=16).problems
    assert [p.kind for p in problems if "label" in p.kind] == ["conflicting_labels"]


def test_a_model_of_values_is_measured_on_numbers_only(tmp_path):
    write(tmp_path, "other.csv", [1.5, 3])
    task = Task("regression", ("value",), False)
    split = read_labelled("other.csv", config(), task, base_dir=tmp_path)
    assert split.labels.tolist() == [1.5, 3.0]
