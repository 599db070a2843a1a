"""Search spaces: what is drawn, counted, walked and refused."""

import json
import random
from collections import Counter

import numpy as np
import pytest

from tune_spaces import SHIPPED, read_space, shipped_document
from tune_spaces.check import SpaceError
from tune_spaces.dimension import same
from tune_spaces.fields import FIELDS, takes

FIXED = {"model.pooling": "mean", "train.freeze": "none", "train.schedule": "linear"}


def drawn(given, count=300, seed=0, fixed=FIXED):
    space, rng = read_space(given), random.Random(seed)
    return [space.draw(rng, fixed) for _ in range(count)]


def values(dimension, field="train.lr", **options):
    return [point[field] for point in drawn({field: {**dimension, **options}})]


def test_a_uniform_draw_fills_its_range_evenly():
    found = values({"uniform": [1.0, 3.0]})
    assert all(1 <= value <= 3 for value in found)
    assert abs(sum(value < 2 for value in found) - 150) < 40  # 4.6 standard deviations


def test_a_log_uniform_draw_gives_every_order_of_magnitude_the_same_share():
    found = values({"log_uniform": [1e-5, 1e-1]})
    assert all(1e-5 <= value <= 1e-1 for value in found)
    assert abs(sum(value < 1e-3 for value in found) - 150) < 40


def test_stepped_values_are_clean_and_include_both_ends():
    found = values({"uniform": [0.0, 0.3]}, "model.dropout", step=0.05)
    assert set(found) == {0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3}


def test_a_step_that_does_not_divide_the_range_ends_below_it():
    assert set(values({"uniform": [0.1, 0.5]}, "model.dropout", step=0.15)) == {0.1, 0.25, 0.4}


def test_stepped_logarithms_are_clean_and_favour_small_values():
    counts = Counter(values({"log_uniform": [0.1, 0.9]}, "model.dropout", step=0.1))
    assert set(counts) == {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9}
    assert counts[0.1] > counts[0.9]


def test_integers_include_both_ends_and_are_whole():
    found = values({"integer": [1, 4]}, "train.epochs")
    assert set(found) == {1, 2, 3, 4}
    assert all(type(value) is int for value in found)


def test_integers_have_steps_and_logarithms():
    assert set(values({"integer": [8, 64]}, "train.batch_size", step=8)) == set(range(8, 65, 8))
    counts = Counter(values({"integer": [1, 100]}, "train.epochs", log=True))
    assert min(counts) == 1
    assert max(counts) <= 100
    assert abs(sum(n for value, n in counts.items() if value < 10) - 150) < 40


def test_the_last_of_a_few_whole_numbers_is_drawn_on_a_logarithmic_range_too():
    counts = Counter(values({"integer": [1, 2]}, "train.epochs", log=True))
    assert counts[1] > counts[2] > 80  # log(2) : log(1.5)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [(True, 1, False), (False, 0, False), (1, 1.0, True), (None, 0, False), ("1", 1, False),
     ({"a": 1}, {"a": 1}, True), (True, True, True)],
)  # fmt: skip
def test_values_are_the_same_if_a_job_file_means_the_same(one, other, expected):
    assert same(one, other) is expected


def test_a_choice_may_hold_values_of_any_type():
    stop = {"metric": "macro_f1", "patience": 2}
    space = {"train.early_stopping": {"choice": [None, stop]}, "train.clip": {"choice": [None, 1]}}
    found = drawn(space)
    assert any(point["train.early_stopping"] == stop for point in found)
    assert any(point["train.early_stopping"] is None for point in found)
    assert {point["train.clip"] for point in found} == {None, 1.0}
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("rng", [random.Random(1), np.random.default_rng(1)], ids=["std", "numpy"])
def test_draws_are_plain_json_whatever_draws(rng):
    space = read_space("wide")
    point = space.draw(rng, FIXED)
    assert {type(value) for value in point.values()} <= {float, int, str, type(None)}


def test_equal_seeds_draw_equal_points_and_other_seeds_others():
    assert drawn("wide", 5) == drawn("wide", 5) != drawn("wide", 5, seed=1)


