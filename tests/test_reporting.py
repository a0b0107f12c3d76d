"""What is told of a run: the states of its executions (rules I3, S4)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import anyio
import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowHandler,
    catch_error,
    step,
)
from anyio_workflows._engine import instruments
from anyio_workflows._engine.stream import EventStream
from anyio_workflows.collect import Collect, Take
from anyio_workflows.events import (
    InternalDispatchEvent,
    StepFailedEvent,
    StepState,
    StepStateChanged,
    UnhandledEvent,
    WorkflowIdleEvent,
)
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from anyio_workflows.testing import check_termination, virtual_time
from anyio_workflows.testing._clock import StepCounter
from anyio_workflows.testing._record import Record

from . import programs, test_testing
from .conftest import BACKENDS
from .running import read, read_all, texts
from .samples import Answer, AsksByReturning, Done, Item, Question

pytestmark = pytest.mark.anyio

QUEUED, RUNNING, WAITING, OVER = (
    StepState.PREPARING,
    StepState.RUNNING,
    StepState.WAITING,
    StepState.NOT_RUNNING,
)
FOLLOW: dict[StepState | None, set[StepState]] = {
    None: {QUEUED},
    QUEUED: {RUNNING, OVER},
    RUNNING: {WAITING, OVER},
    WAITING: {RUNNING, OVER},
    OVER: {QUEUED},
}
"""The states that may follow each state."""


# --- Counting --------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Counts:
    """Replays the states that a run tells into counts, as a user does who shows them.

    What is in a retry delay is over, until it is queued again.
    """

    handler: WorkflowHandler[Any]
    last: dict[str, StepStateChanged] = attrs.field(factory=dict)
    wrong: list[str] = attrs.field(factory=list)

    def take(self, event: StepStateChanged) -> None:
        """Count a change, and note what is wrong with it."""
        before, self.last[event.worker_id] = self.last.get(event.worker_id), event
        fine = event.step_state in FOLLOW[before and before.step_state]
        if before is not None:
            again = before.outcome == "retrying"
            fine = fine and event.attempt == before.attempt + again
            fine = fine and (before.step_state is not OVER or again)
            fine = fine and (event.name, event.input_event_name) == (
                before.name,
                before.input_event_name,
            )
        fine = fine and (event.outcome is not None) is (event.step_state is OVER)
        failed = event.outcome in ("failed", "retrying", "recovered")
        fine = fine and (event.error is not None) is failed
        if not fine:
            self.wrong.append(f"{before} was followed by {event}")

    def counted(self, name: str) -> dict[str, int]:
        """Return the numbers of executions of a step, by what `statistics()` calls them."""
        states = [event.step_state for event in self.last.values() if event.name == name]
        counts = {"queued": QUEUED, "running": RUNNING, "waiting": WAITING}
        return {what: states.count(state) for what, state in counts.items()}

    def compare(self) -> None:
        """Compare with the statistics of the run at this moment, which is between two task steps."""
        over = self.handler.is_done()
        for name, found in self.handler.statistics().steps.items():
            counted = self.counted(name)
            real = {what: 0 if over else getattr(found, what) for what in counted}
            if counted != real:
                self.wrong.append(f"step {name}: told {counted}, there are {real}")


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> list[Counts]:
    """Count the states of all runs that are started, from their start."""
    runs: list[Counts] = []
    write, run = EventStream.write, Workflow.run

    def count(stream: EventStream, event: Event) -> None:
        write(stream, event)
        if isinstance(event, StepStateChanged):
            next(one for one in runs if one.handler._run.stream is stream).take(event)

    def run_and_listen(self: Any, *args: Any, **kwargs: Any) -> Any:
        handler = run(self, *args, **kwargs)
        runs.append(Counts(handler))
        handler.stream_events(expose_internal=True)
        return handler

    monkeypatch.setattr(EventStream, "write", count)
    monkeypatch.setattr(Workflow, "run", run_and_listen)
    return runs


def compare_all(runs: list[Counts]) -> bool:
    for one in runs:
        one.compare()
    return False


def check_all(runs: list[Counts]) -> None:
    """Assert that all went well in the runs of a test, and that all of them have ended."""
    for one in runs:
        one.compare()
        assert one.wrong == []
        assert one.handler.is_done()
    assert all(one.last for one in runs[:1]), "nothing was told"
    runs.clear()


def run_compared(backend: str, main: Callable[[], Any], runs: list[Counts]) -> None:
    """Run under virtual time, and compare after each task step of the event loop."""

    async def compared() -> None:
        counter.begin(lambda: None, partial(compare_all, runs))
        await main()

    counter = StepCounter()
    name, options = counter.watch(*virtual_time(backend))
    anyio.run(compared, backend=name, backend_options=options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_i3_the_counts_are_those_of_the_statistics_at_any_moment(
    backend: str, counting: list[Counts]
) -> None:
    """Programs with all that steps can do, interrupted and gone on with at any moment."""

    @settings(max_examples=40)
    @given(
        todo=programs.whole_programs,
        interruptions=st.lists(programs.moments, max_size=3),
    )
    def search(todo: list[Any], interruptions: list[Any]) -> None:
        counting.clear()
        run_compared(backend, lambda: programs.play(todo, interruptions, False), counting)
        check_all(counting)

    search()


WORKFLOWS: list[tuple[Callable[..., Workflow[Any]], dict[str, Any]]] = [
    (test_testing.Fan, {}),
    (test_testing.Asking, {"answer": test_testing.reply}),
    (test_testing.Race, {}),
    (test_testing.Parent, {}),
    (test_testing.Sturdy, {"completes": False}),
    (test_testing.Leaky, {"completes": False}),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("make", "options"), WORKFLOWS, ids=lambda value: getattr(value, "__name__", "")
)
def test_i3_the_counts_hold_however_a_run_ends(
    make: Any,
    options: dict[str, Any],
    backend: str,
    counting: list[Counts],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever goes wrong in its steps, also those that are given up."""
    add_trace = Record.add_trace

    def add_and_compare(self: Record, source: str, what: str) -> None:
        add_trace(self, source, what)
        compare_all(counting[-1:])

    def make_another(**config: Any) -> Workflow[Any]:
        check_all(counting)  # those of the run before
        return make(**config)  # type: ignore[no-any-return]

    monkeypatch.setattr(Record, "add_trace", add_and_compare)
    check_termination(make_another, backends=[backend], max_examples=20, seed=1, **options)
    check_all(counting)


