import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import f1_score

from gpt2cls import baselines
from gpt2cls.baselines import run_baselines
from gpt2cls.data.tasks import Split, Task

SINGLE = Task("single_label", ("business", "sport", "world"), False)
MULTI = Task("multi_label", ("business", "sport", "world"), False)
WORDS = (("shares", "profits", "bank"), ("goal", "match", "cup"), ("vote", "party", "treaty"))


def split_of(texts, labels, pairs=None):
    def column(values):
        return None if values is None else pa.chunked_array([values], pa.large_string())

    return Split(column(texts), column(pairs), np.asarray(labels))


def single(num_rows, seed=0):
    """Half of the rows are business."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, num_rows, p=[0.5, 0.3, 0.2])
    return split_of([" ".join(rng.choice(WORDS[c], 4)) for c in labels], labels)


def multi(num_rows, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.random((num_rows, 3)) < [0.5, 0.3, 0.1]
    words = [[w for c in np.flatnonzero(row) for w in WORDS[c]] or ["nothing"] for row in labels]
    return split_of([" ".join(row) for row in words], labels)


def test_majority_gives_the_most_frequent_class_and_its_loss_is_that_of_the_shares():
    train, test = single(200), single(100, seed=1)
    found = run_baselines(train, test, SINGLE)["majority"]
    shares = np.bincount(train.labels) / 200
    assert found["accuracy"] == pytest.approx((test.labels == 0).mean())
    assert found["log_loss"] == pytest.approx(-np.log(shares[test.labels]).mean())


def test_the_linear_model_learns_which_words_belong_to_a_class():
    found = run_baselines(single(200), single(100, seed=1), SINGLE)["tfidf"]
    assert found["accuracy"] == 1.0
    assert found["accuracy_ci"] == [1.0, 1.0]
    assert "per_class" not in found


def test_texts_without_spaces_are_learned_by_their_characters():
    texts = ["\u80a1\u5e02\u4e0a\u6da8" * 3, "\u7403\u961f\u83b7\u80dc" * 3] * 20
    train = split_of(texts, [0, 1] * 20)
    test = split_of(
        ["\u4eca\u65e5\u80a1\u5e02\u53d8\u5316", "\u8fd9\u4e2a\u7403\u961f\u597d"], [0, 1]
    )
    task = Task("single_label", ("money", "sport"), False)
    assert run_baselines(train, test, task)["tfidf"]["accuracy"] == 1.0


def test_the_second_text_of_a_pair_is_used():
    pairs = ["goal", "bank"] * 20
    train = split_of(["the same"] * 40, [1, 0] * 20, pairs)
    task = Task("single_label", ("money", "sport"), True)
    assert run_baselines(train, train, task)["tfidf"]["accuracy"] == 1.0


def test_several_labels_have_three_baselines():
    train, validation, test = multi(200), multi(100, seed=1), multi(100, seed=2)
    found = run_baselines(train, test, MULTI, validation=validation)
    none = np.zeros_like(test.labels)
    assert found["majority"]["micro_f1"] == f1_score(test.labels, none, average="micro")
    assert found["majority"]["exact_match"] == (~test.labels.any(axis=1)).mean()
    everything = np.ones_like(test.labels)  # the F1 of a constant is highest when all rows get it
    assert found["prior"]["macro_f1"] == f1_score(test.labels, everything, average="macro")
    assert found["tfidf"]["macro_f1"] > 0.99


def test_a_class_without_training_rows_does_not_stop_the_linear_model():
    train = split_of(["goal match", "bank profits"] * 5, [0, 2] * 5)
    test = split_of(["goal", "vote"], [0, 1])
    assert run_baselines(train, test, SINGLE)["tfidf"]["accuracy"] == 0.5


def test_a_label_that_no_or_every_training_row_has_does_not_stop_it_either():
    train = multi(50)
    train.labels[:, 1], train.labels[:, 2] = False, True
    assert np.isfinite(run_baselines(train, multi(20, seed=1), MULTI)["tfidf"]["log_loss"])


def test_of_many_rows_each_class_keeps_its_share_and_the_note_says_so(monkeypatch):
    monkeypatch.setattr(baselines, "MAX_TRAIN_ROWS", 100)
    labels = np.repeat([0, 1, 2], [800, 199, 1])
    train = split_of([" ".join(WORDS[c]) for c in labels], labels)
    kept = labels[baselines._sample(labels, seed=0)]
    assert np.bincount(kept).tolist() == pytest.approx([80, 20, 1], abs=1)
    assert 2 in kept
    note = run_baselines(train, train, SINGLE)["tfidf"]["note"]
    assert note == f"fitted on {len(kept)} of 1000 training rows"


def test_a_thousand_labels_get_a_naive_bayes_that_beats_guessing_and_says_so():
    rng = np.random.default_rng(0)
    task = Task("single_label", tuple(f"{i:04}" for i in range(1_000)), False)
    labels = np.concatenate([np.arange(1_000), rng.integers(0, 1_000, 1_500)])
    texts = [f"word{label} and word{label // 10}" for label in labels]
    train, test = split_of(texts, labels), split_of(texts[:300], labels[:300])
    found = run_baselines(train, test, task)
    assert found["tfidf"]["note"] == "naive Bayes, for 1,000 labels"
    assert found["tfidf"]["accuracy"] > 0.9 > 0.1 > found["majority"]["accuracy"]


def test_the_naive_bayes_gives_the_probabilities_of_scikit_learn():
    from scipy import sparse
    from sklearn.naive_bayes import MultinomialNB

    rng = np.random.default_rng(0)
    features, labels = sparse.random(60, 40, 0.2, "csr", random_state=0), rng.integers(0, 7, 60)
    theirs = MultinomialNB(alpha=baselines._SMOOTHING).fit(features, labels)
    ours = baselines._NaiveBayes(features, labels)
    assert np.allclose(ours.predict_proba(features), theirs.predict_proba(features))
    assert np.array_equal(ours.classes_, theirs.classes_)