def test_a_field_varies_only_while_its_condition_holds():
    space = {
        "model.heads": {"choice": [1, 2], "when": {"model.pooling": "attention"}},
        "model.pooling": {"choice": ["mean", "attention"]},
    }
    found = drawn(space)
    assert {"model.heads" in p for p in found if p["model.pooling"] == "attention"} == {True}
    assert {"model.heads" in p for p in found if p["model.pooling"] == "mean"} == {False}
    assert list(max(found, key=len)) == ["model.heads", "model.pooling"]  # the order of the file


def test_a_condition_on_a_field_that_does_not_vary_asks_the_job():
    space = {"model.heads": {"choice": [1, 2], "when": {"model.pooling": ["attention", "max"]}}}
    assert drawn(space, 1) == [{}]
    assert "model.heads" in drawn(space, 1, fixed={"model.pooling": "max"})[0]
    assert drawn(space, 1, fixed={}) == [{}]


CHAIN = {
    "train.freeze": {"choice": ["none", "gradual"]},
    "train.schedule": {"choice": ["linear", "noam"], "when": {"train.freeze": "gradual"}},
    "train.warmup": {"choice": [0.1, 0.2, 0.3], "when": {"train.schedule": "noam"}},
}


def test_conditions_chain_and_an_inactive_field_has_the_value_of_the_job():
    assert {len(point) for point in drawn(CHAIN)} == {1, 2, 3}
    outside = drawn(CHAIN, fixed={"train.schedule": "noam"})
    assert {"train.warmup" in p for p in outside if p["train.freeze"] == "none"} == {True}


def test_a_condition_leaves_the_draws_of_other_fields_as_they_were():
    one = {"train.lr": {"uniform": [1.0, 2.0]}, "model.heads": {"choice": [1, 2]}}
    two = {**one, "model.heads": {"choice": [1, 2], "when": {"model.pooling": "attention"}}}
    assert [p["train.lr"] for p in drawn(one)] == [p["train.lr"] for p in drawn(two)]


@pytest.mark.parametrize(
    ("given", "count"),
    [
        pytest.param({"train.lr": {"uniform": [1, 2]}}, None, id="uncountable"),
        pytest.param({"model.dropout": {"uniform": [0, 0.3], "step": 0.1}}, 4, id="stepped"),
        pytest.param({"train.lr": {"log_uniform": [0.1, 0.4], "step": 0.1}}, 4, id="log stepped"),
        pytest.param({"train.epochs": {"integer": [1, 7], "step": 3}}, 3, id="whole numbers"),
        pytest.param(
            {"train.epochs": {"integer": [1, 5]}, "train.clip": {"grid": [None, 1.0]}}, 10,
            id="product",
        ),
        pytest.param(CHAIN, 1 + 1 + 3, id="chain of conditions"),
        pytest.param(
            {
                "train.epochs": {"integer": [1, 50_000]},
                "model.dropout": {"choice": [0.1, 0.2], "when": {"train.epochs": [3, 4]}},
            },
            49_998 + 4,
            id="a condition on a long range",
        ),
        pytest.param(
            {"train.lr": {"uniform": [1, 2], "when": {"train.freeze": "gradual"}},
             "train.clip": {"choice": [None, 1.0]}},
            2,
            id="uncountable but never varies",
        ),
    ],
)  # fmt: skip
def test_points_are_counted_without_walking_them(given, count):
    space = read_space(given)
    assert space.num_points(FIXED) == count
    if count is not None:
        walked = [*space.points(FIXED)]
        assert len(walked) == count
        assert len({json.dumps(point) for point in walked}) == count
        assert all(space.is_point(point, FIXED) for point in walked)


def test_a_billion_points_are_counted_at_once():
    fields = ("train.epochs", "train.batch_size", "data.max_length")
    space = read_space({field: {"integer": [1, 1000]} for field in fields})
    assert space.num_points({}) == 10**9
    assert next(space.points({})) == dict.fromkeys(fields, 1)


def test_grid_dimensions_are_walked_in_turn_while_others_are_drawn():
    space = read_space({
        "train.epochs": {"grid": [1, 2]}, "train.clip": {"grid": [None, 1.0]},
        "train.lr": {"uniform": [1, 2]},
    })  # fmt: skip
    points = space.draws(random.Random(0), {})
    found = [next(points) for _ in range(8)]
    pairs = [(p["train.epochs"], p["train.clip"]) for p in found]
    assert pairs == [(1, None), (1, 1.0), (2, None), (2, 1.0)] * 2
    assert len({p["train.lr"] for p in found}) == 8


