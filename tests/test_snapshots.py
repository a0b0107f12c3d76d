"""Snapshots, and contexts that outlive their runs (rules P2-P4)."""

from __future__ import annotations

import gc
import json
import math
import weakref
from collections import Counter
from contextlib import suppress
from typing import Any

import anyio
import attrs
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows import (
    Context,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    catch_error,
    step,
)
from anyio_workflows.errors import (
    ContextSerdeError,
    ContextStateError,
    WorkflowCancelledByUser,
    WorkflowStalledError,
    WorkflowTimeoutError,
)
from anyio_workflows.events import WorkflowIdleEvent
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from .conftest import BACKENDS
from .programs import Line, Moment, moments, play, whole_programs
from .running import Note, read, run_virtually, texts
from .samples import Item, Mail, Numbers, OneStep, Other, Question
from .snapshotting import Fan, pending_steps, resume, snapshot_at, through_json

pytestmark = pytest.mark.anyio


class Row(Workflow[list[str]]):
    """Three steps in a row, each of which takes ten seconds and then notes its name."""

    def __init__(self, done: list[str], **config: Any) -> None:
        super().__init__(**config)
        self.done = done

    async def note(self, name: str) -> None:
        await anyio.sleep(10)
        self.done.append(name)

    @step
    async def first(self, ev: StartEvent) -> Item:
        await self.note("first")
        return Item()

    @step
    async def second(self, ev: Item) -> Other:
        await self.note("second")
        return Other()

    @step
    async def third(self, ev: Other) -> StopEvent:
        await self.note("third")
        return StopEvent(result=self.done)


# --- P3: at any moment ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "again"),
    [
        (0, ["first", "second", "third"]),
        (5, ["first", "second", "third"]),
        (15, ["second", "third"]),
        (29, ["third"]),
    ],
)
async def test_p3_finished_steps_do_not_run_again(seconds: float, again: list[str]) -> None:
    data = await snapshot_at(seconds, Row([]).run())
    assert await resume(Row([]), data) == again


async def test_p3_before_the_first_step_it_holds_the_start_event() -> None:
    class Echo(Workflow[Any]):
        @step
        async def work(self, ev: Numbers) -> StopEvent:
            return StopEvent(result=ev.items)

    handler = Echo().run(items=[1, 2])
    data = through_json(handler.ctx.to_dict())
    assert await handler == [1, 2]
    assert pending_steps(data) == [("work", 1)]
    assert await resume(Echo(), data) == [1, 2]


async def test_p3_from_inside_a_step_it_holds_that_step() -> None:
    async def act(ctx: Context) -> Any:
        if not found:
            found.append(ctx.to_dict())
        return "done"

    found: list[Any] = []
    assert await OneStep(act).run() == "done"
    assert pending_steps(found[0]) == [("work", 1)]
    assert await resume(OneStep(act), through_json(found[0])) == "done"


@pytest.mark.parametrize("backend", BACKENDS)
def test_p3_from_inside_a_sync_step(backend: str) -> None:
    class Threaded(Workflow[str]):
        @step
        def begin(self, ev: StartEvent) -> Item:
            return Item(n=7)

        @step
        def work(self, ctx: Context, ev: Item) -> StopEvent:
            found.append(ctx.to_dict())
            return StopEvent(result=f"{len(found)}: {ev.n}")

    async def main() -> list[str]:
        workflow = Threaded()
        with anyio.fail_after(10):
            return [await workflow.run(), await resume(workflow, through_json(found[0]))]

    found: list[Any] = []
    assert anyio.run(main, backend=backend) == ["1: 7", "2: 7"]
    assert pending_steps(found[0]) == [("work", 1)]
    assert found[0] | {"work": None} == found[1] | {"work": None}


