"""The run: the only task group of the library, from the start event to the terminal event."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from typing import ClassVar

import anyio
import attrs
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from .._backend import LoopHandle, is_cancellation
from .._ledger.fanin import NO_RECOVERIES, Branch
from .._ledger.ledger import Ledger
from .._ledger.pending import LedgerRecord, RunPort, SavedState, restore
from .._ledger.work import Wait, Work
from .._messages import add_note, held_by, short_repr
from ..context import _check_event
from ..errors import WorkflowRuntimeError
from ..events import Event, InputRequiredEvent
from ..instrument import Instrument
from .block import WorkflowBlock
from .blocking import holds_of
from .instruments import Instruments, InternalEvents
from .limiter import RunLimiter, RunSlot
from .outcome import Decision, Outcome
from .resources import ResourceManager, SharedValues
from .stream import EventStream, LoggedStream
from .workers import Dispatch, Inboxes, WorkerPool

logger = logging.getLogger(__name__)


@attrs.frozen
class RunSettings:
    """What a workflow says about each of its runs.

    Attributes:
        name: Name of the workflow, for messages.
        timeout: Seconds that the run may take; `None` for no limit.
        cleanup_timeout: Seconds that cancelled steps have before the run ends without them.
        stall_check: Whether to fail when nothing can happen any more (T9).
        slow_step_warning: Seconds for which a step may hold the event loop without a warning; `None`
            for no limit (I4).
    """

    name: str
    timeout: float | None = 45.0
    cleanup_timeout: float = 5.0
    stall_check: bool = True
    slow_step_warning: float | None = 0.5


@attrs.define(eq=False, repr=False)
class Run:
    """One run of a workflow, from its start event to its terminal event.

    Attributes:
        workflow: The workflow instance whose steps are executed.
        saved: What one run leaves to the next.
        loop: The event loop the run lives in.
        parent: The run whose step started this one, if any (O5).
        stream: The public event stream.
        ledger: What is pending, which execution has a slot, which step gets an event.
        ended: Whether the terminal event has been published; set by `close()` alone.
        observed: Whether the failure has been retrieved, or logged because it cannot be any more (O6).
    """

    workflow: object
    saved: SavedState
    loop: LoopHandle
    _settings: RunSettings
    _run_id: str | None = None
    parent: RunPort | None = None
    _shared: SharedValues | None = None
    """What it shares with the other runs of the workflow; `None` if no step uses any of it (P5)."""

    _shared_instruments: list[Instrument] = attrs.field(factory=list)
    """The instruments of the workflow, told about all of its runs (I1)."""

    _block: WorkflowBlock | None = None
    """The block of the workflow that it was started in, if any; left by `close()` (O3)."""

    ended: bool = False
    observed: bool = False
    stream: EventStream | LoggedStream = attrs.field(init=False)
    ledger: Ledger = attrs.field(init=False)
    _decision: Decision = attrs.field(init=False)
    _inboxes: Inboxes = attrs.field(factory=Inboxes, init=False)
    _instruments: Instruments = attrs.field(init=False)
    _dispatch: Dispatch = attrs.field(init=False)
    _pool: WorkerPool = attrs.field(init=False)

    _slot: RunSlot | None = attrs.field(default=None, init=False)
    """Its slot, or its request for one, if the runs of the workflow are limited; released by `close()`."""

    _starting: bool = attrs.field(default=True, init=False)
    """True inside `start()`, where an eager task factory runs the host up to its first wait."""

    _handler_gone: bool = attrs.field(default=False, init=False)
    """Whether the handler is gone, so that nothing can retrieve a failure any more (O6)."""

    _children: dict[Run, None] = attrs.field(factory=dict, init=False)
    """The runs that its steps started and that have not ended: it ends after them (O5)."""

    _done: anyio.Event | None = attrs.field(default=None, init=False)
    """Set when the run has ended, once a task waits for that."""

    def __attrs_post_init__(self) -> None:
        saved, settings = self.saved, self._settings
        self.stream, self.ledger = self._new_stream(), self._new_ledger()
        if (pending := saved.pending_work()) is not None:
            self._inboxes.deliver(self._restore(pending))
        self._decision = self._new_decision()
        self._instruments = Instruments(self, settings.name, self._shared_instruments)
        self._dispatch = self._new_dispatch()
        self._pool = self._pool_class(
            self,
            self.workflow,
            settings.name,
            self._decision,
            self._dispatch,
            self._inboxes,
            settings.slow_step_warning,
        )
        saved.begin(self)

    # --- Its parts: a runtime makes them in another way -------------------------------------

    _pool_class: ClassVar[type[WorkerPool]] = WorkerPool

    def _new_stream(self) -> EventStream | LoggedStream:
        return EventStream(self.loop)

    def _new_ledger(self) -> Ledger:
        return Ledger(self.saved.graph)

    def _new_decision(self) -> Decision:
        return Decision(self, self._settings.timeout)

    def _new_dispatch(self) -> Dispatch:
        stall_check = self._settings.stall_check
        return Dispatch(self, self._decision, self._inboxes, self._instruments, stall_check)

    def _restore(self, pending: LedgerRecord) -> list[Work]:
        """Make what was recorded pending; returns the work to be carried to its steps."""
        queued, branches = restore(pending, self.ledger, self.loop.current_time())
        return queued + self._seal(branches)

    def _seal(self, branches: Mapping[int, Branch]) -> list[Work]:
        """Seal restored branches, which are given by the ids of the record; returns joins that fire."""
        return [work for branch in branches.values() for work in self.ledger.seal_branch(branch)]

    def start(
        self,
        event: Event | None,
        limiter: RunLimiter | None,
        instruments: Iterable[Instrument] = (),
    ) -> None:
        """Route the start event, if there is one, and start the host in the background.

        No step begins inside this call (O1).

        Args:
            event: The start event; `None` if the run continues from a context.
            limiter: Limits the runs of the workflow (R7).
            instruments: The instruments of this run alone.
        """
        try:
            if self.parent is not None:  # first, since a parent that is ending refuses it
                self.parent.adopt(self)
            if instruments or self._shared_instruments:
                self._instruments.start(instruments, event)
            for _, question in self.ledger.questions or ():
                self._publish(question)
            if limiter is not None and not self._has_ancestor_of_same_workflow():
                self._slot = limiter.request(self.loop.token)
            if event is not None:
                self._dispatch.emit(event)
            if self._block is not None:
                self._block.runs[self] = None
            self.loop.start(self._host, self.close)
        except BaseException:
            self.close()
            raise
        finally:
            self._starting = False

    # --- What steps and the handler do ------------------------------------------------------

    @property
    def run_id(self) -> str:
        """Identifies the run in logs; made up when first asked for."""
        if self._run_id is None:
            self._run_id = os.urandom(16).hex()
        return self._run_id

    @property
    def outcome(self) -> Outcome | None:
        """How the run ends, once that is decided."""
        return self._decision.outcome

    @property
    def is_running(self) -> bool:
        """Whether the outcome is still open."""
        if self.outcome is not None:
            return False
        # Else in the thread of a sync step, or in a method of an instrument, which must change nothing.
        if self.loop.is_here() and not self._instruments.telling:
            self._decision.check_cancellation()
        return self.outcome is None

    @property
    def has_begun(self) -> bool:
        """Whether it has a slot among the concurrent runs, and its host has begun."""
        return self._decision.clock_started

    def check_cancellation(self) -> None:
        """Decide the outcome if the run is being cancelled and the host has not noticed yet."""
        self._decision.check_cancellation()

    @property
    def events_read(self) -> int:
        """How many events of the public stream count as read (W4)."""
        return self.stream.delivered

    async def drain(
        self, limit: int, while_allowed: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """Wait until at most `limit` events of the public stream are unread (S6)."""
        await self.stream.drain(limit, while_allowed)

    def ask(self, question: Event) -> int:
        """Write a question to the public stream; returns its number there."""
        self.write(question)
        return self.stream.written

    def write(self, event: Event) -> None:
        """Write to the public stream, also while steps are cleaning up (T7)."""
        if self.ended:
            raise self._refusal(f"{type(event).__name__} cannot be written to the stream")
        if self._instruments.telling:
            self.check_not_telling(f"{type(event).__name__} cannot be written to the stream")
        if isinstance(event, InputRequiredEvent):
            self.ledger.input_asked = True
        self._publish(event)

    def _publish(self, event: Event) -> None:
        self.stream.write(event)
        if self._instruments.active:
            self._instruments.event_written(event)

    def send(
        self, event: Event, step: str | None = None, sender: Work | None = None
    ) -> tuple[str, ...]:
        """Route an event that is sent; returns the names of the steps that took it (R3)."""
        _check_event(event, "sent")
        if self.ended:
            raise self._refusal(f"{type(event).__name__} cannot be sent")
        self.check_not_telling(f"{type(event).__name__} cannot be sent")
        target = self.ledger.check_target(event, step)
        if not self.is_running:
            logger.info(
                "%s: %s was dropped, because it was sent after the outcome was decided",
                self,
                type(event).__name__,
            )
            return ()
        recoveries = NO_RECOVERIES if sender is None else sender.recoveries
        if self._instruments.active:
            self._instruments.sending(sender)
        taken_by = self._dispatch.send(event, target, recoveries)
        if self._instruments.active:
            self._instruments.event_sent(event, taken_by, step)
        self._pool.spawn_worker()
        return taken_by

    def answer(self, event: Event, wait_id: str, step: str | None) -> tuple[str, ...]:
        """Answer one open wait; returns the name of the step that waits (W5)."""
        _check_event(event, "sent")
        self.check_open(f"{type(event).__name__} cannot be sent")
        self.check_not_telling(f"{type(event).__name__} cannot be sent")
        if not isinstance(wait_id, str):
            what = short_repr(wait_id)
            raise WorkflowRuntimeError(f"wait is the id of an open wait, a str, not {what}")
        if self._instruments.active:
            self._instruments.sending(None)
        taken_by = (self.ledger.answer(event, wait_id, step),)
        if self._instruments.active:
            self._instruments.event_sent(event, taken_by, step, wait_id)
        self._pool.spawn_worker()
        return taken_by

    def listen(self, write: Callable[[Event], None] | None = None) -> None:
        """Publish the internal events as well, from now on (S4): in the public stream, or with `write`."""
        if self.ended or self.stream.internal_wanted:
            return
        self.check_not_telling("internal events cannot be asked for")
        self.stream.internal_wanted = True
        internal_events = InternalEvents(write or self.stream.write)
        internal_events.write_states(self._instruments.join(internal_events))

    def check_open(self, what: str) -> None:
        """Raise if the outcome is decided; `what` begins the message."""
        if not self.is_running:
            raise self._refusal(what)

    def check_not_telling(self, what: str) -> None:
        """Raise in a method of an instrument, which only listens (I2); `what` begins the message."""
        if self._instruments.telling:
            raise WorkflowRuntimeError(
                f"{what} by an instrument while it is told what happens: it only listens; let a task do it"
            )

    def note_wait(self, wait: Wait) -> None:
        """Use the slot of an execution that waits now, and see whether the run is idle."""
        if self._instruments.active:
            self._instruments.wait_started(wait)
        self._pool.spawn_worker()
        self._dispatch.check_idle()

    def adopt(self, child: RunPort) -> None:
        """Take charge of a run that one of the steps starts (O5)."""
        assert isinstance(child, Run)
        self.check_open("a step cannot start a run")
        self._children[child] = None

    def cancel(self, reason: str) -> None:
        """Decide that the run is cancelled, unless its outcome is decided already (T10)."""
        if self.outcome is None:
            self.check_not_telling("the run cannot be cancelled")
            self._decision.decide(Outcome.cancelled(reason))

    async def wait_until_ended(self) -> None:
        """Wait until the terminal event has been published."""
        if not self.ended:
            if self._done is None:
                self._done = anyio.Event()
            await self._done.wait()

    def handler_gone(self) -> None:
        """Note that the handler is gone: the outcome cannot be retrieved any more (O6)."""
        self._handler_gone = True
        self._report_if_unseen()

    def _refusal(self, what: str) -> WorkflowRuntimeError:
        """Say that something cannot be done, because of how the run ended (T7)."""
        assert self.outcome is not None
        state = "has ended" if self.ended else "is ending"
        return WorkflowRuntimeError(f"{what}: the run {state}, {self.outcome.summary}")

    def _has_ancestor_of_same_workflow(self) -> bool:
        """Return whether an ancestor is a run of the same workflow instance (R7)."""
        ancestor = self.parent
        while isinstance(ancestor, Run) and ancestor.workflow is not self.workflow:
            ancestor = ancestor.parent
        return ancestor is not None

    # --- The host ---------------------------------------------------------------------------

    async def _host(self) -> None:
        try:
            if self._starting:  # an eager task factory is still inside `Workflow.run()`
                await checkpoint()
            if self._slot is not None:
                await self._wait_for_slot(self._slot)
            if self.outcome is None:
                async with anyio.create_task_group() as group:
                    self._decision.start_clock(group)
                    above = None if self._block is None else self._block.manager
                    resources = self._pool.open(group, self._shared, above)
                    self._dispatch.check_idle()  # a restored run may have nothing to do
                    while self.outcome is None:
                        await self._decision.wait_for_news()
                        if self.outcome is None:
                            self._pool.ensure_workers()
                    await self._wait_until_quiet(group)
                    # Last, because steps that are cleaning up still use them (P5).
                    if resources is not None:
                        await self._close_resources(resources)
                    self.close()
        except BaseException as exc:
            if not is_cancellation(exc):
                logger.error("%s: its task group broke", self, exc_info=exc)

    async def _wait_for_slot(self, slot: RunSlot) -> None:
        """Wait for a slot among the concurrent runs of the workflow, or the decision (R7)."""
        if self.outcome is None:
            with anyio.CancelScope() as self._decision.waiting_scope:
                await slot.wait()
            self._decision.waiting_scope = None

    async def _wait_until_quiet(self, group: TaskGroup) -> None:
        """Cancel the workers and wait for them, for `cleanup_timeout` seconds at most (T6)."""
        # Children first: a step that awaits one is woken by its end, and cleans up meanwhile.
        for child in self._children:
            child.cancel("the run that started it ended")
        if self._pool.size:
            group.cancel_scope.cancel()
            cancelled_at = self.loop.current_time()
            with anyio.move_on_after(self._settings.cleanup_timeout, shield=True) as timeout_scope:
                while self._pool.size:
                    # Besides the timeout, a native cancellation arrives here if the loop ends now: the
                    # steps still get the rest of their time.
                    with suppress(anyio.get_cancelled_exc_class()):
                        await self._pool.wait_until_gone()
                    if timeout_scope.cancel_called:
                        break
            if self._pool.size:
                self._report_given_up(cancelled_at)
        while self._children:  # each ends within its own cleanup timeout
            with anyio.CancelScope(shield=True), suppress(anyio.get_cancelled_exc_class()):
                await next(iter(self._children)).wait_until_ended()

    def _report_given_up(self, cancelled_at: float) -> None:
        """Log which steps have not ended in their time, and which ones held the event loop meanwhile."""
        held = holds_of(self.loop).seen(cancelled_at, self.loop.current_time(), self)
        logger.warning(
            "%s: gave up waiting for steps that are still running %g seconds after being cancelled: %s%s",
            self,
            self._settings.cleanup_timeout,
            ", ".join(self.ledger.queues.active_steps()),
            f"; {held_by(held)}" if held else "",
        )

    async def _close_resources(self, resources: ResourceManager) -> None:
        """Close what the steps used; what fails there fails a run that went well (P5)."""
        for name, error in await resources.close(self._settings.cleanup_timeout):
            assert self.outcome is not None
            if self.outcome.error is None:
                # The one case in which a decided outcome changes, before it is published.
                self._decision.outcome = Outcome.not_closed(name, error)
            else:
                logger.warning("%s: resource %s failed to close", self, name, exc_info=error)

    def close(self) -> None:
        """Publish the terminal event and end the run (T1, T3)."""
        if self.ended:
            return
        self._decision.decide_loop_ended()  # undecided here: asyncio threw the host away, unstarted
        assert self.outcome is not None
        if self.outcome.error is not None and (later := self._decision.later_failures):
            add_note(self.outcome.error, "\n  ".join(["after that:", *later]))
        if (bound := self._settings.slow_step_warning) is not None:
            self._decision.note_delay(bound)
        # From here on nothing can be written but internal events about what ends now: they stand before
        # the terminal event, which is the last one.
        self.ended = True
        if self._instruments.active:
            self._instruments.end_executions()
        self.stream.close(self.outcome.event)
        if self._instruments.active:
            self._instruments.end_run(self.outcome)
        # Only now: waits that are ended here raise in their steps, and say that the run has ended.
        self._inboxes.close()
        self.ledger.close()
        self.saved.drop_dead_writers()
        if self._slot is not None:
            self._slot.release()
        if isinstance(self.parent, Run):
            self.parent._children.pop(self, None)
        if self._block is not None:
            self._block.runs.pop(self, None)
        if self._done is not None:
            self._done.set()
        self._report_if_forgotten(self.outcome)
        self._block = None
        self._report_if_unseen()
        if not self._pool.size:
            # These are not asked for any more, and they refer to the run. Without them it is no cycle:
            # it is freed with its handler, not when the garbage collector comes round (6-11 us).
            del self.saved, self._instruments, self._dispatch, self._pool, self._decision.run

    def _report_if_forgotten(self, outcome: Outcome) -> None:
        """Log that the loop ended before the run was awaited, as its parent or block would (O8)."""
        if self.parent is not None or self._block is not None:
            return
        if outcome.interrupted is not None and self._done is None:
            steps = ", ".join(outcome.interrupted) or "none"
            what = "cancelled, because its event loop ended before it was awaited"
            logger.info("%s: %s; active steps: %s", self, what, steps)

    def _report_if_unseen(self) -> None:
        """Log a failure that can no longer be retrieved, once (O6)."""
        if not (self.ended and self._handler_gone) or self.observed or self.stream.consumed:
            return
        assert self.outcome is not None
        if self.outcome.error and not self.outcome.is_cancellation:
            self.observed = True
            logger.error(
                "%s: failed, and the exception was never retrieved",
                self,
                exc_info=self.outcome.error,
            )

    def __repr__(self) -> str:
        return f"run {self.run_id} of {self._settings.name}"
