import json
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from gcs_fake import GcsFake
from queue_world import SPEC, STOPPED, SUCCEEDED, USER, world_at

from jobs.attempt_files import read_end, say_end, say_started
from jobs.lifecycle import End
from jobs.queue_store import LeaseLostError
from jobs.schedule import next_turn
from jobs.states import FINAL, State


@pytest.fixture
def world(tmp_path):
    with world_at(tmp_path / "home") as made:
        yield made
        terminal_states_are_final(made)


def terminal_states_are_final(world):
    for job in world.queue.store.jobs():
        events = world.queue.events(job.id)
        ends = [event for event in events if event["new"] in FINAL]
        resumes = [event for event in events if event["reason"].startswith("resumed")]
        assert len(ends) <= len(resumes) + 1
        alive = [one for one in world.queue.attempts(job.id) if one.ended_unix_s is None]
        assert len(alive) <= (job.state not in FINAL)


@pytest.fixture
def patience(monkeypatch):
    monkeypatch.setattr("jobs.lookout.LOOK_WITHIN_S", 0.1)


# The way of a job.


def test_a_job_goes_from_the_queue_to_its_result(world):
    controller, job_id = world.controller(), world.submit()
    world.round(controller)
    assert world.state(job_id) == "STARTING"
    world.begin(job_id)
    world.round(controller)
    assert world.state(job_id) == "RUNNING"
    world.end(job_id, SUCCEEDED)
    world.round(controller)
    assert world.history(job_id) == ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]
    assert world.attempts(job_id) == [(1, "succeeded")]
    assert world.ray.accepted == [f"{job_id}-a1"]


def test_an_attempt_finds_its_job_in_the_folder(world):
    controller, job_id = world.controller(), world.submit()
    world.round(controller)
    folder = world.home.job_dir(job_id)
    assert json.loads((folder / "resolved.json").read_text()) == SPEC
    assert json.loads((folder / "origin.json").read_text()) == {"base_dir": "/data"}
    assert (folder / "job.yaml").read_text() == "the job file"
    body = world.ray.bodies[f"{job_id}-a1"]
    assert body["entrypoint"].endswith(f"-m jobs.work {job_id} 1 0")
    assert body["entrypoint_num_cpus"] == 1.0


def test_jobs_start_in_the_order_of_priority_as_far_as_there_is_room(world):
    low, high, middle = (world.submit(cpus=1, priority=number) for number in (0, 9, 5))
    controller = world.controller()
    world.round(controller)
    assert world.states(low, high, middle) == ["QUEUED", "STARTING", "STARTING"]
    # Handed over side by side: which of the two arrives first is not said.
    assert sorted(world.ray.accepted) == sorted([f"{high}-a1", f"{middle}-a1"])
    assert "1 CPU" in controller.why[low]


def test_room_that_comes_free_is_used_at_once(world):
    controller = world.controller()
    first, second = world.running(controller, cpus=2), world.submit(cpus=2)
    world.end(first, SUCCEEDED)
    world.round(controller)
    assert world.states(first, second) == ["SUCCEEDED", "STARTING"]


def test_a_pass_that_takes_long_leaves_time_for_requests(world, monkeypatch):
    def slow_turn(*args):
        world.clock.passed_s += 3.0
        return next_turn(*args)

    monkeypatch.setattr("jobs.controller.next_turn", slow_turn)
    controller, first = world.controller(), world.submit()
    world.round(controller)
    second = world.submit()
    world.round(controller, passed_s=5.0)
    assert world.states(first, second) == ["STARTING", "QUEUED"]
    world.round(controller, passed_s=1.5)
    assert world.state(second) == "STARTING"


# A cluster that cannot be reached.


def test_a_lost_reply_to_a_submission_makes_no_second_one(world):
    world.ray.lose_reply("POST", "/api/jobs/")
    controller, job_id = world.controller(), world.submit()
    world.round(controller, times=3)
    assert world.ray.accepted == [f"{job_id}-a1"]
    assert world.state(job_id) == "STARTING"
    spec = json.loads((world.home.job_dir(job_id) / "resolved.json").read_text())
    assert spec == SPEC