async def test_p3_after_break_out_of_the_stream() -> None:
    class Talking(Workflow[str]):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item:
            ctx.write_event_to_stream(Note(text="begin"))
            await anyio.sleep(1)
            return Item()

        @step
        async def work(self, ctx: Context, ev: Item) -> StopEvent:
            ctx.write_event_to_stream(Note(text="work"))
            await anyio.sleep(1)
            return StopEvent(result="done")

    handler = Talking().run()
    async for event in handler.stream_events():
        if texts([event]) == ["work"]:
            break
    data = through_json(handler.ctx.to_dict())
    assert await handler == "done"
    again = resume(Talking(), data)
    assert texts(await read(again)) == ["work"], "what was written before is written again"
    assert await again == "done"


async def test_p3_the_snapshot_is_no_view_of_the_run() -> None:
    async def act(ctx: Context) -> None:
        await ctx.store.set("seen", [1])
        await anyio.sleep(1)
        async with ctx.store.edit_state() as state:
            state.seen.append(2)
        await anyio.sleep(1)

    handler = OneStep(act).run()
    await anyio.sleep(0.5)
    data = handler.ctx.to_dict()
    before = json.dumps(data)
    await anyio.sleep(1)
    assert json.dumps(data) == before
    data["state"]["seen"].append(3)
    assert await handler.ctx.store.get("seen") == [1, 2]
    await handler


async def test_p3_the_same_snapshot_is_resumed_several_times() -> None:
    async def act(ctx: Context) -> Any:
        async with ctx.store.edit_state() as state:
            state.seen = [*state.get("seen", []), len(state.get("seen", []))]
        await anyio.sleep(10)
        return await ctx.store.get("seen")

    data = await snapshot_at(5, OneStep(act).run())
    before = json.dumps(data)
    assert await resume(OneStep(act), data) == [0, 1]
    both = resume(OneStep(act), data), resume(OneStep(act), data)
    assert [await handler for handler in both] == [[0, 1], [0, 1]]
    assert json.dumps(data) == before


async def test_p3_the_resumed_run_has_the_full_timeout() -> None:
    data = await snapshot_at(25, Row([], timeout=30).run())
    started = anyio.current_time()
    assert await resume(Row([], timeout=30), data) == ["third"]
    assert anyio.current_time() - started == 10
    handler = resume(Row([], timeout=9), data)
    with pytest.raises(WorkflowTimeoutError):
        await handler
    assert anyio.current_time() - started == 19


async def test_p3_ids_are_never_used_again() -> None:
    ids, data = [], None
    for seconds in (5, 15, 15):
        handler = Row([]).run() if data is None else resume(Row([]), data)
        data = await snapshot_at(seconds, handler)
        ids.append([work["id"] for work in data["work"]["work"]])
        assert data["work"]["next_id"] == ids[-1][-1] + 1
    assert ids == [[1], [2], [3]]


async def test_p3_a_run_that_is_queued_for_a_place() -> None:
    workflow = Row([], num_concurrent_runs=1, timeout=35)
    running, queued = workflow.run(), workflow.run()
    data = await snapshot_at(5, queued)
    assert pending_steps(data) == [("first", 1)]
    assert await running == ["first", "second", "third"]
    assert await resume(Row([]), data) == ["first", "second", "third"]
    again = resume(workflow, data)
    await again.cancel_run()
    assert pending_steps(again.ctx.to_dict()) == [("first", 1)]


class Mailbox(Workflow[list[int]]):
    """Sums up what comes from outside, in its state, until 0 comes."""

    @step
    async def begin(self, ev: StartEvent) -> None: ...

    @step
    async def take(self, ctx: Context, ev: Mail) -> StopEvent | None:
        if not ev.n:
            return StopEvent(result=await ctx.store.get("seen"))
        async with ctx.store.edit_state() as state:
            state.seen = [*state.get("seen", []), ev.n]
        return None


