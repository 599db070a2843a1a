import subprocess
import sys
from xml.etree import ElementTree

import pytest
from sweep_documents import DOCUMENTS, hostile_document, sweep_document

from jobs.figures import png, svg
from jobs.sweep_figures import (
    cost_figure,
    curves_of_trials_figure,
    history_figure,
    importance_figure,
    pareto_front,
    slice_figure,
)
from jobs.sweep_parallel import parallel_figure, wrapped_name
from jobs.sweep_result import read_sweep

FIGURES = {
    "history": history_figure,
    "curves": curves_of_trials_figure,
    "cost": cost_figure,
    "parallel": parallel_figure,
}


def text_of(figure):
    return "".join(ElementTree.fromstring(svg(figure)).itertext())


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_sweep_gives_every_picture(name, figure):
    picture = svg(FIGURES[figure](read_sweep(DOCUMENTS[name]())))
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert b" nan" not in picture
    assert len(picture) < 500_000


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_dimension_gives_a_slice(name):
    sweep = read_sweep(DOCUMENTS[name]())
    for axis in sweep.axes:
        assert svg(slice_figure(sweep, axis)).startswith(b"<?xml")


def test_the_same_sweep_gives_the_same_picture_also_as_png():
    sweep = read_sweep(sweep_document())
    assert svg(parallel_figure(sweep)) == svg(parallel_figure(sweep))
    assert png(history_figure(sweep)).startswith(b"\x89PNG")


def test_the_history_tells_each_kind_of_trial():
    text = text_of(history_figure(read_sweep(sweep_document())))
    for words in ("finished", "pruned", "best", "best so far", "without a metric"):
        assert words in text


def test_best_so_far_never_gets_worse():
    sweep = read_sweep(sweep_document(30, mode="min", metric="log_loss"))
    (line,) = [
        line for line in history_figure(sweep).axes[0].lines if line.get_label() == "best so far"
    ]
    values = list(line.get_ydata())
    assert values == sorted(values, reverse=True)
    assert values[-1] == min(value for _, value in sweep.scored)


def test_a_logarithmic_axis_says_so():
    sweep = read_sweep(sweep_document())
    assert "(log scale)" in text_of(parallel_figure(sweep))
    assert "(log scale)" in text_of(slice_figure(sweep, sweep.axes[0]))
    assert "(log scale)" not in text_of(slice_figure(sweep, sweep.axes[1]))


def test_the_front_is_what_nothing_cheaper_beats():
    document = sweep_document(5)
    found = [(10, 0.5), (20, 0.8), (15, 0.4), (30, 0.8), (40, 0.9)]
    for trial, (seconds, metric) in zip(document["trials"], found, strict=True):
        trial |= {"seconds": seconds, "metric": metric}
    assert [trial.seconds for trial in pareto_front(read_sweep(document))] == [10, 20, 40]


def test_names_are_drawn_as_written():
    sweep = read_sweep(hostile_document())
    text = text_of(slice_figure(sweep, sweep.axes[1]))
    assert "train.\u5b66\u4e60\u7387" in text
    assert "$x^2$" in text_of(importance_figure({"a $x^2$ <script>": 0.7, "b": 0.3}))


def test_importances_are_written_beside_their_bars():
    assert "70%" in text_of(importance_figure({"train.lr": 0.7, "model.dropout": 0.3}))


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("train.lr", ["train.lr"]),
        ("model.attention_dropout", ["model.attention_", "dropout"]),
        ("x" * 40, ["x" * 17, "x" * 17, "x" * 6]),
        ("x" * 80, ["x" * 17, "x" * 17, "\u2026" + "x" * 16]),
    ],
)
def test_long_names_go_over_lines(name, lines):
    assert wrapped_name(name) == lines


@pytest.mark.system
def test_drawing_leaves_matplotlibs_global_state_alone():
    code = "import sys, jobs.sweep_page; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
