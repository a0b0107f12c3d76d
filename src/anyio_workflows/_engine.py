"""The run: the only task group of the library.

# Theory of operation
#
# A run is one AnyIO task group, opened by its *host*, a background task of the event loop. The host
# executes no step code: a step that shields itself, or leaves a cancel scope broken, must not take
# the host with it. Steps are executed by the crew, in child tasks.
#
#   host      wait for the decision -> cancel the crew, wait for it -> publish -> leave
#   crew      take work -> execute the step -> hand over what it returned or raised
#
# Rules
# =====
#
# 1. The outcome is decided once, synchronously, by `_decide`. The first cause wins (T4), where
#    the deadline counts from the moment it passed, not from when somebody noticed.
# 2. The terminal event is published, and `ended` set, by `close` alone (T1, T3); before that
#    no worker is alive, except those that outlasted the cleanup timeout (T6).
"""

from __future__ import annotations

import logging
import math
import os
import reprlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import attrs
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from ._backend import Home
from ._crew import Crew, is_cancellation
from ._ledger import Ledger, StepStatistics, Work
from ._outcome import Outcome
from ._stream import EventStream
from .errors import WorkflowRuntimeError
from .events import (
    Event,
    InputRequiredEvent,
    StopEvent,
    UnhandledEvent,
)
from .graph import Graph, StepSpec

__all__ = ["Run"]

logger = logging.getLogger(__name__)
verbose_logger = logging.getLogger("anyio_workflows.verbose")