async def test_p3_an_idle_run_that_waits_for_events_from_outside() -> None:
    handler = Mailbox().run()
    await handler.send_event(Mail(n=1))
    data = await snapshot_at(5, handler)
    assert pending_steps(data) == []
    again = resume(Mailbox(), data)
    async for event in again.stream_events(expose_internal=True):
        if isinstance(event, WorkflowIdleEvent):
            break
    await again.send_event(Mail(n=2))
    await anyio.sleep(1)
    await again.send_event(Mail())
    assert await again == [1, 2]


async def test_p3_t9_a_restored_run_remembers_that_it_asked_for_input() -> None:
    class Asking(Workflow[str]):
        @step
        async def begin(self, ev: StartEvent) -> Question | None:
            return Question(text="name?")

        @step
        async def end(self, ev: Item) -> StopEvent:
            return StopEvent(result="told")

        @step
        async def make(self, ev: Other) -> Item | Other:
            return Item()

    handler = Asking(skip_graph_checks=["reachability"]).run()
    data = await snapshot_at(1, handler)
    again = resume(Asking(skip_graph_checks=["reachability"]), data)
    await anyio.sleep(1)
    await again.send_event(Other())
    assert await again == "told"
    data["work"]["input_asked"] = False
    with pytest.raises(WorkflowStalledError):
        await resume(Asking(skip_graph_checks=["reachability"]), data)


# --- P3: retries ----------------------------------------------------------------------------------


class Stubborn(Workflow[Any]):
    """Fails three times, ten seconds into each attempt, with delays of 100 seconds."""

    @step(retry_policy=retry_policy(wait=wait_fixed(100), stop=stop_after_attempt(4)))
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        info = ctx.retry_info()
        started = anyio.current_time()
        await anyio.sleep(10)
        if info.retry_number < 3:
            raise ValueError("attempt", info.retry_number)
        return StopEvent(result=(info, started))


async def test_p3_a_retry_delay_goes_on_where_it_was_and_attempts_are_counted_on() -> None:
    data = await snapshot_at(40, Stubborn(timeout=None).run())
    (work,) = data["work"]["work"]
    assert (work["attempt"], work["elapsed"], work["due_in"]) == (2, 40, 70)
    started = anyio.current_time()
    info, began = await resume(Stubborn(timeout=None), data)
    assert began - started == 70 + 110 + 110
    assert (info.retry_number, info.elapsed_seconds) == (3, 40 + 290)
    assert type(info.last_exception) is ValueError
    assert info.last_exception.args == ("attempt", 2)


async def test_p3_a_retry_delay_without_an_end_has_none_after_a_restore() -> None:
    class Patient(Workflow[Any]):
        @step(retry_policy=retry_policy(wait=wait_fixed(math.inf)))
        async def work(self, ev: StartEvent) -> StopEvent:
            raise ValueError

    data = await snapshot_at(40, Patient(timeout=None).run())
    with pytest.raises(WorkflowTimeoutError, match="attempt 2 is due in inf s"):
        await resume(Patient(timeout=10), data)


async def test_p3_an_interrupted_attempt_is_made_again_under_its_number() -> None:
    data = await snapshot_at(115, Stubborn(timeout=None).run())
    (work,) = data["work"]["work"]
    assert (work["attempt"], work["elapsed"], work["due_in"]) == (2, 115, None)
    assert work["last_error"] == {
        "$": "exception",
        "value": {"type": "ValueError", "text": "('attempt', 0)", "args": ["attempt", 0]}
        | {key: value for key, value in work["last_error"]["value"].items() if key == "notes"},
    }
    started = anyio.current_time()
    info, began = await resume(Stubborn(timeout=None), data)
    assert began - started == 220
    assert (info.retry_number, info.elapsed_seconds) == (3, 115 + 220)


