"""Several trainings at once on one GPU, where that is faster: the updates of a small model leave most of it idle.

Each has its own model, memory, CUDA stream, graph and random state, and they take turns in one process: while the
numbers of one are waited for, the updates of the others are queued. Nothing of one depends on another, so each has the
bits that it has alone. Whether they go on together is measured on their own first updates (``harness.execution``).
"""

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from time import perf_counter

import torch

from harness.execution import Execution, Mode, choose, read_execution
from harness.runtime import CleanInterrupt, Interrupt, OwnRandom, deferred_interrupt
from harness.step import UNCAPTURED, exact_float32
from harness.train import configure
from harness.training_job import TrainJob, TrainOutcome
from harness.training_loop import Loop

MOST = 4
"""Trainings at once. Three 8M hybrids fill an H200 so far that a fourth adds 2 %."""

_MEASURED = 2
"""Turns that are timed; the faster one counts, for whatever else happens only takes time."""

_ROUNDS = 10
"""Rounds in which to find these: one in which a member evaluates or looks inside does not count."""

_HEADROOM = 1.25
"""Free memory over what the next training is expected to take, to let it in beside others."""

_ONLY_ONE = "there is no other training to run beside it"

Ended = Callable[[int, TrainOutcome], None]
"""Told the index of a training and how it ended, as soon as it has."""


def train_together(jobs: Sequence[Callable[[], TrainJob]], ended: Ended) -> None:
    """Train all of ``jobs`` on the GPU, up to ``MOST`` at a time where that is faster, else one after another.

    A job is made when its training is about to begin. Of each training comes what ``harness.train.train`` makes of it,
    bit for bit, and ``execution.json`` besides. Ctrl-C ends the current turn of each, saves all and raises
    KeyboardInterrupt. When one raises, the others are saved first; one that diverges ends, and the others go on.

    Raises what ``train`` raises.
    """
    with exact_float32(), deferred_interrupt() as interrupt:
        waiting = deque(enumerate(jobs))
        while waiting:
            with ExitStack() as stack:
                team = Team(interrupt, ended)
                stack.callback(torch.cuda.empty_cache)  # memory is kept by stream, and the next ones have others
                stack.enter_context(team.saved_together())
                team.gather(waiting)
                team.run()


class Member:
    """A training that takes its turns beside others, on a stream and with random numbers of its own."""

    def __init__(self, index: int, job: TrainJob, interrupt: Interrupt) -> None:
        configure(job)
        self.index, self.job = index, job
        self.random = OwnRandom(job.seed, "train")
        self.stream = torch.cuda.Stream() if job.device == "cuda" else None  # type: ignore[no-untyped-call]
        self.outcome: TrainOutcome | None = None
        self.alone_ms: float | None = None
        with self._in_place():
            self.loop = Loop(job, interrupt)
        self.turns = self.loop.turns()

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        with self.random.in_place(), torch.cuda.stream(self.stream):
            yield

    @property
    def is_open(self) -> bool:
        """Whether it has turns left: it has not ended, and nothing was raised in it."""
        return inspect.getgeneratorstate(self.turns) != inspect.GEN_CLOSED

    def turn(self) -> int:
        """Take a turn: the updates that it was, if it was nothing else, still to be waited for; otherwise 0."""
        with self._in_place():
            try:
                return next(self.turns)
            except StopIteration as end:
                self.outcome = end.value
                return 0

    @property
    def is_done(self) -> bool:
        """Whether the device has done all of its turn."""
        return self.stream is None or self.stream.query()

    def wait(self) -> None:
        """Wait until the device has done all of its turn."""
        if self.stream is not None:
            self.stream.synchronize()

    def close(self) -> None:
        """Give back its memory; a training that has not ended can be resumed from its last checkpoint."""
        self.wait()
        self.turns.close()


@dataclass(frozen=True)
class _Room:
    """What a training took: bytes of memory, for parameters times tokens of an update."""

    taken: int
    size: int


