"""Kill the process of a run after each of its commits in turn, and compare how the run continues (D1 to D9)."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Literal

from ..errors import WorkflowConfigurationError
from ..events import Event, StartEvent
from ..runtime import Durability
from ._clock import installed_backends
from ._harness import capture_logs, check_makes_workflows
from ._lives import Case, EndKind, Kill, Setup
from ._record import Violation

# Commits of one process after which `kill_everywhere()` stops trying later ones.
MAX_COMMITS = 100_000


class DurabilityViolation(AssertionError):
    """A run was not continued as promised, after the process that executed it had ended.

    Attributes:
        violations: The rules that were broken.
        backend: The backend that it ran on.
        kills: How the processes ended that executed it, in order; the last one executed it to its end.
        trace: What happened, a line each: which process, virtual time, source, event. For each commit it
            names the rows that were written (`+`) and deleted (`-`); `w` is work, `v` a wait, `b` a batch, `r` a
            branch, `a` an arrival at a join, `k` a buffered event, `s` a part of the state.
    """

    def __init__(
        self,
        violations: Iterable[Violation],
        backend: str,
        kills: Iterable[Kill],
        trace: Iterable[str],
    ) -> None:
        self.violations = tuple(violations)
        self.backend = backend
        self.kills = tuple(kills)
        self.trace = tuple(trace)
        super().__init__(self.violations, backend, self.kills)

    def __str__(self) -> str:
        broken = "\n".join(map(str, self.violations))
        kills = ", ".join(map(repr, self.kills))
        how = f", with these kills:\n    {kills}" if kills else ", undisturbed"
        again = (
            f"kill_at(make_workflow, {kills}{', ' if kills else ''}backend={self.backend!r}, ...)"
        )
        trace = "".join(f"\n    {line}" for line in self.trace)
        return (
            f"{broken}\n\n  on {self.backend}{how}\n  to run it again: {again}\n\n"
            f"  trace (process, virtual seconds, source, event):{trace}"
        )


def kill_everywhere(
    make_workflow: Callable[..., Any],
    *,
    start: StartEvent | None = None,
    outside: Sequence[Event] = (),
    answer: Callable[[Event], Event | None] | None = None,
    backends: Iterable[str] | None = None,
    ends: Iterable[EndKind] = ("kill", "leave"),
    pairs: int = 0,
    seed: int = 0,
    durability: Durability = "strict",
    idle_after: float | None = None,
    types: Collection[type] = (),
) -> int:
    """Kill the process that executes a run at each of its commits in turn, and check how the run continues.

    The run is kept in a store in memory, under virtual time. Its process is killed right after the first
    commit, in another run right before the second, and so on, until the run ends undisturbed. Each time
    a new event loop with a new workflow brings the run back and executes it to its end. What it did is compared
    with the undisturbed run, and with the rules D1 to D5, D8 and D9: the same result or failure; no
    finished step again; each event numbered once, without a gap for a reader that continues; no question
    twice, and no answer lost; one terminal event. Call this in a plain function, a test for instance.

    A workflow must come to the same end each time. So its steps may do anything twice, but what they return
    should not depend on who is first, on the wall clock, or on how often they were begun.

    Args:
        make_workflow: Makes a new workflow for each process, a workflow class for instance.
        start: The start event, if it has fields that must be given.
        outside: Events to send to the run from outside, one after the other, from the beginning.
        answer: Called with each event of the log; the event that it returns is sent to the run. It
            stands in for the person who is asked. A question that is asked again gets no second answer.
        backends: Where to run; default: those that are installed.
        ends: How the process ends: `"kill"`, or `"leave"`, the block of its `Runtime`, as at a
            shutdown.
        pairs: How often to end the second process as well, at random commits of both.
        seed: For the choice of the pairs.
        durability: As for `Runtime`.
        idle_after: As for `Runtime`.
        types: As for `Runtime`.

    Returns:
        The number of runs that were ended and continued.

    Raises:
        DurabilityViolation: With the kill that breaks a rule, and what happened.
        WorkflowConfigurationError: If a backend is not installed.
    """
    __tracebackhide__ = True
    check_makes_workflows(make_workflow)
    choice = random.Random(seed)
    places = 0
    with capture_logs([]):
        for backend in backends or installed_backends():
            setup = Setup(
                make_workflow, backend, start, outside, answer, durability, idle_after, types
            )
            sweep = _Sweep(setup)
            for how in ends:
                places += sweep.everywhere(how)
                places += sweep.pairs(how, choice, pairs)
    return places


def kill_at(
    make_workflow: Callable[..., Any],
    *kills: Kill,
    backend: str = "asyncio",
    start: StartEvent | None = None,
    outside: Sequence[Event] = (),
    answer: Callable[[Event], Event | None] | None = None,
    durability: Durability = "strict",
    idle_after: float | None = None,
    types: Collection[type] = (),
) -> list[str]:
    """End the processes of one run as a failure of `kill_everywhere()` shows it, and check it again.

    The other arguments are those of `kill_everywhere()`.

    Returns:
        The trace: a line for each thing that happened, with the process, the virtual time and its source.

    Raises:
        DurabilityViolation: If a rule is broken.
    """
    __tracebackhide__ = True
    check_makes_workflows(make_workflow)
    with capture_logs([]):
        setup = Setup(make_workflow, backend, start, outside, answer, durability, idle_after, types)
        return _Sweep(setup).run(*kills).format_trace()


class _Sweep:
    """Runs one workflow again and again, and compares each run with the undisturbed one.

    Attributes:
        undisturbed: The run that nobody has ended.
    """

    def __init__(self, setup: Setup) -> None:
        __tracebackhide__ = True
        self._setup = setup
        self.undisturbed: Case | None = None
        self.undisturbed = self.run()

    def everywhere(self, how: EndKind) -> int:
        """End the process before and after each commit; returns the number of runs."""
        __tracebackhide__ = True
        places: tuple[Literal["before", "after"], ...] = ("before", "after")
        for number in range(1, MAX_COMMITS):
            for at in places:
                if self.run(Kill(number, at, how)).came_late:
                    return 2 * number - 2 + (at == "after")
        raise WorkflowConfigurationError(f"the run has made more than {MAX_COMMITS} commits")

    def pairs(self, how: EndKind, choice: random.Random, number: int) -> int:
        """End the first and the second process at random commits; returns the number of runs."""
        __tracebackhide__ = True
        assert self.undisturbed is not None
        most = self.undisturbed.commits
        for _ in range(number):
            kills = [
                Kill(choice.randint(1, most), choice.choice(("before", "after")), how)
                for _ in range(2)
            ]
            self.run(*kills)
        return number

    def run(self, *kills: Kill) -> Case:
        """Run the workflow, and check what happened.

        Raises:
            DurabilityViolation: If a rule is broken.
        """
        __tracebackhide__ = True
        case = Case(self._setup, kills)
        case.live()
        if self.undisturbed is not None and not case.violations:
            case.compare(self.undisturbed)
        if case.violations:
            raise DurabilityViolation(
                case.violations, self._setup.backend, kills, case.format_trace()
            )
        return case
