import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from queue_world import SPEC, Served, wish, world_at

from jobs.states import State

SECRET = "hunter2hunter2"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with world_at(tmp_path_factory.mktemp("api") / "home") as world, Served(world) as made:
        yield made


@pytest.fixture(scope="module")
def ada(served):
    with served.client("ada") as client:
        yield client


@pytest.fixture(scope="module")
def bob(served):
    with served.client("bob") as client:
        yield client


@pytest.fixture(scope="module")
def admin(served):
    with served.client("root", "admin") as client:
        yield client


@pytest.fixture(scope="module")
def viewer(served):
    with served.client("eve", "viewer") as client:
        yield client


def submitted(client, key, **values):
    reply = client.post("/api/jobs", json=wish(key, **values))
    assert reply.status_code == 201, reply.text
    return reply.json()["job_id"]


def message(reply):
    return reply.json()["error"]["message"]


def test_a_job_is_submitted_listed_and_shown(ada):
    reply = ada.post("/api/jobs", json=wish("first", priority=3))
    assert (reply.status_code, reply.json()["state"], reply.json()["is_new"]) == (
        201,
        "QUEUED",
        True,
    )
    job_id = reply.json()["job_id"]
    row = next(row for row in ada.get("/api/jobs").json()["jobs"] if row["job_id"] == job_id)
    assert (row["user"], row["queue"], row["priority"]) == ("ada", "default", 3)
    shown = ada.get(f"/api/jobs/{job_id}").json()
    assert shown["spec"]["train"]["epochs"] >= 1  # the resolved job, defaults filled in
    assert [event["reason"] for event in shown["events"]] == ["submitted"]
    assert shown["limits"]["retries"] == 3


def test_the_same_key_gives_the_same_job_and_says_so(ada):
    first = ada.post("/api/jobs", json=wish("twice")).json()
    again = ada.post("/api/jobs", json=wish("twice")).json()
    assert (again["job_id"], again["is_new"]) == (first["job_id"], False)


def test_a_key_with_another_body_is_a_conflict_with_the_difference(ada):
    job_id = submitted(ada, "taken")
    other = SPEC | {"train": {"lr": 0.5}}
    reply = ada.post("/api/jobs", json=wish("taken", spec=other))
    assert (reply.status_code, reply.json()["error"]["kind"]) == (409, "conflict")
    assert job_id in message(reply)
    assert "train.lr" in message(reply)
    assert "0.5 here" in message(reply)


def test_fifty_clients_at_once_make_no_error_and_no_second_job(served):
    token, start = served.token("crowd"), threading.Barrier(50)

    def submit(i):
        headers = {"Authorization": f"Bearer {token}"}
        with served.client("ada", timeout=60) as client:
            start.wait(30)
            reply = client.post("/api/jobs", json=wish(f"crowd{i % 25}"), headers=headers)
        return reply.status_code, reply.json()["job_id"]

    with ThreadPoolExecutor(50) as pool:
        replies = list(pool.map(submit, range(50)))
    assert {status for status, _ in replies} == {201}
    assert len({job_id for _, job_id in replies}) == 25


# Who may do what.


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/jobs"),
        ("POST", "/api/jobs/{job}/stop"),
        ("POST", "/api/jobs/{job}/resume"),
        ("POST", "/api/jobs/{job}/priority"),
    ],
)
def test_a_viewer_changes_nothing(ada, viewer, method, path):
    job_id = submitted(ada, "looked-at")
    body = wish("viewers") if path == "/api/jobs" else {"priority": 1}
    reply = viewer.request(method, path.format(job=job_id), json=body)
    assert (reply.status_code, reply.json()["error"]["kind"]) == (403, "forbidden")
    assert "user eve (viewer) may not" in message(reply)


@pytest.mark.parametrize("what", ["stop", "resume", "priority"])
def test_a_submitter_changes_own_jobs_alone(ada, bob, what):
    job_id = submitted(ada, f"mine-{what}")
    reply = bob.post(f"/api/jobs/{job_id}/{what}", json={"priority": 1})
    assert reply.status_code == 403
    assert ada.get(f"/api/jobs/{job_id}").json()["state"] == "QUEUED"


def test_an_administrator_stops_every_job(ada, admin):
    job_id = submitted(ada, "stopped-by-root")
    assert admin.post(f"/api/jobs/{job_id}/stop").json()["state"] == "STOPPED"
    events = admin.get(f"/api/jobs/{job_id}").json()["events"]
    assert events[-1]["by_whom"] == "root"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/tokens"),
        ("POST", "/api/tokens"),
        ("DELETE", "/api/tokens/1"),
        ("GET", "/api/audit"),
        ("GET", "/api/webhooks"),
        ("POST", "/api/webhooks"),
        ("DELETE", "/api/webhooks/1"),
        ("GET", "/api/webhooks/1/deliveries"),
        ("POST", "/api/drain"),
    ],
)
def test_only_an_administrator_administrates(served, ada, method, path):
    body = {"user": "eve", "role": "admin", "url": "https://host/x", "secret_file": "/x"}
    fields = {"/api/tokens": ("user", "role"), "/api/webhooks": ("url", "secret_file")}
    given = {name: body[name] for name in fields.get(path, ())}
    reply = ada.request(method, path, json=given if method == "POST" else None)
    assert reply.status_code == 403
    assert not served.drained.is_set()


