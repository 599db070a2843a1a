"""What a model must beat: guessing, and a linear model on word counts.

Each baseline is measured exactly as the model is, on the same rows, in seconds.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2cls.data.tasks import Split, Task
from gpt2cls.metrics import choose_thresholds, evaluate_probabilities

MAX_TRAIN_ROWS = 50_000
"""More rows change a linear model little and cost minutes."""
MAX_FEATURES = 100_000
MAX_CHARACTERS = 5_000
"""Of a text; the rest is not looked at."""
MANY_LABELS = 1_000
"""From here on the linear model is a naive Bayes: logistic regression would take hours."""
_SMOOTHING = 0.01
"""What a naive Bayes gives to a word that a label never has."""
_TABLES = ("per_class", "reliability", "confusion", "bootstrap")


def run_baselines(
    train: Split, test: Split, task: Task, *, validation: Split | None = None, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Headline metrics of each baseline on `test`, fitted on `train`.

    `majority` always gives the most frequent class (of several labels: none at all). `prior`,
    for several labels only, gives every row each label's share of the training rows as its
    probability. `tfidf` is logistic regression on TF-IDF. Probabilities of `majority` are the
    shares in the training rows too. Thresholds are chosen on `validation` (on `train` without one).
    Of regression see `value_baselines`.
    """
    if task.kind == "multiple_choice":
        from gpt2cls.choice_baselines import choice_baselines

        return choice_baselines(train, test, task, seed=seed)
    if task.kind == "regression":
        from gpt2cls.value_baselines import value_baselines

        return value_baselines(train, test, seed=seed)
    prior_C = _prior(train, task)
    prior_NC = np.tile(prior_C, (len(test.labels), 1))
    if task.kind == "single_label":
        tfidf, note = _tfidf(train, [test], task, seed)
        return {
            "majority": _headline(prior_NC, test, task, None, seed),
            "tfidf": _headline(tfidf[0], test, task, None, seed) | note,
        }
    held_out = train if validation is None else validation
    never, tuned = [2.0] * len(task.labels), [0.5] * len(task.labels)
    prior_thresholds = choose_thresholds(
        np.tile(prior_C, (len(held_out.labels), 1)), held_out.labels
    )
    splits = [test] if validation is None else [test, validation]
    tfidf, note = _tfidf(train, splits, task, seed)
    if validation is not None:
        tuned = choose_thresholds(tfidf[1], validation.labels)
    return {
        "majority": _headline(prior_NC, test, task, never, seed),
        "prior": _headline(prior_NC, test, task, prior_thresholds, seed),
        "tfidf": _headline(tfidf[0], test, task, tuned, seed) | note,
    }


def _headline(
    probs: NDArray[Any], test: Split, task: Task, thresholds: Sequence[float] | None, seed: int
) -> dict[str, Any]:
    table = evaluate_probabilities(probs, test.labels, task, thresholds, seed=seed, resamples=200)
    return {name: value for name, value in table.items() if name not in _TABLES}


def _prior(train: Split, task: Task) -> NDArray[np.float64]:
    """Each label's share of the training rows."""
    if task.kind == "multi_label":
        return np.asarray(train.labels.mean(axis=0), np.float64)
    counts = np.bincount(train.labels, minlength=len(task.labels))
    return np.asarray(counts / counts.sum(), np.float64)


