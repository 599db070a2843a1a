"""What a model of multiple choice must beat: the likeliest place, and a linear model on words."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2cls.baselines import MAX_CHARACTERS, MAX_TRAIN_ROWS, new_vectorizer
from gpt2cls.data.tasks import Split, Task
from gpt2cls.metrics import evaluate_probabilities

_TABLES = ("per_class", "reliability", "confusion", "bootstrap")


def choice_baselines(
    train: Split, test: Split, task: Task, *, seed: int
) -> dict[str, dict[str, Any]]:
    """Headline metrics of each baseline on `test`, fitted on `train`.

    `majority` takes the place where the right answer stands most often. `tfidf` is logistic
    regression on the TF-IDF of each answer and its cosine with the context, softmax across;
    `words` is the same without the cosine: what the answers alone give away.
    """
    shares_C = np.bincount(train.labels, minlength=len(task.labels)) / len(train)
    prior_NC = np.tile(shares_C, (len(test), 1))
    for row, answers in enumerate(_answers(test)):
        prior_NC[row, len(answers) :] = 0
    prior_NC /= np.maximum(prior_NC.sum(axis=1, keepdims=True), 1e-12)
    probs, note = _linear(train, test, task, seed)
    found = {"majority": _headline(prior_NC, test, task, seed)}
    return found | {
        name: _headline(some_NC, test, task, seed) | note for name, some_NC in probs.items()
    }


def _headline(probs_NC: NDArray[Any], test: Split, task: Task, seed: int) -> dict[str, Any]:
    table = evaluate_probabilities(probs_NC, test.labels, task, seed=seed, resamples=200)
    return {name: value for name, value in table.items() if name not in _TABLES}


def _answers(split: Split) -> list[list[str]]:
    assert split.pairs is not None
    return [[text[:MAX_CHARACTERS] for text in row] for row in split.pairs.to_pylist()]


def _linear(
    train: Split, test: Split, task: Task, seed: int
) -> tuple[dict[str, NDArray[np.float64]], dict[str, str]]:
    """The probabilities [N, C] of each linear model, and a note where not all rows were used."""
    from sklearn.linear_model import LogisticRegression

    rows = np.arange(len(train))
    if len(rows) > MAX_TRAIN_ROWS // task.num_sequences:
        most = MAX_TRAIN_ROWS // task.num_sequences
        rows = np.sort(np.random.default_rng(seed).permutation(len(rows))[:most])
    answers, contexts = _answers(train), train.texts.to_pylist()
    answers, contexts = [answers[i] for i in rows], [contexts[i] for i in rows]
    texts = [*contexts, *(text for row in answers for text in row)]
    vectorizer = new_vectorizer(texts).fit(texts)
    right = [i == label for row, label in zip(answers, train.labels[rows], strict=True)
             for i in range(len(row))]  # fmt: skip
    known, choices = _features(vectorizer, contexts, answers), _answers(test)
    asked = _features(vectorizer, test.texts.to_pylist(), choices)
    probs = {}
    for name in known:
        model = LogisticRegression(C=1.0, tol=1e-3, random_state=seed).fit(known[name], right)
        probs[name] = _across(model.decision_function(asked[name]), choices, len(task.labels))
    if len(rows) == len(train):
        return probs, {}
    return probs, {"note": f"fitted on {len(rows)} of {len(train)} training rows"}


def _across(
    odds: NDArray[np.float64], answers: list[list[str]], num_places: int
) -> NDArray[np.float64]:
    """Softmax over the answers of each row, [N, C], from what each has on its own."""
    scores_NC = np.full((len(answers), num_places), -np.inf)
    ends = np.cumsum([len(row) for row in answers])
    for row, end in enumerate(ends):
        scores_NC[row, : len(answers[row])] = odds[end - len(answers[row]) : end]
    probs_NC = np.exp(scores_NC - scores_NC.max(axis=1, keepdims=True))
    return np.asarray(probs_NC / probs_NC.sum(axis=1, keepdims=True))


def _features(vectorizer: Any, contexts: list[str], answers: list[list[str]]) -> dict[str, Any]:
    """What each linear model reads of each answer of each row."""
    from scipy import sparse  # type: ignore[import-untyped]

    words = vectorizer.transform([text for row in answers for text in row])
    place = np.repeat(np.arange(len(answers)), [len(row) for row in answers])
    beside = vectorizer.transform([text[:MAX_CHARACTERS] for text in contexts])[place]
    cosine_N1 = sparse.csr_matrix(words.multiply(beside).sum(axis=1))
    return {"words": words, "tfidf": sparse.hstack([words, cosine_N1], format="csr")}