def test_a_submission_that_is_repeated_still_hands_over_the_whole_job(world):
    controller, job_id = world.controller(), world.submit()
    world.ray.lose_reply("POST", "/api/jobs/")
    world.round(controller)
    world.ray.forget()  # before the controller has seen that it arrived
    world.round(controller, times=2)
    assert world.ray.accepted == [f"{job_id}-a1"] * 2  # one in each cluster
    spec = json.loads((world.home.job_dir(job_id) / "resolved.json").read_text())
    assert spec == SPEC
    assert world.attempts(job_id) == [(1, None)]


def test_a_frozen_cluster_is_unknown_and_nothing_else(world, patience):
    controller = world.controller()
    job_id = world.running(controller)
    world.ray.freeze()
    seen_unix_s = controller.seen_unix_s
    world.round(controller, times=3, passed_s=30.0)
    job = world.job(job_id)
    assert (job.state, job.unseen_since_unix_s) == (State.RUNNING, seen_unix_s)
    world.ray.thaw()
    controller.lookout._asked[1].result(5)
    world.round(controller, times=2)
    assert world.job(job_id).unseen_since_unix_s is None
    assert world.ray.accepted == [f"{job_id}-a1"]


def test_a_frozen_cluster_delays_no_round(world, patience):
    controller = world.controller()
    world.running(controller)
    world.ray.freeze()
    done = ThreadPoolExecutor(1).submit(lambda: world.round(controller, times=5))
    done.result(3)


def test_a_slow_cluster_is_heard_in_a_later_round(world, patience):
    controller, job_id = world.controller(), world.submit()
    world.ray.freeze()
    world.round(controller)
    assert (world.state(job_id), controller.why[job_id]) == ("QUEUED", "no cluster answers")
    world.ray.thaw()
    controller.lookout._asked[1].result(5)
    world.round(controller)
    assert world.state(job_id) == "STARTING"


def test_a_cluster_that_was_cut_off_is_caught_up_with(world):
    controller = world.controller()
    job_id = world.running(controller)
    world.ray.go_down()
    world.round(controller, times=2, passed_s=150.0)
    assert world.job(job_id).unseen_since_unix_s is not None
    world.end(job_id, SUCCEEDED)
    world.ray.come_up()
    world.round(controller)
    assert world.history(job_id) == ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]
    assert world.ray.accepted == [f"{job_id}-a1"]


def test_what_ended_on_this_machine_is_known_without_the_cluster(world):
    controller, job_id = world.controller(), world.submit()
    world.round(controller)
    process = world.begin_here(job_id)
    world.round(controller)
    world.ray.go_down()
    world.round(controller)
    assert world.state(job_id) == "RUNNING"
    say_end(world.attempt_dir(job_id), SUCCEEDED)
    process.kill()
    process.wait()
    world.round(controller)
    assert world.state(job_id) == "SUCCEEDED"


def test_a_token_that_is_refused_is_no_proof_of_anything(world):
    controller = world.controller()
    job_id = world.running(controller)
    world.ray.token = "another"
    world.round(controller, times=2, passed_s=10.0)
    assert world.state(job_id) == "RUNNING"
    assert world.job(job_id).unseen_since_unix_s is not None


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/api/jobs/", 500, "Internal Server Error"),
        ("/api/version", 200, "<html>another server</html>"),
        ("/api/v0/nodes", 200, {"result": False, "data": {"result": None}}),
        ("/api/v0/nodes", 500, {"result": False, "data": {}}),
    ],
)
def test_an_answer_that_makes_no_sense_is_none(world, path, status, text):
    controller = world.controller()
    job_id = world.running(controller)
    world.ray.answer("GET", path, status, text)
    world.round(controller)
    assert controller.seen_unix_s < world.clock.unix_s() - 1.0
    world.round(controller)
    assert world.states(job_id) == ["RUNNING"]
    assert world.queue.attempts(job_id)[0].ended_unix_s is None


# A cluster that forgets, and processes that die.


