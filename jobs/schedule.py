"""Which waiting jobs start now, which running ones make room for them, and why the others wait.

Pure: no clock, database, network or environment. The rules, in the order in which they apply:

Order. Higher priority first. Inside a priority first what was passed `max_passed` times, by
    request; then the user whose running jobs have the fewest CPUs, those that this turn starts
    counted; then by request.
Skipped. A job that may not start yet, that no empty cluster could hold, or that a cap holds: it
    holds up nobody and is not passed.
Room. A job starts with all of its workers and its driver, or not at all. Where running jobs sit is
    not known, only what they have: they are packed anew in every turn, the largest piece first,
    each on the fullest node that holds it. What leaves is still there.
Passing. The first job that finds no room is the head; jobs behind it may start, and each passes it.
    Passed too, once in a turn, is the oldest request of a priority that finds no room while a later
    request of this or a lower priority starts: fair shares may not overlook it for ever. Behind a
    job that finds no room and was passed `max_passed` times nothing starts.
Preemption. Only for the head, only of strictly lower priorities, only if the head then fits: the
    lowest priority first, the latest request first, none that is not needed. What leaves already
    is counted before anything else is preempted.
Keeping. If the head fits when all that leaves is gone, its place there is taken: in this turn a job
    behind it starts only if it fits now and also beside the head then.
"""

import heapq
import sys
from bisect import bisect_left, insort
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

_Size = tuple[int, int]
"""GPUs and CPUs, in ten-thousandths."""


@dataclass(frozen=True)
class Ask:
    """What a job needs, as a gang: all of it or nothing."""

    workers: int
    """Processes, each of which finds its place on one node."""
    cpus_per_worker: float
    gpus_per_worker: float
    driver_cpus: float = 0.0
    """Of the process that drives the workers; on any node."""

    @property
    def cpus(self) -> float:
        return self.workers * self.cpus_per_worker + self.driver_cpus

    @property
    def gpus(self) -> float:
        return self.workers * self.gpus_per_worker

    # Asked for thousands of times in a turn.
    @cached_property
    def worker_size(self) -> _Size:
        return _units(self.gpus_per_worker), _units(self.cpus_per_worker)

    @cached_property
    def driver_size(self) -> _Size:
        return 0, _units(self.driver_cpus)

    @cached_property
    def total_size(self) -> _Size:
        gpus, cpus = self.worker_size
        return self.workers * gpus, self.workers * cpus + self.driver_size[1]


@dataclass(frozen=True)
class Node:
    """All of a living node, whether it is free or not."""

    id: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Waiting:
    id: str
    user: str
    queue: str
    priority: int
    order: int
    """Number of its request: the smaller, the earlier."""
    ask: Ask
    blocked: str = ""
    """Why it may not start yet, in words for a person; empty: it may."""
    num_passed: int = 0
    """Jobs that were let past it, since it was last started."""


@dataclass(frozen=True)
class Running:
    id: str
    user: str
    queue: str
    priority: int
    order: int
    ask: Ask
    is_leaving: bool = False
    """It is being stopped or preempted: what it has comes back soon, but is in use until then."""


@dataclass(frozen=True)
class Caps:
    """The most that may run at once. None: no cap."""

    running: int | None = None
    running_per_user: int | None = None
    cpus_per_user: float | None = None
    gpus_per_user: float | None = None


@dataclass(frozen=True)
class Policy:
    queues: Mapping[str, Caps] = field(default_factory=dict)
    """Caps inside a queue; a queue that is not named has none."""
    total: Caps = Caps()
    """Caps over all queues together."""
    max_passed: int = 20
    """More uses the cluster better and keeps large jobs waiting longer. 0: by request alone."""
    preempts: bool = True


@dataclass(frozen=True)
class Turn:
    """What follows from one look at the queue."""

    starts: list[str]
    """In this order."""
    preempts: dict[str, str]
    """Job that is to leave -> job for which it makes room."""
    why: dict[str, str]
    """Each waiting job that does not start -> one sentence for a person."""
    passed: list[str]
    """Jobs whose `num_passed` grows by one, as often as they are named."""


def next_turn(
    waiting: Sequence[Waiting], running: Sequence[Running], nodes: Sequence[Node], policy: Policy
) -> Turn:
    """Decide what starts and what is preempted now, and say why the rest waits.

    Args:
        waiting: in any order.
        running: everything that holds resources, what is leaving included.
        nodes: the living ones only.
        policy: of the whole cluster.
    """
    draft = _Draft(running, nodes, policy)
    for job in _in_order(waiting, draft.usage, policy.max_passed):
        draft.consider(job)
    return draft.turn()