class Team:
    """Trainings that are tried side by side and run to their ends, together or one after another."""

    def __init__(self, interrupt: Interrupt, ended: Ended) -> None:
        self.interrupt, self.ended = interrupt, ended
        self.members: list[Member] = []
        self.rooms: list[_Room] = []

    @contextmanager
    def saved_together(self) -> Iterator[None]:
        """Whatever is raised inside, every training is first brought to a point where it is saved; then all are closed.

        Not so at a second Ctrl-C, which does not wait.
        """
        try:
            yield
        except (Exception, CleanInterrupt):
            self.interrupt.requested = True
            for member in self.members:
                # that is how it says that it has saved
                with suppress(CleanInterrupt):
                    while member.is_open:
                        member.turn()
            raise
        finally:
            for member in self.members:
                member.close()

    def gather(self, waiting: deque[tuple[int, Callable[[], TrainJob]]]) -> None:
        """Take trainings in, each through its first updates with the GPU to itself, as many as there is room for.

        One that cannot share the GPU is run to its end at once.
        """
        why_alone = _ONLY_ONE
        while waiting and len(self.members) < MOST:
            self.interrupt.check()
            index, make = waiting[0]
            job = make()
            if self.members and not self._has_room(job):
                why_alone = "there is no memory for another training beside it"
                break
            waiting.popleft()
            member = self._begin(index, job)
            against = _against_sharing(member)
            if against is not None:
                self._go_on_alone(member, against)
        if len(self.members) == 1:
            self._go_on_alone(self.members[0], why_alone)

    def run(self) -> None:
        """Measure the trainings at once, choose, and run all to their ends."""
        if not self.members:
            return
        alone_ms = [member.alone_ms for member in self.members if member.alone_ms is not None]
        together_ms = self._measure_together()
        mode, reason = choose(alone_ms, together_ms)
        if mode == "together":
            for member in self.members:
                self._record(member, mode, reason, len(alone_ms), together_ms)
            self.take_turns()
        for member in list(self.members):
            self._go_on_alone(member, reason, together_ms)

    def take_turns(self) -> None:
        """Run all to their ends together. Next is who has waited longest of those whose turn is done."""
        queue = deque(self.members)
        while queue:
            member = next((each for each in queue if each.is_done), queue[0])
            queue.remove(member)
            if member.outcome is None:
                member.turn()
            if member.outcome is None:
                queue.append(member)
            else:
                self._leave(member)

    def _begin(self, index: int, job: TrainJob) -> Member:
        """A new member after its first updates, timed while all others wait."""
        before = torch.cuda.memory_reserved()
        torch.cuda.reset_peak_memory_stats()
        member = Member(index, job, self.interrupt)
        self.members.append(member)
        done = 0  # the first updates compile, the one after them captures
        while member.outcome is None and done <= UNCAPTURED:
            done += member.turn()
        times: list[float] = []
        for _ in range(_ROUNDS):
            if member.outcome is not None or len(times) == _MEASURED:
                break
            times += _timed([member])
        member.alone_ms = min(times, default=None)
        self.rooms.append(_Room(torch.cuda.max_memory_reserved() - before, _size(job)))
        return member

    def _has_room(self, job: TrainJob) -> bool:
        """Whether the GPU has memory left for another training, by what the largest so far took."""
        largest = max(self.rooms, key=lambda room: room.taken)
        expected = largest.taken * max(1.0, _size(job) / largest.size)
        free, total = torch.cuda.mem_get_info()
        # a process that trains ahead may have less than what is free
        allowed = torch.cuda.get_per_process_memory_fraction() * total - torch.cuda.memory_reserved()
        return min(free, allowed) >= _HEADROOM * expected

    def _measure_together(self) -> float | None:
        """Milliseconds of an update while all members take turns; None when one ends before that is known."""
        times: list[float] = []
        for _ in range(_ROUNDS):
            times += _timed(self.members)
            if len(times) == _MEASURED or any(member.outcome is not None for member in self.members):
                break
        return min(times) if len(times) == _MEASURED else None

    def _go_on_alone(self, member: Member, reason: str, together_ms: float | None = None) -> None:
        self._record(member, "alone", reason, 1, together_ms)
        while member.outcome is None:
            member.turn()
        self._leave(member)

    def _record(self, member: Member, mode: Mode, reason: str, at_once: int, together_ms: float | None) -> None:
        if member.alone_ms is None and read_execution(member.job.directory) is not None:
            return  # what was left of it was too short to measure: an earlier process has done so
        gpu = torch.cuda.get_device_name()
        Execution(mode, reason, at_once, member.alone_ms, together_ms, gpu).write(member.job.directory)

    def _leave(self, member: Member) -> None:
        """Tell of a training that has ended, and let go of its model."""
        assert member.outcome is not None, "it has ended"
        self.members.remove(member)
        member.close()
        self.ended(member.index, member.outcome)


def _timed(members: Sequence[Member]) -> list[float]:
    """Milliseconds of an update in one turn of each, from an idle GPU to an idle GPU; none if one did other things."""
    for member in members:
        member.wait()
    began = perf_counter()
    updates = [member.turn() for member in members]
    for member in members:
        member.wait()
    return [(perf_counter() - began) * 1e3 / sum(updates)] if all(updates) else []


def _against_sharing(member: Member) -> str | None:
    """Why a training cannot share the GPU, seen after its first updates; None when it can."""
    if member.outcome is not None or member.alone_ms is None:
        return "it was too short to measure it"
    choice = member.loop.choice
    if choice.mode != "graphed":
        return f"its updates are eager, bound by the one processor core that all would share: {choice.reason}"
    if not torch.equal(member.random.states["random.cuda"], OwnRandom(member.job.seed, "train").states["random.cuda"]):
        # graphs read where the generator stands from one place of the process, whichever stream they run on
        return "its updates draw random numbers on the GPU"
    return None


def _size(job: TrainJob) -> int:
    """Parameters times tokens of an update: memory grows no faster."""
    batch_tokens: int = getattr(job.config.train.batch_tokens, job.device)
    return sum(p.numel() for p in job.model.parameters()) * batch_tokens
