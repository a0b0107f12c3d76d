"""Compare what happened in a run with the rules T1 to T8 and S1 to S3."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

from ..errors import (
    WorkflowCancelledByUser,
    WorkflowError,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
)
from ..events import (
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
)
from ._record import Cause, Marker, Record, Violation
from ._stage import LIMIT

__all__ = ["find_violations", "has_succeeded"]

RULES = {"stop": "T2", "failure": "T5", "stray": "T8", "bad return": "T2", "cancel": "T2"}
"""The rule that is broken if the first cause is not told; where a later one is, it is T4."""


def has_succeeded(terminal: StopEvent | None) -> bool:
    """Tell whether a terminal event is one that a step returned or sent."""
    failures = WorkflowTimedOutEvent | WorkflowCancelledEvent | WorkflowFailedEvent
    return terminal is not None and not isinstance(terminal, failures)


def find_violations(record: Record) -> list[Violation]:
    """Return every rule that the run broke."""
    found = list(record.violations)
    if record.spinning:  # the steps were left alone, whatever came of that
        return found
    if record.hung:
        if not found:
            found.append(Violation("T1", f"the run did not end within {LIMIT:g} virtual seconds"))
        return found
    terminal = record.handler.get_stop_event()
    if terminal is None:
        return [*found, Violation("T1", "the run ended without a stop event")]
    found += _check_stream(record, terminal)
    found += _check_outcome(record, terminal)
    found += _check_cause(record, terminal)
    found += _check_executions(record)
    found += _check_log(record)
    if isinstance(terminal, WorkflowTimedOutEvent):
        found += _check_active_steps(record, terminal)
    return list(dict.fromkeys(found))


def _check_stream(record: Record, terminal: StopEvent) -> Iterator[Violation]:
    """T1, S1, S2: all that was written, in order, then one terminal event."""
    stops = [event for event in record.seen if isinstance(event, StopEvent)]
    if len(stops) != 1:
        yield Violation("T1", f"the stream has {len(stops)} stop events: {stops}")
    elif record.seen[-1] is not terminal:
        yield Violation("T1", f"the last event is {record.seen[-1]!r}, not {terminal!r}")
    if record.handler.statistics().unread_events:
        yield Violation("T1", "there are events after the stop event")
    yield from _check_markers(record)


def _check_markers(record: Record) -> Iterator[Violation]:
    """S1: what the toolkit wrote is read once, in order. A thread learns late that it wrote."""
    steps = record.workflow.graph.steps
    written = [id(event) for event in record.written]
    markers = [event for event in record.seen if isinstance(event, Marker)]
    seen = [id(event) for event in markers]
    if lost := [event for event in record.written if id(event) not in seen]:
        yield Violation("S1", f"{len(lost)} events that were written are missing, as {lost[0]!r}")
    odd = [e for e in markers if id(e) not in written and steps[e.step].is_async]
    if odd or len(seen) != len(set(seen)):
        yield Violation("S1", f"{len(seen)} events came where {len(written)} had been written")
    elif not lost and written != seen and all(spec.is_async for spec in steps.values()):
        yield Violation("S1", "events were not delivered in the order in which they were written")


def _check_outcome(record: Record, terminal: StopEvent) -> Iterator[Violation]:
    """T2, T5: `await handler` and the terminal event tell the same."""
    outcome = record.outcome
    if isinstance(terminal, WorkflowTimedOutEvent):
        fits = (
            type(outcome) is WorkflowTimeoutError
            and outcome.timeout == terminal.timeout
            and outcome.active_steps == terminal.active_steps
        )
    elif isinstance(terminal, WorkflowCancelledEvent):
        fits = type(outcome) is WorkflowCancelledByUser
    elif isinstance(terminal, WorkflowFailedEvent):
        fits = terminal.exception is outcome
    else:
        fits = outcome is (terminal.result if type(terminal) is StopEvent else terminal)
    if not fits:
        yield Violation("T2", f"the last event is {terminal!r}, but `await` gave {outcome!r}")


def _check_cause(record: Record, terminal: StopEvent) -> Iterator[Violation]:
    """T2, T4, T5, T8: the run ended by its first cause.

    What a step does through its context or a handler of its own is not seen here: such an end is
    accepted unless the run had said that nothing was decided before the first cause that was seen.
    """
    deadline = record.deadline
    if isinstance(terminal, WorkflowTimedOutEvent):
        deadline = min(deadline, record.begun + terminal.timeout)
        if terminal.timeout != (record.scenario.timeout or terminal.timeout):
            yield Violation(
                "T2", f"{terminal!r} came with a timeout of {record.scenario.timeout} s"
            )
    graph = record.workflow.graph
    failed = isinstance(terminal, WorkflowFailedEvent)
    if failed and graph.uses_resources and terminal.step_name not in graph.steps:
        return  # a resource failed to close, after whatever went well (P5)
    allowed, first = _allowed_causes(record, deadline)
    if any(_is_told(record, cause, terminal) for cause in allowed):
        return
    timed_out = isinstance(terminal, WorkflowTimedOutEvent)
    if timed_out and (first is None or first.time >= deadline or first.kind == "loop end"):
        if record.ended is None or record.ended >= deadline:
            return
        yield Violation("T2", f"the run timed out at {record.ended:g} s, before its deadline")
    elif first is not None and first.time < deadline and first.first and first.kind != "loop end":
        told = [cause for cause in record.causes if _is_told(record, cause, terminal)]
        rule = "T4" if told or timed_out else RULES[first.kind]
        shown = f"{terminal!r}, and `await` gave {record.outcome!r}"
        yield Violation(rule, f"the first cause was {first}, but the last event is {shown}")
    elif first is None and record.ended is not None and record.ended > deadline and not timed_out:
        if not record.executions or all((e.left or 0) < deadline for e in record.executions):
            yield Violation("T2", f"the deadline passed, but the last event is {terminal!r}")
    elif not _may_be_unseen(record, terminal, deadline):
        yield Violation("T2", f"nothing that was seen explains {terminal!r}")


def _allowed_causes(record: Record, deadline: float) -> tuple[list[Cause], Cause | None]:
    """Return the causes that may have been the first, and the first one that surely ends a run.

    When the loop ends, its tasks learn of that one after the other; what they do until then is
    allowed to come first.
    """
    allowed: list[Cause] = []
    first: Cause | None = None
    for cause in record.causes:
        allowed.append(cause)
        if cause.exact and cause.final:
            first = first or cause
            if cause.kind != "loop end":
                break
    return [cause for cause in allowed if cause.time < deadline], first


def _is_told(record: Record, cause: Cause, terminal: StopEvent) -> bool:
    """Tell whether the terminal event tells of this cause."""
    if cause.kind == "stop":
        return terminal is cause.value
    if cause.kind in ("cancel", "loop end"):
        return type(terminal) is WorkflowCancelledEvent
    if not isinstance(terminal, WorkflowFailedEvent) or cause.execution is None:
        return False
    if terminal.step_name != cause.execution.spec.name:
        return False
    error = terminal.exception
    if cause.kind == "failure":
        iteration = getattr(cause.value, "__cause__", None)
        if isinstance(cause.value, StopIteration) or isinstance(iteration, StopIteration):
            return type(error) is WorkflowRuntimeError
        return error is cause.value
    if type(error) is not WorkflowRuntimeError:
        return False
    return cause.kind == "bad return" or error.__cause__ is cause.value


def _may_be_unseen(record: Record, terminal: StopEvent, deadline: float) -> bool:
    """Tell whether an end can have a cause that is not seen: sent, timed out, stalled, retried."""
    if isinstance(terminal, WorkflowCancelledEvent):
        return record.ended is None or record.ended < deadline
    if has_succeeded(terminal):
        return not any(cause.kind == "stop" and cause.value is terminal for cause in record.causes)
    if isinstance(terminal, WorkflowFailedEvent):
        known = isinstance(terminal.exception, WorkflowError | TimeoutError)
        return known or any(record.recovers(spec) for spec in record.workflow.graph.steps.values())
    return record.scenario.timeout is None


def _check_executions(record: Record) -> Iterator[Violation]:
    """T6: every execution ended, and those that hung were woken at once."""
    for execution in record.executions:
        if execution.left is None and execution.spec.is_async:
            yield Violation("T6", f"step {execution} was thrown away, its `finally` did not run")
    times = [c.time for c in record.causes if c.exact and c.final] + [record.deadline]
    if min(times) == math.inf:
        return
    for execution in record.executions:
        if execution.must_wake and execution.exact and execution.left is not None:
            woken = max(min(times), execution.entered)
            if execution.left > woken:
                late = execution.left - woken
                yield Violation("T6", f"step {execution} was cancelled {late:g} s late")


def _check_log(record: Record) -> Iterator[Violation]:
    """T4: what came too late to matter is in the log; and nothing broke."""
    for logged in record.logged:
        if logged.levelno >= logging.ERROR:
            yield Violation("T6", f"the library logged an error: {logged.getMessage()}")
    in_log = [logged.exc_info[1] for logged in record.logged if logged.exc_info]
    for cause in record.causes:
        late = cause.kind == "failure" and cause.exact and not cause.first
        if late and isinstance(cause.value, Exception) and cause.value not in in_log:
            iteration = getattr(cause.value, "__cause__", None)
            if not isinstance(cause.value, WorkflowCancelledByUser) and iteration is None:
                yield Violation("T4", f"{cause} came too late, and is not in the log")


def _check_active_steps(record: Record, terminal: WorkflowTimedOutEvent) -> Iterator[Violation]:
    """T2: `active_steps` are the sorted names of the steps that were in progress at the deadline."""
    deadline = record.begun + terminal.timeout
    steps = terminal.active_steps
    surely: set[str] = set()
    # A thread begins late, or never if it is abandoned before; and so do steps that need resources.
    steps_of = record.workflow.graph.steps.values()
    maybe = {spec.name for spec in steps_of if not spec.is_async or spec.needs}
    for execution in record.executions:
        spec = execution.spec
        left = math.inf if execution.left is None else execution.left
        if execution.exact and execution.entered < deadline < left:
            surely.add(spec.name)
        if execution.entered <= deadline <= left or record.recovers(spec):
            maybe.add(spec.name)
    if steps != sorted(set(steps)):
        yield Violation("T2", f"active_steps are not sorted and unique: {steps}")
    elif not surely <= set(steps) <= maybe:
        yield Violation("T2", f"active_steps are {steps}, not {sorted(surely)}")
