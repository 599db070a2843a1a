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
Passing. The first job that finds no room is the head; those behind it may start. A job that waits
    for room is passed by each job of the same or a lower priority that starts though it comes
    later, in the order of the turn or by request. Counted are the passes of the head and, in each
    priority, of the oldest request that waits for room; so nobody is overlooked for ever, whatever
    fair shares do. Once a job that waits for room was passed `max_passed` times, nothing behind it
    starts until it has.
Preemption. Only for the head, only of strictly lower priorities, only if the head then fits: the
    lowest priority first, the latest request first, none that is not needed. What leaves already
    is counted before anything else is preempted.
Keeping. If the head fits when all that leaves is gone, its place there is taken: in this turn a job
    behind it starts only if it fits now and also beside the head then.
"""

import heapq
import sys
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

_Size = tuple[int, int]
"""CPUs and GPUs, in ten-thousandths."""


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
        return _units(self.cpus_per_worker), _units(self.gpus_per_worker)

    @cached_property
    def driver_size(self) -> _Size:
        return _units(self.driver_cpus), 0

    @cached_property
    def total_size(self) -> _Size:
        (cpus, gpus), (driver_cpus, _) = self.worker_size, self.driver_size
        return self.workers * cpus + driver_cpus, self.workers * gpus


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
    """Jobs that were let past it so far."""


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
    if not nodes or _Room(nodes).driver_node(ask) is not None:
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
        cpus, gpus = job.ask.total_size
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
        own, (cpus, gpus) = self.held[queue, job.user], job.ask.total_size
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


def _num_held(cpus: int, gpus: int, size: _Size) -> int:
    """How many pieces of a size find room in so much."""
    by_cpus = cpus // size[0] if size[0] else _ENDLESS
    by_gpus = gpus // size[1] if size[1] else _ENDLESS
    return min(by_cpus, by_gpus)


class _Room:
    """What is free on each node, in ten-thousandths of a CPU and of a GPU."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.cpus = [_units(node.cpus) for node in nodes]
        self.gpus = [_units(node.gpus) for node in nodes]
        self.total_cpus, self.total_gpus = sum(self.cpus), sum(self.gpus)

    def fullest_first(self) -> list[int]:
        """GPUs before CPUs, so that what needs no GPU leaves nodes with GPUs to what does."""
        return sorted(range(len(self.cpus)), key=lambda i: (self.gpus[i], self.cpus[i]))

    def take(self, node: int, cpus: int, gpus: int) -> None:
        self.cpus[node] -= cpus
        self.gpus[node] -= gpus
        self.total_cpus -= cpus
        self.total_gpus -= gpus

    def driver_node(self, ask: Ask) -> int | None:
        """The fullest node on which the driver leaves room for all workers; None: none does.

        As workers are alike, whether a gang fits is exactly whether the sum of what each node holds
        is large enough; no search is needed.
        """
        driver, worker = ask.driver_size[0], ask.worker_size
        if ask.total_size[0] > self.total_cpus or ask.total_size[1] > self.total_gpus:
            return None
        held = list(map(_num_held, self.cpus, self.gpus, [worker] * len(self.cpus)))
        spare = sum(held) - ask.workers
        if spare < 0:
            return None
        for i in self.fullest_first():
            left = self.cpus[i] - driver
            if left >= 0 and held[i] - _num_held(left, self.gpus[i], worker) <= spare:
                return i
        return None

    def place(self, ask: Ask) -> bool:
        """Take the room of a job, if there is room for all of it."""
        node = self.driver_node(ask)
        if node is None:
            return False
        self.take(node, *ask.driver_size)
        missing = self.fill(ask.worker_size, ask.workers)
        assert missing == 0, f"{ask} found room for its driver, not for {missing} workers"
        return True

    def fill(self, size: _Size, num: int) -> int:
        """Take up to `num` pieces of room; returns how many found none."""
        for i in self.fullest_first():
            taken = min(num, _num_held(self.cpus[i], self.gpus[i], size))
            self.take(i, taken * size[0], taken * size[1])
            num -= taken
            if num == 0:
                break
        return num

    def drain(self, cpus: int, gpus: int) -> None:
        """Take so much wherever it is free."""
        for i in self.fullest_first():
            taken = min(cpus, self.cpus[i]), min(gpus, self.gpus[i])
            self.take(i, *taken)
            cpus, gpus = cpus - taken[0], gpus - taken[1]


