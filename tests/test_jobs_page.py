"""The job folders here hold what a small model really did: a linear one, trained by hand."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest

from gpt2cls.baselines import run_baselines
from gpt2cls.data.tasks import Split, Task
from gpt2cls.metrics import choose_thresholds, evaluate_probabilities, quick_metrics
from gpt2cls.mistakes import worst_mistakes
from jobs.page import render, write_report
from jobs.page_tables import MAX_TEXT_CHARACTERS, verdict

WORDS = (
    ("shares", "profits", "bank", "market", "tax"),
    ("goal", "match", "striker", "cup", "tax"),
    ("vote", "minister", "party", "market", "cup"),
)
HOSTILE = "</td></script><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31mred"


def sample_split(task, num_rows, seed):
    """Texts of words that mostly belong to one topic."""
    rng = np.random.default_rng(seed)
    topics = rng.integers(0, 3, num_rows)
    texts = [" ".join(rng.choice(WORDS[t], 3)) + " " + rng.choice(WORDS[seed % 3]) for t in topics]
    labels = topics if task.kind == "single_label" else np.eye(3, dtype=bool)[topics]
    return Split(pa.chunked_array([texts], pa.large_string()), None, labels)


def features(split):
    vocabulary = sorted({word for words in WORDS for word in words})
    texts = split.texts.to_pylist()
    return np.array([[text.split().count(word) for word in vocabulary] for text in texts], float)


def probabilities(weights, split, task):
    logits = features(split) @ weights
    if task.kind == "multi_label":
        return 1 / (1 + np.exp(-logits))
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def write_events(path, task, train, validation):
    """Gradient descent, one event a step; returns the weights."""
    weights = np.zeros((features(train).shape[1], 3))
    targets = train.labels if task.kind == "multi_label" else np.eye(3)[train.labels]
    events = []
    for step in range(1, 41):
        probs = probabilities(weights, train, task)
        loss = quick_metrics(probs, train.labels, task)["log_loss"]
        weights -= 0.5 * features(train).T @ (probs - targets) / len(train)
        events.append(
            {"kind": "step", "step": step, "metrics": {"train/loss": loss, "train/lr": 0.5}}
        )
        if step % 10 == 0:
            found = quick_metrics(probabilities(weights, validation, task), validation.labels, task)
            metrics = {f"eval/{name}": value for name, value in found.items()}
            events.append({"kind": "eval", "step": step, "metrics": metrics})
    lines = [json.dumps(event) for event in events]
    path.write_text("\n".join(lines) + '\n{"kind": "st')  # the last line is being written
    return weights


def job_folder(
    folder, *, kind="single_label", labels=("business", "sport", "world"), has_test=True
):
    """Everything that a finished job leaves in its folder, as far as the page reads it."""
    task = Task(kind, labels, False)
    train, validation, test = (sample_split(task, n, seed) for seed, n in enumerate((120, 60, 90)))
    folder.mkdir(exist_ok=True)
    weights = write_events(folder / "events.jsonl", task, train, validation)
    thresholds = None
    if kind == "multi_label":
        thresholds = choose_thresholds(probabilities(weights, validation, task), validation.labels)
    measured = test if has_test else validation
    probs = probabilities(weights, measured, task)
    table = evaluate_probabilities(probs, measured.labels, task, thresholds, resamples=50)
    documents = {
        "resolved": {"kind": "finetune", "name": "topics", "train": {"epochs": 40, "lr": 0.5}},
        "result": {
            "job_id": folder.name,
            "test": table if has_test else None,
            "validation": table,
            "baselines": run_baselines(train, measured, task, validation=validation),
        },
        "data_report": {
            "rows": 270,
            "splits": {"train": 120, "validation": 60, "test": 90},
            "labels": {name: {"train": 40} for name in labels},
            "tokens": {},
            "problems": [{"kind": "duplicates", "count": 3, "examples": [train.texts[0].as_py()]}],
            "notes": ["made by hand"],
        },
        "mistakes": worst_mistakes(probs, measured.labels, measured.texts, 5, task=task),
    }  # fmt: skip
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


class Page(HTMLParser):
    """Headings, tags and attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.headings = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "h2" and data.strip():
            self.headings.append(data)
            self.tags.append("")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return job_folder(tmp_path_factory.mktemp("jobs") / "topics-1")


def test_a_finished_job_has_every_section_and_four_kinds_of_pictures(finished):
    page = Page(render(finished))
    assert page.headings == [
        "Result beside the baselines", "Data", "Training", "Per class", "Confusion",
        "Calibration", "Worst mistakes", "Settings",
    ]  # fmt: skip
    assert page.tags.count("img") == 5  # three curves, confusion, reliability


def test_the_page_needs_no_script_and_nothing_from_elsewhere(finished):
    page = Page(render(finished))
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            assert value.startswith("data:image/svg+xml;base64,")