def _tfidf(
    train: Split, splits: Sequence[Split], task: Task, seed: int
) -> tuple[list[NDArray[np.float64]], dict[str, str]]:
    """Probabilities on each of `splits`, and a note when not all training rows were used."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    rows = _sample(train.labels, seed)
    texts = joined_texts(train, rows)
    is_large = task.kind == "single_label" and len(task.labels) >= MANY_LABELS
    vectorizer = new_vectorizer(texts)
    features = vectorizer.fit_transform(texts)
    linear = LogisticRegression(C=10.0, tol=1e-3, random_state=seed)
    model = OneVsRestClassifier(linear) if task.kind == "multi_label" else linear
    with warnings.catch_warnings():
        # A rare label that no sampled row has, or a fit stopped a little early, is good enough.
        warnings.simplefilter("ignore", UserWarning)
        if is_large:
            model = _NaiveBayes(features, train.labels[rows])
        else:
            model.fit(features, train.labels[rows])
    found = [
        _all_classes(model.predict_proba(vectorizer.transform(joined_texts(split))), model, task)
        for split in splits
    ]
    notes = [f"naive Bayes, for {len(task.labels):,} labels"] if is_large else []
    if len(rows) < len(train.labels):
        notes.append(f"fitted on {len(rows)} of {len(train.labels)} training rows")
    return found, {"note": "; ".join(notes)} if notes else {}


class _NaiveBayes:
    """A multinomial naive Bayes, without a number for each word that a label never has.

    With n the weight of a word under a label, the logarithm of (n + a) / (N + a F) is that of
    a / (N + a F), which all words share, plus that of 1 + n / a, which is 0 for most.

    Source: Manning, Raghavan and Schuetze 2008, "Introduction to Information Retrieval", 13.2.
    """

    def __init__(self, features: Any, labels: NDArray[Any]) -> None:
        from scipy import sparse  # type: ignore[import-untyped]

        self.classes_, numbers = np.unique(labels, return_inverse=True)
        places = (np.ones(len(labels)), (numbers, np.arange(len(labels))))
        weights_CF = sparse.csr_matrix(places) @ features
        totals_C = np.asarray(weights_CF.sum(axis=1)).ravel()
        self.shared_C = np.log(_SMOOTHING / (totals_C + _SMOOTHING * features.shape[1]))
        self.prior_C = np.log(np.bincount(numbers) / len(labels))
        self.own_FC = (weights_CF / _SMOOTHING).log1p().T.tocsr()

    def predict_proba(self, features: Any) -> NDArray[np.float64]:
        sums_N1 = np.asarray(features.sum(axis=1))
        scores_NC = (features @ self.own_FC).toarray() + sums_N1 * self.shared_C + self.prior_C
        scores_NC -= scores_NC.max(axis=1, keepdims=True)
        np.exp(scores_NC, out=scores_NC)
        return np.asarray(scores_NC / scores_NC.sum(axis=1, keepdims=True))


def new_vectorizer(texts: Sequence[str]) -> Any:
    """TF-IDF over words and pairs of them, or over runs of characters; not fitted yet."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    # Chinese and its like do not part words with spaces: take runs of characters instead.
    by_word = _share_of_spaces(texts) > 0.08
    return TfidfVectorizer(
        analyzer="word" if by_word else "char",
        ngram_range=(1, 2) if by_word else (1, 3),
        token_pattern=r"(?u)\b\w+\b" if by_word else None,
        sublinear_tf=True,
        max_features=MAX_FEATURES,
        dtype=np.float32,
    )


def _all_classes(probs: Any, model: Any, task: Task) -> NDArray[np.float64]:
    """Probabilities with a column for every label, also one that no training row has."""
    if task.kind == "multi_label":
        return np.asarray(probs, np.float64)
    full = np.zeros((len(probs), len(task.labels)))
    full[:, model.classes_] = probs
    return full


def _sample(labels: NDArray[Any], seed: int) -> NDArray[np.int64]:
    """At most MAX_TRAIN_ROWS rows, of each class its share but at least one."""
    if len(labels) <= MAX_TRAIN_ROWS:
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    if labels.ndim == 2:
        return np.sort(order[:MAX_TRAIN_ROWS])
    by_class = order[np.argsort(labels[order], kind="stable")]
    starts = np.searchsorted(labels[by_class], np.arange(labels.max() + 1))
    evenly = np.linspace(0, len(labels) - 1, MAX_TRAIN_ROWS).astype(np.int64)
    kept = np.union1d(evenly, starts[starts < len(labels)])
    return np.sort(by_class[kept])


def joined_texts(split: Split, rows: NDArray[np.int64] | None = None) -> list[str]:
    """Texts as a list; the two of a pair joined."""

    def column(values: Any) -> list[str]:
        chosen = values if rows is None else values.take(rows)
        return [text[:MAX_CHARACTERS] for text in chosen.to_pylist()]

    if split.pairs is None:
        return column(split.texts)
    return [f"{a}\n{b}" for a, b in zip(column(split.texts), column(split.pairs), strict=True)]


def _share_of_spaces(texts: Sequence[str]) -> float:
    some = texts[:1000]
    return sum(map(str.isspace, "".join(some))) / max(1, sum(map(len, some)))
