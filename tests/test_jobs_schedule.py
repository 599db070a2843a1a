import time
from collections import Counter
from dataclasses import replace
from functools import cache
from random import Random

import pytest

from jobs.schedule import Ask, Caps, Node, Policy, Running, Waiting, never_fits, next_turn


def ask(cpus=1.0, workers=1, gpus=0.0, driver=0.0):
    return Ask(workers, cpus, gpus, driver)


def wait(id, order, needs=None, *, user="ann", queue="default", priority=0, **more):
    return Waiting(id, user, queue, priority, order, needs or ask(), **more)


def run(id, order, needs=None, *, user="ann", queue="default", priority=0, **more):
    return Running(id, user, queue, priority, order, needs or ask(), **more)


def nodes(*sizes):
    """Nodes of so many CPUs, or of (CPUs, GPUs)."""
    pairs = [size if isinstance(size, tuple) else (size, 0) for size in sizes]
    return [Node(f"n{i}", *pair) for i, pair in enumerate(pairs)]


def turn_of(waiting, running=(), on=(), **policy):
    return next_turn(waiting, running, nodes(*on), Policy(**policy))


@pytest.mark.parametrize(
    ("waiting", "running", "on", "starts"),
    [
        pytest.param([wait("a", 1)], [], [1], ["a"], id="what fits starts"),
        pytest.param([wait("a", 2), wait("b", 1)], [], [1], ["b"], id="the earlier request first"),
        pytest.param(
            [wait("a", 1), wait("b", 2, priority=1)], [], [1], ["b"], id="the higher priority first"
        ),
        pytest.param(
            [wait("a", 1), wait("b", 2, user="bob")], [run("r", 0)], [2], ["b"],
            id="the user with the fewest running CPUs first",
        ),
        pytest.param(
            [wait("a", 1), wait("b", 2), wait("c", 3, user="bob")], [], [2], ["a", "c"],
            id="what the turn starts counts as running",
        ),
        pytest.param(
            [wait("a", 1, ask(workers=3))], [], [1, 1], [], id="a gang of which one finds no room"
        ),
        pytest.param(
            [wait("a", 1, ask(2, workers=3))], [], [3, 3], [], id="room enough, but in pieces"
        ),
        pytest.param(
            [wait("a", 1, ask(2, workers=2, driver=1))], [], [2, 3], ["a"],
            id="a driver where its workers leave room",
        ),
        pytest.param(
            [wait("a", 1, ask(2, workers=2, driver=1))], [], [2, 2], [], id="no room for the driver"
        ),
        pytest.param(
            [wait("a", 1, ask(0.1, workers=3))], [run("r", 0, ask(0.7))], [1], ["a"],
            id="tenths add up to one",
        ),
        pytest.param(
            [wait("a", 1, ask(0.19, workers=3))], [], [0.57], ["a"], id="hundredths add up too"
        ),
        pytest.param(
            [wait("a", 1)], [run("r", 0, is_leaving=True)], [1], [], id="what leaves is still there"
        ),
        pytest.param(
            [wait("a", 1), wait("b", 2, ask(gpus=1))], [], [(1, 1), 1], ["a", "b"],
            id="what needs no GPU leaves the GPU's node alone",
        ),
        pytest.param(
            [wait("a", 1), wait("b", 2, ask(2))], [], [1, 2], ["a", "b"],
            id="the smallest hole that is large enough",
        ),
        pytest.param(
            [wait("a", 1, ask(2))], [run("r", 0), run("s", 0)], [2, 2], ["a"],
            id="running jobs are believed to sit together",
        ),
        pytest.param(
            [wait("a", 1, ask(3))], [run("r", 0), run("s", 0, ask(3))], [3, 4], ["a"],
            id="the largest is believed to have found its place first",
        ),
        pytest.param(
            [wait("a", 1), wait("b", 2)], [run("r", 0, ask(3))], [2, 2], ["a"],
            id="what cannot be packed is taken off the sum",
        ),
        pytest.param(
            [wait("a", 1, blocked="after job x"), wait("b", 2)], [], [1], ["b"],
            id="what may not start yet holds up nobody",
        ),
        pytest.param(
            [wait("a", 1, ask(9), num_passed=20), wait("b", 2)], [], [1], ["b"],
            id="what can never start holds up nobody",
        ),
        pytest.param([wait("a", 1)], [], [], [], id="a cluster without nodes"),
        pytest.param([], [], [1], [], id="an empty queue"),
    ],
)  # fmt: skip
def test_jobs_start_in_order_where_there_is_room(waiting, running, on, starts):
    assert turn_of(waiting, running, on).starts == starts


