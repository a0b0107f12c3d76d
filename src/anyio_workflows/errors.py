"""All exceptions of the library. Each takes facts, keeps them as attributes, and writes its own text."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ._absent import absent_names
from ._messages import format_seconds, held_by, shortened

__all__ = [
    "CheckpointInUseError",
    "ContextSerdeError",
    "ContextStateError",
    "EventValidationError",
    "HostLostError",
    "RemoteRunError",
    "ServerUnreachableError",
    "StoreError",
    "TooManyRunsError",
    "UnknownRunError",
    "WorkflowCancelledByUser",
    "WorkflowConfigurationError",
    "WorkflowError",
    "WorkflowRuntimeError",
    "WorkflowServerError",
    "WorkflowStalledError",
    "WorkflowTimeoutError",
    "WorkflowValidationError",
]

if not TYPE_CHECKING:
    __getattr__ = absent_names(__name__)


class WorkflowError(Exception):
    """Base of every exception that this library raises."""


class WorkflowConfigurationError(WorkflowError):
    """An argument of `Workflow()`, `run()` or a marker has a value that cannot work."""


class WorkflowRuntimeError(WorkflowError):
    """A run was used in a way that its state does not allow, or a step broke its contract."""


class WorkflowValidationError(WorkflowError):
    """The signature of a step, or the graph of a workflow, has faults.

    Attributes:
        where: Name of the workflow or step at fault.
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
        field: Name of the field at fault; empty if it is not a single one.
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
"""Seconds; a smaller delay of a timeout is normal for an event loop, and not mentioned."""


class WorkflowTimeoutError(WorkflowError):
    """A run did not end before its deadline.

    Attributes:
        timeout: The time the run had, in seconds.
        active_steps: Sorted names of the steps that were in progress at the deadline, waiting and
            retry delays included.
        activities: Step name -> what it was doing at the deadline, or had queued, in words.
        executions: Step name -> how many executions of it have ended, attempts that were followed by
            another included; steps without any are left out.
        late: Seconds between the deadline and the moment it was noticed, if the event loop was blocked.
        suspects: Names of the steps that were running in the event loop then; one of them probably
            blocked it.
        holders: Names of the steps that blocked it, if that was seen, with the seconds for which each
            did; a step of another run is named with that run.
    """

    def __init__(
        self,
        timeout: float,
        active_steps: Sequence[str],
        activities: Mapping[str, str] | None = None,
        executions: Mapping[str, int] | None = None,
        late: float = 0.0,
        suspects: Sequence[str] = (),
        holders: Mapping[str, float] | None = None,
    ) -> None:
        self.timeout = timeout
        self.active_steps = list(active_steps)
        self.activities = dict(activities or {})
        self.executions = dict(executions or {})
        self.late = late
        self.suspects = list(suspects)
        self.holders = dict(holders or {})
        facts = (self.active_steps, self.activities, self.executions, late, self.suspects)
        super().__init__(timeout, *facts, self.holders)

    def __str__(self) -> str:
        doing = "".join(f"\n  step {name}: {act}" for name, act in self.activities.items())
        what = f"; at that time:{doing}" if doing else "; no step was active"
        if self.executions:
            counts = (f"{name} {number}" for name, number in self.executions.items())
            what += f"\n  executions so far: {', '.join(counts)}"
        return f"the run did not end within {self.timeout:g} s{what}{self._delay()}"

    def _delay(self) -> str:
        if self.late < _NOTICEABLE:
            return ""
        said = f"\n  noticed {format_seconds(self.late)} late, because "
        if self.holders:
            said += held_by(self.holders)
        else:
            said += "something blocked the event loop until then"
            if not self.suspects:
                return said
            those = "one of the steps " if len(self.suspects) > 1 else "step "
            said += f", probably {those}{', '.join(self.suspects)}"
        return f"{said}: does it call time.sleep(), or compute for long? A plain 'def' step may, in a thread"


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


