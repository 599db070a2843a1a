import io
import subprocess
import sys

import pytest
from rich.cells import cell_len
from rich.console import Console
from sweep_documents import DOCUMENTS, hostile_document, sweep_document, wide_document

from jobs.importance import Importance, importance
from jobs.sweep_tables import importance_table, trials_table


def printed(table, width=80):
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False, markup=False, soft_wrap=True).print(table)
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_line_is_wider_than_the_terminal(name, width):
    text = printed(trials_table(DOCUMENTS[name](), width), width)
    assert max(cell_len(line) for line in text.splitlines()) <= width


def test_trials_stand_best_first_and_the_best_is_marked():
    document = sweep_document(12)
    lines = printed(trials_table(document)).splitlines()
    first = next(line for line in lines if "*" in line)
    best = document["trials"][document["best"]]
    assert first.split()[:3] == [f"*{best['trial']}", "finished", f"{best['metric']:.4f}"]
    assert lines.index(first) == 3  # an empty line, the heading, a rule


def test_pruned_and_failed_trials_are_told_with_the_cause_once():
    text = printed(trials_table(sweep_document(16)))
    assert " pruned " in text
    assert " failed " in text
    assert "4, 13: loss became nan at step 12 on rank 0; lower train.lr" in text


def test_many_trials_with_one_cause_are_counted():
    document = sweep_document(30)
    for trial in document["trials"]:
        trial["cause"] = "out of memory"
    assert "and 22 more: out of memory" in printed(trials_table(document))


def test_what_has_no_room_is_named():
    text = printed(trials_table(wide_document(5), 80))
    assert " lr " in text
    assert "no room for" in text
    assert "dimension_number_6" in text.split("no room for")[1]
    assert "no room for" not in printed(trials_table(wide_document(5), 300), 300)


def test_a_very_narrow_terminal_keeps_trial_status_and_metric():
    text = printed(trials_table(sweep_document(5), 36), 36)
    assert "seconds" not in text
    assert "accuracy" in text


def test_names_that_would_be_the_same_stand_whole():
    document = sweep_document(3)
    for trial in document["trials"]:
        trial["params"] = {"a.x": trial["trial"], "b.x": -trial["trial"]}
    text = printed(trials_table(document, 120), 120)
    assert "a.x" in text
    assert "b.x" in text


def test_texts_of_strangers_are_neither_markup_nor_commands_to_the_terminal():
    text = printed(trials_table(hostile_document(), 200), 200)
    assert "\x1b" not in text
    assert "[red]" in printed(importance_table(Importance({"[red]": 1.0}, None, 0.5, 9)))


def test_importances_have_bars_as_long_as_their_shares():
    text = printed(importance_table(Importance({"train.lr": 0.75, "b": 0.25}, None, 0.8, 20)))
    assert "75.0%" in text
    assert text.count("\u2588") == 24
    assert "20 settings" in text


def test_without_importances_there_is_the_reason():
    assert "cannot be told: 4 different" in printed(importance_table(importance(sweep_document(5))))


@pytest.mark.system
def test_the_tables_need_neither_pictures_nor_forests():
    code = "import sys, jobs.sweep_tables; assert not {'matplotlib', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
