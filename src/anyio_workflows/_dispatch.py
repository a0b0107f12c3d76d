"""What comes from steps and from outside, and what becomes of it.

# Theory of operation
#
# Results, failures and sent events arrive here, one at a time, and are settled at once: the ledger
# says whose work an event is, and the crew is handed that work. What can end the run, a stop event
# or a failure that nobody takes, goes to the run as an outcome.
#
# Rules
# =====
#
# 1. What an execution came to is handed over once, with `take_result()`, `take_error()`,
#    `take_fault()` or `take_interruption()`, and each of these ends it in the ledger.
# 2. A failure is tried again, else taken by a `@catch_error` step, else it ends the run. Only
#    an `Exception` of a run that is undecided gets that far (X2).
"""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Protocol

import attrs

from ._backend import is_cancellation
from ._crew import Crew
from ._ledger.fanin import NO_RECOVERIES, Branch, Recoveries
from ._ledger.ledger import Ledger
from ._ledger.pending import RunPort
from ._ledger.work import Work
from ._narrator import Narrator
from ._outcome import Outcome
from ._stream import EventStream
from ._words import failure_note, in_words, last_acts
from .context import advice
from .errors import WorkflowRuntimeError, WorkflowStalledError
from .events import Event, ExecutionOutcome, InputRequiredEvent, StepFailedEvent, StopEvent
from .graph import StepSpec
from .steps import is_positive_number

__all__ = ["Decider", "Dispatch"]

logger = logging.getLogger(__name__)

_told_of_none: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()
"""The functions of the steps that have returned `None` undeclared, in any run of this process."""


class Decider(RunPort, Protocol):
    """A run, as far as it decides how it ends."""

    stream: EventStream
    outcome: Outcome | None

    def decide(self, outcome: Outcome) -> None:
        """Settle the outcome, unless there is an earlier cause."""
        ...

    def take_cancellation(self) -> None:
        """Settle the outcome, if that is open, of a run that is being cancelled or out of time."""
        ...


