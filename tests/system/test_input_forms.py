"""The recipes of GPT's input forms, cut short, as whole commands: run, predict, evaluate, serve."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from commands import Commands
from test_serve import ask, read_document, start

ROOT = Path(__file__).parents[2]
SETS = Path(os.environ.get("GPT2CLS_DATA") or ROOT.parent / "shared" / "data").resolve()
RECIPES = {"gpt1-mrpc": "mrpc", "gpt1-stsb": "stsb", "gpt1-snli": "snli_dev_test"}
RECIPES |= {"gpt1-cosmosqa": "cosmosqa_valid"}
ROWS = 200

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not SETS.is_dir(), reason=f"no published sets in {SETS}"),
]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    folder = tmp_path_factory.mktemp("forms")
    for name in RECIPES.values():
        (folder / name).mkdir()
        for file in (SETS / name).glob("*.parquet"):
            pq.write_table(pq.read_table(file).slice(0, ROWS), folder / name / file.name)
    commands = Commands(folder / "home", folder, {"GPT2CLS_DATA": str(folder)})
    yield commands
    commands.end()
    assert not commands.processes(), "`cluster down` left processes"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_ends_with_a_model_that_predicts_and_is_measured(
    recipe: str, commands: Commands, tmp_path: Path
) -> None:
    tiny = ["model.backbone=gpt2-tiny", "train.max_steps=8", "train.batch_size=8"]
    settings = [word for setting in [*tiny, "data.max_length=48"] for word in ("-s", setting)]
    done = commands.json("run", str(ROOT / "recipes" / f"{recipe}-small.yaml"), *settings)
    assert done["model"] == {"name": recipe, "version": 1, "alias": "champion"}
    metric = "pearson" if recipe == "gpt1-stsb" else "accuracy"
    low, high = done["test"][f"{metric}_ci"]
    assert low <= done["test"][metric] <= high
    forms = {"gpt1-stsb": {"mean", "words"}, "gpt1-cosmosqa": {"majority", "words"}}
    assert set(done["baselines"]) == {*forms.get(recipe, {"majority"}), "tfidf"}

    model, test = f"models:/{recipe}@champion", commands.folder / RECIPES[recipe] / "test.parquet"
    measured = commands.json("evaluate", model, str(test))
    assert measured["test"][metric] == pytest.approx(done["test"][metric], abs=0.02)
    out = tmp_path / "out.parquet"
    commands.json("predict", model, str(test), "-o", str(out))
    columns = pq.read_table(out).column_names
    assert ("value" if metric == "pearson" else "score") in columns
    page = commands.run("report", done["job_id"], "-o", str(tmp_path / "report.html"))
    assert page.returncode == 0, page.stderr


def test_a_choice_among_answers_is_served(commands: Commands, tmp_path: Path) -> None:
    (folder,) = commands.home.glob("jobs/gpt1-cosmosqa-*/model")
    process = start(folder, tmp_path)
    try:
        url = read_document(process)["url"]
        row: dict[str, Any] = {"text": "It rained.", "question": "Is it wet?"}
        body = {"dataframe_records": [row | {"choices": ["yes", "no", "who knows"]}]}
        status, answer = ask(url, json.dumps(body))
        assert status == 200
        (found,) = answer["predictions"]
        assert found["label"] in ("0", "1", "2")
        assert found["p_3"] == 0
        status, _ = ask(url, json.dumps({"dataframe_records": [row | {"choices": "yes"}]}))
        assert status == 400
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