def test_a_cluster_that_forgot_everything_gets_a_new_attempt(world):
    controller = world.controller()
    job_id = world.running(controller)
    world.ray.forget()
    world.round(controller)
    job = world.job(job_id)
    assert (job.state, job.num_lost) == (State.RETRYING, 1)
    assert "does not know it any more" in job.reason
    world.round(controller, passed_s=61.0)
    assert world.ray.accepted == [f"{job_id}-a1", f"{job_id}-a2"]
    world.begin(job_id)
    world.round(controller)
    world.end(job_id, SUCCEEDED)
    world.round(controller)
    assert world.attempts(job_id) == [(1, "lost"), (2, "succeeded")]
    assert world.ray.bodies[f"{job_id}-a2"]["entrypoint"].endswith(f"{job_id} 2 1")


def test_what_had_begun_is_lost_with_its_cluster_though_nobody_had_seen_it_there(world):
    """Otherwise the same attempt would be made twice."""
    controller, job_id = world.controller(), world.submit()
    world.round(controller)
    world.begin(job_id)
    world.ray.forget()
    world.round(controller, times=2)
    assert world.state(job_id) == "RETRYING"
    assert world.ray.accepted == [f"{job_id}-a1"]


def test_an_answer_from_before_the_begin_is_no_proof_of_a_loss(world):
    controller, job_id = world.controller(), world.submit()
    world.round(controller)
    world.begin(job_id)
    world.ray.answer("GET", "/api/jobs/", 200, [])
    world.round(controller)
    assert world.state(job_id) == "STARTING"
    world.round(controller)
    assert (world.state(job_id), world.ray.num_posts) == ("RUNNING", 1)


def test_the_signal_that_killed_an_attempt_is_told(world):
    controller = world.controller()
    job_id = world.running(controller)
    world.end(job_id, None, driver_exit_code=-9)
    world.round(controller)
    assert world.job(job_id).reason == (
        "its process was killed by signal 9; loss 1 of 3 that cluster.retries allows"
    )


def test_a_process_that_is_gone_waits_a_moment_for_what_ray_says_of_it(world):
    controller, job_id = world.controller(), world.submit()
    world.round(controller)
    process = world.begin_here(job_id)
    process.kill()
    process.wait()
    world.round(controller, times=2)
    assert world.state(job_id) == "RUNNING"
    world.round(controller, passed_s=6.0)
    assert world.state(job_id) == "RETRYING"


def test_a_job_that_used_up_its_retries_fails(world):
    controller = world.controller()
    job_id = world.running(controller, retries=1)
    world.end(job_id, None, driver_exit_code=-9)
    world.round(controller, times=2, passed_s=61.0)
    assert world.state(job_id) == "STARTING"
    world.end(job_id, None, driver_exit_code=-9)
    world.round(controller, times=3, passed_s=61.0)
    assert world.state(job_id) == "FAILED"
    assert "loss 2, and cluster.retries = 1" in world.job(job_id).reason
    assert len(world.ray.accepted) == 2


def test_a_mistake_of_the_user_is_not_tried_again(world):
    controller = world.controller()
    job_id = world.running(controller)
    world.end(job_id, USER)
    world.round(controller, times=2, passed_s=61.0)
    assert (world.state(job_id), world.job(job_id).reason) == ("FAILED", USER.reason)
    assert len(world.ray.accepted) == 1


def test_an_environment_that_cannot_be_made_fails_with_the_words_of_pip(world):
    controller, job_id, other = world.controller(), world.submit(cpus=2), world.submit(cpus=2)
    world.round(controller)
    words = "pip install failed\nERROR: No matching distribution found for nope"
    failure = {"message": words, "error_type": "RUNTIME_ENV_SETUP_FAILURE"}
    world.ray.end(f"{job_id}-a1", "FAILED", **failure)
    world.round(controller, times=2, passed_s=61.0)
    assert world.states(job_id, other) == ["FAILED", "STARTING"]
    assert "No matching distribution found for nope" in world.job(job_id).reason
    assert world.attempts(job_id) == [(1, "setup")]


def test_what_ray_will_never_take_fails_at_once(world):
    text = "Request failed with status code 400: ValueError: bad entrypoint"
    world.ray.answer("POST", "/api/jobs/", 500, text)
    controller, job_id = world.controller(), world.submit()
    world.round(controller, times=2)
    assert (world.state(job_id), world.attempts(job_id)) == ("FAILED", [(1, "setup")])
    assert "bad entrypoint" in world.job(job_id).reason