BIG = ask(2)


@pytest.mark.parametrize(
    ("waiting", "starts", "passed"),
    [
        pytest.param([wait("big", 1, BIG), wait("b", 2)], ["b"], ["big"], id="a small one passes"),
        pytest.param(
            [wait("big", 1, BIG), wait("b", 2), wait("c", 3, BIG)], ["b"], ["big"],
            id="only the first that finds no room is the head",
        ),
        pytest.param(
            [wait("big", 1, BIG, num_passed=2), wait("b", 2, ask(0.5)), wait("c", 3, ask(0.5))],
            ["b"], ["big"], id="no more pass than may",
        ),
        pytest.param(
            [wait("big", 1, BIG), wait("b", 2, ask(0.5)), wait("c", 3, ask(0.5))],
            ["b", "c"], ["big", "big"], id="each that passes is counted",
        ),
        pytest.param(
            [wait("big", 1, BIG, num_passed=3), wait("b", 2)], [], [], id="after the last, nobody"
        ),
        pytest.param(
            [wait("big", 1, BIG, num_passed=3), wait("b", 2, user="bob")], [], [],
            id="after the last, no other user",
        ),
        pytest.param(
            [wait("big", 1, BIG, num_passed=3, user="rich"), wait("b", 2)], [], [],
            id="after the last, no user with fewer CPUs",
        ),
        pytest.param(
            [wait("big", 1, BIG, num_passed=3), wait("b", 2, priority=-1)], [], [],
            id="after the last, no lower priority",
        ),
        pytest.param(
            [wait("big", 1, BIG, num_passed=3), wait("b", 2, priority=1)], ["b"], [],
            id="a higher priority goes before and passes nobody",
        ),
        pytest.param(
            [wait("big", 1, BIG, num_passed=3, queue="capped"), wait("b", 2)], ["b"], [],
            id="what a cap holds is not passed",
        ),
        pytest.param(
            [wait("big", 1, BIG, user="rich"), wait("b", 2)], ["b"], ["big"],
            id="an older request that fair shares overlook is passed",
        ),
        pytest.param(
            [wait("big", 1, BIG, user="rich"), wait("b", 2, ask(0.5)), wait("c", 3, ask(0.5))],
            ["b", "c"], ["big"], id="and only once in a turn",
        ),
        pytest.param(
            [wait("big", 2, BIG, user="rich"), wait("b", 1)], ["b"], [],
            id="an older request passes nobody",
        ),
        pytest.param(
            [wait("big", 1, BIG), wait("low", 2, BIG, priority=-1), wait("b", 3, priority=-1)],
            ["b"], ["big", "low"], id="both the head and the oldest of a lower priority",
        ),
    ],
)  # fmt: skip
def test_a_job_without_room_is_passed_a_bounded_number_of_times(waiting, starts, passed):
    running = [run("r", 0, user="rich")]
    policy = {"max_passed": 3, "queues": {"capped": Caps(running=0)}}
    turn = turn_of(waiting, running, [2], **policy)
    assert (turn.starts, turn.passed) == (starts, passed)


CAP = "held by the cap of "