# --- Example by example ------------------------------------------------------------------------------


class Extra(Item):
    pass


async def told(handler: WorkflowHandler[Any], name: str = "work") -> list[StepStateChanged]:
    """Read a run to its end; return what was told of a step."""
    events = await read_all(handler)
    assert isinstance(events[-1], StopEvent)
    return [event for event in events if isinstance(event, StepStateChanged) and event.name == name]


def states(events: list[StepStateChanged]) -> list[StepState]:
    return [event.step_state for event in events]


def endings(events: list[StepStateChanged]) -> list[tuple[int, str | None, str | None, str | None]]:
    """Return attempt, outcome, error and output of what is over."""
    return [
        (event.attempt, event.outcome, event.error, event.output_event_name)
        for event in events
        if event.step_state is OVER
    ]


class Works(Workflow[Any]):
    """Calls what the test gives, in a step that is tried twice."""

    def __init__(self, act: Callable[[Context], Any], **config: Any) -> None:
        super().__init__(**{"timeout": 10, **config})
        self.act = act

    @step(retry_policy=retry_policy(wait=wait_fixed(1), stop=stop_after_attempt(2)))
    async def work(
        self, ctx: Context, ev: StartEvent
    ) -> list[Item | Done] | Item | StopEvent | None:
        return await self.act(ctx)  # type: ignore[no-any-return]

    @step
    async def take(self, ctx: Context, ev: Item | Done) -> StopEvent:
        return StopEvent()


