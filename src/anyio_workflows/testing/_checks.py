"""The checks: the rules T1 to T8, S1 to S3 and I1, applied to one run.

Some need the live handler, and note what they find in the record. The others read the record when the run
is over. R2, and whether a step may begin, is checked by the record itself, when the step begins.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio

from ..errors import (
    WorkflowCancelledByUser,
    WorkflowError,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
)
from ..events import (
    Event,
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
)
from ._clock import current_clock
from ._record import Cause, Marker, Record, Violation
from ._scenario import Read

# --- Checks of a live handler ----------------------------------------------------------------------


async def read_stream(
    record: Record, read: Read, on_event: Callable[[Event], None] = lambda event: None
) -> None:
    """Read a part of the stream, and check T3 and T6 at its terminal event.

    Args:
        record: Where what was read is kept.
        read: How much to read.
        on_event: Called with each event.
    """
    left = read.limit
    with anyio.move_on_after(read.patience):
        async for event in record.handler.stream_events():
            record.add_read_event(event)
            if isinstance(event, StopEvent):
                check_has_ended(record, "the terminal event was read")
            on_event(event)
            left = None if left is None else left - 1
            if left == 0:
                break


def check_has_ended(record: Record, when: str) -> None:
    """Check that the end of the run is visible everywhere, and that no step is running (T3, T6)."""
    if not record.handler.is_done() or record.handler.get_stop_event() is None:
        record.add_violation("T3", f"when {when}, is_done() was false")
    elif not record.has_been_read and not record.handler.statistics().unread_events:
        record.add_violation("T3", f"when {when}, the terminal event could not be read")
    for execution in record.executions:
        spec = execution.spec
        if execution.ended is None and spec.is_async and spec.name not in record.gave_up_warning:
            record.add_violation("T6", f"when {when}, step {execution} was still running")


async def check_run_of_ended_loop(record: Record) -> None:
    """Check a run whose event loop has ended, from another one."""
    record.now = current_clock()
    if not record.handler.is_done():
        record.add_violation("T2", "the event loop ended, but the run did not")
        record.hung = True
        return
    await check_stays_ended(record)


async def check_stays_ended(record: Record) -> None:
    """Do everything to an ended run that must not change it any more (T5, T7, S3)."""
    handler = record.handler
    if not record.has_been_read:
        await read_stream(record, Read())
    first, depth = await outcome_of(handler)
    if record.ended is None:
        record.outcome = first

    async def send() -> None:
        handler.ctx.send_event(StopEvent(result="too late"))

    async def write() -> None:
        handler.ctx.write_event_to_stream(Marker(step="", call=0, number=-1))

    async def send_from_outside() -> None:
        await handler.send_event(StopEvent(result="too late"))

    terminal = handler.get_stop_event()
    await _expect_refusal(record, "T7", "ctx.send_event()", send)
    await _expect_refusal(record, "T7", "ctx.write_event_to_stream()", write)
    await _expect_refusal(record, "T7", "handler.send_event()", send_from_outside)
    await _expect_refusal(record, "S3", "reading on", handler.stream_events().__anext__)
    await handler.cancel_run()
    second, same_depth = await outcome_of(handler)
    if first is not second or first is not record.outcome:
        shown = f"{record.outcome!r}, {first!r}, {second!r}"
        record.add_violation("T5", f"`await handler` gave different outcomes: {shown}")
    # An exception that is raised again and again must not carry the frames of every `await`.
    if depth != same_depth:
        record.add_violation("T5", f"its traceback grew from {depth} to {same_depth} frames")
    if handler.get_stop_event() is not terminal:
        record.add_violation("T7", f"{terminal!r} became {handler.get_stop_event()!r} afterwards")


async def _expect_refusal(
    record: Record, rule: str, what: str, act: Callable[[], Awaitable[object]]
) -> None:
    try:
        await act()
    except WorkflowRuntimeError:
        pass
    except StopAsyncIteration:
        record.add_violation(rule, f"{what} ended quietly, after the end of the stream")
    else:
        record.add_violation(rule, f"{what} was possible after the end")


async def outcome_of(handler: Any) -> tuple[Any, int]:
    """Return what `await handler` returns or raises, and the number of frames in the traceback.

    A cancellation of the caller is not an outcome; it is raised.
    """
    cancelled = anyio.get_cancelled_exc_class()
    try:
        return await handler, 0
    except cancelled:
        raise
    except BaseException as exc:
        depth, traceback = 0, exc.__traceback__
        while traceback is not None:
            depth, traceback = depth + 1, traceback.tb_next
        return exc, depth


# --- Checks of the record --------------------------------------------------------------------------

# The rule that is broken if the run did not end by its first cause. (By a later one: T4.)
_RULE_OF_CAUSE = {"stop": "T2", "failure": "T5", "stray": "T8", "bad return": "T2", "cancel": "T2"}


def has_succeeded(terminal: StopEvent | None) -> bool:
    """Tell whether a terminal event is one that a step returned or sent."""
    failures = WorkflowTimedOutEvent | WorkflowCancelledEvent | WorkflowFailedEvent
    return terminal is not None and not isinstance(terminal, failures)


def find_violations(record: Record) -> list[Violation]:
    """Return every rule that the run broke."""
    found = list(record.violations)
    # Steps that spin were dropped, and a run that hangs has no end: all that follows would be noise.
    if record.spinning or record.hung:
        return found
    terminal = record.handler.get_stop_event()
    if terminal is None:
        return [*found, Violation("T1", "the run ended without a stop event")]
    found += _check_stream(record, terminal)
    found += _check_outcome(record, terminal)
    found += _check_cause(record, terminal)
    found += _check_executions(record)
    found += _check_log(record)
    found += _check_told(record)
    if isinstance(terminal, WorkflowTimedOutEvent):
        found += _check_active_steps(record, terminal)
    return list(dict.fromkeys(found))


def _check_stream(record: Record, terminal: StopEvent) -> Iterator[Violation]:
    """T1, S1, S2: the stream has everything that was written, in order, then one terminal event."""
    stops = [event for event in record.read_events if isinstance(event, StopEvent)]
    if len(stops) != 1:
        yield Violation("T1", f"the stream has {len(stops)} stop events: {stops}")
    elif record.read_events[-1] is not terminal:
        yield Violation("T1", f"the last event is {record.read_events[-1]!r}, not {terminal!r}")
    if record.handler.statistics().unread_events:
        yield Violation("T1", "there are events after the stop event")
    yield from _check_markers(record)


def _check_markers(record: Record) -> Iterator[Violation]:
    """S1: each marker is read once, in the order of the writes."""
    steps = record.workflow.graph.steps
    # A thread notes its marker after the loop has written it. So a marker of a sync step may be read before
    # it is noted, and the order of such notes proves nothing.
    written = [id(event) for event in record.markers]
    markers = [event for event in record.read_events if isinstance(event, Marker)]
    read = [id(event) for event in markers]
    if lost := [event for event in record.markers if id(event) not in read]:
        yield Violation("S1", f"{len(lost)} events that were written are missing, as {lost[0]!r}")
    unknown = [e for e in markers if id(e) not in written and steps[e.step].is_async]
    if unknown or len(read) != len(set(read)):
        yield Violation("S1", f"{len(read)} events were read where {len(written)} had been written")
    elif not lost and written != read and all(spec.is_async for spec in steps.values()):
        yield Violation("S1", "events were not delivered in the order in which they were written")


def _check_outcome(record: Record, terminal: StopEvent) -> Iterator[Violation]:
    """T2, T5: `await handler` and the terminal event agree."""
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

    What a step does through its context, or through a handler that it holds, is not recorded. An end
    that may come from there is accepted, unless the run said, right before the first recorded cause,
    that nothing had been decided.
    """
    deadline = record.deadline
    if isinstance(terminal, WorkflowTimedOutEvent):
        deadline = min(deadline, record.started + terminal.timeout)
        if terminal.timeout != (record.scenario.timeout or terminal.timeout):
            yield Violation(
                "T2", f"{terminal!r} came with a timeout of {record.scenario.timeout} s"
            )
    graph = record.workflow.graph
    failed = isinstance(terminal, WorkflowFailedEvent)
    if failed and graph.uses_resources and terminal.step_name not in graph.steps:
        return  # a resource failed to close: that fails a run which went well (P5)
    # The case in which all is well: one of the causes that may have been the first is reported.
    allowed, first = _allowed_causes(record, deadline)
    if any(_is_reported(record, cause, terminal) for cause in allowed):
        return
    timed_out = isinstance(terminal, WorkflowTimedOutEvent)
    # It timed out, and no recorded cause was in the way: then the deadline must have passed.
    if timed_out and (first is None or first.time >= deadline or first.kind == "loop end"):
        if record.ended is None or record.ended >= deadline:
            return
        yield Violation("T2", f"the run timed out at {record.ended:g} s, before its deadline")
    # A cause that decides at once came first, in an undecided run, and something else is reported.
    elif (
        first is not None
        and first.time < deadline
        and first.undecided_before
        and first.kind != "loop end"
    ):
        later = [cause for cause in record.causes if _is_reported(record, cause, terminal)]
        rule = "T4" if later or timed_out else _RULE_OF_CAUSE[first.kind]
        shown = f"{terminal!r}, and `await` gave {record.outcome!r}"
        yield Violation(rule, f"the first cause was {first}, but the last event is {shown}")
    # Nothing but the deadline can have ended it, and yet it did not time out.
    elif first is None and record.ended is not None and record.ended > deadline and not timed_out:
        if not record.executions or all((e.ended or 0) < deadline for e in record.executions):
            yield Violation("T2", f"the deadline passed, but the last event is {terminal!r}")
    elif not _may_have_unseen_cause(record, terminal, deadline):
        yield Violation("T2", f"nothing that was recorded explains {terminal!r}")


