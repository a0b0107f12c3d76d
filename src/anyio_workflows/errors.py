"""Every exception of the library. Each takes the facts and writes its own sentence."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

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


class _ShortRepr(reprlib.Repr):
    """As `reprlib` has it, for integers of any size as well: Python writes no very long ones."""

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 1000 else _long_int(x)

    def repr_instance(self, x: Any, level: int) -> str:
        return shortened(super().repr_instance(x, level), 100)


def _long_int(number: int) -> str:
    return f"<int of {number.bit_length()} bits>"


_short_repr = _ShortRepr()


def short_repr(value: object) -> str:
    """Return the `repr()` of a value that may come from anywhere, in a few words."""
    return _short_repr.repr(value)


def shortened(text: str, longest: int) -> str:
    """Return a text of at most `longest` characters, with its beginning and its end."""
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 3]}...{text[-end:]}"


def text_of(error: BaseException) -> str:
    """Return the message of an exception."""
    try:
        return str(error)
    except Exception:
        return "(it has no text)"


class Absent:
    """A descriptor for an attribute that a class has not, and that says what to use instead.

    `hasattr()` is false, and help() tells.
    """

    def __init__(self, name: str, instead: str) -> None:
        self._name, self._instead = name, instead
        self.__doc__ = f"Not there: {instead}."

    def __get__(self, instance: object, owner: type) -> Any:
        message = f"{owner.__name__!r} has no {self._name!r}; {self._instead}"
        raise AttributeError(message, name=self._name, obj=instance)


_LONGEST_NAME = 200
_MOST_NAMES = 20


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the closest of `known`, or all of them.

    Both may come from outside: what is too long to be a name is compared with nothing, since that
    costs quadratic time, and of many names only the first are listed.
    """
    names = sorted(each for each in known if len(each) <= _LONGEST_NAME)
    close = get_close_matches(name, names, n=1) if len(name) <= _LONGEST_NAME else []
    if close:
        return f"did you mean {close[0]!r}?"
    if len(names) > _MOST_NAMES:
        names[_MOST_NAMES:] = [f"... ({len(names)} in all)"]
    return f"known: {', '.join(names)}" if names else "there are none"


def await_missing(value: object, in_thread: bool = True) -> str:
    """Say how to come by what an awaitable is to give, also in a thread, if it may be one."""
    owner, _, method = str(getattr(value, "__qualname__", "")).rpartition(".")
    place = {"Context": "ctx", "StateStore": "ctx.store"}.get(owner)
    remark = "is an 'await' missing?"
    if place is not None and in_thread:
        remark += f" In a 'def' step: anyio.from_thread.run({place}.{method}, ...)"
    return remark


def namesakes(given: Iterable[type], known: Iterable[type]) -> str:
    """Tell two classes of one name apart: one that was given, and another that is known (E8).

    Returns:
        A sentence without a full stop; empty if there are no two such classes.
    """
    known = list(known)
    for cls in given:
        others = (one for one in known if one.__name__ == cls.__name__ and one is not cls)
        if (other := next(others, None)) is None:
            continue
        named = f"two classes are named {cls.__name__}"
        if (cls.__module__, cls.__qualname__) != (other.__module__, other.__qualname__):
            return f"{named}: {_full_name(cls)} and {_full_name(other)}"
        return (
            f"{named}, because it was defined again (a notebook cell that was run twice?): define the "
            "workflow again too, and make its events anew"
        )
    return ""


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception, once; some exceptions refuse."""
    with suppress(Exception):
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