async def test_p3_attempts_are_not_exceeded_over_any_number_of_snapshots() -> None:
    class Failing(Workflow[None]):
        @step(retry_policy=retry_policy(wait=wait_fixed(10), stop=stop_after_attempt(3)))
        async def work(self, ev: StartEvent) -> StopEvent:
            attempts.append(anyio.current_time())
            raise ValueError("no")

    attempts: list[float] = []
    data = await snapshot_at(5, Failing().run())
    data = await snapshot_at(10, resume(Failing(), data))
    with pytest.raises(ValueError, match="no"):
        await resume(Failing(), data)
    assert len(attempts) == 3


async def test_p4_a_foreign_exception_comes_back_as_one_that_keeps_type_and_text() -> None:
    class OddError(Exception): ...

    class Failing(Workflow[Any]):
        @step(retry_policy=retry_policy(wait=wait_fixed(10)))
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            if (error := ctx.retry_info().last_exception) is None:
                raise OddError("very odd")
            return StopEvent(result=error)

    data = await snapshot_at(5, Failing().run())
    error = await resume(Failing(), data)
    assert str(error) == "very odd"
    assert error.type_name.endswith("OddError")


class Recovering(Workflow[Any]):
    """Its step always fails, and is recovered twice at most."""

    @step
    async def begin(self, ev: StartEvent) -> Item:
        return Item()

    @step
    async def work(self, ev: Item) -> StopEvent:
        await anyio.sleep(10)
        raise ValueError(ev.n)

    @catch_error(max_recoveries=2)
    async def recover(self, ev: StepFailedEvent) -> Item:
        await anyio.sleep(10)
        assert isinstance(ev.input_event, Item)
        assert ev.exception.args == (ev.input_event.n,)
        return Item(n=ev.input_event.n + 1)


@pytest.mark.parametrize(("seconds", "left"), [(5, 50), (15, 40), (25, 30), (35, 20), (45, 10)])
async def test_p3_recoveries_are_counted_on(seconds: float, left: float) -> None:
    data = await snapshot_at(seconds, Recovering(timeout=None).run())
    started = anyio.current_time()
    with pytest.raises(ValueError, match="2"):
        await resume(Recovering(timeout=None), data)
    assert anyio.current_time() - started == left


# --- P3: the end, and what comes before it ----------------------------------------------------------


async def test_p3_during_cleanup_it_holds_what_was_owed_when_the_end_was_decided() -> None:
    async def act(ctx: Context) -> str:
        if found:
            return "again"
        try:
            await anyio.sleep(1000)
        finally:
            found.append(through_json(ctx.to_dict()))
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
        return "never"

    found: list[Any] = []
    handler = OneStep(act, timeout=10).run()
    await anyio.sleep(10.5)
    found.append(through_json(handler.ctx.to_dict()))
    with pytest.raises(WorkflowTimeoutError):
        await handler
    found.append(through_json(handler.ctx.to_dict()))
    assert [pending_steps(data) for data in found] == [[("work", 1)]] * 3
    for data in found[:2]:
        assert await resume(OneStep(act), data) == "again"


async def test_p3_during_the_cleanup_after_a_stop_event_nothing_is_owed() -> None:
    class Two(Workflow[int]):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | StopEvent:
            ctx.send_event(Item())
            await anyio.sleep(10)
            return StopEvent(result=1)

        @step
        async def work(self, ctx: Context, ev: Item) -> None:
            try:
                await anyio.sleep(1000)
            finally:
                found.append(ctx.to_dict()["work"])

    found: list[Any] = []
    assert await Two().run() == 1
    assert found == [None]


class Counting(Workflow[Any]):
    """Counts its runs in the state; ends as the start event says."""

    @step
    async def count(self, ctx: Context, ev: StartEvent) -> Item:
        async with ctx.store.edit_state() as state:
            state.runs = state.get("runs", 0) + 1
        return Item(n=ev.get("end", 0))

    @step
    async def end(self, ctx: Context, ev: Item) -> StopEvent | None:
        if ev.n == 1:
            raise ValueError("as told")
        if ev.n == 2:
            return None
        if ev.n == 3 and await ctx.store.get("runs") == 1:
            await ctx.store.set("runs", 10)
            await anyio.sleep(1000)
        return StopEvent(result=await ctx.store.get("runs"))


