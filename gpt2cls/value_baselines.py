"""What a model of regression must beat: the mean, and a linear model on word counts."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2cls.baselines import MAX_CHARACTERS, MAX_TRAIN_ROWS, joined_texts, new_vectorizer
from gpt2cls.data.tasks import Split
from gpt2cls.regression import evaluate_values


def value_baselines(train: Split, test: Split, *, seed: int) -> dict[str, dict[str, Any]]:
    """Headline metrics of each baseline on `test`, fitted on `train`.

    `mean` gives every row the mean of the training labels. `tfidf` is ridge regression on TF-IDF,
    and for a pair also on the cosine of its two texts, without which no sum over words can say how
    alike they are; `words` is the same without it.
    """
    mean_N = np.full(len(test), train.labels.mean())
    found = {"mean": _headline(mean_N, test, seed)}
    values, note = _linear(train, test, seed)
    return found | {name: _headline(some_N, test, seed) | note for name, some_N in values.items()}


def _headline(values_N: NDArray[Any], test: Split, seed: int) -> dict[str, Any]:
    table = evaluate_values(values_N[:, None], test.labels, seed=seed, resamples=200)
    return {name: value for name, value in table.items() if name not in ("fit", "bootstrap")}


def _linear(
    train: Split, test: Split, seed: int
) -> tuple[dict[str, NDArray[np.float64]], dict[str, str]]:
    """The values [N] of each linear model, and a note where not all rows were used."""
    from sklearn.linear_model import Ridge

    rows = np.arange(len(train))
    if len(rows) > MAX_TRAIN_ROWS:
        rows = np.sort(np.random.default_rng(seed).permutation(len(rows))[:MAX_TRAIN_ROWS])
    texts = joined_texts(train, rows)
    vectorizer = new_vectorizer(texts).fit(texts)
    known = _features(vectorizer, train, rows)
    asked = _features(vectorizer, test, np.arange(len(test)))
    values = {}
    for name in known:
        model = Ridge(alpha=1.0, random_state=seed).fit(known[name], train.labels[rows])
        values[name] = np.asarray(model.predict(asked[name]))
    if len(rows) == len(train):
        return values, {}
    return values, {"note": f"fitted on {len(rows)} of {len(train)} training rows"}


def _features(vectorizer: Any, split: Split, rows: NDArray[np.int64]) -> dict[str, Any]:
    """What each linear model reads."""
    from scipy import sparse  # type: ignore[import-untyped]

    joined = vectorizer.transform(joined_texts(split, rows))
    if split.pairs is None:
        return {"tfidf": joined}
    one, other = (
        vectorizer.transform([text[:MAX_CHARACTERS] for text in column.take(rows).to_pylist()])
        for column in (split.texts, split.pairs)
    )
    # Rows of TF-IDF have length 1, so their product is the cosine.
    cosine_N1 = sparse.csr_matrix(one.multiply(other).sum(axis=1))
    return {"words": joined, "tfidf": sparse.hstack([joined, cosine_N1], format="csr")}