def never_fits(ask: Ask, nodes: Sequence[Node]) -> str | None:
    """Why these nodes could not hold it if they were empty; None: they could, or there are none."""
    if not nodes or _empty(nodes).driver_node(ask) is not None:
        return None
    return f"this cluster can never hold it: {_shortage(ask, nodes)}"


# The order.


def _in_order(waiting: Iterable[Waiting], usage: "_Usage", max_passed: int) -> Iterator[Waiting]:
    """The jobs as they are tried; `usage` is read anew after each, as starts change it."""
    ranked = sorted(waiting, key=lambda job: (-job.priority, job.order))
    for _, group in groupby(ranked, key=lambda job: job.priority):
        queues: defaultdict[str, deque[Waiting]] = defaultdict(deque)
        for job in group:
            if job.num_passed >= max_passed:
                yield job
            else:
                queues[job.user].append(job)
        yield from _by_share(queues, usage)


def _by_share(queues: Mapping[str, deque[Waiting]], usage: "_Usage") -> Iterator[Waiting]:
    """One job at a time, of the user with the fewest CPUs; of equals the older request."""
    heap = [(usage.cpus_of(user), jobs[0].order, user) for user, jobs in queues.items()]
    heapq.heapify(heap)
    while heap:
        user = heapq.heappop(heap)[2]
        yield queues[user].popleft()
        if queues[user]:
            heapq.heappush(heap, (usage.cpus_of(user), queues[user][0].order, user))


# Caps.


@dataclass
class _Held:
    jobs: int = 0
    cpus: int = 0
    gpus: int = 0


class _Usage:
    """What runs, by queue and user; None stands for all queues or all users."""

    def __init__(self, running: Iterable[Running]) -> None:
        self.held: defaultdict[tuple[str | None, str | None], _Held] = defaultdict(_Held)
        for job in running:
            self.add(job)

    def add(self, job: Waiting | Running) -> None:
        gpus, cpus = job.ask.total_size
        for queue in (job.queue, None):
            for user in (job.user, None):
                held = self.held[queue, user]
                held.jobs += 1
                held.cpus += cpus
                held.gpus += gpus

    def cpus_of(self, user: str) -> int:
        return self.held[None, user].cpus

    def cap_on(self, job: Waiting, policy: Policy) -> str:
        """The cap that holds a job, in words; empty: none does."""
        caps = policy.queues.get(job.queue)
        return (caps and self._cap(job, job.queue, caps)) or self._cap(job, None, policy.total)

    def _cap(self, job: Waiting, queue: str | None, caps: Caps) -> str:
        where = "in all queues" if queue is None else f"in queue {queue}"
        own, (gpus, cpus) = self.held[queue, job.user], job.ask.total_size
        if caps.running is not None and self.held[queue, None].jobs >= caps.running:
            return f"held by the cap of {_count(caps.running, 'running job')} {where}"
        if caps.running_per_user is not None and own.jobs >= caps.running_per_user:
            cap = _count(caps.running_per_user, "running job")
            return f"held by the cap of {cap} for user {job.user} {where}"
        return _over(caps.cpus_per_user, "CPU", own.cpus, cpus, f"user {job.user} {where}") or (
            _over(caps.gpus_per_user, "GPU", own.gpus, gpus, f"user {job.user} {where}")
        )


def _over(cap: float | None, unit: str, used: int, needed: int, whose: str) -> str:
    if cap is None or needed == 0 or used + needed <= _units(cap):
        return ""
    return (
        f"held by the cap of {_count(cap, unit)} for {whose}: "
        f"{used / _UNITS:g} in use, it needs {needed / _UNITS:g}"
    )


# Room.

_UNITS = 10_000
"""Ray counts resources in ten-thousandths; whole numbers of them add up exactly."""
_ENDLESS = sys.maxsize


def _units(amount: float) -> int:
    return round(amount * _UNITS)