def test_without_a_token_nothing_is_told(served, ada):
    job_id = submitted(ada, "hidden")
    for path in ("/api/jobs", f"/api/jobs/{job_id}", "/api/jobs/nobody", "/api/status"):
        reply = ada.get(path, headers={"Authorization": "Bearer g2c_nobodys"})
        assert (reply.status_code, reply.json()["error"]["kind"]) == (401, "unauthorized")


def test_a_token_that_was_made_works_until_it_is_revoked(served, admin, monkeypatch):
    monkeypatch.setattr("jobs.guard.USER_KEPT_S", 0.0)
    made = admin.post("/api/tokens", json={"user": "kim", "role": "viewer"}).json()
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert admin.get("/api/status", headers=headers).json()["user"] == "kim"
    listed = admin.get("/api/tokens").json()["tokens"]
    number = next(one["id"] for one in listed if one["user"] == "kim")
    assert made["token"] not in str(listed)
    assert admin.delete(f"/api/tokens/{number}").status_code == 200
    assert admin.get("/api/status", headers=headers).status_code == 401
    assert admin.delete(f"/api/tokens/{number}").status_code == 404


def test_who_did_what_and_who_was_refused_is_kept(ada, bob, admin):
    job_id = submitted(ada, "audited")
    bob.post(f"/api/jobs/{job_id}/stop")
    ada.post(f"/api/jobs/{job_id}/stop")
    found = admin.get("/api/audit", params={"limit": 20}).json()["audit"]
    about = [(row["user"], row["action"]) for row in found if job_id in row["target"]]
    assert about[::-1] == [("ada", "submit"), ("bob", "change refused"), ("ada", "stop")]


# What is refused.


@pytest.mark.parametrize("path", ["", "/logs", "/stop", "/resume"])
def test_a_job_that_is_not_there_is_not_found(ada, path):
    method = "POST" if path in ("/stop", "/resume") else "GET"
    reply = ada.request(method, f"/api/jobs/nobody-1{path}")
    assert (reply.status_code, reply.json()["error"]["kind"]) == (404, "not_found")
    assert "nobody-1" in message(reply)


@pytest.mark.parametrize("job_id", ["..%2f..%2fetc", "A", "a%00", "%F0%9F%98%80", "x" * 200])
def test_what_is_no_id_of_a_job_is_not_found(ada, job_id):
    assert ada.get(f"/api/jobs/{job_id}").status_code == 404


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"key": ""}, "key"),
        ({"key": "a b"}, "key"),
        ({"key": "x" * 201}, "key"),
        ({"base_dir": ""}, "base_dir"),
        ({"priority": 1001}, "priority = 1001: must be at most 1000"),
        ({"priority": 1.5}, "priority = 1.5: must be a whole number"),
        ({"queue": "nowhere"}, "queue = nowhere: must be one of default"),
        ({"start_within_s": 0}, "start_within_s = 0: must be above 0"),
        ({"run_within_s": -1}, "run_within_s = -1: must be above 0"),
        ({"after": [{"job": "../x"}]}, "after.0.job"),
        ({"after": [{"job": "nobody-1"}]}, "nobody-1"),
        ({"after": [{"job": "nobody-1", "on": "never"}]}, "after.0.on"),
        ({"after": [{"job": "nobody-1"}] * 101}, "after"),
        ({"origin": "../x"}, "origin"),
        ({"nonsense": 1}, "no such field 'nonsense'"),
        ({"spec": {}}, "spec.kind: must be one of finetune"),
        ({"spec": SPEC | {"name": "Nope!"}}, "spec: name"),
        ({"spec": SPEC | {"typo": 1}}, "typo"),
        (
            {"spec": SPEC | {"cluster": {"workers": 9, "cpus_per_worker": 1}}},
            "this cluster can never hold it",
        ),
    ],
)
def test_a_bad_wish_is_refused_in_words_and_makes_nothing(served, ada, values, words):
    before = len(served.world.queue.store.jobs())
    reply = ada.post("/api/jobs", json=wish("bad") | values)
    assert (reply.status_code, reply.json()["error"]["kind"]) == (400, "bad_request")
    assert words in message(reply)
    assert len(served.world.queue.store.jobs()) == before


def test_a_body_that_is_too_large_is_not_taken(ada):
    reply = ada.post("/api/jobs", json=wish("large", text="x" * 5 * 2**20))
    assert reply.status_code == 413