def test_a_cluster_at_fault_is_tried_again_with_pauses(world):
    world.ray.answer("POST", "/api/jobs/", 500, "Internal Server Error")
    controller, job_id = world.controller(), world.submit()
    world.round(controller, times=2)
    assert (world.state(job_id), world.attempts(job_id)) == ("RETRYING", [(1, "service")])
    world.round(controller, passed_s=61.0)
    assert world.ray.accepted == [f"{job_id}-a2"]
    assert world.queue.attempts(job_id)[0].seconds == 0.0


def test_a_cluster_whose_nodes_are_not_up_yet_is_waited_for(world):
    world.ray.answer("POST", "/api/jobs/", 500, "No available agent to submit job, please ...")
    controller, job_id = world.controller(), world.submit()
    world.round(controller, times=2)
    assert (world.attempts(job_id), world.ray.accepted) == ([(1, None)], [f"{job_id}-a1"])


def test_secrets_in_what_ray_says_stay_there(world):
    controller = world.controller()
    job_id = world.running(controller)
    world.end(job_id, None, message="cannot read https://ada:hunter2@host/x")
    world.round(controller)
    told = [world.job(job_id).reason, *world.said, str(world.queue.events(job_id))]
    assert "https://***@host" in told[0]
    assert not any("hunter2" in text for text in told)


# Stops.


def stop(world, job_id):
    return world.queue.wish_to_stop(job_id, by_whom="ada", now_unix_s=world.clock.unix_s())


def test_a_job_that_was_stopped_while_it_waited_never_starts(world):
    controller, job_id = world.controller(), world.submit()
    stop(world, job_id)
    world.round(controller, times=2)
    assert (world.state(job_id), world.ray.accepted) == ("STOPPED", [])


def test_a_job_that_runs_leaves_when_it_is_asked_to_and_is_asked_once(world):
    controller = world.controller()
    job_id = world.running(controller)
    stop(world, job_id)
    world.round(controller, times=2)
    stop(world, job_id)
    world.round(controller, times=2)
    assert (world.state(job_id), world.ray.stops) == ("STOPPING", [f"{job_id}-a1"])
    world.end(job_id, STOPPED)
    world.round(controller)
    assert world.history(job_id) == ["QUEUED", "STARTING", "RUNNING", "STOPPING", "STOPPED"]


def test_a_request_to_leave_that_failed_is_made_again(world):
    controller = world.controller()
    job_id = world.running(controller)
    stop(world, job_id)
    world.ray.answer("POST", "/stop", 500, "the agent is away")
    world.round(controller, times=2)
    assert world.ray.stops == [f"{job_id}-a1"]


def test_a_request_to_leave_without_effect_is_made_again(world):
    controller = world.controller()
    job_id = world.running(controller)
    stop(world, job_id)
    world.round(controller, times=2, passed_s=16.0)
    assert world.ray.stops == [f"{job_id}-a1"] * 2


def test_a_job_on_its_way_leaves_too(world):
    controller, job_id = world.controller(), world.submit()
    world.round(controller)
    stop(world, job_id)
    world.round(controller)
    assert (world.state(job_id), world.ray.stops) == ("STOPPING", [f"{job_id}-a1"])
    world.end(job_id, None, "STOPPED")
    world.round(controller)
    assert world.state(job_id) == "STOPPED"


def test_a_stop_before_the_cluster_has_it_keeps_it_from_beginning_for_good(world):
    world.ray.lose_reply("POST", "/api/jobs/")
    controller, job_id = world.controller(), world.submit()
    world.round(controller)
    late = world.ray.jobs.pop(f"{job_id}-a1")  # still under way inside the cluster
    stop(world, job_id)
    world.round(controller)
    assert world.history(job_id) == ["QUEUED", "STARTING", "STOPPED"]
    world.ray.jobs[f"{job_id}-a1"] = late
    assert read_end(world.attempt_dir(job_id)).state is State.STOPPED  # which its process heeds
    world.round(controller)
    assert world.state(job_id) == "STOPPED"


def test_a_result_that_came_before_the_stop_stands(world):
    controller = world.controller()
    job_id = world.running(controller)
    say_end(world.attempt_dir(job_id), SUCCEEDED)
    stop(world, job_id)
    world.round(controller)
    world.end(job_id, SUCCEEDED, "STOPPED")
    world.round(controller)
    assert world.state(job_id) == "SUCCEEDED"