@attrs.define(eq=False, init=False, repr=False)
class Run:
    """One run of a workflow, from its start event to its terminal event.

    Attributes:
        workflow: The workflow instance whose steps are executed.
        name: Name of the workflow, for messages.
        home: The event loop the run lives in.
        run_id: Identifies the run in logs.
        stream: The public event stream.
        ledger: Who is owed what.
        outcome: How the run ends, once that is decided.
        ended: Whether the terminal event has been published.
        observed: Whether somebody has seen the outcome.
        deadline: When the run times out, on the loop's clock.
        verbose: Whether to tell about each step.
    """

    workflow: object
    name: str
    home: Home
    run_id: str
    stream: EventStream
    ledger: Ledger
    outcome: Outcome | None
    ended: bool
    observed: bool
    deadline: float
    verbose: bool
    _timeout: float | None
    _cleanup_timeout: float
    _crew: Crew
    _group: TaskGroup | None
    _handler_gone: bool
    _decided: anyio.Event | None
    _done: anyio.Event | None

    def __init__(
        self,
        workflow: object,
        graph: Graph,
        start_event: Event,
        home: Home,
        *,
        name: str,
        run_id: str | None = None,
        timeout: float | None,
        cleanup_timeout: float,
        verbose: bool,
    ) -> None:
        self.workflow = workflow
        self.name = name
        self.home = home
        self.run_id = os.urandom(16).hex() if run_id is None else run_id
        self.stream = EventStream(home)
        self.ledger = Ledger(graph)
        self.outcome = None
        self.ended = self.observed = False
        self._timeout = timeout
        self._cleanup_timeout = cleanup_timeout
        self.verbose = verbose
        self.deadline = math.inf
        self._crew = Crew(self, name)
        self._group = None
        self._handler_gone = False
        self._decided = self._done = None
        self._emit(start_event)

    def start(self) -> None:
        """Start the host in the background. No step begins inside this call (O1)."""
        try:
            self.home.start(self._host, self.close)
        except BaseException:
            self.close()
            raise

    # --- What steps and the handler do ------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether the outcome is still open."""
        return self.outcome is None

    def active_steps(self) -> list[str]:
        """Return the sorted names of the steps with an execution in progress."""
        return self.ledger.active_steps()

    def statistics(self) -> dict[str, StepStatistics]:
        """Return the counts of every step."""
        return self.ledger.statistics()

    def write(self, event: Event) -> None:
        """Write to the public stream, also while steps are cleaning up (T7)."""
        self._refuse_if_ended(f"{type(event).__name__} cannot be written to the stream")
        self.stream.write(event)

    def send(self, event: Event, step: str | None = None) -> None:
        """Route an event that a step or somebody outside sends (R3)."""
        if not isinstance(event, Event):
            raise WorkflowRuntimeError(
                f"only events can be sent, not {reprlib.repr(event)} ({type(event).__qualname__})"
            )
        self._refuse_if_ended(f"{type(event).__name__} cannot be sent")
        target = self.ledger.check_target(event, step)
        if self.outcome is not None:
            logger.info("%s: %s was sent too late and dropped", self, type(event).__name__)
            return
        self._emit(event, target)
        self._crew.hire()

    def cancel(self, reason: str) -> None:
        """Decide that the run is cancelled, unless its outcome is decided already (T10)."""
        if self.outcome is None:
            self._decide(Outcome.cancelled(reason))

    async def wait_until_ended(self) -> None:
        """Wait until the terminal event has been published."""
        if not self.ended:
            if self._done is None:
                self._done = anyio.Event()
            await self._done.wait()

    def handler_gone(self) -> None:
        """Note that nobody can ask for the outcome any more (O6)."""
        self._handler_gone = True
        self._report_if_unseen()

    def _refuse_if_ended(self, what: str) -> None:
        if self.ended:
            assert self.outcome is not None
            raise WorkflowRuntimeError(f"{what}: the run has ended, {self.outcome.summary}")

    # --- Routing and the decision -----------------------------------------------------------

    def _emit(self, event: Event, target: StepSpec | None = None) -> None:
        """Give an event to the steps that take it, or let it end the run."""
        if isinstance(event, StopEvent):
            self._decide(Outcome.stopped(event))
            return
        asks = isinstance(event, InputRequiredEvent)
        if asks:
            self.stream.write(event)
        work = self.ledger.route(event, target)
        for item in work:
            self._crew.deliver(item)
        if not work and not asks:
            self._note_unhandled(event)

    def _note_unhandled(self, event: Event) -> None:
        cls = type(event)
        logger.warning("%s: no step accepts %s; it is dropped", self, cls.__name__)
        if self.stream.internal_wanted:
            qualified_name = f"{cls.__module__}.{cls.__qualname__}"
            self.stream.write(
                UnhandledEvent(
                    event_type=cls.__name__, qualified_name=qualified_name, idle=self.ledger.idle
                )
            )

    def _decide(self, outcome: Outcome) -> None:
        """Settle the outcome; the first cause wins (rule 1)."""
        if self.outcome is None:
            self._settle(self._earlier_cause() or outcome)
        if self.outcome is not outcome and not outcome.is_cancellation:
            level = logging.WARNING if outcome.error else logging.INFO
            message = "%s: changes nothing any more: %s"
            logger.log(level, message, self, outcome.summary, exc_info=outcome.error)

    def _settle(self, outcome: Outcome) -> None:
        self.outcome = outcome
        if self._decided is not None:
            self._decided.set()

    def _earlier_cause(self) -> Outcome | None:
        """Return the outcome that nobody has noticed yet, if there is one."""
        if self.home.current_time() >= self.deadline:
            assert self._timeout is not None
            return Outcome.timed_out(self._timeout, self.active_steps())
        if self.home.host_cancelled() and not self._group_cancelled():
            return Outcome.cancelled("its event loop ended")
        return None

    def _group_cancelled(self) -> bool:
        return self._group is not None and self._group.cancel_scope.cancel_called

    # --- The host ---------------------------------------------------------------------------

    async def _host(self) -> None:
        try:
            await checkpoint()  # an eager task factory is still inside `Workflow.run()`
            async with anyio.create_task_group() as group:
                self._open(group)
                await self._wait_until_decided()
                await self._wait_until_quiet(group)
                self.close()
        except BaseException as exc:
            if not is_cancellation(exc):
                logger.error("%s: its task group broke", self, exc_info=exc)

    def _open(self, group: TaskGroup) -> None:
        self._group = group
        if self._timeout is not None:
            self.deadline = self.home.current_time() + self._timeout
            group.cancel_scope.deadline = self.deadline
        self._crew.open(group)

    async def _wait_until_decided(self) -> None:
        if self.outcome is None:
            self._decided = anyio.Event()
            try:
                await self._decided.wait()
            except anyio.get_cancelled_exc_class():
                self.take_cancellation()

    async def _wait_until_quiet(self, group: TaskGroup) -> None:
        """Cancel the workers and wait for them, for `cleanup_timeout` seconds at most (T6)."""
        if not self._crew.size:
            return
        group.cancel_scope.cancel()
        with anyio.move_on_after(self._cleanup_timeout, shield=True) as patience:
            while self._crew.size:
                # Besides running out of patience, it is natively cancelled if the loop ends now.
                with suppress(anyio.get_cancelled_exc_class()):
                    await self._crew.wait_until_gone()
                if patience.cancel_called:
                    break
        if self._crew.size:
            logger.warning(
                "%s: gave up waiting for steps that go on %g seconds after being cancelled: %s",
                self,
                self._cleanup_timeout,
                ", ".join(self.active_steps()),
            )

    def close(self) -> None:
        """Publish the terminal event and end the run (rule 4)."""
        if self.ended:
            return
        self.cancel("its event loop ended")
        assert self.outcome is not None
        self.ended = True
        self.stream.close(self.outcome.event)
        self._crew.close()
        if self._done is not None:
            self._done.set()
        self.say("Run ended: %s", self.outcome.summary)
        self._report_if_unseen()

    def _report_if_unseen(self) -> None:
        """Log a failure that nobody can see any more, once (O6)."""
        if not (self.ended and self._handler_gone) or self.observed or self.stream.consumed:
            return
        assert self.outcome is not None
        if self.outcome.error and not self.outcome.is_cancellation:
            self.observed = True
            logger.error("%s: nobody saw its failure", self, exc_info=self.outcome.error)

    # --- What the crew hands over -------------------------------------------------------------

    def take_result(self, work: Work, result: Any, elapsed: float) -> None:
        """Take what a step returned: route it, or fail the step for it (R4)."""
        spec = work.post.spec
        if result is None and spec.returns_none:
            self.say("Step %s produced no event", spec.name)
        elif result is None or not issubclass(type(result), spec.returns):
            self.take_error(work, WorkflowRuntimeError(_wrong_result(spec, result)), elapsed)
        elif self.outcome is not None and not isinstance(result, StopEvent):
            logger.info("%s: step %s returned %s too late", self, spec.name, type(result).__name__)
        else:
            if self.verbose:
                self.say("Step %s produced event %s", spec.name, type(result).__name__)
            self._emit(result)

    def take_error(self, work: Work, error: BaseException, elapsed: float) -> None:
        """Take what a step raised; it fails the run."""
        name = work.post.spec.name
        self.say("Step %s failed with %s", name, type(error).__name__)
        self._decide(Outcome.failed(name, error, work.attempt, elapsed))

    def take_cancellation(self) -> None:
        """Settle the outcome, if that is open, of a run that is being cancelled or out of time."""
        if self.outcome is not None:
            return
        step = self.ledger.last_finished or "?"
        error = WorkflowRuntimeError(
            f"a step, probably {step}, left a cancel scope or task group open, which broke the "
            "run's task group; leave them where you entered them, with 'with'"
        )
        self._settle(self._earlier_cause() or Outcome.failed(step, error))

    def being_cancelled(self) -> bool:
        """Tell whether a cancellation in one of the run's tasks comes from outside the step."""
        return self._group_cancelled() or self.home.host_cancelled()

    def say(self, message: str, *args: object) -> None:
        """Tell what happens, for `verbose=True`."""
        if self.verbose:
            if verbose_logger.isEnabledFor(logging.INFO):
                verbose_logger.info(message, *args)
            else:
                with suppress(OSError, ValueError):  # a closed standard output ends no run
                    print(message % args)

    def __repr__(self) -> str:
        return f"run {self.run_id} of {self.name}"


def _wrong_result(spec: StepSpec, result: object) -> str:
    declared = [t.__name__ for t in spec.returns] + ["None"] * spec.returns_none
    got = "None" if result is None else f"{reprlib.repr(result)} ({type(result).__qualname__})"
    remedy = "is a 'return' missing?" if result is None else "return one of those"
    return (
        f"step {spec.name} returned {got}, but declares {' | '.join(declared) or 'no return'}; "
        f"{remedy}"
    )


if TYPE_CHECKING:
    from ._crew import Employer

    def _is_employer(run: Run) -> Employer:
        return run