@pytest.mark.parametrize("limit", [0, 100_001, "many"])
def test_a_list_has_a_length_that_makes_sense(ada, limit):
    assert ada.get("/api/jobs", params={"limit": limit}).status_code == 400


def test_a_list_is_as_long_as_it_was_asked_to_be_and_starts_with_the_newest(ada):
    ids = [submitted(ada, f"long{i}") for i in range(3)]
    listed = ada.get("/api/jobs", params={"limit": 2}).json()["jobs"]
    assert [row["job_id"] for row in listed] == ids[:0:-1]


def test_the_state_that_forbids_a_wish_is_named(served, ada):
    job_id = submitted(ada, "forbidden-wish")
    assert "is QUEUED; only" in message(ada.post(f"/api/jobs/{job_id}/resume"))
    ada.post(f"/api/jobs/{job_id}/stop")
    reply = ada.post(f"/api/jobs/{job_id}/priority", json={"priority": 1})
    assert (reply.status_code, "is STOPPED; only" in message(reply)) == (400, True)


def test_a_job_of_run_is_not_the_queues(served, admin):
    job = served.world.queue.store.create(name="mine", kind="finetune", spec=SPEC)
    reply = admin.post(f"/api/jobs/{job.id}/stop")
    assert (reply.status_code, "made by `gpt2cls run`" in message(reply)) == (400, True)
    assert served.world.queue.store.get(job.id).state is State.STARTING


# Wishes.


def test_a_stop_may_come_twice(ada):
    job_id = submitted(ada, "stopped-twice")
    replies = [ada.post(f"/api/jobs/{job_id}/stop") for _ in range(2)]
    assert [reply.json()["state"] for reply in replies] == ["STOPPED", "STOPPED"]


def test_a_job_after_another_names_it_by_its_whole_id(ada):
    first = submitted(ada, "parent", spec=SPEC | {"name": "parent"})
    second = submitted(ada, "child", after=[{"job": first[:-2]}])
    shown = ada.get(f"/api/jobs/{second}").json()
    assert shown["after"] == [{"job": first, "on": "success"}]


def test_why_a_job_waits_is_told(served, ada):
    job_id = submitted(ada, "waits")
    served.why = {job_id: "waits for 2 CPUs"}
    assert ada.get(f"/api/jobs/{job_id}").json()["reason"] == "waits for 2 CPUs"
    served.why = {}


def test_drain_reaches_the_controller(served, admin):
    try:
        assert admin.post("/api/drain").json() == {"draining": True}
        assert served.drained.is_set()
    finally:
        served.drained.clear()


def test_what_was_used_is_told(ada):
    assert ada.get("/api/usage").json() == {"usage": []}


# Secrets.


def test_a_secret_in_a_job_is_shown_nowhere(served, ada, admin):
    secret = SPEC | {"data": {"train": f"https://ada:{SECRET}@host/train.csv"}}
    reply = ada.post("/api/jobs", json=wish("secret", spec=secret))
    told = [reply.text]
    if reply.status_code == 201:
        job_id = reply.json()["job_id"]
        told.append(ada.get(f"/api/jobs/{job_id}").text)
        assert "***@host" in told[-1]
    other = SPEC | {"data": {"train": f"https://ada:{SECRET}2@host/train.csv"}}
    told.append(ada.post("/api/jobs", json=wish("secret", spec=other)).text)
    told += [ada.get("/api/jobs").text, admin.get("/api/audit").text]
    assert not any(SECRET in text for text in told)


@pytest.mark.parametrize(
    "values",
    [
        {"queue": f"https://ada:{SECRET}@host"},
        {"spec": SPEC | {"name": f"token={SECRET}"}},
        {"spec": SPEC | {f"token={SECRET}": 1}},
        {"spec": SPEC | {"data": {"train": "x", "text": [f"token={SECRET}"]}}},
        {"token": SECRET},
    ],
    ids=["queue", "name", "unknown key", "wrong type", "unknown field"],
)
def test_a_secret_in_what_is_refused_is_not_sent_back(ada, values):
    reply = ada.post("/api/jobs", json=wish("bad") | values)
    assert reply.status_code == 400
    assert SECRET not in reply.text


def test_the_secret_of_a_job_is_there_for_the_next_one_made_from_it(served, ada, bob):
    """A clone is made from what was shown, in which the secret is hidden."""
    secret = SPEC | {"data": {"train": f"https://ada:{SECRET}@host/train.csv"}}
    job_id = submitted(ada, "original", spec=secret)
    shown = ada.get(f"/api/jobs/{job_id}").json()["spec"]
    clone = submitted(ada, "clone", spec=shown, origin=job_id)
    kept = served.world.queue.store.get(clone).spec["data"]["train"]
    assert SECRET in str(kept)
    strangers = submitted(bob, "strangers", spec=shown, origin=job_id)
    assert SECRET not in str(served.world.queue.store.get(strangers).spec)