def test_a_stop_in_the_moment_of_the_end_never_makes_two_ends(world):
    controller = world.controller()
    for i in range(12):
        job_id = world.running(controller)
        world.end(job_id, [SUCCEEDED, None][i % 2])
        start = threading.Barrier(2)

        def late_stop(job_id=job_id, start=start):
            start.wait()
            stop(world, job_id)

        thread = threading.Thread(target=late_stop)
        thread.start()
        start.wait()
        world.round(controller)
        thread.join()
        world.round(controller, times=2)
        allowed = ["SUCCEEDED"] if i % 2 == 0 else ["STOPPED"]
        assert world.state(job_id) in allowed
        ends = [event for event in world.queue.events(job_id) if event["new"] in FINAL]
        assert len(ends) == 1


def test_a_stop_while_it_waits_for_its_retry_ends_it(world):
    controller = world.controller()
    job_id = world.running(controller)
    world.end(job_id, None)
    world.round(controller)
    stop(world, job_id)
    world.round(controller, times=2, passed_s=61.0)
    assert (world.state(job_id), len(world.ray.accepted)) == ("STOPPED", 1)


def test_a_job_that_was_stopped_goes_on_after_a_resume(world):
    controller = world.controller()
    job_id = world.running(controller)
    stop(world, job_id)
    world.round(controller)
    world.end(job_id, STOPPED)
    world.round(controller)
    world.queue.resume(job_id, by_whom="ada", now_unix_s=world.clock.unix_s())
    world.round(controller)
    assert world.ray.accepted == [f"{job_id}-a1", f"{job_id}-a2"]


# Preemption, draining.


def test_a_job_makes_room_for_a_higher_one_and_goes_on_afterwards(world):
    controller = world.controller()
    low = world.running(controller, cpus=2)
    high = world.submit(cpus=2, priority=5)
    world.round(controller, times=2)
    assert (world.states(low, high), world.ray.stops) == (["STOPPING", "QUEUED"], [f"{low}-a1"])
    assert f"makes room for job {high}" in world.job(low).reason
    world.end(low, STOPPED)
    world.round(controller)
    assert world.states(low, high) == ["QUEUED", "STARTING"]
    world.begin(high)
    world.round(controller)
    world.end(high, SUCCEEDED)
    world.round(controller)
    assert world.states(low, high) == ["STARTING", "SUCCEEDED"]
    assert (world.job(low).num_lost, world.attempts(low)[0]) == (0, (1, "preempted"))


def test_a_job_that_succeeds_while_it_makes_room_says_nothing_of_that(world):
    controller = world.controller()
    low = world.running(controller, cpus=2)
    world.submit(cpus=2, priority=5)
    world.round(controller, times=2)
    world.end(low, SUCCEEDED, "STOPPED")
    world.round(controller)
    assert (world.state(low), world.job(low).reason) == ("SUCCEEDED", "")


def test_a_drained_queue_sends_everything_home_and_starts_nothing(world):
    controller = world.controller()
    at_work, begun = world.running(controller), world.submit()
    world.round(controller)
    waiting = world.submit()
    controller.drain()
    world.round(controller, times=2)
    assert sorted(world.ray.stops) == sorted([f"{at_work}-a1", f"{begun}-a1"])
    world.end(at_work, STOPPED)
    world.end(begun, None, "STOPPED")
    world.round(controller, times=3)
    assert world.states(at_work, begun, waiting) == ["QUEUED"] * 3
    assert world.job(at_work).num_lost == 0
    after = world.controller()
    world.round(after)
    assert world.states(at_work, begun, waiting) == ["STARTING", "STARTING", "QUEUED"]


@pytest.fixture
def gcs(world):
    """The control service of the cluster, whose one node is `ab...`."""
    with GcsFake(token=world.ray.token) as fake:
        world.gcs_address, world.ray.node = fake.address, "ab" * 28
        yield fake