def test_extremes_reach_both_ends_of_every_field_behind_its_conditions():
    found = [*read_space({**CHAIN, "train.lr": {"uniform": [1, 2]}}).extremes(FIXED)]
    for field, ends in (("train.warmup", {0.1, 0.2, 0.3}), ("train.lr", {1.0, 2.0})):
        assert {point[field] for point in found if field in point} == ends
    assert len(found) < 10


def test_within_a_job_what_it_settles_is_gone():
    space = read_space(CHAIN | {"model.heads": {"choice": [1], "when": {"model.pooling": "mean"}}})
    inside = space.within(FIXED)
    assert inside["model.heads"].when == ()
    assert inside["train.warmup"].when == space["train.warmup"].when
    gone = space.within({"model.pooling": "max"})
    assert "model.heads" not in gone
    rng, other = random.Random(3), random.Random(3)
    assert [space.draw(rng, FIXED) for _ in range(9)] == [
        inside.draw(other, FIXED) for _ in range(9)
    ]


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        pytest.param({"train.freeze": "none"}, True, id="of the space"),
        pytest.param({"train.freeze": "gradual"}, False, id="a field is missing"),
        pytest.param({"train.freeze": "none", "train.schedule": "noam"}, False, id="one too many"),
        pytest.param({"train.freeze": "top:2"}, False, id="another value"),
    ],
)
def test_a_point_is_of_the_space_if_it_could_have_been_drawn(point, expected):
    assert read_space(CHAIN).is_point(point, FIXED) is expected


def test_tidy_gives_the_nearest_point_in_plain_values():
    space = read_space({
        "model.dropout": {"uniform": [0, 0.3], "step": 0.05}, "train.epochs": {"integer": [1, 9]},
        "train.lr": {"uniform": [0.1, 0.2]}, "train.freeze": {"choice": ["none", "gradual"]},
    })  # fmt: skip
    others = {
        "model.dropout": np.float64(0.15000000000000002), "train.epochs": np.int64(4),
        "train.lr": 0.21, "train.freeze": np.str_("none"), "model.heads": 3,
    }  # fmt: skip
    tidy = space.tidy(others)
    assert tidy == {
        "model.dropout": 0.15, "train.epochs": 4, "train.lr": 0.2, "train.freeze": "none",
    }  # fmt: skip
    assert {type(value) for value in tidy.values()} == {float, int, str}


def test_the_table_has_a_row_of_texts_per_field():
    row, second = read_space({
        "train.epochs": {"integer": [1, 9], "log": True, "step": 2, "why": "short is fast"},
        "train.clip": {"choice": [None, 1.0], "when": {"model.pooling": ["max", "mean"]}},
    }).table()  # fmt: skip
    assert row == {
        "field": "train.epochs", "kind": "integer (log)", "range": "1 to 9", "step": "2",
        "when": "", "why": "short is fast",
    }  # fmt: skip
    assert (second["range"], second["when"]) == ("null, 1", "model.pooling = max or mean")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_space_can_be_drawn_and_says_why(name):
    space = read_space(name)
    for pooling in ("mean", "attention"):
        for point in drawn(name, 50, fixed={"model.pooling": pooling}):
            assert all(takes(field, value) for field, value in point.items())
            assert space.is_point(point, {"model.pooling": pooling})
    assert all(row["why"] for row in space.table())
    assert read_space(shipped_document(name)) == space


def test_every_field_that_may_vary_is_one_of_the_job_file():
    assert len(FIELDS) == len(set(FIELDS)) > 20
    assert takes("data.max_length", 5)
    assert not takes("data.max_length", 0)


def test_all_faults_are_told_at_once_and_survive_pickling():
    import pickle

    with pytest.raises(SpaceError) as error:
        read_space({"train.lr": {"uniform": [2, 1]}, "train.clip": {"choice": []}})
    again = pickle.loads(pickle.dumps(error.value))
    assert [fault.path for fault in again.faults] == [
        ("train.lr", "uniform"), ("train.clip", "choice"),
    ]  # fmt: skip
    assert "train.lr" in str(again)
    assert "train.clip" in str(again)
