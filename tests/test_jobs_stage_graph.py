"""The order of stages, and cycles among them, however long."""

import pytest

from jobs.stage_faults import graph_faults
from jobs.stage_graph import cycles, order, parse_reference

LONG = 10_000


def chain(length, first=()):
    """Stages that need one another in a row."""
    return {f"s{i}": [f"s{i - 1}"] if i else [*first] for i in range(length)}


def said(needs):
    """The faults of stages with these needs, as `path: words`."""
    stages = {name: {"needs": needs[name], "job": {}} for name in needs}
    return [(".".join(map(str, path)), value, words) for path, value, words in graph_faults(stages)]


def test_a_stage_comes_after_all_that_it_needs_and_else_in_the_order_of_the_file():
    needs = {"d": ["b", "c"], "a": [], "c": ["a"], "b": ["a"], "e": []}
    assert order(needs) == ["a", "c", "b", "d", "e"]


def test_ten_thousand_stages_in_a_row_have_an_order():
    backwards = dict(reversed(chain(LONG).items()))
    assert order(backwards) == [f"s{i}" for i in range(LONG)]
    assert cycles(backwards) == []


@pytest.mark.parametrize(
    ("needs", "field", "cycle"),
    [
        ({"a": ["a"]}, "stages.a.needs.0", "a -> a"),
        ({"a": ["b"], "b": ["a"]}, "stages.a.needs.0", "a -> b -> a"),
        ({"x": ["a"], "a": ["y", "b"], "b": ["c"], "c": ["a"], "y": []}, "stages.a.needs.1",
         "a -> b -> c -> a"),
    ],
)  # fmt: skip
def test_a_cycle_is_printed_at_the_need_that_is_part_of_it(needs, field, cycle):
    ((path, _, words),) = said(needs)
    assert path == field
    assert words.endswith(f": {cycle}")


def test_every_cycle_of_its_own_is_told():
    needs = {"a": ["b"], "b": ["a"], "c": ["d", "a"], "d": ["c"], "e": ["c"], "f": []}
    assert cycles(needs) == [["a", "b"], ["c", "d"]]
    assert order(needs) == ["f"]


def test_a_cycle_of_ten_thousand_is_told_by_its_ends():
    ((path, value, words),) = said(chain(LONG, first=[f"s{LONG - 1}"]))
    assert (path, value) == ("stages.s0.needs.0", f"s{LONG - 1}")
    assert "s0 -> s9999 -> s9998" in words
    assert words.endswith("s1 -> s0")
    assert "9,971 more" in words
    assert len(words) < 500


def test_a_need_that_is_no_stage_is_told_with_those_there_are():
    ((path, value, words),) = said({"small": [], "check": ["smal"]})
    assert (path, value) == ("stages.check.needs.0", "smal")
    assert "small, check; did you mean 'small'?" in words


def test_a_reference_is_a_need():
    stages = {
        "a": {"job": {"kind": "finetune", "data": {"train": "${stages.b.output}"}}},
        "b": {"job": {"kind": "predict", "model": "${stages.a.model}"}},
    }
    ((path, value, words),) = graph_faults(stages)
    assert (path, value) == (("stages", "a", "job", "data", "train"), "${stages.b.output}")
    assert words.endswith("a -> b -> a")


def test_a_reference_is_a_whole_text_and_nothing_else():
    assert parse_reference("${stages.a-1.model}") == ("a-1", "model")
    for text in ("${stages.a.model} ", "x${stages.a.model}", "${stages.a.metrics}",
                 "${stages.A.model}", "${stages.a/../b.model}", "${stages.a.model}\n"):  # fmt: skip
        assert parse_reference(text) is None


def test_a_file_that_an_earlier_stage_reads_is_not_replaced():
    def stages(output, **more):
        return {
            "first": {"job": {"kind": "prepare", "input": "rows.csv"}},
            "label": {"job": {"kind": "predict", "model": ".",
                              "input": "${stages.first.unlabelled}", "output": output}},
            "later": {"needs": ["label"], "job": {"kind": "finetune", "data": {"train": "o.csv"}}},
        } | more  # fmt: skip

    ((path, value, words),) = graph_faults(stages("./rows.csv"))
    assert (path, value) == (("stages", "label", "job", "output"), "./rows.csv")
    assert words == "another file than what stage first reads"
    # What comes later may read it, and so may who has nothing to do with it.
    assert not [*graph_faults(stages("o.csv"))]