def test_a_job_on_a_node_that_goes_leaves_it_in_time_and_that_is_no_loss(world, gcs):
    controller = world.controller()
    job_id = world.running(controller)
    gcs.draining = ["ab" * 28]
    world.round(controller, times=3)
    assert (world.state(job_id), world.ray.stops) == ("STOPPING", [f"{job_id}-a1"])
    world.end(job_id, STOPPED)
    world.round(controller, times=3)
    assert (world.state(job_id), world.job(job_id).num_lost) == ("QUEUED", 0)
    assert world.attempts(job_id) == [(1, "preempted")]
    assert "node abababababab is being drained" in world.job(job_id).reason
    gcs.draining = []
    world.round(controller, times=2)
    assert world.state(job_id) == "STARTING"


def test_a_node_that_goes_takes_along_the_jobs_whose_workers_are_on_it_and_no_others(world, gcs):
    controller = world.controller()
    one, other = world.running(controller), world.running(controller)
    ranks = world.home.job_dir(one) / "rank_nodes"
    ranks.mkdir()
    (ranks / "1").write_text("cd" * 28)
    gcs.draining = ["cd" * 28]
    world.round(controller, times=3)
    assert world.states(one, other) == ["STOPPING", "RUNNING"]


def test_an_attempt_that_has_not_begun_makes_nobody_forget_where_to_ask(world, gcs):
    controller = world.controller()
    job_id, begun = world.running(controller), world.submit()
    world.round(controller, times=2)
    assert world.state(begun) == "STARTING"
    gcs.draining = ["ab" * 28]
    world.round(controller, times=3)
    assert world.state(job_id) == "STOPPING"


def test_a_control_service_that_was_away_is_asked_again_after_a_while(world, gcs):
    controller = world.controller()
    job_id = world.running(controller)
    gcs.token, token = "another", gcs.token
    gcs.draining = ["ab" * 28]
    world.round(controller, times=2)
    gcs.token = token
    world.round(controller, times=2)
    assert world.state(job_id) == "RUNNING"
    world.round(controller, times=3, passed_s=31)
    assert world.state(job_id) == "STOPPING"


def test_a_control_service_that_does_not_answer_ends_no_job(world, gcs):
    controller = world.controller()
    job_id = world.running(controller)
    gcs.token = "another"
    gcs.draining = ["ab" * 28]
    world.round(controller, times=3)
    assert world.state(job_id) == "RUNNING"


# Limits.


def test_a_job_over_its_time_is_ended_for_that(world):
    controller = world.controller()
    job_id = world.running(controller, limits={"run_within_s": 100.0})
    world.round(controller, times=2, passed_s=90.0)
    world.round(controller, times=2)
    assert world.state(job_id) == "STOPPING"
    world.end(job_id, STOPPED)
    world.round(controller, times=2, passed_s=61.0)
    assert world.state(job_id) == "FAILED"
    assert world.attempts(job_id) == [(1, "time_limit")]
    assert "time limit" in world.job(job_id).reason


def test_a_job_that_shows_no_sign_of_life_is_ended_and_tried_again(tmp_path):
    with world_at(tmp_path / "home", no_progress_s=300.0) as world:
        controller = world.controller()
        job_id = world.running(controller)
        log = world.home.job_dir(job_id) / "job.log"
        for line in range(3):
            log.write_text(f"step {line}\n" * line)
            world.round(controller, times=2, passed_s=140.0)
        assert world.state(job_id) == "RUNNING"
        world.round(controller, times=4, passed_s=140.0)
        assert world.state(job_id) == "STOPPING"
        world.end(job_id, None, "STOPPED")  # SIGKILL after the grace
        world.round(controller)
        assert world.state(job_id) == "RETRYING"
        assert world.attempts(job_id) == [(1, "no_progress")]
        assert "no sign of progress" in world.job(job_id).reason


def test_a_job_that_may_not_wait_longer_fails(world):
    controller = world.controller()
    running = world.running(controller, cpus=2)
    late = world.submit(cpus=2, limits={"start_within_s": 60.0})
    world.round(controller)
    assert world.state(late) == "QUEUED"
    world.round(controller, passed_s=61.0)
    assert world.states(running, late) == ["RUNNING", "FAILED"]
    assert "did not start within 60 s" in world.job(late).reason
    assert "0 of 2" in world.job(late).reason


def test_what_has_started_once_may_wait_as_long_as_it_must(world):
    controller = world.controller()
    low = world.running(controller, cpus=2, limits={"start_within_s": 60.0})
    world.submit(cpus=2, priority=5)
    world.round(controller, times=2)
    world.end(low, STOPPED)
    world.round(controller, times=2, passed_s=100.0)
    assert world.state(low) == "QUEUED"


