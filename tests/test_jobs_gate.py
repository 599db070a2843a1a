import pytest

from jobs.gate import Standing, former_champion, is_better, judge


def standing(version, accuracy=0.9, split="test", data="d1", **metrics):
    return Standing(version, {"accuracy": accuracy, **metrics}, split, data)


@pytest.mark.parametrize(
    ("new", "champion", "minimum", "beats", "alias", "words"),
    [
        pytest.param(standing(1), None, None, True, "champion", "no champion", id="the first"),
        pytest.param(
            standing(1), None, 0.95, True, None, "below the minimum of 0.95", id="too weak"
        ),
        pytest.param(
            standing(2, 0.91), standing(1), None, True, "champion", "beats", id="a better one"
        ),
        pytest.param(
            standing(2), standing(1), None, True, "challenger", "does not beat", id="a tie"
        ),
        pytest.param(
            standing(2, 0.8), standing(1), None, False, "champion", "need not", id="unrivalled"
        ),
        pytest.param(
            standing(2, 0.95), standing(1, split="validation"), None, True, "challenger",
            "no test accuracy to compare", id="measured on another split",
        ),
        pytest.param(
            standing(2, 0.95, data="d2"), standing(1), None, True, "champion", "other data",
            id="measured on other data",
        ),
        pytest.param(
            standing(2, float("nan")), standing(1), None, True, "challenger", "does not beat",
            id="not a number",
        ),
        pytest.param(
            standing(2, float("nan")), None, 0.5, True, None, "below", id="not a number, first"
        ),
        pytest.param(
            standing(2), standing(2), None, True, "champion", "already", id="asked again"
        ),
    ],
)  # fmt: skip
def test_a_version_earns_its_alias(new, champion, minimum, beats, alias, words):
    verdict = judge(new, champion, metric="accuracy", minimum=minimum, beats_champion=beats)
    assert verdict.alias == alias
    assert words in verdict.reason


def test_a_metric_that_was_not_measured_names_those_that_were():
    verdict = judge(standing(1, macro_f1=0.5), None, metric="f1", minimum=None, beats_champion=True)
    assert verdict.alias is None
    assert "accuracy, macro_f1" in verdict.reason


def test_a_loss_is_better_when_it_is_smaller():
    assert is_better("log_loss", 0.1, 0.2)
    assert is_better("accuracy", 0.2, 0.1)


@pytest.mark.parametrize(
    ("moves", "former"),
    [
        pytest.param([], None, id="never any"),
        pytest.param([("gate", 1)], None, id="only one"),
        pytest.param([("gate", 1), ("promote", 2)], 1, id="two"),
        pytest.param([("gate", 1), ("gate", 2), ("gate", 3), ("rollback", 2)], 1, id="twice back"),
        pytest.param([("gate", 1), ("gate", 2), ("rollback", 1), ("gate", 3)], 1, id="then on"),
    ],
)
def test_the_former_champion_is_the_one_that_was_not_rolled_back(moves, former):
    assert former_champion(moves) == former