@attrs.define(eq=False, repr=False)
class Dispatch:
    """The way of events into the ledger, and of work from there to the crew.

    Attributes:
        run: The run.
        crew: Its workers.
        narrator: Tells what happens, to those who asked.
        stall_check: Whether to fail when nothing can happen any more (T9).
    """

    run: Decider
    crew: Crew
    narrator: Narrator
    stall_check: bool
    _ledger: Ledger = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._ledger = self.run.ledger

    def emit(
        self,
        event: Event,
        target: StepSpec | None = None,
        source: Work | None = None,
        branch: Branch | None = None,
        recoveries: Recoveries = NO_RECOVERIES,
    ) -> None:
        """Give an event to the steps that take it, or let it end the run.

        Args:
            event: The event.
            target: The only step that is to have it.
            source: The work whose execution returned it, and is about to end.
            branch: The branch of a batch that it belongs to.
            recoveries: How often its ancestors have been recovered.
        """
        if isinstance(event, StopEvent):
            self.run.decide(Outcome.stopped(event))
            return
        asks = isinstance(event, InputRequiredEvent)
        if asks:
            self._ask(event)
        work = self._ledger.route(event, target, branch, recoveries)
        if work:
            self.crew.deliver(work)
        elif work is None and not asks:
            self.narrator.unhandled(event, idle=self._ledger.is_quiet(besides=source))

    def send(
        self, event: Event, target: StepSpec | None, recoveries: Recoveries
    ) -> tuple[str, ...]:
        """Give an event that is sent to the steps that take it, or let it end the run.

        Returns:
            The names of the steps that took it (R3).
        """
        if isinstance(event, StopEvent):
            self.run.decide(Outcome.stopped(event))
            return ()
        asks = isinstance(event, InputRequiredEvent)
        if asks:
            self._ask(event)
        taken_by, work = self._ledger.send(event, target, recoveries)
        self.crew.deliver(work)
        if not taken_by and not asks:
            self.narrator.unhandled(event, idle=self._ledger.is_quiet())
        return taken_by

    def _ask(self, question: Event) -> None:
        """Publish a question (S5), which is asked again after a restore if nobody reads it (W4)."""
        stream = self.run.stream
        stream.write(question)
        self._ledger.ask(question, stream.written, stream.delivered)

    def _emit_list(self, events: list[Event], source: Work) -> None:
        """Open a batch with a branch for each event (F1)."""
        batch = self._ledger.open_batch(source)
        for event in events:
            branch = self._ledger.open_branch(batch)
            self.emit(event, None, source, branch, source.recoveries)
            if branch.ended:
                self.crew.deliver(self._ledger.seal_branch(branch))
        self.crew.deliver(self._ledger.seal_batch(batch))

    def end_delays(self) -> None:
        """Hand over the work whose retry delay is over."""
        self.crew.deliver(self._ledger.posts.end_delays(self.run.home.current_time()))

    def note_if_idle(self) -> None:
        """See whether anything is going on, and if not, whether anything can (T9)."""
        if self.run.outcome is not None or not self._ledger.is_quiet():
            return
        ledger = self._ledger
        if not ledger.idle or ledger.input_asked or ledger.graph.takes_outside_events:
            self.narrator.idle()
        elif self.stall_check:
            error = WorkflowStalledError(last_acts(ledger), ledger.missing())
            self.run.decide(Outcome.stalled(ledger.last_finished, error))

    # --- What the crew hands over -------------------------------------------------------------

    def take_result(self, work: Work, result: Any, now: float) -> None:
        """Take what a step returned: route it, or fail the step for it (R4)."""
        if work.dropped:
            self.take_interruption(work)
            return
        spec = work.post.spec
        if type(result) not in spec.returns and (fault := spec.result_fault(result)):
            self._give_up(work, WorkflowRuntimeError(fault), now)
            return
        if self.run.outcome is not None and not isinstance(result, StopEvent):
            what = in_words(type(result), spec)
            logger.info("%s: too late, step %s %s", self.run, spec.name, what)
        elif isinstance(result, Event):
            self.emit(result, None, work, work.branch, work.recoveries)
        elif result is not None:
            self._emit_list(result, work)
        elif not spec.returns_none:
            self._warn_of_none(spec)
        self._end(work, "returned", result)

    def _warn_of_none(self, spec: StepSpec) -> None:
        """Tell, once, that a step returns `None` though its annotation does not say so (R4)."""
        function = inspect.unwrap(spec.function)  # a step that a test has wrapped is no other
        if function not in _told_of_none:
            _told_of_none.add(function)
            logger.warning(
                "%s: step %s returned None, though it declares %s; is a 'return' missing? If not, "
                "add '| None' to its annotation (this is told once)",
                self.run,
                spec.name,
                spec.declared,
            )

    def take_error(self, work: Work, error: BaseException, now: float) -> None:
        """Take what a step raised: try it again, or give up (rule 2)."""
        if isinstance(error, Exception) and not work.dropped and self.run.is_running:
            try:
                delay = _ask_policy(work, error, now)
            except BaseException as exc:
                self.take_fault(work, _policy_error(work, exc, error), now)
                return
            if delay is not None:
                self._retry(work, error, now, delay)
                return
        self._give_up(work, error, now)

    def take_fault(self, work: Work, error: BaseException, now: float) -> None:
        """Take an error that can neither be tried again nor be taken by a step; it fails the run."""
        name = work.post.spec.name
        if work.dropped and isinstance(error, Exception):
            words = in_words(type(error), work.post.spec)
            logger.warning("%s: dropped step %s %s", self.run, name, words, exc_info=error)
        else:
            elapsed = _elapsed(work, now)
            _annotate(error, work, elapsed)
            self.run.decide(Outcome.failed(name, error, work.attempt, elapsed, work.id))
        self._end(work, "failed", error)

    def take_interruption(self, work: Work) -> None:
        """Take note that an execution was cancelled, with the run or with its batch."""
        if not work.dropped:
            self.run.take_cancellation()
        self._end(work, "cancelled")

    def _retry(self, work: Work, error: Exception, now: float, delay: float) -> None:
        past = work.past
        past.first_started = work.first_started
        past.last_error, past.last_failed_at = error, datetime.now(UTC)
        if self.narrator.has_audience:
            self.narrator.step_retried(work, error, delay)
        self._ledger.delay(work, now + delay)
        self.crew.tend_delays()

    def _give_up(self, work: Work, error: BaseException, now: float) -> None:
        """Let a `@catch_error` step take over, if there is one with recoveries left (X4)."""
        catcher = self._ledger.graph.catcher_of(work.post.spec)
        recoverable = isinstance(error, Exception) and not work.dropped and self.run.is_running
        if catcher is None or not recoverable or not _has_recoveries_left(catcher, work):
            self.take_fault(work, error, now)
            return
        assert isinstance(error, Exception)
        elapsed = _elapsed(work, now)
        _annotate(error, work, elapsed)
        failure = StepFailedEvent(
            step_name=work.post.spec.name,
            input_event=work.payload,
            exception=error,
            attempts=work.attempt,
            elapsed_seconds=elapsed,
            failed_at=datetime.now(UTC),
        )
        recoveries = {**work.recoveries, catcher.name: work.recoveries.get(catcher.name, 0) + 1}
        self.emit(failure, target=catcher, branch=work.branch, recoveries=recoveries)
        self._end(work, "recovered", error)
        self.narrator.step_recovered(work, error, catcher.name)

    def _end(self, work: Work, outcome: ExecutionOutcome, result: Any = None) -> None:
        """Finish work whose execution returned or raised `result`, or was cancelled."""
        if self.narrator.has_audience:
            self.narrator.step_ended(work, outcome, result)
        came = None if outcome == "cancelled" else type(result)
        failed = outcome != "returned" and outcome != "cancelled"
        if joins := self._ledger.finish(work, came, failed):
            self.crew.deliver(joins)
        if not self._ledger.posts.calls:
            self.note_if_idle()