# Jobs after jobs.


@pytest.mark.parametrize(
    ("on", "end", "then"),
    [
        ("success", SUCCEEDED, "STARTING"),
        ("end", SUCCEEDED, "STARTING"),
        ("success", USER, "FAILED"),
        ("end", USER, "STARTING"),
    ],
)
def test_a_job_comes_after_another(world, on, end, then):
    controller = world.controller()
    first = world.running(controller)
    second = world.submit(after=({"job": first, "on": on},))
    world.round(controller)
    assert (world.state(second), controller.why[second]) == (
        "QUEUED",
        f"after job {first}, which is RUNNING",
    )
    world.end(first, end)
    world.round(controller, times=2)
    assert world.state(second) == then
    if then == "FAILED":
        assert world.job(second).reason == f"it comes after job {first}, which is FAILED"


def test_a_stop_is_handed_down_to_all_that_come_after(world):
    controller, jobs = world.controller(), [world.submit(cpus=8)]
    for _ in range(3):
        jobs.append(world.submit(after=({"job": jobs[-1], "on": "success"},)))
    stop(world, jobs[0])
    world.round(controller, times=4)
    assert world.states(*jobs) == ["STOPPED", "FAILED", "FAILED", "FAILED"]


def test_a_job_after_one_that_is_not_there_fails_and_holds_up_nobody(world):
    controller = world.controller()
    lost = world.submit(after=({"job": "nobody-1", "on": "end"},))
    other = world.submit()
    world.round(controller)
    assert world.states(lost, other) == ["FAILED", "STARTING"]
    assert "nobody-1, which is not there" in world.job(lost).reason


# Several controllers, faults of files, clocks.


def test_a_controller_without_the_lease_changes_nothing(world):
    old = world.controller()
    job_id = world.running(old)
    waiting = world.submit()
    new = world.controller()
    world.end(job_id, SUCCEEDED)
    with pytest.raises(LeaseLostError):
        world.round(old)
    assert world.states(job_id, waiting) == ["RUNNING", "QUEUED"]
    world.round(new)
    assert world.states(job_id, waiting) == ["SUCCEEDED", "STARTING"]
    assert world.ray.accepted == [f"{job_id}-a1", f"{waiting}-a1"]


def test_of_two_controllers_on_one_store_one_submits(world):
    old, new = world.controller(), world.controller()
    ids = [world.submit(cpus=0.1) for _ in range(10)]
    lost = threading.Event()

    def old_rounds():
        with pytest.raises(LeaseLostError):
            world.round(old)
        lost.set()

    thread = threading.Thread(target=old_rounds)
    thread.start()
    world.round(new)
    thread.join()
    assert lost.is_set()
    # A slow cluster may be asked again; what it has taken it has taken once.
    assert sorted(world.ray.accepted) == sorted(f"{job_id}-a1" for job_id in ids)


def test_a_new_controller_goes_on_where_the_old_one_was(world):
    first = world.controller()
    running, starting = world.running(first), world.submit()
    world.round(first)
    second = world.controller()
    world.begin(starting)
    world.end(running, SUCCEEDED)
    world.round(second)
    assert world.states(running, starting) == ["SUCCEEDED", "RUNNING"]
    assert len(world.ray.accepted) == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"state": "HAPPY"}', '{"other": 1}'])
def test_an_end_that_cannot_be_read_is_none_and_holds_up_no_other_job(world, text):
    controller = world.controller()
    broken, good = world.running(controller), world.running(controller)
    (world.attempt_dir(broken) / "end.json").write_text(text)
    world.end(broken, None)
    world.end(good, SUCCEEDED)
    world.round(controller)
    assert world.states(broken, good) == ["RETRYING", "SUCCEEDED"]


def test_a_job_whose_folder_is_broken_holds_up_no_other_one(world):
    controller = world.controller()
    broken, good = world.running(controller), world.running(controller)
    (world.home.job_dir(broken) / "record").write_text("a file where a folder should be")
    for job_id in (broken, good):
        world.end(job_id, USER)
    world.round(controller)
    assert world.states(broken, good) == ["FAILED", "FAILED"]