@pytest.mark.parametrize(
    ("result", "name"),
    [
        (StopEvent(), "StopEvent"),
        (Item(), "Item"),
        (None, None),
        ([Item(), Item(n=1)], "list[Item]"),
        ([Done(), Item(), Done()], "list[Done | Item]"),
        ([], "[]"),
    ],
    ids=str,
)
async def test_i3_what_was_returned_is_named(result: Any, name: str | None) -> None:
    async def act(ctx: Context) -> Any:
        return result

    assert endings(await told(Works(act).run())) == [(1, "returned", None, name)]


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no such city"), "ValueError: no such city"),
        (KeyError("x"), "KeyError: 'x'"),
        (ValueError(), "ValueError"),
        (Mute(), "Mute: (it has no text)"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_i3_a_failed_attempt_is_told_from_the_last_one(error: Exception, text: str) -> None:
    async def act(ctx: Context) -> Any:
        raise error

    events = await told(Works(act).run())
    assert states(events) == [QUEUED, RUNNING, OVER] * 2
    assert [event.attempt for event in events] == [1, 1, 1, 2, 2, 2]
    assert endings(events) == [(1, "retrying", text, None), (2, "failed", text, None)]
    assert len({event.worker_id for event in events}) == 1


async def test_i3_r4_a_wrong_return_value_is_a_failure() -> None:
    async def act(ctx: Context) -> Any:
        return 5

    [(attempt, outcome, error, output)] = endings(await told(Works(act).run()))
    assert (attempt, outcome, output) == (1, "failed", None)
    assert error is not None
    assert error.startswith("WorkflowRuntimeError: ")


async def test_i3_a_step_that_another_takes_over_from_has_recovered() -> None:
    class Recovers(Works):
        @catch_error(for_steps=["work"])
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent()

    async def act(ctx: Context) -> Any:
        raise ValueError("boo")

    events = await told(Recovers(act).run())
    assert [outcome for _, outcome, _, _ in endings(events)] == ["retrying", "recovered"]
    assert events[-1].error == "ValueError: boo"


async def test_i3_an_execution_that_waits_has_its_worker_before_it_is_running() -> None:
    """With one worker: what was answered is waiting until the other has ended."""

    class Queue(Workflow[Any]):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(n=0), Item(n=1)]

        @step(num_workers=1)
        async def work(self, ctx: Context, ev: Item) -> Done:
            if ev.n == 0:
                await ctx.wait_for_event(Answer)
            else:
                ctx.send_event(Answer())
                await anyio.sleep(1)
            return Done()

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    events = await told(Queue().run())
    first = events[0].worker_id
    assert [("first" if e.worker_id == first else "other", e.step_state) for e in events] == [
        ("first", QUEUED),
        ("other", QUEUED),
        ("first", RUNNING),
        ("first", WAITING),
        ("other", RUNNING),
        ("other", OVER),
        ("first", RUNNING),
        ("first", OVER),
    ]


async def test_i3_several_waits_of_one_execution_are_one_state() -> None:
    async def wait(ctx: Context, seconds: int) -> None:
        with pytest.raises(TimeoutError):
            await ctx.wait_for_event(Answer, waiter_id=str(seconds), timeout=seconds)

    async def act(ctx: Context) -> StopEvent:
        async with anyio.create_task_group() as group:
            for seconds in (1, 2, 3):
                group.start_soon(wait, ctx, seconds)
        return StopEvent()

    assert states(await told(Works(act).run())) == [QUEUED, RUNNING, WAITING, RUNNING, OVER]


