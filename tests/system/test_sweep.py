"""Sweeps from the command line, with a real Ray, real trials and a real MLflow server."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from commands import Commands
from sweeps import LR, children, write_sweep

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def swept(commands: Commands) -> dict[str, Any]:
    job = write_sweep(
        commands, search={"trials": 6}, register={"model": "swept", "gate": {"min": 0.1}}
    )
    return dict(commands.json("run", job))


def test_a_sweep_gives_the_winner_and_all_trials(commands: Commands, swept: dict[str, Any]) -> None:
    trials = swept["trials"]
    assert [t["trial"] for t in trials] == [*range(6)]
    assert {t["status"] for t in trials} == {"FINISHED"}
    assert len({t["run_id"] for t in trials}) == 6
    assert any(t["pruned"] for t in trials), "ASHA ended none of six"
    best = max((t for t in trials if not t["pruned"]), key=lambda t: t["metric"])
    shown = commands.json("sweep", "show", "last")
    assert shown["best"] == best["trial"]
    assert shown["trials"] == trials
    assert swept["model"] == {"name": "swept", "version": 1, "alias": "champion"}
    assert swept["test"]["rows"] == 222


def test_every_trial_is_a_run_under_that_of_the_sweep(
    commands: Commands, swept: dict[str, Any]
) -> None:
    client = commands.mlflow()
    parent = client.get_run(swept["run_id"])
    assert parent.info.status == "FINISHED"
    best = commands.json("sweep", "show", "last")["best"]
    assert parent.data.tags["gpt2cls.best_run_id"] == swept["trials"][best]["run_id"]
    by_id = {run.info.run_id: run for run in children(commands, swept)}
    assert set(by_id) == {t["run_id"] for t in swept["trials"]}
    for trial in swept["trials"]:
        run = by_id[trial["run_id"]]
        assert run.info.status == "FINISHED"
        assert run.data.tags["gpt2cls.pruned"] == str(trial["pruned"]).lower()
        assert float(run.data.params["train.lr"]) == trial["params"]["train.lr"]
        steps = [m.step for m in client.get_metric_history(trial["run_id"], "train/loss")]
        assert sorted(steps) == [*range(1, trial["step"] + 1)]
        assert run.data.metrics["best/accuracy"] == trial["metric"]


def test_only_the_best_weights_stay_on_disk(commands: Commands, swept: dict[str, Any]) -> None:
    folder = commands.home / "jobs" / swept["job_id"]
    best = commands.json("sweep", "show", "last")["best"]
    kept = [path.parent.name for path in sorted(folder.glob("trials/*/best"))]
    assert kept == [f"{best:04d}"]
    assert not [*folder.glob("trials/*/checkpoints")]
    assert not (folder / "ray").exists()


@pytest.mark.usefixtures("swept")
def test_a_finished_sweep_is_extended_without_running_a_trial_again(commands: Commands) -> None:
    shown = commands.json("sweep", "show", "last")
    before, best = shown["trials"], shown["best"]
    document = commands.json("sweep", "resume", "last", "--trials", "8")
    assert document["trials"][:6] == before
    assert [t["trial"] for t in document["trials"]] == [*range(8)]
    assert len(children(commands, document)) == 8
    same_winner = commands.json("sweep", "show", "last")["best"] == best
    assert len(commands.json("models", "swept")["versions"]) == (1 if same_winner else 2)
    refused = commands.run("sweep", "resume", "last", "--trials", "3", "--json")
    assert refused.returncode == 2
    assert "--trials 3: must be at least 8" in json.loads(refused.stdout)["error"]["message"]


def test_trials_that_fail_leave_the_others_alone(commands: Commands) -> None:
    """One diverges, one asks for heads that the network cannot have."""
    space = {
        "train.lr": {"choice": [1.0e-3, 100.0], "when": {"model.heads": 4}},
        "model.heads": {"choice": [4, 7]},
    }
    job = write_sweep(
        commands,
        name="failing",
        space=space,
        search={"searcher": "grid", "scheduler": "none"},
        model__pooling="attention",
        train__clip=None,
        train__epochs=1,
    )
    document = commands.json("run", job)
    by_params = {json.dumps(t["params"]): t for t in document["trials"]}
    good = by_params['{"train.lr": 0.001, "model.heads": 4}']
    diverged = by_params['{"train.lr": 100.0, "model.heads": 4}']
    impossible = by_params['{"model.heads": 7}']
    assert (good["status"], diverged["status"], impossible["status"]) == (
        "FINISHED",
        "FAILED",
        "FAILED",
    )
    assert "the loss became" in diverged["cause"]
    assert "heads" in impossible["cause"]
    for run in children(commands, document):
        (trial,) = [t for t in document["trials"] if t["run_id"] == run.info.run_id]
        assert run.info.status == trial["status"]
        assert run.data.tags.get("gpt2cls.cause") == trial["cause"]


def test_heads_over_one_backbone_train_together_and_need_no_ray(commands: Commands) -> None:
    job = write_sweep(
        commands,
        name="heads",
        train__freeze="head_only",
        search={"trials": 16, "keep": 2},
        space={"train.lr": LR, "model.temperature": {"log_uniform": [0.25, 2.0]}},
    )
    document = commands.json("run", job)
    assert [t["status"] for t in document["trials"]] == ["FINISHED"] * 16
    assert not any(t["pruned"] for t in document["trials"])
    assert len(children(commands, document)) == 16
    folder = commands.home / "jobs" / document["job_id"]
    assert len([*folder.glob("trials/*/best")]) == 2
    assert not [*commands.home.glob("ray-*")]


def test_a_population_shares_weights_and_its_changes_are_metrics(commands: Commands) -> None:
    job = write_sweep(
        commands, name="bred", search={"trials": 4, "scheduler": "pbt"}, train__epochs=6
    )
    document = commands.json("run", job)
    assert [t["status"] for t in document["trials"]] == ["FINISHED"] * 4
    client = commands.mlflow()
    lrs = [
        {point.value for point in client.get_metric_history(t["run_id"], "param/train.lr")}
        for t in document["trials"]
    ]
    assert all(lrs)
    assert any(len(values) > 1 for values in lrs), "no trial was changed"
    assert any(t["changes"] for t in document["trials"])


def test_trials_of_two_workers_do_not_lock_each_other_out(commands: Commands) -> None:
    job = write_sweep(
        commands, name="pairs", search={"trials": 2}, cluster={"workers": 2}, train__epochs=2
    )
    document = commands.json("run", job)
    assert [t["status"] for t in document["trials"]] == ["FINISHED"] * 2
    assert not commands.processes("ray::")


def test_the_winner_is_trained_once_more_on_all_rows(commands: Commands) -> None:
    search = {"trials": 2, "refit": True, "scheduler": "none"}
    job = write_sweep(commands, name="refit", search=search, train__epochs=2)
    document = commands.json("run", job)
    folder = commands.home / "jobs" / document["job_id"]
    best = json.loads((folder / "best" / "state.json").read_text())
    # 1,803 rows make 29 steps of 64 an epoch, with the 200 of validation 32.
    shown = commands.json("sweep", "show", "last")
    assert best["step"] == round(shown["trials"][shown["best"]]["step"] * 32 / 29)
    history = commands.mlflow().get_metric_history(document["run_id"], "train/loss")
    assert len(history) == best["step"]


def test_a_budget_ends_the_trials_under_way_and_the_best_so_far_wins(commands: Commands) -> None:
    job = write_sweep(
        commands,
        name="budget",
        search={"trials": 50, "scheduler": "none", "time_budget_s": 25},
        train__epochs=400,
        train__eval_every="10 steps",
    )
    document = commands.json("run", job)
    assert {t["status"] for t in document["trials"]} == {"KILLED"}
    assert {t["cause"] for t in document["trials"]} == {"search.time_budget_s = 25 is spent"}
    assert len(document["trials"]) < 50
    assert document["test"]["accuracy"] > 0.2


def test_what_can_never_fit_is_refused_at_once(commands: Commands) -> None:
    cores = len(os.sched_getaffinity(0))
    job = write_sweep(commands, name="large", cluster={"cpus_per_worker": 4 * cores})
    ended = commands.run("run", job, "--json", timeout_s=20)
    assert ended.returncode == 2
    (problem,) = json.loads(ended.stdout)["error"]["problems"]
    assert problem["field"] == "cluster.cpus_per_worker"
    assert f"one trial needs {4 * cores} cores; this machine has {cores}" in problem["message"]
    assert not [*commands.home.glob("jobs/large-*")]


def test_the_page_of_a_sweep(commands: Commands, swept: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "sweep.html"
    commands.json("report", swept["job_id"], "-o", str(page))
    text = page.read_text()
    assert "train.lr" in text
    assert "<script" not in text
