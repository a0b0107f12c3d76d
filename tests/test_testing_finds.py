"""The toolkit finds what is wrong: each rule is broken on purpose, one at a time."""

from __future__ import annotations

import gc
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import ref

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import (
    Context,
    Event,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    step,
)
from anyio_workflows._engine.instruments import Instruments
from anyio_workflows._engine.outcome import Decision, Outcome
from anyio_workflows._engine.run import Run
from anyio_workflows._engine.stream import EventIterator, EventStream
from anyio_workflows._engine.workers import WorkerPool
from anyio_workflows._ledger.ledger import Ledger
from anyio_workflows._ledger.work import StepQueues
from anyio_workflows.context import _current_context, _enter_run, _StepContext
from anyio_workflows.errors import WorkflowCancelledByUser, WorkflowTimeoutError
from anyio_workflows.handler import WorkflowHandler
from anyio_workflows.instrument import RunResult
from anyio_workflows.testing import (
    End,
    Moment,
    Pause,
    Scenario,
    TerminationViolation,
    cancel_everywhere,
    check_termination,
    replay,
)

from .conftest import BACKENDS
from .samples import Done, Item, Note

on_each_backend = pytest.mark.parametrize("backend", BACKENDS)


class Fan(Workflow[list[int]]):
    @step
    async def split(self, ev: StartEvent) -> list[Item]:
        return [Item(n=n) for n in range(4)]

    @step(num_workers=2)
    async def work(self, ctx: Context, ev: Item) -> Done:
        try:
            await anyio.sleep(0.5)
        finally:
            ctx.write_event_to_stream(Note(text=ev.n))
        return Done(n=ev.n)

    @step
    async def join(self, done: list[Done]) -> StopEvent:
        return StopEvent(result=[event.n for event in done])


# --- Breakages of the engine -------------------------------------------------------------------

Patch = Callable[[pytest.MonkeyPatch], None]
BREAKAGES: dict[str, Patch] = {}


def breaks(*rules: str) -> Callable[[Patch], Patch]:
    """Register a breakage, with the rules one of which is said to be broken."""

    def register(patch: Patch) -> Patch:
        BREAKAGES[f"{'/'.join(rules)} {patch.__name__}"] = patch
        return patch

    return register


def after(owner: type, name: str, act: Callable[..., Any]) -> Patch:
    """Patch a method: it does something more at its end."""
    original = getattr(owner, name)

    def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        act(self, *args, **kwargs)
        return result

    return lambda patch: patch.setattr(owner, name, patched)


def append(stream: EventStream, event: Event) -> None:
    stream._rest.append(event)
    stream.unread += 1


@breaks("T1")
def the_terminal_event_comes_twice(patch: pytest.MonkeyPatch) -> None:
    after(EventStream, "close", append)(patch)


@breaks("T1")
def an_event_comes_after_the_terminal_one(patch: pytest.MonkeyPatch) -> None:
    after(EventStream, "close", lambda self, event: append(self, Note(text=9)))(patch)


@breaks("T2")
def a_timeout_tells_of_a_cancellation(patch: pytest.MonkeyPatch) -> None:
    def timed_out(error: WorkflowTimeoutError) -> Outcome:
        return Outcome(WorkflowCancelledEvent(), WorkflowCancelledByUser("?"), "?")

    patch.setattr(Outcome, "timed_out", timed_out)


@breaks("T2")
def the_deadline_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    def start_clock(self: Decision, group: Any) -> None:
        self._group = group

    patch.setattr(Decision, "start_clock", start_clock)


@breaks("T2", "T6")
def active_steps_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StepQueues, "active_steps", lambda self: [])


@breaks("T3")
def waiting_ends_with_the_decision(patch: pytest.MonkeyPatch) -> None:
    async def wait_until_ended(self: Run) -> None:
        while self.outcome is None:  # noqa: ASYNC110
            await anyio.sleep(0.25)

    patch.setattr(Run, "wait_until_ended", wait_until_ended)


@breaks("T4")
def the_last_cause_wins(patch: pytest.MonkeyPatch) -> None:
    def decide(self: Decision, outcome: Outcome) -> None:
        self._settle(self._earlier_cause() or outcome)

    patch.setattr(Decision, "decide", decide)


