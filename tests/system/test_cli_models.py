"""The verbs about jobs, models and services, against a real server with two versions."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import GPT2CLS, Commands, write_job

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def runs(commands: Commands) -> list[dict[str, Any]]:
    """Two jobs alike: version 1 is champion, and version 2, which does not beat it, challenger."""
    changes = {"data__max_length": 16, "train__max_steps": 3, "register": {"model": "tiny"}}
    job = write_job(commands.folder / "tiny.yaml", name="tiny", **changes)
    return [commands.json("run", str(job)), commands.json("run", str(job))]


@pytest.fixture
def first_is_champion(commands: Commands, runs: list[dict[str, Any]]) -> None:
    if champion(commands) != 1:
        commands.json("models", "promote", "tiny", "1")


def champion(commands: Commands) -> int:
    """The one version with the alias."""
    versions = commands.json("models", "tiny")["versions"]
    (found,) = [v["version"] for v in versions if "champion" in v["aliases"]]
    return int(found)


def refusal(commands: Commands, *words: str) -> str:
    """What a command says that must end with exit code 2."""
    ended = commands.run(*words, "--json")
    assert ended.returncode == 2, ended.stderr + ended.stdout
    return str(json.loads(ended.stdout)["error"]["message"])


def test_the_registry_lists_names_versions_and_metrics(
    commands: Commands, runs: list[dict[str, Any]]
) -> None:
    (model,) = commands.json("models")["models"]
    assert (model["name"], model["num_versions"]) == ("tiny", 2)
    document = commands.json("models", "tiny")
    assert document["name"] == "tiny"
    by_number = {version["version"]: version for version in document["versions"]}
    assert [by_number[i + 1]["run_id"] for i in range(2)] == [run["run_id"] for run in runs]
    assert by_number[1]["metrics"]["accuracy"] == pytest.approx(runs[0]["test"]["accuracy"])


@pytest.mark.usefixtures("first_is_champion")
def test_a_promotion_moves_the_alias_and_a_rollback_brings_it_back(commands: Commands) -> None:
    moved = commands.json("models", "promote", "tiny", "2")
    assert (moved["version"], moved["alias"]) == (2, "champion")
    assert champion(commands) == 2
    assert commands.json("models", "rollback", "tiny")["version"] == 1
    assert champion(commands) == 1


@pytest.mark.usefixtures("first_is_champion")
def test_of_two_promotions_at_once_one_is_told_why_it_did_not_happen(commands: Commands) -> None:
    both = [
        subprocess.Popen(
            [*GPT2CLS, "models", "promote", "tiny", "2"],
            cwd=commands.folder,
            env=commands.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = {}
    for process in both:
        out, err = process.communicate(timeout=120)
        said[process.returncode] = out + err
    assert sorted(said) == [0, 2], said
    assert "tiny version 2 is now champion" in said[0]
    came_between = "made version 2 the champion (was 1) while this command waited" in said[2]
    assert came_between or "version 2 is the champion already" in said[2], said[2]
    assert champion(commands) == 2


@pytest.mark.usefixtures("first_is_champion")
def test_what_is_not_there_is_not_promoted(commands: Commands) -> None:
    assert "not in the registry" in refusal(commands, "models", "promote", "tiny", "7")
    assert "champion already" in refusal(commands, "models", "promote", "tiny", "1")
    refusal(commands, "models", "nobody")
    refusal(commands, "models", "rollback", "nobody")
    assert champion(commands) == 1


def test_two_versions_are_compared_on_the_data_they_share(
    commands: Commands, runs: list[dict[str, Any]]
) -> None:
    document = commands.json("models", "compare", "models:/tiny/1", "models:/tiny/2")
    assert document["same_data"] is True
    assert document["metrics"]["accuracy"]["difference"] == 0
    shown = commands.run("models", "compare", "models:/tiny/1", "models:/tiny/2").stdout
    assert "models:/tiny/2" in shown
    assert "different data" not in shown


def test_jobs_are_listed_and_shown_with_their_run_s_page(
    commands: Commands, runs: list[dict[str, Any]]
) -> None:
    ids = [run["job_id"] for run in runs]
    assert [job["job_id"] for job in commands.json("jobs")["jobs"]] == ids[::-1]
    assert all(job_id in commands.run("jobs").stdout for job_id in ids)
    document = commands.json("show", ids[0])
    assert (document["state"], document["run_id"]) == ("SUCCEEDED", runs[0]["run_id"])
    run = commands.mlflow().get_run(runs[0]["run_id"])
    uri = commands.json("cluster", "status")["mlflow"]["uri"]
    page = f"{uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert document["run_page"] == runs[0]["run_page"] == page
    words = commands.run("show", ids[0]).stdout
    assert page in words
    assert "tiny version 1, champion (models:/tiny/1)" in words


def test_a_report_is_one_page_of_its_own(
    commands: Commands, runs: list[dict[str, Any]], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    commands.json("report", "last", "-o", str(page))
    text = page.read_text()
    assert runs[1]["job_id"] in text
    assert "data:image/svg+xml" in text
    assert '<script src="' not in text
    assert "http://" not in text.replace("http://www.w3.org", "")


def test_a_server_that_was_stopped_is_started_again_with_all_it_knew(
    commands: Commands, runs: list[dict[str, Any]]
) -> None:
    before = commands.json("cluster", "status")["mlflow"]
    assert before["answers"] is True
    assert commands.json("cluster", "down")["mlflow"] is True
    assert not commands.processes()
    assert commands.json("cluster", "status")["mlflow"] is None
    assert "`gpt2cls models`" in commands.run("cluster", "status").stdout
    assert len(commands.json("models", "tiny")["versions"]) == 2
    # At the same address, so that links to its pages stay right.
    assert commands.json("cluster", "status")["mlflow"]["uri"] == before["uri"]
