"""What happens in a run, in words, for messages and logs."""

from __future__ import annotations

import reprlib
import types
from collections.abc import Iterator, Mapping

from ._ledger.ledger import Ledger
from ._ledger.work import Post, Work
from .graph import StepSpec

__all__ = [
    "activities",
    "busy_steps",
    "executions",
    "failure_note",
    "in_words",
    "last_acts",
    "seconds",
]

_brief = reprlib.Repr()
_brief.maxother = 120


def seconds(number: float) -> str:
    """Write a time."""
    return f"{number:.3g} s" if number < 1000 else f"{number:.0f} s"


def in_words(came: type | None, spec: StepSpec) -> str:
    """Say what an execution of a step did, from the type of what it returned or raised."""
    if came is None:
        return "was cancelled"
    if issubclass(came, BaseException):
        return f"failed with {came.__name__}"
    if came is types.NoneType:
        if spec.returns_none:
            return "returned None"
        return f"returned None, though it declares {spec.declared}"
    return "returned a list of events" if came is list else f"returned {came.__name__}"


def failure_note(work: Work, elapsed: float) -> str:
    """Say which step failed on what; goes with its exception, as a note."""
    return (
        f"step {work.post.spec.name} failed on {_brief.repr(work.payload)}, in attempt "
        f"{work.attempt}, {seconds(elapsed)} after its first start"
    )


def last_acts(ledger: Ledger) -> dict[str, str]:
    """Say what each step last did."""
    posts = {name: ledger.posts.by_step.get(name) for name in ledger.graph.steps}
    return {
        name: in_words(post.last, post.spec) if post is not None and post.done else "has not run"
        for name, post in posts.items()
    }


def activities(ledger: Ledger, now: float) -> Mapping[str, str]:
    """Say what each step is doing that is doing anything, or has something to do."""
    owed: dict[str, list[Work]] = {}
    for work in ledger.owed.values():
        owed.setdefault(work.post.spec.name, []).append(work)
    return {
        name: ", ".join(_activities(work[0].post, work, now)) for name, work in sorted(owed.items())
    }


def executions(ledger: Ledger) -> dict[str, int]:
    """Count the executions that are over, of each step that had one."""
    return {name: post.done for name, post in sorted(ledger.posts.by_step.items()) if post.done}


def busy_steps(ledger: Ledger) -> list[str]:
    """Return the sorted names of the steps that are being executed in the event loop."""
    return sorted(
        {
            work.post.spec.name
            for work in ledger.owed.values()
            if work.started is not None and not work.suspended and work.post.spec.is_async
        }
    )


def _activities(post: Post, owed: list[Work], now: float) -> Iterator[str]:
    running = [
        now - work.started for work in owed if work.started is not None and not work.suspended
    ]
    if running:
        yield f"running for {seconds(max(running))}{_times(len(running))}"
    waits = [wait for work in owed for wait in work.waits]
    if waits:
        wanted = ", ".join(dict.fromkeys(wait.event_type.__name__ for wait in waits))
        yield f"waiting for {wanted}{_times(len(waits))}"
    if post.returning:
        yield f"waiting for a worker to go on{_times(len(post.returning))}"
    delayed = [work for work in owed if work.due is not None]
    if delayed:
        first = min(delayed, key=lambda work: work.due or 0)
        assert first.due is not None
        when = f"in {seconds(first.due - now)}" if first.due > now else "now"
        yield f"in a retry delay{_times(len(delayed))}, attempt {first.attempt} is due {when}"
    if post.queued:
        yield f"{post.queued} queued"


def _times(number: int) -> str:
    return "" if number == 1 else f" ({number} times)"