@pytest.mark.parametrize("in_process", [True, False])
@pytest.mark.parametrize(("end", "error"), [(0, None), (1, ValueError), (2, WorkflowStalledError)])
async def test_p3_after_a_stop_or_failure_it_starts_anew_with_its_state(
    end: int, error: type[Exception] | None, in_process: bool
) -> None:
    handler = Counting().run(end=end)
    with suppress(error or ()):
        await handler
    ctx: Any = handler.ctx
    data = through_json(ctx.to_dict())
    assert (data["work"], data["state"]) == (None, {"runs": 1})
    if not in_process:
        ctx = Context.from_dict(Counting(), data)
    assert await Counting().run(ctx=ctx, end=0) == 2
    assert await Counting().run(ctx=ctx) == 3


@pytest.mark.parametrize("in_process", [True, False])
@pytest.mark.parametrize("cancelled", [True, False])
async def test_p3_after_a_timeout_or_cancellation_it_goes_on(
    cancelled: bool, in_process: bool
) -> None:
    handler = Counting(timeout=50).run(end=3)
    if cancelled:
        await anyio.sleep(5)
        await handler.cancel_run()
    with pytest.raises(WorkflowCancelledByUser if cancelled else WorkflowTimeoutError):
        await handler
    ctx: Any = handler.ctx
    if not in_process:
        ctx = Context.from_dict(Counting(), through_json(ctx.to_dict()))
    assert await Counting().run(ctx=ctx) == 10
    assert await Counting().run(ctx=ctx, end=0) == 11


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("next_backend", BACKENDS)
@pytest.mark.parametrize("in_process", [True, False])
def test_p3_after_the_end_of_its_loop_it_goes_on_in_another(
    backend: str, next_backend: str, in_process: bool
) -> None:
    async def first() -> Context[Any]:
        handler = Fan(done).run(items=[1, 2])
        await anyio.sleep(15)
        return handler.ctx

    async def second() -> list[int]:
        return await Fan(done).run(ctx=context)

    done: list[Any] = []
    context = run_virtually(backend, first)
    if not in_process:
        context = Context.from_dict(Fan(done), through_json(context.to_dict()))
    assert run_virtually(next_backend, second) == [1, 4]
    parts = [("work", n) for n in (1, 2, 2)]
    both = [(what, n) for what in ("open", "inner") for n in (1, 2)]
    assert Counter(done) == Counter(["split", *both, *parts, "outer"])


async def test_p3_a_run_that_is_cancelled_before_its_first_step_goes_on() -> None:
    handler = Counting().run(end=0)
    await handler.cancel_run()
    assert pending_steps(through_json(handler.ctx.to_dict())) == [("count", 1)]
    assert await Counting().run(ctx=handler.ctx) == 1


@pytest.mark.parametrize("how", ["keywords", "start_event"])
async def test_p3_there_is_nothing_to_start_with_while_work_is_left(how: str) -> None:
    start: Any = {"end": 0} if how == "keywords" else {"start_event": StartEvent(end=0)}
    handler = Counting().run(end=3)
    data = await snapshot_at(5, handler)
    for ctx in (handler.ctx, Context.from_dict(Counting(), data)):
        with pytest.raises(ContextStateError, match=r"discard_work\(\)"):
            Counting().run(ctx=ctx, **start)
        assert await Counting().run(ctx=ctx) == 10, "the refused call took something away"
        await ctx.store.set("runs", 1)


async def test_p3_discard_work_drops_what_is_left_and_keeps_the_state() -> None:
    handler = Counting().run(end=3)
    data = await snapshot_at(5, handler)
    for ctx in (handler.ctx, Context.from_dict(Counting(), data)):
        ctx.discard_work()
        found = through_json(ctx.to_dict())
        assert (found["work"], found["state"]) == (None, {"runs": 10})
        assert await Counting().run(ctx=ctx, end=0) == 11
        ctx.discard_work()  # there is nothing: nothing happens