def _allowed_causes(record: Record, deadline: float) -> tuple[list[Cause], Cause | None]:
    """Return the causes that may have been the first, and the first one that certainly ends a run.

    All up to the first that is exact and final may have been. When the loop ends, its tasks learn of
    that one after the other; what they do until then may still come first.
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


def _is_reported(record: Record, cause: Cause, terminal: StopEvent) -> bool:
    """Tell whether the terminal event reports this cause."""
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
        # A StopIteration cannot leave a coroutine: Python, or the library, replaces it.
        iteration = getattr(cause.value, "__cause__", None)
        if isinstance(cause.value, StopIteration) or isinstance(iteration, StopIteration):
            return type(error) is WorkflowRuntimeError
        return error is cause.value
    if type(error) is not WorkflowRuntimeError:
        return False
    return cause.kind == "bad return" or error.__cause__ is cause.value


def _may_have_unseen_cause(record: Record, terminal: StopEvent, deadline: float) -> bool:
    """Tell whether the end can have a cause that is not recorded: sent, timed out, stalled, retried."""
    if isinstance(terminal, WorkflowCancelledEvent):
        return record.ended is None or record.ended < deadline
    if has_succeeded(terminal):
        return not any(cause.kind == "stop" and cause.value is terminal for cause in record.causes)
    if isinstance(terminal, WorkflowFailedEvent):
        known = isinstance(terminal.exception, WorkflowError | TimeoutError)
        return known or any(record.recovers(spec) for spec in record.workflow.graph.steps.values())
    return record.scenario.timeout is None


def _check_executions(record: Record) -> Iterator[Violation]:
    """T6: every execution ended, and those that hung were cancelled at once."""
    for execution in record.executions:
        if execution.ended is None and execution.spec.is_async:
            yield Violation("T6", f"step {execution} was abandoned, its `finally` did not run")
    times = [c.time for c in record.causes if c.exact and c.final] + [record.deadline]
    if min(times) == math.inf:
        return
    for execution in record.executions:
        if execution.hangs and execution.exact and execution.ended is not None:
            woken = max(min(times), execution.started)
            if execution.ended > woken:
                late = execution.ended - woken
                yield Violation("T6", f"step {execution} was cancelled {late:g} s late")


def _check_log(record: Record) -> Iterator[Violation]:
    """T4: a failure that came too late to matter is in the log. T6: the log has no errors."""
    for logged in record.run_log:
        if logged.levelno >= logging.ERROR:
            yield Violation("T6", f"the library logged an error: {logged.getMessage()}")
    in_log = [logged.exc_info[1] for logged in record.run_log if logged.exc_info]
    for cause in record.causes:
        late = cause.kind == "failure" and cause.exact and not cause.undecided_before
        if late and isinstance(cause.value, Exception) and cause.value not in in_log:
            iteration = getattr(cause.value, "__cause__", None)
            if not isinstance(cause.value, WorkflowCancelledByUser) and iteration is None:
                yield Violation("T4", f"{cause} came too late, and is not in the log")


def _check_told(record: Record) -> Iterator[Violation]:
    """I1: what instruments were told is what happened."""
    told = record.told
    if told.result is None:
        yield Violation("I1", "no end of the run was told")
        return
    if told.result.event is not record.handler.get_stop_event():
        yield Violation("I1", f"the run was told to end with {told.result.event!r}")
    if list(map(id, told.written)) != list(map(id, record.read_events)):
        yield Violation("I1", "other events were told to be written than were read")
    called = Counter(execution.spec.name for execution in record.executions)
    for name, spec in record.workflow.graph.steps.items():
        # Others may be cancelled before their body is called: on the way to a thread or a resource.
        if spec.is_simple and told.started[name] != called[name]:
            what = f"step {name} was told {told.started[name]} times to begin"
            yield Violation("I1", f"{what}, and was called {called[name]} times")


def _check_active_steps(record: Record, terminal: WorkflowTimedOutEvent) -> Iterator[Violation]:
    """T2: `active_steps` are the sorted names of the steps that were in progress at the deadline."""
    deadline = record.started + terminal.timeout
    steps = terminal.active_steps
    certain: set[str] = set()
    # A thread begins late, or never if it is abandoned before; and so do steps that need resources.
    steps_of = record.workflow.graph.steps.values()
    maybe = {spec.name for spec in steps_of if not spec.is_async or spec.dependencies}
    for execution in record.executions:
        spec = execution.spec
        left = math.inf if execution.ended is None else execution.ended
        if execution.exact and execution.started < deadline < left:
            certain.add(spec.name)
        if execution.started <= deadline <= left or record.recovers(spec):
            maybe.add(spec.name)
    if steps != sorted(set(steps)):
        yield Violation("T2", f"active_steps are not sorted and unique: {steps}")
    elif not certain <= set(steps) <= maybe:
        yield Violation("T2", f"active_steps are {steps}, not {sorted(certain)}")