@pytest.mark.parametrize("how", ["cancel", "time out", "fail", "stop", "end"])
async def test_i3_what_goes_on_at_the_end_is_over(how: str) -> None:
    """Queued, at work, waiting; what is in a retry delay has been told to be over."""

    class Busy(Workflow[Any]):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(4)]

        @step(num_workers=2, retry_policy=retry_policy(wait=wait_fixed(1000)))
        async def work(self, ctx: Context, ev: Item) -> Done:
            if ev.n == 0:
                raise ValueError("delayed")
            if ev.n == 1:
                await ctx.wait_for_event(Answer)
            await anyio.sleep(1000)
            return Done()

        @step
        async def join(self, evs: list[Done]) -> StopEvent: ...

        @step
        async def stop(self, ev: HumanResponseEvent) -> StopEvent:
            if how == "fail":
                raise ValueError
            return StopEvent()

    handler = Busy(timeout=2).run()
    handler.stream_events(expose_internal=True)
    await anyio.sleep(1)
    counts = handler.statistics().steps["work"]
    assert (counts.queued, counts.running, counts.waiting, counts.delayed) == (0, 2, 1, 1)
    await handler.send_event(Item(n=5))
    assert handler.statistics().steps["work"].queued == 1
    if how == "cancel":
        await handler.cancel_run()
    elif how == "stop":
        await handler.send_event(StopEvent())
    elif how != "time out":
        await handler.send_event(HumanResponseEvent())
    events = await told(handler)
    lives: dict[str, list[StepStateChanged]] = {}
    for event in events:
        lives.setdefault(event.input_event_name + event.worker_id, []).append(event)
    assert [life[-1].outcome for life in lives.values()] == ["retrying", *["cancelled"] * 4]
    assert [states(life) for life in lives.values()] == [
        [QUEUED, RUNNING, OVER],
        [QUEUED, RUNNING, WAITING, RUNNING, OVER],
        [QUEUED, RUNNING, OVER],
        [QUEUED, RUNNING, OVER],
        [QUEUED, OVER],
    ]


async def test_i3_what_is_dropped_with_its_batch_is_over_at_once() -> None:
    class First(Workflow[Any]):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(4)]

        @step(num_workers=2)
        async def work(self, ctx: Context, ev: Item) -> Done:
            try:
                await anyio.sleep(1 if ev.n == 0 else 1000)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(ev.n)
            return Done()

        @step
        async def join(self, evs: Annotated[list[Done], Collect(Take(1, cancel=True))]) -> Extra:
            return Extra()

        @step
        async def end(self, ev: Extra) -> StopEvent:
            await anyio.sleep(10)
            return StopEvent()

    handler = First().run()
    handler.stream_events(expose_internal=True)
    await anyio.sleep(1.5)
    counts = handler.statistics().steps["work"]
    assert (counts.queued, counts.running) == (0, 1)
    events = await told(handler)
    assert states(events) == [QUEUED] * 4 + [RUNNING] * 2 + [OVER] * 4
    assert [outcome for _, outcome, *_ in endings(events)] == [
        "returned",  # which fires the join, and that drops the others
        "cancelled",
        "cancelled",
        "cancelled",
    ]


async def test_i3_t6_a_step_that_was_given_up_is_over_with_its_run() -> None:
    """And nothing is told when it does end: the stream has its last event."""

    async def act(ctx: Context) -> StopEvent:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(100)
        return StopEvent()

    handler = Works(act, timeout=1, cleanup_timeout=1).run()
    handler.stream_events(expose_internal=True)
    await anyio.sleep(3)
    assert handler.is_done()
    unread = handler.statistics().unread_events
    await anyio.sleep(200)
    assert handler.statistics().unread_events == unread
    events = await told(handler)
    assert states(events) == [QUEUED, RUNNING, OVER]
    assert events[-1].outcome == "cancelled"


