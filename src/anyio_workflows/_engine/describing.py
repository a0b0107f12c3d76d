"""What happens in a run, in words: for messages, notes and logs."""

from __future__ import annotations

import reprlib
import types
from collections.abc import Iterator, Mapping

from .._ledger.ledger import Ledger
from .._ledger.work import StepQueue, Work
from .._messages import describe_type, format_seconds, namesakes, short_repr
from ..events import Event
from ..graph import StepSpec

_brief = reprlib.Repr()
_brief.maxother = 120


def describe_result(result_type: type | None, spec: StepSpec) -> str:
    """Describe the end of an execution, from the type of what it returned or raised."""
    if result_type is types.NoneType and not spec.returns_none:
        return f"returned None, though it declares {spec.declared}"
    return describe_type(result_type)


def describe_failure(work: Work, elapsed: float) -> str:
    """Describe which step failed on what; a note of its exception."""
    return (
        f"step {work.step} failed on {_brief.repr(work.payload)}, in attempt "
        f"{work.attempt}, {format_seconds(elapsed)} after its first start"
    )


def describe_unhandled(ledger: Ledger, event: Event) -> str:
    """Say what becomes of an event that no step takes, and why none does."""
    remark = namesakes([type(event)], ledger.wanted()) or "it is dropped"
    waits = (one for one in ledger.waits.open if isinstance(event, one.event_type))
    if wait := next(waits, None):  # what would fit it has been its answer
        wanted = short_repr(dict(wait.requirements))
        remark = f"step {wait.work.step} waits for one with {wanted}; {remark}"
    return remark


def describe_last_results(ledger: Ledger) -> dict[str, str]:
    """Describe the last result of each step."""
    queues = {name: ledger.queues.by_step.get(name) for name in ledger.graph.steps}
    return {
        name: describe_result(queue.last_result_type, queue.spec)
        if queue is not None and queue.done
        else "has not run"
        for name, queue in queues.items()
    }


def describe_activities(ledger: Ledger, now: float) -> Mapping[str, str]:
    """Describe what each step with pending work is doing."""
    pending: dict[str, list[Work]] = {}
    for work in ledger.pending.values():
        pending.setdefault(work.step, []).append(work)
    return {
        name: ", ".join(_describe_activities(work[0].queue, work, now))
        for name, work in sorted(pending.items())
    }


def count_executions(ledger: Ledger) -> dict[str, int]:
    """Count the executions of each step that have ended, those that are to be retried included."""
    return {
        name: number
        for name, queue in sorted(ledger.queues.by_step.items())
        if (number := queue.done + queue.retried)
    }


def busy_steps(ledger: Ledger) -> list[str]:
    """Return the sorted names of the steps that are being executed in the event loop."""
    return sorted(
        {
            work.step
            for work in ledger.pending.values()
            if work.started is not None and not work.suspended and work.queue.spec.is_async
        }
    )


def _describe_activities(queue: StepQueue, pending: list[Work], now: float) -> Iterator[str]:
    running = [
        now - work.started for work in pending if work.started is not None and not work.suspended
    ]
    if running:
        yield f"running for {format_seconds(max(running))}{_times(len(running))}"
    waits = [wait for work in pending for wait in work.waits]
    if waits:
        wanted = ", ".join(dict.fromkeys(wait.event_type.__name__ for wait in waits))
        yield f"waiting for {wanted}{_times(len(waits))}"
    if queue.resuming:
        yield f"waiting for a slot to continue{_times(len(queue.resuming))}"
    delayed = [work for work in pending if work.due is not None]
    if delayed:
        first = min(delayed, key=lambda work: work.due or 0)
        assert first.due is not None
        when = f"in {format_seconds(first.due - now)}" if first.due > now else "now"
        yield f"in a retry delay{_times(len(delayed))}, attempt {first.attempt} is due {when}"
    if queue.queued:
        yield f"{queue.queued} queued"


def _times(number: int) -> str:
    return "" if number == 1 else f" ({number} times)"
