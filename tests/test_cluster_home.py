from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.home import Home, from_environment, refuse_if_unwritable


def test_the_environment_is_read_into_values(tmp_path):
    surroundings = from_environment(
        {
            "GPT2CLS_HOME": str(tmp_path / "home"),
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000/",
            "RAY_ADDRESS": "auto",
            "GPT2CLS_DATA": str(tmp_path / "data"),
        }
    )
    assert surroundings.home.root == tmp_path / "home"
    assert surroundings.tracking_uri == "http://127.0.0.1:5000"
    assert surroundings.ray_address == "auto"
    assert surroundings.data_dir == tmp_path / "data"


def test_without_an_environment_the_state_lies_in_the_users_own_folder():
    surroundings = from_environment({})
    assert surroundings.home.root == Path("~/.gpt2cls").expanduser()
    assert (surroundings.tracking_uri, surroundings.ray_address) == (None, None)


@pytest.mark.parametrize(
    "uri", ["sqlite:///mlflow.db", "file:///tmp/mlruns", "./mlruns", "databricks", "http://"]
)
def test_only_the_address_of_a_server_is_taken_for_the_record(uri):
    with pytest.raises(ClusterError, match="mlflow server"):
        from_environment({"MLFLOW_TRACKING_URI": uri})


def test_a_refused_address_does_not_show_its_password():
    with pytest.raises(ClusterError) as refused:
        from_environment({"MLFLOW_TRACKING_URI": "postgresql://me:hunter2@db/mlflow"})
    assert "hunter2" not in str(refused.value)


def test_asking_for_paths_creates_nothing(tmp_path):
    home = Home(tmp_path / "home")
    assert home.job_dir("bbc-1").parent == home.jobs
    assert not home.root.exists()


@pytest.mark.parametrize("job_id", ["../x", "a/b", "", ".", "A", "x\n"])
def test_an_id_that_could_leave_the_jobs_folder_is_refused(tmp_path, job_id):
    with pytest.raises(ValueError, match="ids hold"):
        Home(tmp_path).job_dir(job_id)


def test_a_process_of_ours_is_told_the_state_folder(tmp_path):
    assert Home(tmp_path).child_environment()["GPT2CLS_HOME"] == str(tmp_path)


def test_a_state_folder_that_can_be_made_is_not_made(tmp_path):
    refuse_if_unwritable(Home(tmp_path / "new" / "home"))
    assert list(tmp_path.iterdir()) == []


def test_a_state_folder_below_a_file_is_refused_in_words(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ClusterError, match=r"file/home: .*/file is not a folder; name another"):
        refuse_if_unwritable(Home(tmp_path / "file" / "home"))
