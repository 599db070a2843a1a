import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
import pytest

from cluster.errors import TrackingError
from cluster.home import Home, Surroundings
from cluster.processes import is_alive
from cluster.tracking_server import (
    Server,
    answers,
    ensure_server,
    find_server,
    service_of,
    stop_server,
    tracking_uri,
    wait_ready,
)

pytestmark = pytest.mark.system


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    yield home
    stop_server(home)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    home = Home(tmp_path_factory.mktemp("running") / "home")
    start = time.monotonic()
    server = ensure_server(home)
    assert time.monotonic() - start < 0.5  # a job does not wait for it
    wait_ready(home, server)
    yield home, server
    stop_server(home)


def wait_until(condition, timeout_s=30.0):
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert condition()


def test_the_server_is_one_process_on_loopback_that_knows_its_state_folder(running):
    home, server = running
    process = psutil.Process(server.pid)
    assert process.children(recursive=True) == []
    assert process.environ()["GPT2CLS_HOME"] == str(home.root)
    listening = [c.laddr.ip for c in process.net_connections() if c.status == "LISTEN"]
    assert listening == ["127.0.0.1"]


def test_two_commands_that_start_at_once_start_one_server(home):
    code = (
        "import sys; from pathlib import Path; from cluster.home import Home; "
        "from cluster.tracking_server import ensure_server; "
        "print(ensure_server(Home(Path(sys.argv[1]))).pid)"
    )
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(home.root)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    pids = {int(command.communicate(timeout=60)[0]) for command in commands}
    assert pids == {find_server(home).pid}


def test_a_server_that_died_is_started_again_at_the_same_address(home):
    first = ensure_server(home)
    wait_ready(home, first)
    psutil.Process(first.pid).kill()
    wait_until(lambda: find_server(home) is None)
    second = ensure_server(home)
    wait_ready(home, second)
    assert second.pid != first.pid
    assert second.uri == first.uri


def test_after_stopping_nothing_runs_and_stopping_again_is_no_fault(home):
    server = ensure_server(home)
    assert stop_server(home)
    assert not is_alive(server.pid, server.birth)
    assert not answers(server.uri)
    assert not stop_server(home)
    again = ensure_server(home)
    assert again.uri == server.uri  # so that pages that are still open are right again
    assert stop_server(home)


def test_a_server_that_nobody_asks_leaves(home):
    server = ensure_server(home, idle_s=1.0)
    wait_until(lambda: not is_alive(server.pid, server.birth))


def test_a_server_whose_folder_was_deleted_leaves(home):
    server = ensure_server(home)
    service_of(home).record.unlink()
    wait_until(lambda: not is_alive(server.pid, server.birth))


def test_a_server_that_cannot_start_is_named_with_its_log(home):
    home.mlflow.mkdir(parents=True)
    (home.mlflow / "mlflow.db").write_text("this is no database")
    server = ensure_server(home)
    with pytest.raises(TrackingError, match="file is not a database"):
        wait_ready(home, server)


def test_a_request_under_another_host_name_is_turned_away(running):
    _, server = running
    request = urllib.request.Request(
        f"{server.uri}/api/2.0/mlflow/experiments/get?experiment_id=0",
        headers={"Host": "evil.example"},
    )
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=10)


def test_looking_for_a_server_starts_none(home):
    assert tracking_uri(Surroundings(home, None, None, None)) is None
    assert not stop_server(home)
    assert not home.root.exists()


def test_a_record_of_another_process_is_not_believed(home):
    home.mlflow.mkdir(parents=True)
    server = Server("http://127.0.0.1:1", psutil.Process().pid, "another")
    service_of(home).record.write_text(str(vars(server)).replace("'", '"'))
    assert find_server(home) is None
