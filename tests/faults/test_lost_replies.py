"""MLflow does what it is asked, and the answer never arrives."""

import pytest
from losing_proxy import LosesReplies

from cluster.home import Home, Surroundings
from cluster.tracking_server import ensure_server, stop_server, wait_ready
from jobs.record import Record
from jobs.registry import register
from jobs.tracking import connect, find_or_create_run, find_runs

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = Home(tmp_path_factory.mktemp("lost") / "home")
    server = ensure_server(home)
    wait_ready(home, server)
    yield server
    stop_server(home)


@pytest.fixture
def proxy(server):
    proxy = LosesReplies(server.uri)
    yield proxy
    proxy.shutdown()
    proxy.server_close()


def test_a_run_whose_making_was_not_answered_is_found_and_not_made_twice(server, proxy, tmp_path):
    proxy.lost = {"runs/create": 2, "experiments/create": 1, "runs/log-batch": 3}
    surroundings = Surroundings(Home(tmp_path), proxy.uri, None, None)
    job_dir = surroundings.home.job_dir("lost-1")
    record = Record(job_dir, surroundings, job_id="lost-1", experiment="lost", with_usage=False)
    for step in range(50):
        record.metrics({"train/loss": 1.0}, step=step)
    assert record.finish("FINISHED", timeout_s=100)

    client = connect(server.uri)
    experiment = client.get_experiment_by_name("lost")
    assert proxy.num_lost >= 5
    assert find_runs(client, experiment.experiment_id, "lost-1") == [record.run_id]
    history = client.get_metric_history(record.run_id, "train/loss")
    assert sorted(point.step for point in history) == list(range(50))
    assert client.get_run(record.run_id).info.status == "FINISHED"


def test_a_version_whose_making_was_not_answered_is_registered_once(server, proxy, tmp_path):
    client = connect(server.uri)
    run_id = find_or_create_run(
        client, experiment="lost", job_id="lost-2", run_name="x", start_ms=1000
    )
    model = client.create_logged_model(
        client.get_run(run_id).info.experiment_id, name="model", source_run_id=run_id
    )
    client.finalize_logged_model(model.model_id, "READY")
    proxy.lost = {"model-versions/create": 1, "registered-models/create": 1}
    registered = register(
        Surroundings(Home(tmp_path), proxy.uri, None, None),
        tracking_uri=proxy.uri,
        name="lost-model",
        model_uri=f"models:/{model.model_id}",
        run_id=run_id,
        job_id="lost-2",
        metrics={"accuracy": 0.9},
        split="test",
        data_fingerprint="d1",
    )
    assert proxy.num_lost == 2
    versions = client.search_model_versions("name = 'lost-model'")
    assert [int(version.version) for version in versions] == [registered.version] == [1]
    assert client.get_model_version_by_alias("lost-model", "champion").version in (1, "1")
