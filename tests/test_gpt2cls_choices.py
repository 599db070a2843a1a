"""Answers to choose from: how they are read, refused, encoded, scored and predicted."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from test_gpt2cls_forms import opened
from tiny_forms import LENGTH, rows_of, tiny_job

from gpt2cls.baselines import run_baselines
from gpt2cls.config import DataConfig
from gpt2cls.data.check import check
from gpt2cls.data.forms import columns_of_rows, sequences, with_question
from gpt2cls.data.prepare import prepare, read_labelled
from gpt2cls.errors import DataError, RequestError
from gpt2cls.mistakes import worst_mistakes
from gpt2cls.model.folder import ModelInfo
from gpt2cls.predict import Predictor
from gpt2cls.predict_files import predict_file
from gpt2cls.training.objectives import logits

CONFIG = DataConfig(
    train="train.jsonl", text=("first", "second"), choices="answers", validation=0.2
)


def write(folder, rows, name="train.jsonl"):
    (folder / name).write_text("\n".join(json.dumps(row) for row in rows) + "\n")


def test_context_and_question_become_one_text_and_the_label_a_place(tmp_path):
    rows = rows_of("answers", 40, 0)
    write(tmp_path, rows)
    prepared = prepare(CONFIG, base_dir=tmp_path, seed=0)
    assert prepared.task.kind == "multiple_choice"
    assert prepared.task.labels == ("0", "1", "2", "3")
    found = {
        (text, tuple(answers), int(label))
        for split in (prepared.train, prepared.validation)
        for text, answers, label in zip(
            split.texts.to_pylist(), split.pairs.to_pylist(), split.labels, strict=True
        )
    }
    wanted = {(f"{r['first']}\n{r['second']}", tuple(r["answers"]), int(r["label"])) for r in rows}
    assert found == wanted
    report = check(prepared, max_length=LENGTH)
    assert report.kind == "multiple_choice" and list(report.labels) == ["0", "1", "2", "3"]


ROW = {"first": "a", "second": "b", "answers": ["x", "y"], "label": "0"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label": "2"}, r"train.jsonl:41: column 'label' holds '2' .* 0 to 1"),
        ({"label": -1}, r"train.jsonl:41: column 'label' holds '-1'"),
        ({"label": "x"}, r"train.jsonl:41: column 'label' holds 'x'"),
        ({"answers": ["x"]}, r"train.jsonl:41: column 'answers' holds \['x'\] where a list of two"),
        ({"answers": "x"}, r"column 'answers' holds 'x' .* a CSV file has no lists"),
        ({"answers": ["x", None]}, r"train.jsonl:41: column 'answers' holds"),
        ({"answers": None}, r"train.jsonl:41: column 'answers' holds None"),
    ],
    ids=["beyond", "negative", "a word", "one", "text", "a null among them", "null"],
)
def test_rows_without_a_right_answer_among_several_are_refused(change, says, tmp_path):
    write(tmp_path, [*rows_of("answers", 40, 0), ROW | change])
    with pytest.raises(DataError, match=says):
        prepare(CONFIG, base_dir=tmp_path, seed=0)


def test_more_answers_than_any_training_row_has_are_refused(tmp_path):
    write(tmp_path, rows_of("answers", 40, 0))
    task = prepare(CONFIG, base_dir=tmp_path, seed=0).task
    write(tmp_path, [ROW | {"answers": list("abcde")}], "other.jsonl")
    with pytest.raises(DataError, match=r"other.jsonl: has rows with 5 answers, .* 4 at most"):
        read_labelled("other.jsonl", CONFIG, task, base_dir=tmp_path)


def test_a_context_stays_on_one_side_of_a_split(tmp_path):
    rows = rows_of("answers", 60, 0)
    for i, row in enumerate(rows):
        row["first"], row["second"] = f"context {i // 3}", "a question"
    write(tmp_path, rows)
    prepared = prepare(CONFIG, base_dir=tmp_path, seed=0)
    sides = [set(split.texts.to_pylist()) for split in (prepared.train, prepared.validation)]
    assert not sides[0] & sides[1]


def test_of_a_long_context_the_question_at_its_end_is_kept(tmp_path):
    prepared, tokenizer, _ = tiny_job(tmp_path, "answers")
    long = " ".join(["frost"] * 50) + "\nrain"
    read = sequences([long], [["sun", "sea"]], prepared.task)
    ids, full = tokenizer.encode(read.texts, read.pairs, 12, keeps_end=read.keeps_end)
    (rain,), _ = tokenizer.encode(["\nrain"], None, 12)
    (sun,), _ = tokenizer.encode(["sun"], None, 12)
    assert ids[0].tolist()[-len(rain) - 1 - len(sun) :] == [*rain, tokenizer.sep_id, *sun]
    assert len(ids[0]) == 12 < full[0]


def test_each_answer_is_scored_alone_and_one_that_is_not_there_never_wins(tmp_path):
    prepared, tokenizer, payload = tiny_job(tmp_path, "answers")
    model, data = opened(prepared, payload)
    split = prepared.validation
    with torch.no_grad():
        found = logits(model, data.validation.batch(np.arange(24)))
    counts = [len(answers) for answers in split.pairs.to_pylist()]
    assert set(counts) == {2, 3, 4}
    for row in range(24):
        context, answers = split.texts[row].as_py(), split.pairs[row].as_py()
        ids, _ = tokenizer.encode([context] * len(answers), answers, LENGTH, keeps_end=True)
        with torch.no_grad():
            alone = [
                model.features(torch.tensor(one)[None], torch.tensor([len(one)])) for one in ids
            ]
            scores = model.head.linear(torch.cat(alone))[:, 0] / model.head.temperature
        torch.testing.assert_close(found[row, : counts[row]], scores, atol=1e-5, rtol=0)
        assert bool((found[row, counts[row] :] == -torch.inf).all())
    probs = model.probabilities(found)
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(24))


def info_of(prepared, tokenizer, payload):
    return ModelInfo(
        task=prepared.task,
        model=payload.model,
        text=("first", "second"),
        choices="answers",
        max_length=LENGTH,
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
    )


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    prepared, tokenizer, payload = tiny_job(tmp_path_factory.mktemp("choices"), "answers")
    model, _ = opened(prepared, payload)
    return Predictor.of(
        model, tokenizer, info_of(prepared, tokenizer, payload), torch.device("cpu")
    )


def test_a_frame_and_a_file_are_answered_alike(predictor, tmp_path):
    rows = rows_of("answers", 30, 9)
    frame = predictor.predict_frame(pd.DataFrame(rows))
    assert list(frame.columns) == ["label", "score", "p_0", "p_1", "p_2", "p_3"]
    two = [len(row["answers"]) == 2 for row in rows]
    assert (frame[two][["p_2", "p_3"]].to_numpy() == 0).all()
    assert (frame["label"].astype(int) < [len(row["answers"]) for row in rows]).all()
    write(tmp_path, rows, "in.jsonl")
    pd.DataFrame(rows).to_parquet(tmp_path / "in.parquet")
    for name in ("in.jsonl", "in.parquet"):
        predict_file(predictor, tmp_path / name, tmp_path / "out.jsonl")
        lines = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
        assert [line["answers"] for line in lines] == [row["answers"] for row in rows]
        np.testing.assert_allclose([line["p_1"] for line in lines], frame["p_1"], atol=1e-5)


@pytest.mark.parametrize("answers", [["x"], list("abcde"), "x", ["x", 1], None])
def test_a_row_that_is_no_choice_is_refused(predictor, answers, tmp_path):
    row = {"first": "a", "second": "b", "answers": answers}
    with pytest.raises(RequestError, match=r"row 0, column 'answers'.* list of 2 to 4 texts"):
        predictor.predict_frame(pd.DataFrame([row]))
    write(tmp_path, [row], "in.jsonl")
    with pytest.raises(DataError, match=r"in.jsonl:1: .* column 'answers'.* 2 to 4 texts"):
        predict_file(predictor, tmp_path / "in.jsonl", tmp_path / "out.jsonl")


@pytest.mark.parametrize("texts", [["a b\nc"], ["a\nb\nc"], ["\nc"], ["a\n"]])
def test_columns_made_of_rows_give_the_same_rows_again(texts):
    contexts, questions, answers = columns_of_rows(texts, [["x", "y"]], 3)
    assert with_question(contexts, questions) == texts
    assert answers == [["x", "y"]]


def test_the_baselines_are_the_likeliest_place_and_words_shared_with_the_context(tmp_path):
    prepared, _, _ = tiny_job(tmp_path, "answers")
    table = run_baselines(prepared.train, prepared.test, prepared.task)
    place = np.bincount(prepared.train.labels).argmax()
    assert place < 2, "a place that every row has"
    right = place == prepared.test.labels
    assert table["majority"]["accuracy"] == pytest.approx(right.mean())
    assert table["tfidf"]["accuracy"] > max(table["majority"]["accuracy"], 0.6)
    # Which answer shares words with its context, no answer shows on its own.
    assert table["words"]["accuracy"] < table["tfidf"]["accuracy"]


def test_a_mistake_shows_all_answers(tmp_path):
    prepared, _, _ = tiny_job(tmp_path, "answers")
    split = prepared.test
    probs = np.zeros((len(split), 4))
    probs[np.arange(len(split)), (split.labels + 1) % 2] = 1
    found = worst_mistakes(
        probs, split.labels, split.texts, 1, task=prepared.task, pairs=split.pairs
    )
    (worst,) = found["mistakes"]
    assert worst["pair"] == " | ".join(split.pairs[worst["row"]].as_py())