@pytest.mark.parametrize("seconds", [0.5, 1.5, 2.5, 3.5])
async def test_i3_whoever_listens_later_is_told_first_what_is_going_on(seconds: float) -> None:
    """Queued, at work, in a retry delay, waiting: then the counts are right from there on."""

    class Slow(Workflow[Any]):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(3)]

        @step(num_workers=1, retry_policy=retry_policy(wait=wait_fixed(5)))
        async def work(self, ctx: Context, ev: Item) -> Done:
            await anyio.sleep(1)
            if ctx.retry_info().retry_number == 0:
                raise ValueError
            await ctx.wait_for_event(Answer, Question())
            return Done()

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    handler = Slow().run()
    await anyio.sleep(seconds)
    before = handler.statistics().steps["work"]
    stream = handler.stream_events(expose_internal=True)
    handler.stream_events(expose_internal=True)  # which tells nothing again
    numbers = dict.fromkeys((QUEUED, RUNNING, WAITING), 0)
    current: dict[str, StepState] = {}
    events = []
    async for event in stream:
        events.append(event)
        if isinstance(event, WorkflowIdleEvent):
            await handler.send_event(Answer())
        if not isinstance(event, StepStateChanged) or event.name != "work":
            continue
        if (left := current.get(event.worker_id, OVER)) is not OVER:
            numbers[left] -= 1
        current[event.worker_id] = event.step_state
        if event.step_state is not OVER:
            numbers[event.step_state] += 1
        if len(current) == before.queued + before.running and len(events) == len(current):
            assert numbers == {QUEUED: before.queued, RUNNING: before.running, WAITING: 0}
        assert all(number >= 0 for number in numbers.values())
    assert set(numbers.values()) == {0}


@pytest.mark.parametrize("seconds", [0, 0.5, 1.5, 2.5, 3.5, 6.5])
async def test_i3_restored_work_is_told_like_fresh_work(seconds: float) -> None:
    """A snapshot of what is queued, at work, waiting, in a retry delay, and to go on again."""

    class Mixed(Workflow[Any]):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(3)]

        @step(num_workers=1, retry_policy=retry_policy(wait=wait_fixed(2)))
        async def work(self, ctx: Context, ev: Item) -> Done:
            await anyio.sleep(1)
            if ev.n == 1 and ctx.retry_info().retry_number == 0:
                raise ValueError
            if ev.n == 2:
                await ctx.wait_for_event(Answer, Question())
            return Done(n=ev.n)

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    handler = Mixed(timeout=100).run()
    await anyio.sleep(seconds)
    data = json.loads(json.dumps(handler.ctx.to_dict([Answer])))
    await handler.cancel_run()
    again = Mixed(timeout=100).run(ctx=Context.from_dict(Mixed(), data, [Answer]))
    counts = Counts(again)
    stream = again.stream_events(expose_internal=True)
    answered = False
    async for event in stream:
        if isinstance(event, StepStateChanged):
            counts.take(event)
            if event.step_state is WAITING and not answered:
                answered = True
                await again.send_event(Answer())
    assert answered
    assert counts.wrong == []
    assert all(event.step_state is OVER for event in counts.last.values())


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("asked", [False, True])
async def test_s4_they_cost_nothing_while_nobody_asks(
    asked: bool, verbose: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counting(cls: type[Event]) -> Callable[..., Event]:
        def make(*args: Any, **kwargs: Any) -> Event:
            made[cls.__name__] += 1
            return cls(*args, **kwargs)

        return make

    made: Counter[str] = Counter()
    for cls in (StepStateChanged, UnhandledEvent, WorkflowIdleEvent):
        monkeypatch.setattr(instruments, cls.__name__, counting(cls))
    handler = AsksByReturning(verbose=verbose).run()
    handler.stream_events(expose_internal=asked)
    await anyio.sleep(1)
    await handler.send_event(Item())  # nobody takes it
    await handler.send_event(Answer(text="x"))
    await handler
    expected = {"StepStateChanged": 6, "WorkflowIdleEvent": 1, "UnhandledEvent": 1}
    assert made == (expected if asked else {})


async def test_i3_s4_nothing_is_told_that_nobody_asked_for() -> None:
    async def act(ctx: Context) -> StopEvent:
        await ctx.wait_for_event(Answer, Question(), timeout=1)
        return StopEvent()

    handler = Works(act, verbose=False).run()
    events = await read(handler)
    assert not any(isinstance(event, InternalDispatchEvent) for event in events)
    assert handler._run.ledger.queues.on_change is None
    assert texts(events) == []
