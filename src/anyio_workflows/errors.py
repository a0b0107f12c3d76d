"""Every exception of the library. Each takes the facts and writes its own sentence."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from ._messages import shortened

__all__ = [
    "CheckpointInUseError",
    "ContextSerdeError",
    "ContextStateError",
    "EventValidationError",
    "WorkflowCancelledByUser",
    "WorkflowConfigurationError",
    "WorkflowError",
    "WorkflowRuntimeError",
    "WorkflowStalledError",
    "WorkflowTimeoutError",
    "WorkflowValidationError",
]


class WorkflowError(Exception):
    """Base of every exception that this library raises."""


class WorkflowConfigurationError(WorkflowError):
    """An argument of `Workflow()`, `@step` or `run()` has a value that cannot work."""


class WorkflowRuntimeError(WorkflowError):
    """A run was used in a way that its state does not allow, or a step broke its contract."""


class WorkflowValidationError(WorkflowError):
    """A step signature or the graph of a workflow is faulty.

    Attributes:
        where: Name of the workflow or of the step that is at fault.
        faults: One sentence per fault, each naming step, event and remedy.
    """

    def __init__(self, where: str, faults: Iterable[str]) -> None:
        self.where = where
        self.faults = tuple(faults)
        super().__init__(where, self.faults)

    def __str__(self) -> str:
        if len(self.faults) == 1:
            return f"{self.where}: {self.faults[0]}"
        listed = "".join(f"\n  {n}. {fault}" for n, fault in enumerate(self.faults, 1))
        return f"{self.where} has {len(self.faults)} faults:{listed}"


class EventValidationError(WorkflowError, ValueError):
    """An event was made with a missing, unknown or wrongly typed field.

    Attributes:
        event: Name of the event class.
        field: Name of the field at fault; empty if no single one is.
        problem: What is wrong with it.
    """

    def __init__(self, event: str, field: str, problem: str) -> None:
        self.event = event
        self.field = field
        self.problem = problem
        super().__init__(event, field, problem)

    def __str__(self) -> str:
        where = f"{self.event}.{self.field}" if self.field else self.event
        return f"{where}: {self.problem}"


_NOTICEABLE = 0.05
"""A timeout that is noticed so much later, in seconds, says so; less is the common delay of a loop."""


class WorkflowTimeoutError(WorkflowError):
    """A run did not end before its deadline.

    Attributes:
        timeout: The time the run had, in seconds.
        active_steps: Sorted names of the steps that were in progress at the deadline, waiting and
            retry delays included.
        activities: What each step was doing at the deadline, or had to do, in words, by its name.
        executions: How often each step was executed to its end, by its name; those that never were
            are left out.
        late: How long after the deadline it was noticed, in seconds, because nothing could run in the
            event loop until then.
        suspects: Names of the steps one of which may have blocked the event loop, if it was late:
            those that were being executed in it.
    """

    def __init__(
        self,
        timeout: float,
        active_steps: Sequence[str],
        activities: Mapping[str, str] | None = None,
        executions: Mapping[str, int] | None = None,
        late: float = 0.0,
        suspects: Sequence[str] = (),
    ) -> None:
        self.timeout = timeout
        self.active_steps = list(active_steps)
        self.activities = dict(activities or {})
        self.executions = dict(executions or {})
        self.late = late
        self.suspects = list(suspects)
        facts = (self.active_steps, self.activities, self.executions, late, self.suspects)
        super().__init__(timeout, *facts)

    def __str__(self) -> str:
        doing = "".join(f"\n  step {name}: {act}" for name, act in self.activities.items())
        what = f"; at that time:{doing}" if doing else "; nothing was going on"
        if self.executions:
            counts = (f"{name} {number}" for name, number in self.executions.items())
            what += f"\n  executions so far: {', '.join(counts)}"
        return f"the run did not end within {self.timeout:g} s{what}{self._delay()}"

    def _delay(self) -> str:
        if self.late < _NOTICEABLE:
            return ""
        said = f"\n  noticed {self.late:.3g} s late, as something blocked the event loop until then"
        if self.suspects:
            those = "one of the steps " if len(self.suspects) > 1 else "step "
            said += f", probably {those}{', '.join(self.suspects)}"
            said += ": does it call time.sleep(), or compute for long? A plain 'def' step may"
        return said


class WorkflowCancelledByUser(WorkflowError):
    """A run was cancelled: by `cancel_run()`, with its owner, or with its event loop.

    Attributes:
        reason: What cancelled the run.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    def __str__(self) -> str:
        return f"the run was cancelled: {self.reason}"


class ContextStateError(WorkflowError):
    """The state of a context, or the work it carries, was used in a way that cannot work."""


class ContextSerdeError(WorkflowError):
    """Something cannot be written as JSON, or cannot be read from it.

    Its text has at most 1000 characters, whatever was to be read or written.

    Attributes:
        path: Where it stands, like `$.state.items[3]`; shortened in the middle if it is long.
        problem: What is wrong with it; shortened likewise.
    """

    def __init__(self, path: str, problem: str) -> None:
        self.path = shortened(path, 300)
        self.problem = shortened(problem, 690)
        super().__init__(self.path, self.problem)

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


class CheckpointInUseError(WorkflowError):
    """Another run saves its snapshots in the same file (C2).

    Attributes:
        path: The file.
        pid: The id of the process that uses it, if that is known.
    """

    def __init__(self, path: str, pid: int | None = None) -> None:
        self.path = path
        self.pid = pid
        super().__init__(path, pid)

    def __str__(self) -> str:
        who = "another process" if self.pid is None else f"process {self.pid}"
        if self.pid == os.getpid():
            who = "this process"
        return (
            f"{self.path} is in use by a run in {who}; wait for the end of that one, or give this "
            "run a file of its own"
        )


class WorkflowStalledError(WorkflowError):
    """Nothing is going on in a run, and nothing can happen any more (T9).

    Attributes:
        last_acts: What each step last did, in words, by its name.
        missing: Pairs of a step that keeps events for later and what it lacks.
    """

    def __init__(
        self, last_acts: Mapping[str, str], missing: Iterable[tuple[str, str]] = ()
    ) -> None:
        self.last_acts = dict(last_acts)
        self.missing = tuple(missing)
        super().__init__(self.last_acts, self.missing)

    def __str__(self) -> str:
        acts = "".join(f"\n  step {name} {act}" for name, act in self.last_acts.items())
        lacks = "".join(f"\n  step {name} waits for {what}" for name, what in self.missing)
        return (
            "nothing is going on in the run, and it takes no event from outside, so it can never "
            f"end; let a step return a StopEvent:{acts}{lacks}"
        )