def test_a_folder_that_cannot_be_written_is_told_and_tried_again(world):
    controller, job_id = world.controller(), world.submit()
    world.home.jobs.mkdir(parents=True)
    world.home.job_dir(job_id).write_text("a file where a folder should be")
    world.round(controller, times=2)
    job = world.job(job_id)
    assert (job.state, world.ray.accepted) == (State.RETRYING, [])
    assert "could not be handed to the cluster" in job.reason
    assert world.attempts(job_id) == [(1, "service")]


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_set_changes_nothing(world, monkeypatch, hours):
    limits = {"run_within_s": 600.0, "start_within_s": 600.0}
    controller, here = world.controller(), world.submit(cpus=2, limits=limits)
    world.round(controller)
    process = world.begin_here(here)
    world.round(controller)
    waiting = world.submit(cpus=2, limits=limits)
    set_clock(monkeypatch, hours * 3600.0)
    world.round(controller, times=3)
    assert world.states(here, waiting) == ["RUNNING", "QUEUED"]
    assert world.queue.attempts(here)[0].seconds < 60
    process.kill()
    process.wait()
    world.ray.end(f"{here}-a1", "FAILED", driver_exit_code=-9)
    world.round(controller)
    assert world.state(here) == "RETRYING"
    world.round(controller, passed_s=61.0)
    assert "STARTING" in world.states(here, waiting)


def set_clock(monkeypatch, seconds):
    """As if somebody had set the clock of the machine."""
    import time

    from psutil import _pslinux

    birth_s = psutil.Process().create_time()
    real_time, real_boot_time = time.time, _pslinux.boot_time
    monkeypatch.setattr(time, "time", lambda: real_time() + seconds)
    monkeypatch.setattr(_pslinux, "boot_time", lambda: real_boot_time() + seconds)
    assert psutil.Process().create_time() == pytest.approx(birth_s + seconds, abs=60)


# Accounting.


def test_usage_is_what_the_attempts_held(world):
    controller = world.controller()
    job_id = world.running(controller, cpus=2)
    world.round(controller, times=10, passed_s=1.0)
    world.end(job_id, None)
    world.round(controller, passed_s=1.0)
    world.round(controller, passed_s=61.0)  # nothing is held while it waits
    world.begin(job_id)
    world.round(controller, times=5, passed_s=1.0)
    attempts = world.queue.attempts(job_id)
    assert attempts[0].seconds == pytest.approx(11.0, abs=0.9)
    assert attempts[1].seconds == pytest.approx(4.0, abs=0.9)
    used = world.queue.usage()[0]["cpu_seconds"]
    assert used == pytest.approx(sum(one.seconds * one.cpus for one in attempts))


def test_seconds_in_which_the_cluster_did_not_answer_count(world):
    controller = world.controller()
    job_id = world.running(controller)
    world.ray.go_down()
    world.round(controller, times=3, passed_s=100.0)
    world.ray.come_up()
    world.round(controller)
    assert world.queue.attempts(job_id)[0].seconds == pytest.approx(301.0, abs=2.0)


def test_an_attempt_shorter_than_a_round_counts_as_it_says_itself(world):
    controller, job_id = world.controller(), world.submit(cpus=2)
    world.round(controller)
    world.begin(job_id)
    world.end(job_id, SUCCEEDED)
    world.round(controller, passed_s=0.1)
    assert world.queue.usage()[0]["cpu_seconds"] == 14.0


def test_nothing_is_remembered_of_what_has_ended(world):
    controller = world.controller()
    for _ in range(3):
        job_id = world.running(controller)
        stop(world, job_id)
        world.round(controller)
        world.end(job_id, STOPPED)
        world.round(controller)
    launcher = controller.launcher
    assert [controller._watches, launcher._starts, launcher._stops] == [{}, {}, {}]


def test_say_started_names_the_process_and_say_end_counts_once(tmp_path):
    say_started(tmp_path)
    assert json.loads((tmp_path / "started.json").read_text())["born"]
    ends = [End(State.FAILED, "user", str(i)) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        wrote = list(pool.map(lambda end: say_end(tmp_path, end), ends))
    assert wrote.count(True) == 1
    assert read_end(tmp_path) == ends[wrote.index(True)]