def _packed(nodes: Sequence[Node], asks: Iterable[Ask]) -> _Room:
    """The room beside these jobs, whose places are not known: a forecast.

    Pieces of a size are alike, whosever they are, and are placed together. What the packing cannot
    place does run somewhere, so that it is taken off the sum.
    """
    pieces: Counter[_Size] = Counter()
    for ask in asks:
        pieces[ask.worker_size] += ask.workers
        pieces[ask.driver_size] += 1
    room = _Room(nodes)
    cpus = gpus = 0
    for size in sorted(pieces, key=lambda size: (size[1], size[0]), reverse=True):
        missing = room.fill(size, pieces[size])
        cpus, gpus = cpus + missing * size[0], gpus + missing * size[1]
    if cpus or gpus:
        room.drain(cpus, gpus)
    return room


# The turn.


class _Draft:
    """A turn while it is made: jobs are considered one by one, in order."""

    def __init__(self, running: Sequence[Running], nodes: Sequence[Node], policy: Policy) -> None:
        self.running, self.nodes, self.policy = running, nodes, policy
        self.usage = _Usage(running)
        self.now = _packed(nodes, (job.ask for job in running))
        self.rooms = [self.now]
        """A job starts that fits into each: what is free now, and what is left beside the head."""
        self.full: set[Ask] = set()
        self.never: dict[Ask, str] = {}
        self.started: list[Waiting] = []
        self.short: list[Waiting] = []
        """Wait for room; the first is the head."""
        self.seats: dict[str, int] = {}
        self.num_passed_head = 0
        self.wall: Waiting | None = None
        self.making: str = ""
        self.preempts: dict[str, str] = {}
        self.why: dict[str, str] = {}

    def consider(self, job: Waiting) -> None:
        reason = job.blocked or self._never(job.ask) or self.usage.cap_on(job, self.policy)
        if reason:
            self.why[job.id] = reason
            return
        self.seats[job.id] = len(self.seats)
        if self._has_room(job.ask):
            self._start(job)
        else:
            self._hold(job)

    def turn(self) -> Turn:
        room_words: dict[Ask, str] = {}
        for job in self.short:
            if job.ask not in room_words:
                room_words[job.ask] = self._lack(job.ask)
            self.why.setdefault(job.id, room_words[job.ask])
        if self.making:
            self.why[self.short[0].id] += f"; {self.making}"
        starts = [job.id for job in self.started]
        return Turn(starts, self.preempts, self.why, self._passed())

    def _never(self, ask: Ask) -> str:
        if ask not in self.never:
            self.never[ask] = never_fits(ask, self.nodes) or ""
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
            self.num_passed_head += 1
            self._raise_wall(self.short[0], self.num_passed_head)

    def _hold(self, job: Waiting) -> None:
        self.short.append(job)
        if self.wall:
            self.why[job.id] = (
                f"waits behind job {self.wall.id}, "
                f"which may be passed by {_count(self.policy.max_passed, 'job')} at most"
            )
        elif len(self.short) == 1:
            self.num_passed_head = sum(self._passes(other, job) for other in self.started)
            self._keep_room(job)
            self._raise_wall(job, self.num_passed_head)
        else:
            self._raise_wall(job, 0)

    def _raise_wall(self, job: Waiting, num_more: int) -> None:
        if self.wall is None and job.num_passed + num_more >= self.policy.max_passed:
            self.wall = job

    def _passes(self, other: Waiting, job: Waiting) -> bool:
        """Whether `other`, which starts, passes `job`, which waits for room."""
        is_later = other.order > job.order or self.seats[other.id] > self.seats[job.id]
        return other.priority <= job.priority and is_later

    def _passed(self) -> list[str]:
        oldest: dict[int, Waiting] = {}
        for job in sorted(self.short, key=lambda job: job.order):
            oldest.setdefault(job.priority, job)
        counted = {job.id: job for job in [*self.short[:1], *oldest.values()]}
        return [
            job.id for other in self.started for job in counted.values() if self._passes(other, job)
        ]

    def _keep_room(self, head: Waiting) -> None:
        """See to it that the head finds room once all that leaves is gone, if that can be."""
        leaving = [job for job in self.running if job.is_leaving]
        later = self._without(leaving)
        if later.place(head.ask):
            self.rooms.append(later)
            self.making = f"{_names(leaving)} on the way out" if leaving else ""
        elif self.policy.preempts and (victims := self._victims(head, leaving)):
            later = self._without([*leaving, *victims])
            later.place(head.ask)
            self.rooms.append(later)
            self.preempts = {job.id: head.id for job in victims}
            self.making = f"makes room: {_names(victims)} being preempted"

    def _victims(self, head: Waiting, leaving: list[Running]) -> list[Running]:
        lower = [j for j in self.running if j.priority < head.priority and not j.is_leaving]
        lower.sort(key=lambda job: (job.priority, -job.order))

        def suffice(gone: list[Running]) -> bool:
            return self._without([*leaving, *gone]).driver_node(head.ask) is not None

        if not suffice(lower):
            return []
        num = 1 + bisect_left(range(1, len(lower)), True, key=lambda num: suffice(lower[:num]))
        victims = lower[:num]
        for job in reversed(lower[:num]):
            others = [other for other in victims if other is not job]
            if suffice(others):
                victims = others
        return victims

    def _without(self, gone: Iterable[Running]) -> _Room:
        """The room when some running jobs are gone and those of this turn run."""
        ids = {job.id for job in gone}
        stay = [job.ask for job in self.running if job.id not in ids]
        return _packed(self.nodes, [*stay, *(job.ask for job in self.started)])

    # Words.

    def _lack(self, ask: Ask) -> str:
        """Why a job does not start for want of room, by what the turn leaves free."""
        needs = _amount(ask.cpus, ask.gpus)
        if not self.nodes:
            return f"waits for {needs}: the cluster has no living node"
        free, is_enough = self._free(ask)
        if self.now.driver_node(ask) is not None:
            return f"waits for {needs}: {free} free, but kept for job {self.short[0].id}"
        if not is_enough:
            return f"waits for {needs}: {free} free"
        return f"waits for {_pieces(ask)}, each on one node: {free} free, in smaller pieces"

    def _free(self, ask: Ask) -> tuple[str, bool]:
        cpus, gpus = self.now.total_cpus, self.now.total_gpus
        is_enough = ask.total_size[0] <= cpus and ask.total_size[1] <= gpus
        of_cpus = f"{cpus / _UNITS:g} of {sum(node.cpus for node in self.nodes):g}"
        if not ask.gpus:
            return f"{of_cpus} {'is' if cpus == _UNITS else 'are'}", is_enough
        of_gpus = f"{gpus / _UNITS:g} of {sum(node.gpus for node in self.nodes):g}"
        return f"{of_cpus} CPUs and {of_gpus} GPUs are", is_enough