def _ask_policy(work: Work, error: Exception, now: float) -> float | None:
    """Return the seconds until the next attempt; `None` if there is to be none (X1).

    Raises:
        WorkflowRuntimeError: If the policy answers something else.
        BaseException: What the policy raises.
    """
    policy = work.post.spec.config.retry_policy
    if policy is None:
        return None
    delay = policy.next(_elapsed(work, now), work.attempt, error)
    if delay is not None and not is_positive_number(delay, or_zero=True):
        raise WorkflowRuntimeError(
            f"the retry policy of step {work.post.spec.name} answered {delay!r}; it is to answer a "
            "number of seconds, 0 or more, or None"
        )
    return delay


def _policy_error(work: Work, raised: BaseException, error: Exception) -> BaseException:
    """Return what a policy raised, with the step's error as its cause."""
    if isinstance(raised, StopIteration) or is_cancellation(raised):  # would be misunderstood (T5)
        what = f"the retry policy of step {work.post.spec.name} raised {type(raised).__name__}"
        raised = WorkflowRuntimeError(what)
    if raised is not error and raised.__cause__ is None:
        raised.__cause__ = error
    return raised


def _elapsed(work: Work, now: float) -> float:
    """Return the seconds since the first attempt began."""
    return now - (now if work.first_started is None else work.first_started)


def _has_recoveries_left(catcher: StepSpec, work: Work) -> bool:
    catch = catcher.config.catch
    assert catch is not None
    return work.recoveries.get(catcher.name, 0) < catch.max_recoveries


def _annotate(error: BaseException, work: Work, elapsed: float) -> None:
    """Say with an error which step failed on what, and what to do about it if that is known."""
    add_note(error, failure_note(work, elapsed))
    if hint := advice(error):
        add_note(error, hint)


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception, once; some exceptions refuse."""
    with suppress(Exception):
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
