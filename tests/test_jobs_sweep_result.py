import json

import pytest
from sweep_documents import DOCUMENTS, dimension, sweep_document

from jobs.sweep_axes import ABSENT_PLACE, axes_of, value_text
from jobs.sweep_result import read_sweep


def axis_of(kind, values, bounds=""):
    (axis,) = axes_of([dimension("x", kind, bounds)], [{"x": value} for value in values])
    return axis


@pytest.mark.parametrize(
    ("kind", "values", "bounds", "ticks"),
    [
        pytest.param(
            "log_uniform", [1e-4, 1e-3], "1e-05 to 0.01",
            [(0, "1e-5"), (1 / 3, "0.0001"), (2 / 3, "0.001"), (1, "0.01")], id="powers of ten",
        ),
        pytest.param(
            "uniform", [0.1], "0.0 to 0.3", [(0, "0"), (1 / 3, "0.1"), (2 / 3, "0.2"), (1, "0.3")],
            id="even steps",
        ),
        pytest.param("choice", [16, 2, 8], "", [(0, "2"), (0.5, "8"), (1, "16")], id="by size"),
        pytest.param("choice", ["b", "a"], "", [(0, "a"), (1, "b")], id="by name"),
        pytest.param("choice", [True, None], "", [(0, "null"), (1, "true")], id="odd values"),
        pytest.param("uniform", [0.3, 0.3], "", [(0.5, "0.3")], id="one value"),
        pytest.param("choice", [[1, 2]], "", [(0.5, "[1, 2]")], id="a list"),
    ],
)  # fmt: skip
def test_the_marks_of_an_axis(kind, values, bounds, ticks):
    found = axis_of(kind, values, bounds).ticks()
    assert [text for _, text in found] == [text for _, text in ticks]
    assert [place for place, _ in found] == pytest.approx([place for place, _ in ticks])


def test_a_value_beyond_the_range_widens_the_axis():
    axis = axis_of("log_uniform", [1e-3, 0.5], "1e-05 to 0.01")
    assert axis.place({"x": 0.5}) == 1
    assert axis.place({"x": 1e-3}) < 1


def test_a_dimension_that_does_not_apply_stands_below_the_axis():
    space = [dimension("x", "choice", "1, 2")]
    (axis,) = axes_of(space, [{"x": 1}, {}, {"x": 2}])
    assert axis.place({}) == ABSENT_PLACE
    assert axis.ticks()[0] == (ABSENT_PLACE, "not set")


def test_a_logarithm_of_zero_is_never_taken():
    assert axis_of("log_uniform", [0.0, 1.0]).scale == "linear"


def test_what_no_space_describes_gets_an_axis_if_it_varies():
    trials = [{"a": i, "b": 1, "c": 10.0**-i} for i in range(8)]
    assert [(axis.field, axis.scale) for axis in axes_of([], trials)] == [
        ("a", "linear"), ("c", "log"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-5, "1e-5"), (0.00054608, "0.0005461"), (1e20, "1e20"), (16.0, "16"), (False, "false")],
)
def test_values_are_short(value, text):
    assert value_text(value) == text


def test_the_edge_of_the_range_is_noticed():
    axis = axis_of("log_uniform", [1.1e-5], "1e-05 to 0.01")
    assert axis.edge({"x": 1.1e-5}) == "lower"
    assert axis.edge({"x": 9.9e-3}) == "upper"
    assert axis.edge({"x": 1e-3}) is None
    assert axis.edge({}) is None


def test_the_best_is_the_one_that_the_sweep_names():
    document = sweep_document()
    document["best"] = 2
    assert read_sweep(document).best.trial == 2


@pytest.mark.parametrize("mode", ["max", "min"])
def test_while_none_is_named_the_best_metric_leads(mode):
    sweep = read_sweep(sweep_document(mode=mode, best=None))
    values = [value for _, value in sweep.scored]
    assert sweep.best.metric == {"max": max, "min": min}[mode](values)
    assert sweep.ranked[0] is sweep.best
    assert sweep.ranked[-1].metric is None


def test_a_metric_that_is_no_number_is_none():
    document = json.loads(json.dumps(sweep_document(3)))
    for trial, value in zip(document["trials"], (float("nan"), float("inf"), True), strict=True):
        trial["metric"] = value
    document["trials"][0]["curve"] = [[1, 0.5], [2, float("nan")], [3, None]]
    sweep = read_sweep(document)
    assert not sweep.scored
    assert sweep.best is None
    assert sweep.trials[0].curve == ((1.0, 0.5),)


def test_trials_stand_in_the_order_in_which_they_ended_where_that_is_known():
    document = sweep_document(3)
    for trial, ended in zip(document["trials"], (30, 10, 20), strict=True):
        trial["finished_unix_s"] = ended
    assert [trial.trial for trial in read_sweep(document).trials] == [1, 2, 0]


@pytest.mark.parametrize(("mode", "limits"), [("max", (0.6375, 9.0)), ("min", (-9.0, 1.1625))])
def test_far_outliers_on_the_bad_side_are_beyond_the_limits(mode, limits):
    document = sweep_document(7, mode=mode)
    values = (0.85, 0.875, 0.9, 0.925, 0.95, 9.0, -9.0)
    for trial, value in zip(document["trials"], values, strict=True):
        trial["metric"] = value
    # quartiles 0.8625 and 0.9375: the fences are 0.225 outside them
    assert read_sweep(document).limits() == pytest.approx(limits)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_document_can_be_read(name):
    document = DOCUMENTS[name]()
    assert len(read_sweep(document).trials) == len(document["trials"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": "FINISHED"}, "finished"),
        ({"status": "FINISHED", "pruned": True}, "pruned"),
        ({"status": "FAILED", "pruned": True}, "failed"),
        ({"status": "KILLED"}, "stopped"),
        ({"status": "PENDING"}, "waiting"),
        ({"status": "ODD"}, "odd"),
    ],
)
def test_a_status_in_words(changes, words):
    document = sweep_document(1)
    document["trials"][0] |= {"pruned": False} | changes
    assert read_sweep(document).trials[0].words == words