def _shortage(ask: Ask, nodes: Sequence[Node]) -> str:
    """What an empty cluster lacks for a job that it does not hold."""
    most_cpus, most_gpus = max(n.cpus for n in nodes), max(n.gpus for n in nodes)
    cpus, gpus = sum(n.cpus for n in nodes), sum(n.gpus for n in nodes)
    for needed, unit, which, most in (
        (ask.cpus_per_worker, "CPU", " per worker", most_cpus),
        (ask.gpus_per_worker, "GPU", " per worker", most_gpus),
        (ask.driver_cpus, "CPU", " for its driver", most_cpus),
    ):
        if _units(needed) > _units(most):
            return f"needs {_count(needed, unit)}{which}, its largest node has {most:g}"
    if _units(ask.cpus) > _units(cpus) or _units(ask.gpus) > _units(gpus):
        return f"needs {_amount(ask.cpus, ask.gpus)}, it has {_amount(cpus, gpus)}"
    room = _Room(nodes)
    num_workers = sum(map(_num_held, room.cpus, room.gpus, [ask.worker_size] * len(nodes)))
    return (
        f"needs {_pieces(ask)}, each on one node; "
        f"its {_count(len(nodes), 'node')} with {_amount(cpus, gpus)} "
        f"hold {_count(num_workers, 'such worker')} without a driver"
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
