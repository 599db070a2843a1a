import subprocess
import sys
from xml.etree import ElementTree

import pytest

from jobs.figures import confusion_figure, curves_figure, png, reliability_figure, svg

BINS = [
    {"low": 0.0, "high": 0.5, "count": 0, "confidence": None, "accuracy": None},
    {"low": 0.5, "high": 1.0, "count": 8, "confidence": 0.8, "accuracy": 0.7},
]


def text_of(picture):
    return "".join(ElementTree.fromstring(picture).itertext())


@pytest.mark.parametrize(
    "figure",
    [
        pytest.param(lambda: confusion_figure([[5, 1], [0, 0]], ["a", "b"]), id="confusion"),
        pytest.param(lambda: reliability_figure(BINS), id="reliability"),
        pytest.param(lambda: reliability_figure(BINS[:1]), id="reliability without rows"),
        pytest.param(
            lambda: curves_figure({"loss": [(1, 2.0), (2, 1.0)]}, ylabel="loss"), id="curve"
        ),
        pytest.param(lambda: curves_figure({"loss": [(1, 2.0)]}, ylabel="loss"), id="one point"),
    ],
)
def test_every_picture_is_a_png_and_a_well_formed_svg(figure):
    assert png(figure()).startswith(b"\x89PNG")
    picture = svg(figure())
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert picture == svg(figure())


def test_labels_are_drawn_as_written_whatever_they_hold():
    labels = ["$x^2$ & <b>", "\u8d22\u7ecf", "bell\x07", "x" * 100]
    text = text_of(svg(confusion_figure([[1, 0, 0, 0]] * 4, labels)))
    for expected in ("$x^2$ & <b>", "\u8d22\u7ecf", "bell\ufffd", "x" * 23 + "\u2026"):
        assert expected in text


def test_counts_are_written_into_small_matrices_only():
    def counts(size):
        rows = [[777 if i == j else 0 for j in range(size)] for i in range(size)]
        return text_of(svg(confusion_figure(rows, [str(i) for i in range(size)]))).count("777")

    assert counts(3) == 3
    assert counts(40) == 0


@pytest.mark.system
def test_drawing_leaves_matplotlibs_global_state_alone():
    code = (
        "import sys, jobs.figures as f; f.png(f.confusion_figure([[1]], ['a']));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
