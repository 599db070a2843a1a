"""Published data sets, where they are at hand: read, split and checked as they are."""

import os
from pathlib import Path

import pytest

from gpt2cls.config import DataConfig
from gpt2cls.data.check import check
from gpt2cls.data.prepare import prepare
from gpt2cls.errors import DataError

FOLDER = Path(
    os.environ.get("GPT2CLS_DATA", Path(__file__).parents[1] / ".." / "shared" / "data")
).resolve()

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="no data sets: set GPT2CLS_DATA to the folder that holds them"
)

PAIR = {"text": ("text_a", "text_b")}
SETS = {
    "ag_news": ({}, 4),
    "ag_news_extra_description_only": ({}, 4),
    "bbc_news": ({}, 5),
    "imdb": ({}, 2),
    "thucnews_titles": ({}, 10),
    "goemotions": ({"label": "labels"}, 28),
    "sst2": ({}, 2),
    "mr": ({}, 2),
    "dbpedia14_subset": ({}, 14),
    "snli_dev_test": (PAIR, 3),
    "mrpc": (PAIR, 2),
    "cosmosqa_valid": ({"text": ("text", "question"), "choices": "choices"}, 4),
}


def config_of(name, settings):
    parts = {part: FOLDER / name / f"{part}.parquet" for part in ("train", "validation", "test")}
    sources = {part: f"{name}/{path.name}" for part, path in parts.items() if path.is_file()}
    return DataConfig(**sources, **settings)


@pytest.mark.parametrize(("name", "about"), SETS.items(), ids=SETS.keys())
def test_a_published_set_is_checked_as_it_is(name, about):
    settings, num_labels = about
    prepared = prepare(config_of(name, settings), base_dir=FOLDER, seed=0)
    report = check(prepared, max_length=512)
    assert len(report.labels) == num_labels
    assert report.rows == sum(len(split) for split in prepared.splits.values())
    assert "rare_classes" not in {problem.kind for problem in report.problems}


def test_shared_texts_of_train_and_test_are_found_as_published():
    settings = {"train": "imdb/train.parquet", "test": "imdb/test.parquet"}
    report = check(prepare(DataConfig(**settings), base_dir=FOLDER, seed=0), max_length=512)
    # The data set's own description counts 93 rows of train, before validation was taken out.
    assert 75 <= {p.kind: p.count for p in report.problems}["train_test_overlap"] <= 93


def test_similarities_are_no_classes_unless_they_are_said_to_be_numbers():
    with pytest.raises(DataError, match=r"Set data.task to regression"):
        prepare(config_of("stsb", PAIR), base_dir=FOLDER, seed=0)
    config = config_of("stsb", PAIR | {"task": "regression", "pair": "both_orders"})
    report = check(prepare(config, base_dir=FOLDER, seed=0), max_length=128)
    assert report.kind == "regression" and report.labels == {}
    assert (report.numbers["test"].min, report.numbers["test"].max) == (0, 5)
    assert report.splits == {"train": 5749, "validation": 1500, "test": 1379}