@breaks("T4")
def steps_begin_after_the_decision(patch: pytest.MonkeyPatch) -> None:
    async def execute_steps(self: WorkerPool) -> None:
        run = self._run
        _enter_run(run)
        while run.ledger.queues.first_granted:
            work = self._inboxes.ends[run.ledger.queues.take_slot()][1].receive_nowait()
            work.started = run.loop.current_time()
            self._dispatch.instruments.execution_started(work, work.started)
            self.spawn_worker()
            try:
                context = _StepContext(run, work)
                _current_context.set(ref(context))
                result = await work.queue.spec.invoke(self._workflow, context, work.payload)
            except BaseException as exc:
                self._settle_exception(work, exc, run.loop.current_time())
            else:
                self._settle_result(work, result, run.loop.current_time())

    patch.setattr(WorkerPool, "_execute_steps", execute_steps)


@breaks("T5", "T2")
def a_failure_comes_in_a_group(patch: pytest.MonkeyPatch) -> None:
    original = Outcome.failed

    def failed(step: str, error: BaseException, *args: Any) -> Outcome:
        return original(step, BaseExceptionGroup("unhandled", [error]), *args)

    patch.setattr(Outcome, "failed", failed)


@breaks("T5")
def a_traceback_grows(patch: pytest.MonkeyPatch) -> None:
    def raise_failure(self: WorkflowHandler[Any]) -> None:
        assert self._run.outcome is not None
        if self._run.outcome.error is not None:
            raise self._run.outcome.error

    patch.setattr(WorkflowHandler, "_raise_failure", raise_failure)


@breaks("T6", "S1")
def nobody_waits_for_the_steps(patch: pytest.MonkeyPatch) -> None:
    async def wait_until_quiet(self: Run, group: Any) -> None:
        group.cancel_scope.cancel()

    patch.setattr(Run, "_wait_until_quiet", wait_until_quiet)


@breaks("T6")
def steps_are_not_cancelled(patch: pytest.MonkeyPatch) -> None:
    async def wait_until_quiet(self: Run, group: Any) -> None:
        with anyio.CancelScope(shield=True):
            while self._pool.size:  # noqa: ASYNC110
                await anyio.sleep(0.25)

    patch.setattr(Run, "_wait_until_quiet", wait_until_quiet)


@breaks("T7")
def late_events_are_accepted(patch: pytest.MonkeyPatch) -> None:
    def write(self: Run, event: Event) -> None:
        if not self.ended:
            self.stream.write(event)

    patch.setattr(Run, "write", write)


@breaks("T7")
def cleaning_up_in_silence(patch: pytest.MonkeyPatch) -> None:
    original = Run.write

    def write(self: Run, event: Event) -> None:
        if self.outcome is not None:
            raise self._refusal("it cannot be written")
        original(self, event)

    patch.setattr(Run, "write", write)


@breaks("T8")
def a_stray_cancellation_passes_for_one_of_the_run(patch: pytest.MonkeyPatch) -> None:
    def settle_exception(self: WorkerPool, work: Any, exc: BaseException, now: float) -> None:
        if isinstance(exc, anyio.get_cancelled_exc_class()):
            self._dispatch.settle_cancellation(work, now)
        else:
            self._dispatch.settle_error(work, exc, now)

    patch.setattr(WorkerPool, "_settle_exception", settle_exception)


@breaks("I1")
def no_end_of_a_step_is_told(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Instruments, "execution_ended", lambda *args: None)


@breaks("I1")
def the_end_of_a_run_is_told_twice(patch: pytest.MonkeyPatch) -> None:
    original = Instruments.end_executions

    def end_executions(self: Instruments) -> None:
        original(self)
        outcome = self.run.outcome  # type: ignore[attr-defined]
        result = RunResult(outcome.kind, outcome.event, outcome.error, "", 0.0)
        self._tell("run_ended", self._record, result)

    patch.setattr(Instruments, "end_executions", end_executions)


@breaks("I1")
def a_step_is_suspended_after_its_end(patch: pytest.MonkeyPatch) -> None:
    def execution_ended(self: Instruments, work: Any, *args: Any) -> None:
        original(self, work, *args)
        for _, hook in self._hooks["execution_suspended"]:
            hook(record_of.get(work.id), 0.0)

    def new_record(self: Instruments, work: Any) -> Any:
        record_of[work.id] = make(self, work)
        return record_of[work.id]

    record_of: dict[int, Any] = {}
    original, make = Instruments.execution_ended, Instruments._new_record
    patch.setattr(Instruments, "execution_ended", execution_ended)
    patch.setattr(Instruments, "_new_record", new_record)


@breaks("S1")
def events_are_lost(patch: pytest.MonkeyPatch) -> None:
    original = EventStream.write

    def write(self: EventStream, event: Event) -> None:
        if self.unread < 3 or isinstance(event, StopEvent):
            original(self, event)

    patch.setattr(EventStream, "write", write)