# --- P2: one context, one run at a time ---------------------------------------------------------------


async def test_p2_a_second_run_while_one_goes_on_raises() -> None:
    handler = Row([]).run()
    for _ in range(2):
        with pytest.raises(ContextStateError, match="still in progress"):
            Row([]).run(ctx=handler.ctx)
        with pytest.raises(ContextStateError, match="still in progress"):
            handler.ctx.discard_work()
        await anyio.sleep(5)
    assert await handler == ["first", "second", "third"]


async def test_p2_a_second_run_raises_until_cleanup_is_over() -> None:
    async def act(ctx: Context) -> None:
        try:
            await anyio.sleep(1000)
        finally:
            with pytest.raises(ContextStateError, match="still in progress"):
                workflow.run(ctx=outer.ctx)

    workflow = OneStep(act)
    outer = workflow.run()
    await anyio.sleep(1)
    await outer.cancel_run()
    assert pending_steps(outer.ctx.to_dict()) == [("work", 1)]


@pytest.mark.parametrize("left", [True, False])
async def test_p2_a_context_of_another_workflow_class_is_refused(left: bool) -> None:
    class Kin(Row): ...

    context: Any = Context(Row([]))
    if left:
        context = Context.from_dict(Row([]), await snapshot_at(5, Row([]).run()))
    for other in (Kin([]), Counting()):
        with pytest.raises(ContextStateError, match="is for runs of Row, not of"):
            other.run(ctx=context)
    assert await Row([]).run(ctx=context) == ["first", "second", "third"]


async def test_p2_a_context_made_before_the_run_is_saved_with_its_seeded_state() -> None:
    context: Any = Context(Counting())
    assert through_json(context.to_dict())["state"] is None
    await context.store.set("runs", 41)
    again = Context.from_dict(Counting(), through_json(context.to_dict()))
    assert await Counting().run(ctx=again, end=0) == 42
    assert await Counting().run(ctx=context, end=0) == 42


# --- P1, P4: values and types ---------------------------------------------------------------------


@attrs.define
class Basket:
    items: list[str] = attrs.Factory(list)
    owner: Any = None


@attrs.frozen
class Person:
    name: str


class Shop(Workflow[Any]):
    @step
    async def fill(self, ctx: Context[Basket], ev: StartEvent) -> Item:
        async with ctx.store.edit_state() as basket:
            basket.items.append("apple")
            basket.owner = ev.get("owner")
        return Item()

    @step
    async def pay(self, ctx: Context[Basket], ev: Item) -> StopEvent:
        await anyio.sleep(10)
        return StopEvent(result=await ctx.store.get_state())


async def test_p3_typed_state_comes_back_as_its_type() -> None:
    data = await snapshot_at(5, Shop().run(owner=5))
    assert await resume(Shop(), data) == Basket(items=["apple"], owner=5)


async def test_p4_types_are_needed_on_both_sides() -> None:
    handler = Shop().run(owner=Person(name="Ada"))
    await anyio.sleep(5)
    with pytest.raises(ContextSerdeError, match=r"Person.*types=\[") as caught:
        handler.ctx.to_dict()
    assert caught.value.path == "$.state.owner"
    data = through_json(handler.ctx.to_dict(types=[Person]))
    await handler.cancel_run()
    with pytest.raises(ContextSerdeError, match=r"Person.*types=\[") as caught:
        Context.from_dict(Shop(), data)
    assert caught.value.path == "$.state.owner"
    again = resume(Shop(), data, [Person])
    assert again.ctx.to_dict() == data, "the types are known from then on"
    assert await again == Basket(items=["apple"], owner=Person(name="Ada"))