def test_the_numbers_of_the_table_are_those_of_the_result(finished):
    text = render(finished)
    result = json.loads((finished / "result.json").read_text())
    for value in (result["test"]["accuracy"], result["baselines"]["tfidf"]["log_loss"]):
        assert f">{value:.3f}<" in text


def language_folder(folder):
    """What a pretrain job leaves, as far as the page reads it."""
    folder.mkdir()
    sizes = {"texts": 1234, "bytes": 99_000, "tokens": 21_500, "blocks": 84}
    documents = {
        "resolved": {"kind": "pretrain", "name": "news", "model": {"backbone": "gpt2-mini"}},
        "result": {
            "job_id": folder.name,
            "validation": {"loss": 3.8525, "perplexity": 47.11, "bits_per_byte": 1.575},
            "test": None,
            "folder": "somewhere",
        },
        "data_report": {"splits": {"train": sizes, "validation": {**sizes, "texts": 57}}},
    }
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    events = [{"step": i, "metrics": {"train/loss": 9.0 - i}} for i in range(4)]
    events.append({"step": 3, "metrics": {"eval/loss": 6.0}})
    (folder / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    return folder


def test_a_language_model_shows_its_texts_and_what_it_is_on_those_held_out(tmp_path):
    page = Page(text := render(language_folder(tmp_path / "news-1")))
    assert page.headings == ["Held-out texts", "Texts", "Training", "Settings"]
    for shown in ("3.853", "47.110", "1.575", "21,500 tokens", ">1,234<", ">57<", "held out"):
        assert shown in text, shown
    assert "no test split" not in text
    assert "Validation split" not in text


def test_an_ensemble_stands_beside_its_members(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "both-1")
    result = json.loads((folder / "result.json").read_text())
    members = {"models:/one/1": result["baselines"]["tfidf"], "models:/two/3": result["test"]}
    result = {"job_id": "both-1", "test": result["test"], "members": members}
    (folder / "result.json").write_text(json.dumps(result))
    text = render(folder)
    assert text.index("This model") < text.index("models:/one/1") < text.index("models:/two/3")


def test_several_labels_show_their_thresholds_and_no_confusion_matrix(tmp_path):
    page = Page(text := render(job_folder(tmp_path / "job", kind="multi_label")))
    assert "Confusion" not in page.headings
    assert "Threshold" in text
    assert "Avg. precision" in text


def test_without_a_test_split_the_page_says_that_its_numbers_flatter(tmp_path):
    text = render(job_folder(tmp_path / "job", has_test=False))
    assert "There is no test split" in text
    assert "Validation split, 60 rows" in text


def test_a_job_that_is_not_finished_shows_its_curves_and_says_so(tmp_path):
    job_folder(tmp_path / "job")
    for name in ("result.json", "mistakes.json", "data_report.json"):
        (tmp_path / "job" / name).unlink()
    text = render(tmp_path / "job")
    assert "has not finished" in text
    assert Page(text).headings == ["Training", "Settings"]


def test_an_empty_folder_gives_a_page_too(tmp_path):
    assert "has not finished" in render(tmp_path)


def test_what_strangers_wrote_is_shown_and_never_run(tmp_path):
    folder = job_folder(tmp_path / "job", labels=(HOSTILE, "a & b", "$x^2$ \u202e"))
    mistakes = json.loads((folder / "mistakes.json").read_text())
    mistakes["mistakes"][0]["text"] = HOSTILE
    (folder / "mistakes.json").write_text(json.dumps(mistakes))
    job = {"name": HOSTILE, "data": {"train": HOSTILE + "x" * 10_000}}
    (folder / "resolved.json").write_text(json.dumps(job))
    text = render(folder)
    page = Page(text)
    assert "script" not in page.tags
    assert page.tags.count("img") == 5
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "&lt;script&gt;alert(1)" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert f"[... {len(HOSTILE) + 10_000 - MAX_TEXT_CHARACTERS:,} more characters]" in text


def test_the_same_folder_gives_the_same_page_and_it_is_written_whole(finished, tmp_path):
    assert write_report(finished, tmp_path / "r.html") == tmp_path / "r.html"
    assert (tmp_path / "r.html").read_text(encoding="utf-8") == render(finished)
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


@pytest.mark.parametrize(
    ("accuracy", "interval", "tone", "says"),
    [
        pytest.param(0.95, [0.93, 0.97], "good", r"^Beats .* 5\.0 points of accuracy", id="better"),
        pytest.param(0.80, [0.77, 0.83], "bad", r"linear model is better.*10\.0", id="worse"),
        pytest.param(0.91, [0.88, 0.94], "even", r"Not told apart.*\+1\.0", id="equal"),
    ],
)
def test_the_verdict_beside_the_linear_model(accuracy, interval, tone, says):
    table = {"accuracy": accuracy, "accuracy_ci": interval}
    found = verdict(table, {"tfidf": {"accuracy": 0.90}})
    assert found[0] == tone
    assert re.search(says, found[1])


def test_without_a_linear_model_there_is_no_verdict():
    assert verdict({"accuracy": 0.9}, {"majority": {"accuracy": 0.5}}) is None
