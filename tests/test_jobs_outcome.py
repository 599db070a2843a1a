"""What of a test table goes to the record and to the registry."""

from pathlib import Path

import pytest

from jobs.outcome import Outcome, numbers
from jobs.tables import beside

SINGLE = {"accuracy": 0.9, "accuracy_ci": [0.8, 1.0], "macro_f1": 0.7, "log_loss": 0.3, "ece": 0.1}
MULTI = {"accuracy": 0.4, "exact_match": 0.4, "average_precision": None, "rows": 7}


def an_outcome(test):
    return Outcome(
        step=7,
        validation={"accuracy": 0.5},
        test=test,
        baselines={"majority": {"accuracy": 0.2}, "tfidf": {"accuracy": 0.8, "log_loss": 1}},
        model_folder=Path("model"),
        figures=[],
        example=None,
        example_probs_NC=None,
        predictor=None,
    )


@pytest.mark.parametrize(
    ("table", "wanted"),
    [
        (SINGLE, {"accuracy": 0.9, "macro_f1": 0.7, "log_loss": 0.3, "ece": 0.1}),
        (MULTI, {"accuracy": 0.4, "exact_match": 0.4}),
        ({}, {}),
    ],
    ids=["no intervals or lists", "no counts and nothing that was not measured", "nothing at all"],
)
def test_the_numbers_of_a_table_are_its_headlines(table, wanted):
    assert numbers(table) == wanted
    assert all(type(value) is float for value in numbers(table).values())


def test_the_points_are_of_both_splits_with_the_baselines_beside():
    assert an_outcome(SINGLE).points() == {
        "validation/accuracy": 0.5,
        "test/accuracy": 0.9,
        "test/macro_f1": 0.7,
        "test/log_loss": 0.3,
        "test/ece": 0.1,
        "baseline/majority/accuracy": 0.2,
        "baseline/tfidf/accuracy": 0.8,
        "baseline/tfidf/log_loss": 1.0,
    }


def test_without_a_test_split_the_points_say_that_they_are_of_validation():
    outcome = an_outcome(None)
    assert outcome.split == "validation"
    assert outcome.points()["validation/accuracy"] == 0.5
    assert not any(name.startswith("test/") for name in outcome.points())
    assert outcome.document()["test"] is None
    assert set(beside(outcome.document())) == {"majority", "tfidf"}


def test_a_test_table_is_shown_beside_what_validation_promised():
    shown = beside(an_outcome(SINGLE).document())
    assert list(shown) == ["on validation", "majority", "tfidf"]
    assert shown["on validation"] == {"accuracy": 0.5}