class Carrying(Workflow[Any]):
    @step
    async def begin(self, ev: StartEvent) -> Item:
        return Item()

    @step
    async def work(self, ctx: Context, ev: Item) -> StopEvent:
        await ctx.store.set("made", {"of": [1, lambda: 0]})
        await anyio.sleep(10)
        await ctx.store.set("made", None)
        await anyio.sleep(10)
        return StopEvent(result="went on")


async def test_p3_a_value_that_cannot_be_saved_is_named_and_the_run_goes_on() -> None:
    handler = Carrying().run()
    await anyio.sleep(5)
    with pytest.raises(ContextSerdeError, match="function") as caught:
        handler.ctx.to_dict()
    assert caught.value.path == "$.state.made.of[1]"
    await anyio.sleep(10)
    data = through_json(handler.ctx.to_dict())
    assert await handler == "went on"
    assert await resume(Carrying(), data) == "went on"


async def test_p3_an_event_that_cannot_be_saved_is_named() -> None:
    async def act(ctx: Context) -> str:
        with pytest.raises(ContextSerdeError, match="object") as caught:
            ctx.to_dict()
        return caught.value.path

    assert await OneStep(act).run(thing={"a": object()}) == "$.work.work[0].events[0].thing.a"


async def test_p3_a_value_that_contains_itself_is_named() -> None:
    async def act(ctx: Context) -> str:
        knot: list[Any] = []
        knot.append(knot)
        await ctx.store.set("knot", knot)
        with pytest.raises(ContextSerdeError, match="contains itself") as caught:
            ctx.to_dict()
        return caught.value.path

    assert (await OneStep(act).run()).startswith("$")


# --- O6: nothing pinned ---------------------------------------------------------------------------


@pytest.mark.parametrize("left", [True, False])
async def test_o6_nothing_is_pinned_by_snapshots_and_contexts(left: bool) -> None:
    async def use() -> list[weakref.ref[Any]]:
        class Local(Fan): ...

        workflow = Local([])
        first = workflow.run(items=[1, 2])
        await anyio.sleep(15)
        data = first.ctx.to_dict()
        await first.cancel_run()
        context = Context.from_dict(workflow, data)
        second = workflow.run(ctx=context)
        if left:
            await anyio.sleep(5)
            await second.cancel_run()
        else:
            assert await second == [1, 4]
        things = [workflow, Local, first, second, context, context.store, first._run, second._run]
        return [weakref.ref(thing) for thing in things]

    refs = await use()
    await anyio.sleep(1)
    for _ in range(3):
        gc.collect()
    assert [ref() for ref in refs] == [None] * len(refs)


async def test_o6_a_context_that_goes_on_does_not_pin_earlier_runs() -> None:
    handler = Counting().run(end=0)
    await handler
    context = handler.ctx
    earlier = weakref.ref(handler._run)
    del handler
    assert await Counting().run(ctx=context, end=0) == 2
    await checkpoint()
    gc.collect()
    assert earlier() is None


# --- The property: whenever it is snapshotted, a run goes on as if nothing had happened ------------


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=150)
@given(
    todo=whole_programs,
    interruptions=st.lists(moments, min_size=1, max_size=4),
    twice=st.booleans(),
)
def test_p3_a_run_goes_on_from_any_moment(
    backend: str, todo: list[Any], interruptions: list[Moment], twice: bool
) -> None:
    async def main() -> tuple[list[Line], list[Line]]:
        with anyio.fail_after(10_000):
            return await play(todo, [], False), await play(todo, interruptions, twice)

    (whole,), lines = run_virtually(backend, main)
    needed = {label for label in whole.finished if ".first " not in label}
    for line in lines:
        assert line.result == whole.result
        assert {label: n for label, n in Counter(line.finished).items() if n > 1} == {}
        assert {label for label in line.finished if ".first " not in label} == needed
        assert len(line.asked) == len(set(line.asked)), "a prompt was written twice"