@breaks("S1")
def events_overtake_each_other(patch: pytest.MonkeyPatch) -> None:
    def close(self: EventStream, terminal: StopEvent) -> None:
        original(self, terminal)
        *rest, last = self._rest
        self._rest = deque([*reversed(rest), last])

    original = EventStream.close
    patch.setattr(EventStream, "close", close)


@breaks("S1")
def a_read_that_is_given_up_loses_an_event(patch: pytest.MonkeyPatch) -> None:
    original = EventIterator.__anext__

    async def read(self: EventIterator) -> Event:
        event = await original(self)
        if not isinstance(event, StopEvent):
            await checkpoint()
        return event

    patch.setattr(EventIterator, "__anext__", read)


@breaks("S3")
def reading_after_the_end_ends_quietly(patch: pytest.MonkeyPatch) -> None:
    original = EventIterator.__anext__

    async def read(self: EventIterator) -> Event:
        if self._stream.consumed:
            raise StopAsyncIteration
        return await original(self)

    patch.setattr(EventIterator, "__anext__", read)


@breaks("S3", "T1")
def two_readers_may_wait(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(EventStream, "_refuse_second_reader", lambda self: None)


@breaks("R2")
def a_step_has_a_place_too_many(patch: pytest.MonkeyPatch) -> None:
    original = StepQueues.of

    def of(self: StepQueues, spec: Any) -> Any:
        queue = original(self, spec)
        queue.limit = spec.config.num_workers + 1
        return queue

    patch.setattr(StepQueues, "of", of)


@breaks("done")
def a_join_never_fires(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "_fire", lambda self, batch: [])


@on_each_backend
@pytest.mark.parametrize("name", BREAKAGES)
# Where nobody waits for the steps, nobody closes a worker that asyncio did not let begin.
@pytest.mark.filterwarnings(
    "ignore:coroutine 'WorkerPool._run_task' was never awaited:RuntimeWarning"
)
def test_v2_a_broken_engine_is_found_out(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    BREAKAGES[name](monkeypatch)
    with pytest.raises(TerminationViolation) as caught:
        check_termination(Fan, backends=[backend], max_examples=300, seed=7)
    rules = name.split()[0].split("/")
    assert {violation.rule for violation in caught.value.violations} & set(rules)


@on_each_backend
def test_v2_the_engine_as_it_is_passes(backend: str) -> None:
    check_termination(Fan, backends=[backend], max_examples=300, seed=7)


# --- Faults of workflows -----------------------------------------------------------------------


class Hasty(Workflow[int]):
    """Drops an item if another one overtakes it, but counts on all of them."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.last = -1

    @step
    async def split(self, ev: StartEvent) -> list[Item]:
        return [Item(n=n) for n in range(3)]

    @step
    async def work(self, ev: Item) -> Done | None:
        await checkpoint()
        if ev.n < self.last:
            return None
        self.last = ev.n
        return Done(n=ev.n)

    @step
    async def join(self, ctx: Context, ev: Done) -> StopEvent | None:
        done = ctx.collect_events(ev, [Done] * 3)
        return None if done is None else StopEvent(result=len(done))


@on_each_backend
def test_v2_a_fault_of_a_workflow_is_shrunk_to_one_pause(backend: str) -> None:
    with pytest.raises(TerminationViolation) as caught:
        check_termination(Hasty, backends=[backend], max_examples=300)
    found = caught.value
    assert [violation.rule for violation in found.violations] == ["done"]
    assert "WorkflowStalledError" in str(found)
    assert "step join waits for Done" in str(found)
    assert repr(found.scenario) in str(found)
    if backend == "asyncio":  # where tasks run in the same order each time
        assert found.steady
        assert [pause.step for pause in found.scenario.pauses] == ["work"]
        assert found.scenario == Scenario(pauses=found.scenario.pauses)

    def try_again() -> None:
        for _ in range(20):
            replay(Hasty, found.scenario, backend=backend)

    with pytest.raises(TerminationViolation, match="done: "):
        try_again()


def test_v2_the_trace_tells_what_happened() -> None:
    scenario = Scenario(pauses=(Pause("work", seconds=1),))
    with pytest.raises(TerminationViolation) as caught:
        replay(Hasty, scenario)
    shown = str(caught.value)
    for line in (
        "0.000  run      starts",
        "0.000  split #1  returns [Item(n=0), Item(n=1), Item(n=2)]",
        "0.000  work #1   is paused",
        "1.000  work #1   returns None",
    ):
        assert " ".join(line.split()) in " ".join(shown.split())


class Stubborn(Workflow[Any]):
    """Shields itself for longer than it has for its cleanup."""

    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(10)
        return StopEvent()


@on_each_backend
def test_v2_a_step_that_is_given_up_breaks_no_rule(backend: str) -> None:
    assert cancel_everywhere(Stubborn, backends=[backend]) > 4


class Endless(Workflow[Any]):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        await anyio.sleep_forever()
        return StopEvent()


@on_each_backend
def test_v2_a_run_that_never_ends_is_found(backend: str) -> None:
    with pytest.raises(TerminationViolation, match="the run did not end within"):
        replay(lambda: Endless(timeout=None), Scenario(), backend=backend)


# --- Steps that spin ---------------------------------------------------------------------------


class Spins(Workflow[Any]):
    """Deadlines come only if time passes, which it does not under virtual time while tasks spin."""

    def __init__(self, timeout: float = 45, cleanup_timeout: float = 5) -> None:
        super().__init__(timeout=timeout, cleanup_timeout=cleanup_timeout)


class Polls(Spins):
    @step
    async def poll(self, ev: StartEvent) -> StopEvent:
        done = False
        while not done:
            with suppress(BaseException):
                await anyio.sleep(0.2)
                done = True
        return StopEvent()


class PollsInScopes(Spins):
    @step
    async def poll(self, ev: StartEvent) -> StopEvent:
        kept: BaseException
        for _ in range(10**9):
            try:
                with anyio.move_on_after(1) as scope:
                    await anyio.sleep(0.2)
                if not scope.cancelled_caught:
                    break
            except BaseException as error:
                kept = error  # noqa: F841
        return StopEvent()


class PollsInCleanup(Spins):
    @step
    async def poll(self, ev: StartEvent) -> StopEvent:
        try:
            await anyio.sleep(0.5)
        finally:
            done = False
            while not done:
                with suppress(BaseException):
                    await anyio.sleep(0.2)
                    done = True
        return StopEvent()


class Endures(Spins):
    """Swallows what it gets for a while."""

    @step
    async def poll(self, ev: StartEvent) -> StopEvent:
        for _ in range(20):
            with suppress(anyio.get_cancelled_exc_class()):
                await anyio.sleep(0.2)
        return StopEvent()


class Busy(Spins):
    @step
    async def poll(self, ev: StartEvent) -> StopEvent:
        while True:
            await checkpoint()


def check_some(make_workflow: Any, backends: list[str]) -> None:
    check_termination(make_workflow, backends=backends, max_examples=200, seed=1)


def cancel_all(make_workflow: Any, backends: list[str]) -> None:
    cancel_everywhere(make_workflow, backends=backends)


on_both_searches = pytest.mark.parametrize("search", [check_some, cancel_all])


@on_each_backend
@on_both_searches
@pytest.mark.parametrize("workflow", [Polls, PollsInScopes, PollsInCleanup])
def test_v2_t6_a_step_that_swallows_its_cancellation_in_a_loop_is_named(
    workflow: Any, search: Any, backend: str
) -> None:
    with pytest.raises(TerminationViolation) as found:
        search(workflow, [backend])
    [violation] = found.value.violations
    assert violation.rule == "T6"
    assert violation.what.startswith("step poll #1 swallows its cancellation again and again")
    assert any("poll #1" in line for line in found.value.trace)


@on_each_backend
@on_both_searches
def test_v2_a_step_that_lets_no_time_pass_is_named(search: Any, backend: str) -> None:
    with pytest.raises(TerminationViolation, match="step poll #1 keeps running") as found:
        search(Busy, [backend])
    assert [violation.rule for violation in found.value.violations] == ["V2"]


@on_each_backend
@on_both_searches
def test_v2_a_step_that_swallows_some_cancellations_is_fine(search: Any, backend: str) -> None:
    search(Endures, [backend])


@on_each_backend
def test_v2_a_run_of_many_turns_is_fine(backend: str) -> None:
    class Many(Spins):
        @step
        async def many(self, ev: StartEvent) -> StopEvent:
            for _ in range(1000):
                await checkpoint()
            return StopEvent()

    replay(Many, Scenario(), backend=backend)


@on_each_backend
def test_v2_nothing_is_left_behind_of_a_step_that_spins(backend: str) -> None:
    """Neither its run, nor a task: the loop has ended, and what comes after it works."""
    made: list[weakref.ref[Any]] = []

    def make(**config: Any) -> Polls:
        workflow = Polls(**config)
        made.append(weakref.ref(workflow))
        return workflow

    for _ in range(3):
        with pytest.raises(TerminationViolation):
            replay(make, Scenario(end=End("cancel", at=Moment(0.1))), backend=backend)
    gc.collect()
    assert len(made) == 3
    assert [ref() for ref in made] == [None] * 3
    replay(Fan, Scenario(), backend=backend)