class _Room:
    """What is free on each node, the fullest first; which node it is does not matter.

    GPUs come before CPUs, so that what needs no GPU leaves nodes with GPUs to what does.
    """

    def __init__(self, free: Iterable[_Size]) -> None:
        self.free = sorted(free)
        self.gpus, self.cpus = (sum(column) for column in zip((0, 0), *self.free, strict=True))

    def place(self, ask: Ask) -> bool:
        """Take the room of a job, if there is room for all of it."""
        node = self.driver_node(ask)
        if node is None:
            return False
        self._take(node, *ask.driver_size)
        missing = self.fill(ask.worker_size, ask.workers)
        assert missing == 0, f"{ask} found room for its driver, not for {missing} workers"
        return True

    def driver_node(self, ask: Ask) -> int | None:
        """The fullest node on which the driver leaves room for all workers; None: none does.

        As workers are alike, a gang fits exactly if the nodes hold enough of them beside the
        driver: no search is needed.
        """
        if ask.total_size[0] > self.gpus or ask.total_size[1] > self.cpus:
            return None
        held = [_num_held(free, ask.worker_size) for free in self.free]
        num_spare, driver_cpus = sum(held) - ask.workers, ask.driver_size[1]
        if num_spare < 0:
            return None
        for i, (gpus, cpus) in enumerate(self.free):
            left = gpus, cpus - driver_cpus
            if left[1] >= 0 and held[i] - _num_held(left, ask.worker_size) <= num_spare:
                return i
        return None

    def fill(self, size: _Size, num: int) -> int:
        """Take up to `num` pieces of room; returns how many found none."""
        # A node that gives room moves forward, to where it was looked at already.
        for i in range(bisect_left(self.free, size), len(self.free)):
            if taken := min(num, _num_held(self.free[i], size)):
                self._take(i, taken * size[0], taken * size[1])
                num -= taken
            if num == 0:
                break
        return num

    def drain(self, gpus: int, cpus: int) -> None:
        """Take so much wherever it is free, as far as there is so much."""
        for i, free in enumerate(self.free):
            taken = min(gpus, free[0]), min(cpus, free[1])
            self._take(i, *taken)
            gpus, cpus = gpus - taken[0], cpus - taken[1]

    def _take(self, node: int, gpus: int, cpus: int) -> None:
        free = self.free.pop(node)
        insort(self.free, (free[0] - gpus, free[1] - cpus))
        self.gpus, self.cpus = self.gpus - gpus, self.cpus - cpus


def _num_held(free: _Size, size: _Size) -> int:
    """How many pieces of a size find room in so much."""
    by_gpus = free[0] // size[0] if size[0] else _ENDLESS
    by_cpus = free[1] // size[1] if size[1] else _ENDLESS
    return by_gpus if by_gpus < by_cpus else by_cpus


def _empty(nodes: Iterable[Node]) -> _Room:
    return _Room((_units(node.gpus), _units(node.cpus)) for node in nodes)


def _packed(empty: _Room, asks: Iterable[Ask]) -> _Room:
    """The room beside these jobs, whose places are not known: a forecast.

    Pieces of a size are alike, whosever they are, and are placed together. What the packing cannot
    place does run somewhere, so that it is taken off the sum.
    """
    room, gpus, cpus = _Room(empty.free), 0, 0
    pieces: Counter[_Size] = Counter()
    for ask in asks:
        pieces[ask.worker_size] += ask.workers
        pieces[ask.driver_size] += 1
    for size in sorted(pieces, reverse=True):
        missing = room.fill(size, pieces[size])
        gpus, cpus = gpus + missing * size[0], cpus + missing * size[1]
    if gpus or cpus:
        room.drain(gpus, cpus)
    return room


# The turn.


