import json
import re

import pytest
import yaml
from browser import look
from sweep_documents import (
    DOCUMENTS,
    HOSTILE,
    hostile_document,
    identical_document,
    pbt_document,
    sweep_document,
    unscored_document,
    wide_document,
)
from test_jobs_page import Page

from jobs.sweep_page import render_sweep, score, settings_yaml, write_sweep_page


def folder_of(document, path):
    path.mkdir(exist_ok=True)
    (path / "sweep.json").write_text(json.dumps(document))
    return path


@pytest.fixture
def rendered(tmp_path):
    return lambda document: render_sweep(folder_of(document, tmp_path / "job"))


def test_a_finished_sweep_has_every_section(rendered):
    page = Page(rendered(sweep_document(24)))
    assert page.headings == [
        "Settings of the best trial", "Course of the search", "What matters", "Cost and quality",
        "Trials", "Search space", "Settings of the search",
    ]  # fmt: skip
    assert page.tags.count("img") == 2 + 1 + 1 + 5 + 1  # course, bars, parallel, slices, cost


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_page_needs_no_script_and_nothing_from_elsewhere(rendered, name):
    text = rendered(DOCUMENTS[name]())
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    for attribute, value in page.attributes:
        assert not attribute.startswith("on")
        if attribute in ("src", "href"):
            assert value.startswith("data:image/svg+xml;base64,")
    assert len(text) < 3_000_000


def test_the_verdict_names_the_best_its_settings_and_its_gain(rendered):
    document = sweep_document(24)
    best = document["trials"][document["best"]]
    text = rendered(document)
    assert f"Trial {best['trial']} is best: accuracy {best['metric']:.4f}" in text
    assert "above the median trial" in text
    assert f"train.batch_size = {best['params']['train.batch_size']:g}" in text


@pytest.mark.parametrize(
    ("document", "says"),
    [
        pytest.param(lambda: sweep_document(1), "the only trial with a metric", id="one trial"),
        pytest.param(identical_document, "no better than the median", id="all the same"),
        pytest.param(unscored_document, "No trial has a metric yet", id="nothing measured"),
        pytest.param(unscored_document, "This sweep has not ended", id="running"),
        pytest.param(
            lambda: sweep_document(9, state="STOPPED"), "ended as stopped", id="stopped"
        ),
        pytest.param(
            lambda: sweep_document(24, mode="min", metric="log_loss", best=None),
            "below the median trial", id="lower is better",
        ),
        pytest.param(lambda: sweep_document(6), "settings cannot be told", id="few"),
        pytest.param(lambda: sweep_document(0), "No trial has started", id="no trial"),
    ],
)  # fmt: skip
def test_what_the_page_says_of_a_sweep(rendered, document, says):
    assert says in rendered(document())


def test_a_folder_without_the_file_gives_a_page_too(tmp_path):
    assert "has not ended" in render_sweep(tmp_path)


def test_the_table_has_every_trial_best_first_with_status_and_cause(rendered):
    document = sweep_document(24)
    table = rendered(document).split("<h2>Trials</h2>")[1].split("</table>")[0]
    numbers = [int(number) for number in re.findall(r'<tr[^>]*><td class="n">(\d+)</td>', table)]
    assert sorted(numbers) == list(range(24))
    assert numbers[0] == document["best"]
    for words in ("finished, best", ">pruned<", ">failed<", "loss became nan at step 12"):
        assert words in table


def test_a_best_value_at_the_end_of_its_range_is_pointed_out(rendered):
    document = sweep_document(12)
    document["trials"][document["best"]]["params"]["train.lr"] = 1.01e-5
    assert "train.lr = 1.01e-5 is at the lower end of its range" in rendered(document)


def test_several_seeds_are_summed_up_by_settings(rendered):
    text = rendered(sweep_document(12, seeds=3))
    assert "Settings over their seeds" in text
    assert ">0, 1, 2</div>" in text
    assert "Settings over their seeds" not in rendered(sweep_document(12))


def test_settings_that_changed_while_the_best_trained_are_listed(rendered):
    text = rendered(pbt_document())
    assert "Changed while it trained" in text
    assert "train.lr = 0.02" in text


def test_a_trial_far_off_is_said_to_be_at_the_edge(rendered):
    document = sweep_document(12)
    document["trials"][0]["metric"] = -1e6
    assert "1 trial lies so far off" in rendered(document)


def test_what_strangers_wrote_is_shown_and_never_run(rendered):
    text = rendered(hostile_document())
    page = Page(text)
    assert "script" not in page.tags
    assert all(value.startswith("data:") for name, value in page.attributes if name == "src")
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "&lt;script&gt;alert(1)" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "more characters]" in text


def test_the_page_is_written_whole_and_is_the_same_again(tmp_path):
    folder = folder_of(sweep_document(6), tmp_path / "job")
    assert write_sweep_page(folder, tmp_path / "r.html") == tmp_path / "r.html"
    assert (tmp_path / "r.html").read_text(encoding="utf-8") == render_sweep(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job", "r.html"]


@pytest.mark.parametrize(
    ("params", "tree"),
    [
        pytest.param(
            {"train.lr": 1e-5, "model.a": None, "train.x": "no"},
            {"train": {"lr": 1e-5, "x": "no"}, "model": {"a": None}}, id="blocks",
        ),
        pytest.param({"a": 1, "a.b": 2}, {"a": 1, "a.b": 2}, id="a value that is a block too"),
        pytest.param({"a.b": 1, "a": 2}, {"a.b": 1, "a": 2}, id="a block that is a value too"),
        pytest.param({"\u5b66": [1, 2]}, {"\u5b66": [1, 2]}, id="a list, another script"),
    ],
)  # fmt: skip
def test_the_best_settings_can_be_copied_into_a_job_file(params, tree):
    assert yaml.safe_load(settings_yaml(params)) == tree


@pytest.mark.parametrize(
    ("value", "text"), [(0.93125, "0.9313"), (None, "\u2013"), (2e-7, "2e-7"), (0, "0.0000")]
)
def test_scores_have_four_digits(value, text):
    assert score(value) == text


@pytest.mark.system
@pytest.mark.parametrize(
    "document", [sweep_document, wide_document, hostile_document, unscored_document]
)
def test_no_page_is_wider_than_its_window(tmp_path, document):
    page = write_sweep_page(folder_of(document(), tmp_path / "job"), tmp_path / "page.html")
    for width in (1280, 390):
        assert look(page, width) == (width, 0, 0, [])


def test_the_hostile_text_is_hostile():
    assert "<script>" in HOSTILE
