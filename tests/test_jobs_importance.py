import random
import subprocess
import sys

import pytest
from sweep_documents import (
    SPACE,
    dimension,
    identical_document,
    sweep_document,
    unscored_document,
)

from jobs.importance import importance


def test_what_decides_comes_first_and_what_does_not_gets_little():
    found = importance(sweep_document(48))
    assert next(iter(found.shares)) == "train.lr"
    assert found.shares["train.lr"] > 0.8
    assert set(found.shares) == {one["field"] for one in SPACE}
    assert sum(found.shares.values()) == pytest.approx(1)
    assert all(share >= 0 for share in found.shares.values())
    assert 0.3 < found.explained <= 1


def test_a_category_that_decides_is_found_whole():
    space = (*SPACE[:2], dimension("model.pooling", "choice", "mean, last, max"))
    values = {"mean": 0.9, "last": 0.95, "max": 0.99}
    document = sweep_document(
        40, space=space, measure=lambda params: values[params["model.pooling"]]
    )
    found = importance(document)
    assert next(iter(found.shares)) == "model.pooling"
    assert found.shares["model.pooling"] > 0.9


def test_whether_a_conditional_dimension_is_set_counts_as_a_value():
    def measure(params):
        return 0.95 if "train.layer_decay" in params else 0.88

    found = importance(sweep_document(40, measure=measure))
    first = next(iter(found.shares))
    assert first in ("train.layer_decay", "train.schedule")  # each tells the other


def test_lower_is_better_finds_the_same():
    document = sweep_document(48, mode="min", metric="error")
    for trial in document["trials"]:
        trial["metric"] = trial["metric"] and 1 - trial["metric"]
    assert importance(document).shares["train.lr"] > 0.8


def test_one_trial_that_diverged_does_not_decide_alone():
    document = sweep_document(48, mode="min", metric="log_loss")
    for trial in document["trials"]:
        trial["metric"] = trial["metric"] and 1 - trial["metric"]
    document["trials"][0]["metric"] = 1e6
    assert importance(document).shares["train.lr"] > 0.7


def test_the_same_document_gives_the_same_shares():
    assert importance(sweep_document(20)) == importance(sweep_document(20))


def test_repeats_with_other_seeds_count_once():
    found = importance(sweep_document(36, seeds=3))
    assert found.configurations == 12


@pytest.mark.parametrize("seed", range(2))
def test_noise_has_no_importance(seed):
    rng = random.Random(seed)
    document = sweep_document(30)
    for trial in document["trials"]:
        trial |= {"status": "FINISHED", "metric": rng.random()}
    found = importance(document)
    assert found.shares is None
    assert "chance" in found.reason


@pytest.mark.parametrize(
    ("document", "says"),
    [
        pytest.param(lambda: sweep_document(8), "7 different settings", id="too few, one failed"),
        pytest.param(identical_document, "same metric", id="the metric does not vary"),
        pytest.param(unscored_document, "0 different settings", id="nothing measured"),
        pytest.param(lambda: sweep_document(0), "0 different settings", id="no trial"),
        pytest.param(lambda: sweep_document(20, seeds=5), "4 different", id="too few settings"),
    ],
)
def test_no_answer_comes_with_its_reason(document, says):
    found = importance(document())
    assert found.shares is None
    assert says in found.reason


def test_the_same_settings_everywhere_say_nothing():
    document = sweep_document(12)
    for trial in document["trials"]:
        trial["params"] = {"train.lr": 1e-3}
    assert "same settings" in importance(document).reason


@pytest.mark.system
def test_asking_costs_nothing_until_it_is_answered():
    code = "import sys, jobs.importance; assert not {'sklearn', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
