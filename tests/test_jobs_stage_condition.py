"""Whether a stage runs, by what an earlier one measured."""

import pytest

from jobs.errors import JobFailed
from jobs.spec import When
from jobs.stage_condition import decide

RESULT = {
    "validation": {"accuracy": 0.8, "log_loss": 0.5, "loss": 2.0, "rows": 10},
    "test": {"accuracy": 0.95},
}


def decided(kind="finetune", metric="accuracy", **limits):
    return decide(When(stage="probe", metric=metric, **limits), kind, RESULT)


@pytest.mark.parametrize(
    ("limits", "holds"),
    [({"below": 0.9}, True), ({"below": 0.8}, False), ({"above": 0.7}, True),
     ({"above": 0.8}, False)],
)  # fmt: skip
def test_a_limit_that_is_met_exactly_is_reached(limits, holds):
    assert decided(**limits).holds is holds


def test_what_trains_is_judged_by_validation_and_what_measures_by_its_data():
    assert decided(below=0.9).words == "probe: validation accuracy 0.8000 is below 0.9"
    assert decided(kind="evaluate", below=0.9).words == (
        "probe: test accuracy 0.9500 is not below 0.9"
    )
    assert decided(kind="pretrain", metric="loss", above=1.5).holds


def test_a_metric_that_was_not_measured_fails_with_those_that_were():
    with pytest.raises(JobFailed, match=r"probe measured no exact_match on validation; there is"):
        decided(metric="exact_match", below=0.9)
