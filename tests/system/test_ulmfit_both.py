"""The recipe of ULMFiT in both directions, cut short, as one command."""

from pathlib import Path
from typing import Any

import pytest
from commands import Commands
from test_pipeline import by_name

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
RECIPE = Path(__file__).parents[2] / "recipes" / "ulmfit-both-tiny.yaml"
STEPS = {"forward-language": 12, "backward-language": 12, "forward": 6, "backward": 6}


def run_recipe(commands: Commands) -> dict[str, Any]:
    settings = [
        f"stages.{stage}.job.{setting}"
        for stage, steps in STEPS.items()
        for setting in (f"train.max_steps={steps}", "data.max_length=32",
                        "cluster.cpus_per_worker=1")
    ]  # fmt: skip
    words = [word for setting in settings for word in ("-s", setting)]
    return dict(commands.json("run", str(RECIPE), *words))


def test_two_directions_end_as_one_registered_model_and_nothing_is_done_twice(
    commands: Commands,
) -> None:
    done = run_recipe(commands)
    stages = by_name(done)
    assert [*stages] == [*STEPS, "both"]
    assert {stage["state"] for stage in done["stages"]} == {"FINISHED"}
    (version,) = commands.json("models", "ulmfit-both-tiny")["versions"]
    assert version["aliases"] == ["champion"]
    assert version["run_id"] == stages["both"]["run_id"]
    assert version["metrics"]["log_loss"] == stages["both"]["metrics"]["test/log_loss"]
    # Log loss is convex: the mean of probabilities is never worse than the members' mean.
    address = "models:/ulmfit-both-tiny@champion"
    measured = commands.json("evaluate", address, "bbc-news")["test"]
    assert measured["log_loss"] == pytest.approx(version["metrics"]["log_loss"], abs=1e-3)
    of_members = [
        commands.json("evaluate", stages[name]["output"], "bbc-news")["test"]["log_loss"]
        for name in ("forward", "backward")
    ]
    assert of_members[0] != of_members[1]
    assert measured["log_loss"] <= sum(of_members) / 2 + 1e-6

    again = run_recipe(commands)
    assert all(stage["reused"] for stage in again["stages"])
    assert len(commands.json("models", "ulmfit-both-tiny")["versions"]) == 1