class _Draft:
    """A turn while it is made: jobs are considered one by one, in order."""

    def __init__(self, running: Sequence[Running], nodes: Sequence[Node], policy: Policy) -> None:
        self.running = sorted(running, key=lambda job: job.order)
        self.nodes, self.policy = nodes, policy
        self.usage = _Usage(running)
        self.empty = _empty(nodes)
        self.now = _packed(self.empty, (job.ask for job in running))
        self.rooms = [self.now]
        """A job starts that fits into each: what is free now, and what is left beside the head."""
        self.full: set[Ask] = set()
        self.never: dict[Ask, str] = {}
        self.started: list[Waiting] = []
        self.short: list[Waiting] = []
        """Wait for room; the first is the head."""
        self.num_behind_head = 0
        self.wall: Waiting | None = None
        self.head_words = ""
        self.preempts: dict[str, str] = {}
        self.why: dict[str, str] = {}

    def consider(self, job: Waiting) -> None:
        reason = job.blocked or self._never(job.ask) or self.usage.cap_on(job, self.policy)
        if reason:
            self.why[job.id] = reason
            return
        if self._has_room(job.ask):
            self._start(job)
        else:
            self._hold(job)

    def turn(self) -> Turn:
        room_words: dict[Ask, str] = {}
        for job in self.short:
            if job.ask not in room_words:
                room_words[job.ask] = _lack(job.ask, self.now, self.empty, self.short[0])
            self.why.setdefault(job.id, room_words[job.ask])
        if self.head_words:
            self.why[self.short[0].id] += f"; {self.head_words}"
        starts = [job.id for job in self.started]
        return Turn(starts, self.preempts, self.why, self._passed())

    def _never(self, ask: Ask) -> str:
        if ask not in self.never:
            can = self.empty.driver_node(ask) is not None
            self.never[ask] = "" if can else never_fits(ask, self.nodes) or ""
        return self.never[ask]

    def _has_room(self, ask: Ask) -> bool:
        if self.wall or ask in self.full:
            return False
        if all(room.driver_node(ask) is not None for room in self.rooms):
            return True
        self.full.add(ask)  # for the rest of the turn, in which room only shrinks
        return False

    def _start(self, job: Waiting) -> None:
        for room in self.rooms:
            room.place(job.ask)
        self.usage.add(job)
        self.started.append(job)
        if self.short:
            self.num_behind_head += 1
            self._raise_wall(self.short[0], self.num_behind_head)

    def _hold(self, job: Waiting) -> None:
        self.short.append(job)
        if self.wall:
            most = _count(self.policy.max_passed, "job")
            self.why[job.id] = f"waits behind job {self.wall.id}, which {most} may pass at most"
            return
        if len(self.short) == 1:
            self._keep_room(job)
        self._raise_wall(job, 0)

    def _raise_wall(self, job: Waiting, num_more: int) -> None:
        if self.wall is None and job.num_passed + num_more >= self.policy.max_passed:
            self.wall = job

    def _passed(self) -> list[str]:
        passed = [job.id for job in self.short[:1]] * self.num_behind_head
        oldest = {job.priority: job for job in sorted(self.short, key=lambda job: -job.order)}
        for priority, job in oldest.items():
            later = any(s.priority <= priority and s.order > job.order for s in self.started)
            if later and job.id not in passed:
                passed.append(job.id)
        return passed

    def _keep_room(self, head: Waiting) -> None:
        """See to it that the head finds room once all that leaves is gone, if that can be."""
        leaving, victims = [job for job in self.running if job.is_leaving], []
        later = self._without(leaving)
        if self.policy.preempts and later.driver_node(head.ask) is None:
            victims = self._victims(head, leaving, (later.gpus, later.cpus))
            later = self._without([*leaving, *victims])
        if later.place(head.ask):
            self.rooms.append(later)
            self.preempts = {job.id: head.id for job in victims}
            if victims:
                self.head_words = f"makes room: {_names(victims)} being preempted"
            elif leaving:
                self.head_words = f"{_names(leaving)} on the way out"

    def _victims(self, head: Waiting, leaving: list[Running], free: _Size) -> list[Running]:
        lower = [j for j in self.running if j.priority < head.priority and not j.is_leaving]
        lower.sort(key=lambda job: (job.priority, -job.order))

        def suffice(gone: Sequence[Running]) -> bool:
            return self._without([*leaving, *gone]).driver_node(head.ask) is not None

        if not suffice(lower):
            return []
        num = 1 + bisect_left(range(1, len(lower)), True, key=lambda num: suffice(lower[:num]))
        gpus, cpus = map(sum, zip(free, _total(lower[:num]), strict=True))
        surplus = gpus - head.ask.total_size[0], cpus - head.ask.total_size[1]
        return _needed(lower[:num], surplus, suffice)

    def _without(self, gone: Iterable[Running]) -> _Room:
        """The room when some running jobs are gone and those of this turn run."""
        ids = {job.id for job in gone}
        stay = [job.ask for job in self.running if job.id not in ids]
        return _packed(self.empty, [*stay, *(job.ask for job in self.started)])


_MAX_TRIES = 100
"""Bounds a turn that preempts. Each try packs all running jobs anew: up to 10 ms when each of 500
asks for something else."""