@pytest.mark.parametrize(
    ("caps", "needs", "why"),
    [
        pytest.param(
            {"running": 2}, ask(), CAP + "2 running jobs {where}", id="of running jobs"
        ),
        pytest.param(
            {"running_per_user": 1}, ask(), CAP + "1 running job for user ann {where}",
            id="of a user's running jobs",
        ),
        pytest.param(
            {"cpus_per_user": 3}, ask(1.5),
            CAP + "3 CPUs for user ann {where}: 2 in use, it needs 1.5", id="of a user's CPUs",
        ),
        pytest.param(
            {"gpus_per_user": 1}, ask(gpus=0.5),
            CAP + "1 GPU for user ann {where}: 1 in use, it needs 0.5", id="of a user's GPUs",
        ),
        pytest.param({"running": 3}, ask(), None, id="of running jobs, not reached"),
        pytest.param({"running_per_user": 2}, ask(), None, id="of a user's, not reached"),
        pytest.param({"cpus_per_user": 3}, ask(), None, id="of CPUs, just reached"),
        pytest.param({"gpus_per_user": 0.5}, ask(), None, id="of GPUs, and it needs none"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_total", [False, True], ids=["in its queue", "in all queues"])
def test_a_cap_holds_a_job_and_is_its_reason(caps, needs, why, is_total):
    queue = "other" if is_total else "default"
    policy = {"total": Caps(**caps)} if is_total else {"queues": {"default": Caps(**caps)}}
    running = [run("r", 0, ask(2, gpus=1), queue=queue), run("s", 0, user="bob", queue=queue)]
    turn = turn_of([wait("a", 1, needs)], running, [(9, 9)], **policy)
    where = "in all queues" if is_total else "in queue default"
    assert turn.why == ({} if why is None else {"a": why.format(where=where)})


def test_a_cap_of_one_queue_does_not_count_the_jobs_of_another():
    policy = {"queues": {"default": Caps(1, 1, 1, 1)}}
    assert turn_of([wait("a", 1)], [run("r", 0, queue="other")], [9], **policy).starts == ["a"]


def test_what_a_turn_starts_counts_for_its_caps():
    turn = turn_of([wait("a", 1), wait("b", 2)], [], [9], total=Caps(running_per_user=1))
    assert turn.starts == ["a"]
    assert turn.why == {"b": "held by the cap of 1 running job for user ann in all queues"}


LOW = [run("old", 1, priority=1), run("new", 2, priority=1), run("least", 0, priority=0)]


@pytest.mark.parametrize(
    ("job", "running", "on", "preempts"),
    [
        pytest.param(wait("a", 9, priority=2), LOW, [3], {"least"}, id="the lowest priority first"),
        pytest.param(
            wait("a", 9, ask(2), priority=2), LOW, [3], {"least", "new"},
            id="of one priority the latest first",
        ),
        pytest.param(wait("a", 9, priority=0), LOW, [3], set(), id="never an equal priority"),
        pytest.param(
            wait("a", 9, ask(3), priority=1), LOW, [3], set(),
            id="nobody if all that is lower would not be enough",
        ),
        pytest.param(
            wait("a", 9, ask(4), priority=9), LOW, [3], set(), id="not for the impossible"
        ),
        pytest.param(wait("a", 9, priority=2), LOW, [4], set(), id="nobody where there is room"),
        pytest.param(
            wait("a", 9, ask(2), priority=2),
            [run("small", 2), run("large", 1, ask(2))], [3], {"large"},
            id="nobody who turns out not to be needed",
        ),
        pytest.param(
            wait("a", 9, priority=2),
            [run("gone", 2, is_leaving=True), run("r", 1)], [2], set(),
            id="nobody if what leaves already is enough",
        ),
        pytest.param(
            wait("a", 9, ask(2), priority=2),
            [run("gone", 3, is_leaving=True), run("r", 1), run("s", 2)], [3], {"s"},
            id="no more than are needed beside what leaves",
        ),
        pytest.param(
            wait("a", 9, ask(gpus=1), priority=2),
            [run("cpus", 2), run("gpu", 1, ask(gpus=1))], [2, (1, 1)], {"gpu"},
            id="only who has what is short",
        ),
        pytest.param(
            wait("a", 9, priority=2, queue="capped"), LOW, [3], set(), id="not for what a cap holds"
        ),
        pytest.param(
            wait("a", 9, priority=2, blocked="retry in 4 s"), LOW, [3], set(),
            id="not for what may not start",
        ),
    ],
)  # fmt: skip
def test_the_head_preempts_only_what_it_needs(job, running, on, preempts):
    turn = turn_of([job], running, on, queues={"capped": Caps(running=0)})
    assert turn.preempts == dict.fromkeys(preempts, "a")


def test_nothing_is_preempted_where_the_policy_forbids_it():
    turn = turn_of([wait("a", 9, priority=2)], LOW, [3], preempts=False)
    assert turn.preempts == {}


def test_only_the_head_preempts():
    waiting = [wait("head", 8, ask(3), priority=5), wait("b", 9, priority=4)]
    running = [run("equal", 1, priority=5), run("r", 2), run("s", 3)]
    assert turn_of(waiting, running, [3]).preempts == {}


@pytest.mark.parametrize(
    ("is_leaving", "small", "starts"),
    [
        pytest.param(False, ask(1), ["b"], id="what leaves enough for the head beside it starts"),
        pytest.param(False, ask(2), [], id="what would take of the room that is made waits"),
        pytest.param(True, ask(2), [], id="so it does where the room was made before"),
        pytest.param(True, ask(0.5), ["b", "c"], id="all that start leave enough together"),
    ],
)
def test_room_that_is_made_is_kept_for_the_head(is_leaving, small, starts):
    waiting = [wait("head", 7, ask(3), priority=1), wait("b", 8, small), wait("c", 9, small)]
    turn = turn_of(waiting, [run("r", 1, ask(2), is_leaving=is_leaving)], [4])
    assert turn.preempts == ({} if is_leaving else {"r": "head"})
    assert turn.starts == starts


FULL = [run("r", 0, ask(1), priority=9)]


@pytest.mark.parametrize(
    ("waiting", "running", "on", "why"),
    [
        pytest.param(
            [wait("a", 1, ask(2))], FULL, [2], "waits for 2 CPUs: 1 of 2 is free", id="for CPUs"
        ),
        pytest.param(
            [wait("a", 1)], FULL, [1], "waits for 1 CPU: 0 of 1 are free", id="where all is taken"
        ),
        pytest.param(
            [wait("a", 1, ask(gpus=1))], [run("r", 0, ask(gpus=1))], [(4, 1)],
            "waits for 1 CPU and 1 GPU: 3 of 4 CPUs and 0 of 1 GPUs are free", id="for GPUs",
        ),
        pytest.param(
            [wait("a", 1, ask(2, workers=2))], [run("r", 0, ask(1, workers=2))], [3, 3],
            "waits for 2 workers of 2 CPUs, each on one node: 4 of 6 are free, in smaller pieces",
            id="where only small pieces are free",
        ),
        pytest.param(
            [wait("a", 1, ask(2, driver=2))], [run("r", 0, ask(2))], [3, 3],
            "waits for a driver of 2 CPUs and 1 worker of 2 CPUs, each on one node: "
            "4 of 6 are free, in smaller pieces", id="for a node for its driver",
        ),
        pytest.param(
            [wait("a", 1, blocked="retry in 4 s")], [], [1], "retry in 4 s", id="not yet"
        ),
        pytest.param(
            [wait("a", 1, ask(8))], [], [2, 1],
            "this cluster can never hold it: needs 8 CPUs per worker, its largest node has 2",
            id="never",
        ),
        pytest.param(
            [wait("h", 0, ask(2), num_passed=20), wait("a", 1)], FULL, [2],
            "waits behind job h, which 20 jobs may pass at most", id="behind who was passed enough",
        ),
        pytest.param(
            [wait("h", 0, ask(2)), wait("a", 1)], [replace(FULL[0], is_leaving=True)], [2],
            "waits for 1 CPU: 1 of 2 is free, but kept for job h", id="behind who is made room for",
        ),
        pytest.param(
            [wait("a", 1, ask(2))], [replace(FULL[0], is_leaving=True)], [2],
            "waits for 2 CPUs: 1 of 2 is free; job r is on the way out", id="for who leaves",
        ),
        pytest.param(
            [wait("a", 9, priority=2)], LOW[2:], [1],
            "waits for 1 CPU: 0 of 1 are free; makes room: job least is being preempted",
            id="for one that is preempted",
        ),
        pytest.param(
            [wait("a", 9, ask(2), priority=2)], [run("r", 1), run("s", 2)], [2],
            "waits for 2 CPUs: 0 of 2 are free; makes room: jobs s and r are being preempted",
            id="for two",
        ),
        pytest.param(
            [wait("a", 9, ask(5), priority=2)], [run(f"r{i}", i) for i in range(5)], [5],
            "waits for 5 CPUs: 0 of 5 are free; "
            "makes room: jobs r4, r3, r2 and 2 more are being preempted", id="for many",
        ),
        pytest.param(
            [wait("a", 1)], [], [], "waits for 1 CPU: the cluster has no living node", id="no nodes"
        ),
    ],
)  # fmt: skip
def test_a_job_that_waits_says_why(waiting, running, on, why):
    assert turn_of(waiting, running, on).why["a"] == why


@pytest.mark.parametrize(
    ("needs", "on", "words"),
    [
        pytest.param(ask(2), [2], None, id="it fits"),
        pytest.param(ask(2), [], None, id="no node is known"),
        pytest.param(ask(3), [2, 2], "needs 3 CPUs per worker, its largest node has 2", id="cpus"),
        pytest.param(ask(gpus=1), [2], "needs 1 GPU per worker, its largest node has 0", id="gpus"),
        pytest.param(
            ask(driver=4), [2, 3], "needs 4 CPUs for its driver, its largest node has 3",
            id="a driver",
        ),
        pytest.param(ask(workers=5), [2, 2], "needs 5 CPUs, it has 4 CPUs", id="too many workers"),
        pytest.param(
            ask(workers=3, gpus=1), [(4, 1), (4, 1)],
            "needs 3 CPUs and 3 GPUs, it has 8 CPUs and 2 GPUs", id="too many GPUs",
        ),
        pytest.param(
            ask(2, workers=3), [3, 3],
            "needs 3 workers of 2 CPUs, each on one node; its 2 nodes with 6 CPUs "
            "hold 2 such workers", id="nodes too small for as many",
        ),
        pytest.param(
            ask(2, workers=2, driver=1), [2, 2, 0.5, 0.5],
            "needs a driver of 1 CPU and 2 workers of 2 CPUs, each on one node; its 4 nodes with "
            "5 CPUs hold 2 such workers without a driver", id="no node for the driver beside them",
        ),
        pytest.param(
            ask(2, gpus=1), [4, (1, 1)],
            "needs 1 worker of 2 CPUs and 1 GPU, each on one node; its 2 nodes with "
            "5 CPUs and 1 GPU hold 0 such workers", id="no node has both",
        ),
    ],
)  # fmt: skip
def test_what_can_never_fit_is_told_what_is_short(needs, on, words):
    prefix = "this cluster can never hold it: "
    assert never_fits(needs, nodes(*on)) == (words and prefix + words)


def pieces_of(needs):
    workers = [(needs.cpus_per_worker, needs.gpus_per_worker)] * needs.workers
    return [*workers, (needs.driver_cpus, 0)]


@cache
def fits_somehow(free, pieces):
    """Whether any way to lay the pieces out works, by trying all of them."""
    if not pieces:
        return True
    (cpus, gpus), *rest = pieces
    return any(
        fits_somehow(
            tuple(sorted([*free[:i], (node[0] - cpus, node[1] - gpus), *free[i + 1 :]])),
            tuple(rest),
        )
        for i, node in enumerate(free)
        if node[0] >= cpus and node[1] >= gpus
    )


def fit_together(asks, cluster):
    pieces = sorted((piece for needs in asks for piece in pieces_of(needs)), reverse=True)
    return fits_somehow(tuple(sorted((n.cpus, n.gpus) for n in cluster)), tuple(pieces))


def random_ask(rng, *, most=4):
    # Halves and quarters are exact as floats, so that sums need no tolerance.
    cpus, gpus = rng.choice([0.25, 0.5, 1, 1, 2, 3]), rng.choice([0, 0, 0, 0.5, 1])
    return Ask(rng.randint(1, most), cpus, gpus, rng.choice([0, 0.5, 1, 2]))


def random_nodes(rng):
    return nodes(*((rng.choice([1, 2, 4, 5]), rng.choice([0, 1, 2])) for _ in range(3)))


def test_a_gang_fits_exactly_where_some_layout_of_it_does():
    rng, seen = Random(0), Counter()
    for _ in range(600):
        needs, cluster = random_ask(rng, most=5), random_nodes(rng)
        fits = fit_together([needs], cluster)
        assert (never_fits(needs, cluster) is None) == fits, (needs, cluster)
        assert (next_turn([wait("a", 1, needs)], [], cluster, Policy()).starts == ["a"]) == fits
        seen[fits] += 1
    assert min(seen.values()) > 100, seen


def random_jobs(rng, first, num):
    return [
        wait(
            f"j{order}", order, random_ask(rng, most=2), user=rng.choice(["ann", "bob"]),
            queue=rng.choice("xy"), priority=rng.randint(0, 2), num_passed=rng.choice([0, 0, 4]),
            blocked=rng.choice(["", "", "", "not yet"]),
        )
        for order in range(first, first + num)
    ]  # fmt: skip


def random_caps(rng):
    return Caps(*(rng.choice([None, None, most]) for most in (4, 3, 4, 1)))


def as_running(job, *, is_leaving=False):
    return Running(job.id, job.user, job.queue, job.priority, job.order, job.ask, is_leaving)


def random_scene(rng, cluster, policy):
    """Jobs that a turn started on empty nodes, some of which leave, and others that wait."""
    first = random_jobs(rng, 0, rng.randint(0, 6))
    starts = set(next_turn(first, [], cluster, policy).starts)
    running = [as_running(job, is_leaving=rng.random() < 0.2) for job in first if job.id in starts]
    return random_jobs(rng, 10, rng.randint(1, 6)), running


def assert_caps_hold(jobs, policy):
    for queue in ("x", "y", None):
        caps = policy.total if queue is None else policy.queues[queue]
        inside = [job for job in jobs if queue in (job.queue, None)]
        assert caps.running is None or len(inside) <= caps.running
        for user in ("ann", "bob"):
            own = [job for job in inside if job.user == user]
            assert caps.running_per_user is None or len(own) <= caps.running_per_user
            assert caps.cpus_per_user is None or sum(j.ask.cpus for j in own) <= caps.cpus_per_user
            assert caps.gpus_per_user is None or sum(j.ask.gpus for j in own) <= caps.gpus_per_user


@pytest.mark.parametrize("seed", range(4))
def test_no_turn_takes_more_than_there_is_or_than_a_cap_allows(seed):
    rng, num_starts = Random(seed), 0
    for _ in range(80):
        cluster = random_nodes(rng)
        policy = Policy({"x": random_caps(rng), "y": random_caps(rng)}, random_caps(rng), 4)
        waiting, running = random_scene(rng, cluster, policy)
        turn = next_turn(waiting, running, cluster, policy)
        jobs = [*running, *(job for job in waiting if job.id in turn.starts)]
        assert fit_together([job.ask for job in jobs], cluster), (waiting, running, cluster)
        assert_caps_hold(jobs, policy)
        num_starts += len(turn.starts)
    assert num_starts > 30


@pytest.mark.parametrize("seed", range(4))
def test_every_job_starts_or_is_told_why_and_is_passed_no_more_than_may(seed):
    rng = Random(seed)
    for _ in range(150):
        cluster, policy = random_nodes(rng), Policy({"x": random_caps(rng)}, max_passed=4)
        waiting, running = random_scene(rng, cluster, policy)
        turn = next_turn(waiting, running, cluster, policy)
        assert sorted([*turn.starts, *turn.why]) == sorted(job.id for job in waiting)
        assert all(turn.why.values())
        passed = Counter(turn.passed)
        assert passed.keys() <= turn.why.keys()
        assert all(job.num_passed + passed[job.id] <= 4 for job in waiting if passed[job.id])


@pytest.mark.parametrize("seed", range(4))
def test_each_victim_is_needed_and_all_together_suffice(seed):
    rng, policy, num_victims = Random(seed), Policy(max_passed=0), 0
    for _ in range(200):
        cluster = nodes((rng.choice([4, 6]), 2))  # one node: sums say exactly what fits
        waiting, running = random_scene(rng, cluster, Policy())
        turn = next_turn(waiting, running, cluster, policy)
        by_id = {job.id: job for job in [*waiting, *running]}
        stay = {job.id for job in running if not job.is_leaving} - turn.preempts.keys()
        asks = [by_id[id].ask for id in [*stay, *turn.starts, *set(turn.preempts.values())]]
        assert not turn.preempts or fit_together(asks, cluster)
        for victim, head in turn.preempts.items():
            assert by_id[victim].priority < by_id[head].priority
            assert not by_id[victim].is_leaving
            assert not fit_together([*asks, by_id[victim].ask], cluster)
        num_victims += len(turn.preempts)
    assert num_victims > 20


@pytest.mark.parametrize("seed", range(4))
def test_who_is_made_room_for_starts_when_it_is_made_whatever_started_meanwhile(seed):
    rng, num_meanwhile = Random(seed), 0
    for _ in range(200):
        cluster = nodes((rng.choice([4, 6, 8]), 2))
        # Of one user: shares change when victims leave, and with them who is first.
        scene = random_scene(rng, cluster, Policy())
        waiting, running = ([replace(job, user="ann") for job in jobs] for jobs in scene)
        turn = next_turn(waiting, running, cluster, Policy())
        left = [job for job in waiting if job.id in turn.why]
        stay = [job for job in running if job.id not in turn.preempts and not job.is_leaving]
        stay += [as_running(job) for job in waiting if job.id in turn.starts]
        starts = next_turn(left, stay, cluster, Policy()).starts
        assert set(turn.preempts.values()) <= set(starts)
        num_meanwhile += len(turn.starts) * bool(turn.preempts)
    assert num_meanwhile > 5


def test_a_turn_does_not_depend_on_the_order_in_which_jobs_are_given():
    rng = Random(0)
    for _ in range(50):
        cluster = random_nodes(rng)
        waiting, running = random_scene(rng, cluster, Policy())
        turn = next_turn(waiting, running, cluster, Policy())
        rng.shuffle(waiting)
        rng.shuffle(running)
        assert next_turn(waiting, running, cluster[::-1], Policy()) == turn


def simulate(arrivals, cluster, policy, num_turns):
    """Turn after turn; yields what runs after each.

    Args:
        arrivals: (turn, number of turns that it runs, job). What is preempted is gone in the next
            turn and waits again, from the start.
    """
    lasts = {job.id: num for _, num, job in arrivals}
    waiting, running, ends, jobs = {}, {}, {}, {job.id: job for _, _, job in arrivals}
    for now in range(num_turns):
        waiting |= {job.id: job for at, _, job in arrivals if at == now}
        for id in [id for id, end in ends.items() if end == now]:
            if running.pop(id).is_leaving:
                waiting[id] = jobs[id]
            del ends[id]
        turn = next_turn([*waiting.values()], [*running.values()], cluster, policy)
        for id in turn.passed:
            waiting[id] = replace(waiting[id], num_passed=waiting[id].num_passed + 1)
        for id in turn.preempts:
            running[id], ends[id] = replace(running[id], is_leaving=True), now + 1
        for id in turn.starts:
            running[id], ends[id] = as_running(waiting.pop(id)), now + lasts[id]
        yield dict(running)


@pytest.mark.parametrize(
    "small",
    [
        pytest.param({"user": "ann"}, id="of the same user"),
        pytest.param({"user": "user{}"}, id="of ever new users, who run less"),
        pytest.param({"user": "user{}", "priority": -1}, id="of a lower priority"),
    ],
)
@pytest.mark.parametrize(
    ("max_passed", "is_in_time"),
    [pytest.param(10, True, id="when few may pass"), pytest.param(10**6, False, id="not when all")],
)
def test_a_large_job_starts_though_small_ones_keep_coming(small, max_passed, is_in_time):
    stream = [
        (i // 2, 3, wait(f"s{i}", 10 + i, **small | {"user": small["user"].format(i)}))
        for i in range(160)
    ]
    arrivals = [(0, 99, wait("long", 0)), (1, 1, wait("big", 1, ask(4))), *stream]
    policy = Policy(max_passed=max_passed, preempts=False)
    turns = simulate(arrivals, nodes(5), policy, 80)
    started = next((now for now, running in enumerate(turns) if "big" in running), 99)
    # Ten passes, at worst one in each of the three turns that a small job lasts; then they end.
    assert (started <= 1 + 10 * 3 + 3) == is_in_time


def test_two_users_share_a_cluster_evenly_whoever_asked_first():
    ann = [(0, 2, wait(f"a{i}", i)) for i in range(60)]
    bob = [(3, 2, wait(f"b{i}", 100 + i, user="bob")) for i in range(60)]
    turns = list(simulate([*ann, *bob], nodes(6), Policy(), 15))
    assert [job.user for job in turns[2].values()] == ["ann"] * 6
    for running in turns[5:]:
        assert Counter(job.user for job in running.values()) == {"ann": 3, "bob": 3}


@pytest.mark.parametrize("seed", range(4))
def test_every_job_that_can_run_runs_to_its_end_however_often_it_is_preempted(seed):
    rng = Random(seed)
    cluster = random_nodes(rng)
    jobs = [replace(job, blocked="", num_passed=0) for job in random_jobs(rng, 0, 40)]
    arrivals = [(rng.randint(0, 30), rng.randint(1, 5), job) for job in jobs]
    seen, running = set(), {}
    for running in simulate(arrivals, cluster, Policy(), 200):
        seen |= running.keys()
    assert seen == {job.id for job in jobs if never_fits(job.ask, cluster) is None}
    assert not running


def test_a_long_queue_is_decided_on_in_well_under_a_second():
    rng = Random(0)
    asks = [ask(), ask(2, 2, driver=1), ask(4, 4, gpus=1, driver=1), ask(8, gpus=1), ask(1, 16)]
    users = [f"user{i}" for i in range(30)]
    some = [
        wait(f"j{i}", i, rng.choice(asks), user=rng.choice(users), priority=rng.randint(0, 3))
        for i in range(10_500)
    ]
    running = [as_running(job) for job in some[:500]]
    head = wait("head", 10**6, ask(30, 50), priority=9)
    began_s = time.process_time()  # of this process, so that a busy machine does not matter
    turn = next_turn([head, *some[500:]], running, nodes(*[(64, 8)] * 50), Policy())
    assert time.process_time() - began_s < 1
    assert turn.preempts
    assert len(turn.starts) + len(turn.why) == 10_001