class ContextSerdeError(WorkflowError, ValueError):
    """A value cannot be written as JSON, or data cannot be read as values.

    The text of the error has at most 1000 characters, whatever the data.

    Attributes:
        path: Where it is, like `$.state.items[3]`; shortened in the middle if it is long.
        problem: What is wrong with it; shortened in the same way.
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
        pid: The id of the process that uses it, if known.
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
            f"{self.path} is in use by a run in {who}; wait until that run has ended, or give "
            "this run a file of its own"
        )


class StoreError(WorkflowError):
    """The place where a runtime keeps its runs cannot be used (D10).

    Nothing that was not written before has been shown to anybody.

    Attributes:
        store: The file or the address, as it was given, without a password.
        problem: What is wrong, and what to do about it.
    """

    def __init__(self, store: str, problem: str) -> None:
        self.store = store
        self.problem = problem
        super().__init__(store, problem)

    def __str__(self) -> str:
        return f"{self.store}: {self.problem}"


class HostLostError(StoreError):
    """Others took this process for dead, and execute its runs now: it can write nothing any more (D6)."""


class TooManyRunsError(WorkflowRuntimeError):
    """A runtime takes no more runs at once (K1).

    Attributes:
        in_progress: How many are in progress.
    """

    def __init__(self, in_progress: int) -> None:
        self.in_progress = in_progress
        super().__init__(in_progress)

    def __str__(self) -> str:
        return (
            f"{self.in_progress} runs are in progress, and this Runtime takes no more at once; wait for one of them "
            "to end, or give it a higher max_runs"
        )


class UnknownRunError(WorkflowError, LookupError):
    """A runtime has no run of this id.

    Attributes:
        run_id: The id.
    """

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(run_id)

    def __str__(self) -> str:
        return (
            f"there is no run {shortened(self.run_id, 200)!r}: it was never started here, or it ended long ago and "
            "has been removed"
        )


class WorkflowStalledError(WorkflowError):
    """No step of a run is queued, running or waiting, and no event can arrive (T9).

    Attributes:
        last_acts: Step name -> what it did last, in words.
        missing: Pairs of a step that holds events back and what it still waits for.
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
            "The run has stalled: no step is queued, running or waiting, and this workflow accepts no "
            f"external events. Make one of these steps return a StopEvent:{acts}{lacks}"
        )


_LONGEST_DETAIL = 2000


class WorkflowServerError(WorkflowError):
    """A server refused a request, or its answer cannot be understood.

    Attributes:
        request: The method and the path that were asked, such as `"GET /v1/runs/order-17"`.
        status: The status of HTTP: 401 without the right token, 404 if there is no such run or workflow, 409 if
            the run does not stand so that this could be done, 422 if the data does not fit, 429 if there is too
            much of something. 200 and the like if the answer is not one of such a server.
        title: What that status means.
        detail: What is wrong, and what to do about it.
        path: Where the fault is in the data that was sent, like `$.input.n`; `None` if it is not in data.
        retry_after: Seconds after which the server wants to be asked again; `None` if it did not say.
    """

    def __init__(
        self,
        request: str,
        status: int,
        title: str,
        detail: str = "",
        path: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.request = request
        self.status = status
        self.title = title
        self.detail = shortened(detail, _LONGEST_DETAIL)
        self.path = None if path is None else shortened(path, 300)
        self.retry_after = retry_after
        super().__init__(request, status, title, self.detail, self.path, retry_after)

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path and self.path not in self.detail else ""
        said = f": {where}{self.detail}" if self.detail or where else ""
        return f"{shortened(self.request, 300)}: {self.status} {self.title}{said}"


class ServerUnreachableError(WorkflowError):
    """There is no connection to a server, or it broke before the server had answered.

    Attributes:
        url: The address of the server.
        request: The method and the path that were asked, such as `"GET /v1/runs/order-17"`.
        problem: What happened to the connection.
        unknown: What the request may or may not have done, since it was sent and never answered, and how to find out;
            `None` if it changed nothing.
    """

    def __init__(self, url: str, request: str, problem: str, unknown: str | None = None) -> None:
        self.url = url
        self.request = request
        self.problem = shortened(problem, 500)
        self.unknown = unknown
        super().__init__(url, request, self.problem, unknown)

    def __str__(self) -> str:
        unknown = "" if self.unknown is None else f"; {self.unknown}"
        return f"{self.url}: {shortened(self.request, 300)}: {self.problem}{unknown}"


_STATUS_IN_WORDS = {
    "timed_out": "timed out",
    "cancelled": "was cancelled",
    "incompatible": "is incompatible",
    "stuck": "is stuck",
}


class RemoteRunError(WorkflowError):
    """A run on a server has no result. The notes of the exception there are notes of this one.

    Attributes:
        run_id: The id of the run.
        status: `"failed"`, `"timed_out"` or `"cancelled"`; `"incompatible"` or `"stuck"` if it is parked until a
            person has mended it.
        type: The name of the class of the exception that `await run` raises there.
        message: Its text.
        step: The step that failed; `None` if no step did.
        attempts: How often that step was tried; `None` if no step failed.
        notes: Its notes.
    """

    def __init__(
        self,
        run_id: str,
        status: str,
        type: str,  # noqa: A002
        message: str,
        step: str | None = None,
        attempts: int | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.run_id = run_id
        self.status = status
        self.type = type
        self.message = message
        self.step = step
        self.attempts = attempts
        self.notes = tuple(notes)
        super().__init__(run_id, status, type, message, step, attempts, self.notes)
        for note in self.notes:
            self.add_note(note)

    def __str__(self) -> str:
        where = "" if self.step is None else f" in step {self.step}"
        status = _STATUS_IN_WORDS.get(self.status, self.status)
        said = f": {self.message}" if self.message else ""
        return f"run {self.run_id!r} {status}{where}: {self.type}{said}"