def _needed(
    victims: list[Running], surplus: _Size, suffice: Callable[[Sequence[Running]], bool]
) -> list[Running]:
    """The victims without those that can stay; the last ones are the first that may.

    Args:
        victims: they suffice.
        surplus: what they have, and is free, beyond what is asked for.
        suffice: whether so many would do.
    """
    # A block that cannot go as a whole is halved; the last half is tried first.
    num_tries, blocks = 0, [victims]
    while blocks and num_tries < _MAX_TRIES:
        block = blocks.pop()
        gpus, cpus = _total(block)
        if gpus <= surplus[0] and cpus <= surplus[1]:
            num_tries += 1
            ids = {job.id for job in block}
            others = [job for job in victims if job.id not in ids]
            if suffice(others):
                victims, surplus = others, (surplus[0] - gpus, surplus[1] - cpus)
                continue
        if len(block) > 1:
            blocks += [block[: len(block) // 2], block[len(block) // 2 :]]
    return victims


def _total(jobs: Iterable[Running]) -> _Size:
    sizes = [job.ask.total_size for job in jobs]
    return sum(gpus for gpus, _ in sizes), sum(cpus for _, cpus in sizes)


# Words.


def _lack(ask: Ask, now: _Room, empty: _Room, head: Waiting) -> str:
    """Why a job does not start for want of room, by what the turn leaves free."""
    needs = _amount(ask.cpus, ask.gpus)
    if not empty.free:
        return f"waits for {needs}: the cluster has no living node"
    free = f"{now.cpus / _UNITS:g} of {empty.cpus / _UNITS:g}"
    if ask.gpus:
        free += f" CPUs and {now.gpus / _UNITS:g} of {empty.gpus / _UNITS:g} GPUs"
    free += " is free" if now.cpus == _UNITS and not ask.gpus else " are free"
    if now.driver_node(ask) is not None:
        return f"waits for {needs}: {free}, but kept for job {head.id}"
    if ask.total_size[0] > now.gpus or ask.total_size[1] > now.cpus:
        return f"waits for {needs}: {free}"
    return f"waits for {_pieces(ask)}, each on one node: {free}, in smaller pieces"


def _shortage(ask: Ask, nodes: Sequence[Node]) -> str:
    """What an empty cluster lacks for a job that it does not hold."""
    most_cpus, most_gpus = max(n.cpus for n in nodes), max(n.gpus for n in nodes)
    cpus, gpus = sum(n.cpus for n in nodes), sum(n.gpus for n in nodes)
    has = _amount(cpus, gpus if ask.gpus else 0)
    for needed, unit, which, most in (
        (ask.cpus_per_worker, "CPU", " per worker", most_cpus),
        (ask.gpus_per_worker, "GPU", " per worker", most_gpus),
        (ask.driver_cpus, "CPU", " for its driver", most_cpus),
    ):
        if _units(needed) > _units(most):
            return f"needs {_count(needed, unit)}{which}, its largest node has {most:g}"
    if _units(ask.cpus) > _units(cpus) or _units(ask.gpus) > _units(gpus):
        return f"needs {_amount(ask.cpus, ask.gpus)}, it has {has}"
    num_workers = sum(_num_held(free, ask.worker_size) for free in _empty(nodes).free)
    return (
        f"needs {_pieces(ask)}, each on one node; "
        f"its {_count(len(nodes), 'node')} with {has} "
        f"hold {_count(num_workers, 'such worker')}{' without a driver' * bool(ask.driver_cpus)}"
    )


def _pieces(ask: Ask) -> str:
    worker = _amount(ask.cpus_per_worker, ask.gpus_per_worker)
    workers = f"{_count(ask.workers, 'worker')} of {worker}"
    if not ask.driver_cpus:
        return workers
    return f"a driver of {_count(ask.driver_cpus, 'CPU')} and {workers}"


def _amount(cpus: float, gpus: float) -> str:
    return _count(cpus, "CPU") + (f" and {_count(gpus, 'GPU')}" if gpus else "")


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def _names(jobs: Sequence[Running]) -> str:
    """Subject and verb; a long list is cut, as it is read on one line."""
    if len(jobs) == 1:
        return f"job {jobs[0].id} is"
    shown, num_more = [job.id for job in jobs[:3]], len(jobs) - 3
    last = f"{num_more} more" if num_more > 0 else shown.pop()
    return f"jobs {', '.join(shown)} and {last} are"
