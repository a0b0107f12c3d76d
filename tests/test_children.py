"""Runs started inside a step: children of that run, O5."""

from __future__ import annotations

import contextvars
import gc
import warnings
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import (
    Context,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowHandler,
    WorkflowTimedOutEvent,
    step,
)
from anyio_workflows.errors import (
    WorkflowCancelledByUser,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
)

from .conftest import BACKENDS
from .running import check_ending, read, run_script, run_virtually, texts
from .samples import Answer, Item, Note, OneStep, Question, Total

pytestmark = pytest.mark.anyio

Act = Callable[[Context], Awaitable[Any]]


def lingers(trace: list[str], name: str, cleanup: float = 0) -> Act:
    """Return what sleeps until it is cancelled, and then takes some time to clean up."""

    async def act(ctx: Context) -> None:
        trace.append(f"{name} started")
        try:
            await anyio.sleep(1000)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(cleanup)
            trace.append(f"{name} cleaned up")

    return act


# --- Awaiting, streaming, relaying -----------------------------------------------------------------


async def test_o5_awaiting_a_child() -> None:
    async def child(ctx: Context) -> int:
        return 20

    async def parent(ctx: Context) -> int:
        return await OneStep(child).run() + 1

    assert await OneStep(parent).run() == 21


async def test_o5_failure_of_a_child_is_the_steps_own_when_awaited() -> None:
    error = ValueError("the child's")

    async def child(ctx: Context) -> None:
        raise error

    async def parent(ctx: Context) -> None:
        await OneStep(child).run()

    with pytest.raises(ValueError, match="the child's") as caught:
        await OneStep(parent).run()
    assert caught.value is error


async def test_o5_failure_of_a_child_may_be_handled() -> None:
    async def child(ctx: Context) -> None:
        raise ValueError

    async def parent(ctx: Context) -> str:
        try:
            await OneStep(child).run()
        except ValueError:
            return "handled"
        return "not raised"

    assert await OneStep(parent).run() == "handled"


async def test_o5_child_that_fails_unawaited_does_not_fail_its_parent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def child(ctx: Context) -> None:
        raise ValueError("nobody looks")

    async def parent(ctx: Context) -> str:
        OneStep(child).run()
        await anyio.sleep(1)
        return "fine"

    assert await OneStep(parent).run() == "fine"
    gc.collect()
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_o5_timeout_of_a_child_is_its_own() -> None:
    async def parent(ctx: Context) -> str:
        with pytest.raises(WorkflowTimeoutError):
            await OneStep(lambda ctx: anyio.sleep(100), timeout=2).run()
        return "went on"

    assert await OneStep(parent, timeout=5).run() == "went on"


async def test_o5_streaming_a_child_inside_a_step() -> None:
    async def child(ctx: Context) -> None:
        for n in range(3):
            ctx.write_event_to_stream(Note(text=n))
            await anyio.sleep(1)

    async def parent(ctx: Context) -> None:
        async for event in OneStep(child).run().stream_events():
            if isinstance(event, Note):
                ctx.write_event_to_stream(Note(text=event.text * 10))

    assert texts(await read(OneStep(parent).run())) == [0, 10, 20]


async def test_o5_relay_all_but_the_terminal_event_and_return_the_result() -> None:
    async def child(ctx: Context) -> str:
        for n in range(3):
            ctx.write_event_to_stream(notes[n])
        ctx.write_event_to_stream(Question())
        return "result"

    async def parent(ctx: Context) -> str:
        return "the child's " + await ctx.relay_events(OneStep(child).run())

    notes = [Note(text=n) for n in range(3)]
    handler = OneStep(parent).run()
    events, _ = await check_ending(handler)
    assert [type(event) for event in events] == [Note, Note, Note, Question, StopEvent]
    assert all(got is sent for got, sent in zip(events, notes, strict=False))
    assert await handler == "the child's result"


async def test_o5_relay_arrives_while_the_child_goes_on() -> None:
    async def child(ctx: Context) -> None:
        for n in range(3):
            ctx.write_event_to_stream(Note(text=n))
            await anyio.sleep(1)

    began = anyio.current_time()
    times = []
    async for event in (
        OneStep(lambda ctx: ctx.relay_events(OneStep(child).run())).run().stream_events()
    ):
        if isinstance(event, Note):
            times.append(anyio.current_time() - began)
    assert times == [pytest.approx(0), pytest.approx(1), pytest.approx(2)]


async def test_o5_relay_returns_a_stop_event_of_a_subclass_as_it_is() -> None:
    class Child(Workflow):
        @step
        async def work(self, ev: StartEvent) -> Total:
            return Total(total=3)

    result = await OneStep(lambda ctx: ctx.relay_events(Child().run())).run()
    assert result == Total(total=3)


@pytest.mark.parametrize("how", ["fail", "time out", "cancel"])
async def test_o5_relay_raises_what_the_child_raises(how: str) -> None:
    async def child(ctx: Context) -> None:
        ctx.write_event_to_stream(Note(text="begun"))
        if how == "fail":
            raise error
        await anyio.sleep(100)

    async def parent(ctx: Context) -> BaseException:
        handler = OneStep(child, timeout=2 if how == "time out" else None).run()
        if how == "cancel":
            group.start_soon(end, handler, how)
        with pytest.raises((ValueError, WorkflowTimeoutError, WorkflowCancelledByUser)) as caught:
            await ctx.relay_events(handler)
        with pytest.raises(type(caught.value)) as again:
            await handler
        assert again.value is caught.value
        return caught.value

    error = ValueError("the child's")
    async with anyio.create_task_group() as group:
        handler = OneStep(parent).run()
        assert texts(await read(handler)) == ["begun"]
    expected = {
        "fail": ValueError,
        "time out": WorkflowTimeoutError,
        "cancel": WorkflowCancelledByUser,
    }
    assert type(await handler) is expected[how]


async def test_o5_relay_of_a_child_that_has_ended() -> None:
    async def child(ctx: Context) -> str:
        ctx.write_event_to_stream(Note(text="over"))
        return "result"

    async def parent(ctx: Context) -> str:
        handler = OneStep(child).run()
        await handler
        return await ctx.relay_events(handler)  # type: ignore[no-any-return]

    handler = OneStep(parent).run()
    assert texts(await read(handler)) == ["over"]
    assert await handler == "result"


async def test_o5_relay_goes_through_all_generations() -> None:
    async def grandchild(ctx: Context) -> str:
        ctx.write_event_to_stream(Note(text="from below"))
        return "deep"

    async def child(ctx: Context) -> Any:
        return await ctx.relay_events(OneStep(grandchild).run())

    handler = OneStep(lambda ctx: ctx.relay_events(OneStep(child).run())).run()
    assert texts(await read(handler)) == ["from below"]
    assert await handler == "deep"


async def test_o5_relayed_question_is_answered_through_the_child() -> None:
    async def child(ctx: Context) -> str:
        return (await ctx.wait_for_event(Answer, Question(text="name?"))).text

    async def parent(ctx: Context) -> str:
        children.append(OneStep(child).run())
        return await ctx.relay_events(children[0])  # type: ignore[no-any-return]

    children: list[WorkflowHandler[Any]] = []
    handler = OneStep(parent).run()
    async for event in handler.stream_events():
        if isinstance(event, Question):
            await children[0].send_event(Answer(text="Ada"))
    assert await handler == "Ada"


@pytest.mark.parametrize("whose", ["own", "parent's", "grandparent's"])
@pytest.mark.parametrize("what", ["await", "relay", "stop_event_result", "async with"])
async def test_o5_waiting_for_an_ancestor_raises_instead_of_deadlock(whose: str, what: str) -> None:
    async def waits(ctx: Context) -> str:
        ancestor = handlers[0]
        ways: dict[str, Callable[[], Awaitable[Any]]] = {
            "await": lambda: ancestor,
            "relay": lambda: ctx.relay_events(ancestor),
            "stop_event_result": ancestor.stop_event_result,
            "async with": ancestor.__aenter__,
        }
        with pytest.raises(WorkflowRuntimeError, match=r"own run|itself|ancestor"):
            await ways[what]()
        return "raised"

    act: Act = waits
    for _ in range(["own", "parent's", "grandparent's"].index(whose)):
        act = _runs(act)
    handlers: list[WorkflowHandler[Any]] = []
    handlers.append(OneStep(act).run())
    assert await handlers[0] == "raised"


def _runs(act: Act) -> Act:
    async def parent(ctx: Context) -> Any:
        return await OneStep(act).run()

    return parent


async def test_t10_child_may_cancel_its_parent() -> None:
    async def child(ctx: Context) -> None:
        try:
            await handlers[0].cancel_run()
        finally:
            trace.append("child cancelled where it called")

    async def parent(ctx: Context) -> None:
        try:
            await OneStep(child).run()
        finally:
            trace.append("parent cleaned up")

    trace: list[str] = []
    handlers: list[WorkflowHandler[Any]] = []
    handlers.append(OneStep(parent).run())
    began = anyio.current_time()
    with pytest.raises(WorkflowCancelledByUser):
        await handlers[0]
    assert anyio.current_time() == began
    assert sorted(trace) == ["child cancelled where it called", "parent cleaned up"]


async def test_o5_siblings_may_wait_for_each_other() -> None:
    async def first(ctx: Context) -> str:
        await anyio.sleep(1)
        return "first"

    async def both(ctx: Context) -> Any:
        one = OneStep(first).run()

        async def second(ctx: Context) -> str:
            return await one + " and second"

        return await OneStep(second).run()

    assert await OneStep(both).run() == "first and second"


# --- The end of the parent ---------------------------------------------------------------------------


async def end(handler: WorkflowHandler[Any], how: str) -> None:
    """End a run whose step does what `how` says after a second."""
    await anyio.sleep(1)
    if how == "cancel":
        await handler.cancel_run()
    elif how == "send a stop":
        await handler.send_event(StopEvent())


ENDINGS = ["stop", "fail", "time out", "cancel", "send a stop"]
LAST = {
    "stop": StopEvent,
    "fail": WorkflowFailedEvent,
    "time out": WorkflowTimedOutEvent,
    "cancel": WorkflowCancelledEvent,
    "send a stop": StopEvent,
}


def starts_and_ends(trace: list[str], child: Act, how: str, children: list[Any]) -> Act:
    """Return what starts a child, and then lets its own run end in the given way."""

    async def act(ctx: Context) -> None:
        children.append(OneStep(child).run())
        await anyio.sleep(1 if how in ("stop", "fail") else 1000)
        if how == "fail":
            raise ValueError("on purpose")

    return act


@pytest.mark.parametrize("how", ENDINGS)
async def test_o5_child_is_cancelled_and_awaited_before_the_parents_terminal_event(
    how: str,
) -> None:
    trace: list[str] = []
    children: list[WorkflowHandler[Any]] = []
    parent = starts_and_ends(trace, lingers(trace, "child", cleanup=2), how, children)
    handler = OneStep(parent, timeout=1).run() if how == "time out" else OneStep(parent).run()
    began = anyio.current_time()
    async with anyio.create_task_group() as group:
        group.start_soon(end, handler, how)
        async for event in handler.stream_events():
            if isinstance(event, StopEvent):
                assert trace == ["child started", "child cleaned up"]
                assert children[0].is_done()
                assert anyio.current_time() - began == pytest.approx(3)
    assert type(handler.get_stop_event()) is LAST[how]
    assert type(children[0].get_stop_event()) is WorkflowCancelledEvent


@pytest.mark.parametrize("how", ENDINGS)
async def test_o5_grandchildren_too(how: str) -> None:
    async def child(ctx: Context) -> None:
        grandchildren.append(OneStep(lingers(trace, "grandchild", cleanup=1)).run())
        await lingers(trace, "child")(ctx)

    trace: list[str] = []
    children: list[WorkflowHandler[Any]] = []
    grandchildren: list[WorkflowHandler[Any]] = []
    parent = starts_and_ends(trace, child, how, children)
    handler = OneStep(parent, timeout=1).run() if how == "time out" else OneStep(parent).run()
    async with anyio.create_task_group() as group:
        group.start_soon(end, handler, how)
        _, last = await check_ending(handler)
    assert type(last) is LAST[how]
    assert trace[-2:] == ["child cleaned up", "grandchild cleaned up"]
    assert children[0].is_done()
    assert grandchildren[0].is_done()


async def test_o5_child_that_is_being_awaited_is_cancelled_with_the_parent() -> None:
    async def parent(ctx: Context) -> None:
        try:
            await OneStep(lingers(trace, "child", cleanup=2)).run()
        finally:
            trace.append("parent cleaned up")

    trace: list[str] = []
    handler = OneStep(parent, timeout=1).run()
    with pytest.raises(WorkflowTimeoutError):
        await handler
    assert trace == ["child started", "parent cleaned up", "child cleaned up"]


async def test_o5_many_children_clean_up_side_by_side() -> None:
    async def parent(ctx: Context) -> None:
        children.extend(OneStep(lingers(trace, str(n), cleanup=2)).run() for n in range(20))
        await anyio.sleep(1)

    trace: list[str] = []
    children: list[WorkflowHandler[Any]] = []
    began = anyio.current_time()
    await OneStep(parent).run()
    assert anyio.current_time() - began == pytest.approx(3)
    assert all(child.is_done() for child in children)
    assert sum("cleaned up" in what for what in trace) == 20


@pytest.mark.parametrize(("own", "took"), [(10, 8), (3, 3)])
async def test_o5_childs_own_cleanup_timeout_counts(
    own: float, took: float, caplog: pytest.LogCaptureFixture
) -> None:
    async def parent(ctx: Context) -> None:
        OneStep(lingers(trace, "child", cleanup=8), cleanup_timeout=own, timeout=None).run()
        await anyio.sleep(1)

    trace: list[str] = []
    handler = OneStep(parent, cleanup_timeout=1).run()
    began = anyio.current_time()
    await handler
    assert anyio.current_time() - began == pytest.approx(1 + took)
    assert ("gave up waiting" in caplog.text) is (own < 8)


async def test_o5_parent_that_hangs_does_not_shorten_its_childs_cleanup() -> None:
    async def parent(ctx: Context) -> None:
        OneStep(lingers(trace, "child", cleanup=4)).run()
        await lingers([], "parent", cleanup=100)(ctx)

    trace: list[str] = []
    handler = OneStep(parent, cleanup_timeout=1).run()
    await anyio.sleep(1)
    began = anyio.current_time()
    await handler.cancel_run()
    assert anyio.current_time() - began == pytest.approx(4)
    assert trace == ["child started", "child cleaned up"]


async def test_o5_child_that_ended_is_not_waited_for_again() -> None:
    async def parent(ctx: Context) -> str:
        async def child(ctx: Context) -> str:
            return "over"

        handler = OneStep(child).run()
        await handler
        await anyio.sleep(1)
        return await handler  # type: ignore[no-any-return]

    assert await OneStep(parent).run() == "over"


async def test_o5_cancelled_child_leaves_its_parent_alone() -> None:
    async def parent(ctx: Context) -> str:
        child = OneStep(lingers(trace, "child", cleanup=1)).run()
        await anyio.sleep(1)
        await child.cancel_run()
        await anyio.sleep(1)
        return "went on"

    trace: list[str] = []
    assert await OneStep(parent).run() == "went on"
    assert trace == ["child started", "child cleaned up"]


async def test_o5_child_of_one_step_lives_on_into_the_next_step() -> None:
    class TwoSteps(Workflow):
        @step
        async def one(self, ev: StartEvent) -> Note:
            return Note(text=OneStep(slow).run())

        @step
        async def two(self, ev: Note) -> StopEvent:
            return StopEvent(result=await ev.text)

    async def slow(ctx: Context) -> str:
        await anyio.sleep(5)
        return "still there"

    assert await TwoSteps().run() == "still there"


@pytest.mark.parametrize("turns", range(5))
async def test_o5_parent_ends_while_its_child_is_about_to_begin(turns: int) -> None:
    async def parent(ctx: Context) -> None:
        children.append(OneStep(lingers(trace, "child")).run())
        for _ in range(turns):
            await checkpoint()

    trace: list[str] = []
    children: list[WorkflowHandler[Any]] = []
    await OneStep(parent).run()
    assert type(children[0].get_stop_event()) is WorkflowCancelledEvent
    assert trace in ([], ["child started", "child cleaned up"])


async def test_o6_children_that_ended_are_not_kept_by_their_parent() -> None:
    class Child(OneStep):
        pass

    async def child(ctx: Context) -> None:
        await anyio.sleep(1)

    async def parent(ctx: Context) -> list[Any]:
        gone = []
        for _ in range(3):
            workflow = Child(child)
            gone.append(weakref.ref(workflow))
            await workflow.run()
        del workflow
        await anyio.sleep(1)  # what the loop still holds goes
        gc.collect()
        return [ref() for ref in gone]

    assert await OneStep(parent).run() == [None] * 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_o2_end_of_the_loop_ends_all_generations(backend: str) -> None:
    async def grandchild(ctx: Context) -> None:
        await lingers(trace, "grandchild")(ctx)

    async def child(ctx: Context) -> None:
        handlers.append(OneStep(grandchild).run())
        await lingers(trace, "child")(ctx)

    async def parent(ctx: Context) -> None:
        handlers.append(OneStep(child).run())
        await lingers(trace, "parent")(ctx)

    async def main() -> None:
        handlers.append(OneStep(parent).run())
        await anyio.sleep(1)

    trace: list[str] = []
    handlers: list[WorkflowHandler[Any]] = []
    run_virtually(backend, main)
    assert [type(handler.get_stop_event()) for handler in handlers] == [WorkflowCancelledEvent] * 3
    assert sorted(trace[3:]) == ["child cleaned up", "grandchild cleaned up", "parent cleaned up"]


# --- Starting too late ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "time out", "send a stop"])
async def test_o5_starting_a_run_during_cleanup_raises_and_leaves_nothing_behind(how: str) -> None:
    async def parent(ctx: Context) -> None:
        try:
            await anyio.sleep(1000)
        finally:
            with pytest.raises(WorkflowRuntimeError, match="start"):
                OneStep(lingers(trace, "child")).run()
            trace.append("refused")

    trace: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        handler = OneStep(parent, timeout=1 if how == "time out" else 50).run()
        await end(handler, how)
        await check_ending(handler)
        del handler
        gc.collect()
    assert trace == ["refused"]
    assert [str(warning.message) for warning in caught] == []


async def test_o5_child_of_a_given_up_step_is_refused_then_free() -> None:
    """While the run ends nothing starts; a run that has ended owns nothing."""

    async def parent(ctx: Context) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(3)
            with pytest.raises(WorkflowRuntimeError):
                OneStep(child).run()
            await anyio.sleep(10)
            free.append(OneStep(child).run())

    async def child(ctx: Context) -> str:
        await anyio.sleep(5)
        return "free"

    free: list[WorkflowHandler[Any]] = []
    handler = OneStep(parent, cleanup_timeout=4).run()
    await anyio.sleep(1)
    await handler.cancel_run()
    await anyio.sleep(10)
    assert await free[0] == "free"


async def test_o5_started_in_a_task_that_the_step_left_behind() -> None:
    """Before the parent ends: its child. After that: a run like any other."""

    async def parent(ctx: Context) -> None:
        group.start_soon(start, 1)
        group.start_soon(start, 10)
        await anyio.sleep(5)

    async def start(seconds: float) -> None:
        await anyio.sleep(seconds)
        handlers.append(OneStep(child).run())

    async def child(ctx: Context) -> str:
        await anyio.sleep(20)
        return "to the end"

    handlers: list[WorkflowHandler[Any]] = []
    async with anyio.create_task_group() as group:
        handler = OneStep(parent).run()
        await handler
        assert isinstance(handlers[0].get_stop_event(), WorkflowCancelledEvent)
    assert await handlers[1] == "to the end"


async def test_o5_run_that_has_ended_is_not_kept_by_its_children() -> None:
    class Big(OneStep):
        pass

    async def parent(ctx: Context) -> None:
        group.start_soon(later)

    async def later() -> None:
        await anyio.sleep(1)
        await OneStep(lambda ctx: anyio.sleep(1)).run()

    async with anyio.create_task_group() as group:
        workflow = Big(parent)
        gone = weakref.ref(workflow)
        await workflow.run()
        del workflow
    gc.collect()
    assert gone() is None


async def test_o7_child_sees_the_context_variables_of_the_step() -> None:
    async def child(ctx: Context) -> str:
        seen = var.get()
        var.set("the child's")
        return seen

    async def parent(ctx: Context) -> tuple[str, str]:
        var.set("the step's")
        return await OneStep(child).run(), var.get()

    var: contextvars.ContextVar[str] = contextvars.ContextVar("var")
    var.set("the caller's")
    assert await OneStep(parent).run() == ("the step's", "the step's")
    assert var.get() == "the caller's"


async def test_o5_get_step_context_in_a_child_is_the_childs() -> None:
    async def child(ctx: Context) -> bool:
        return Context.get_step_context() is ctx

    async def parent(ctx: Context) -> tuple[bool, bool]:
        return await OneStep(child).run(), Context.get_step_context() is ctx

    assert await OneStep(parent).run() == (True, True)


async def test_o3_block_inside_a_step() -> None:
    async def child(ctx: Context) -> str:
        await anyio.sleep(1)
        return "bound"

    async def parent(ctx: Context) -> str:
        async with OneStep(child).run() as handler:
            pass
        assert handler.is_done()
        return await handler  # type: ignore[no-any-return]

    assert await OneStep(parent).run() == "bound"


async def test_o5_cancel_while_a_block_inside_a_step_is_open() -> None:
    async def parent(ctx: Context) -> None:
        async with OneStep(lingers(trace, "child", cleanup=2)).run():
            await lingers(trace, "parent")(ctx)

    trace: list[str] = []
    handler = OneStep(parent).run()
    await anyio.sleep(1)
    await handler.cancel_run()
    assert sorted(trace[2:]) == ["child cleaned up", "parent cleaned up"]


async def test_o5_fan_out_over_children() -> None:
    class Squares(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(10)]

        @step(num_workers=10)
        async def square(self, ctx: Context, ev: Item) -> Note:
            async def child(ctx: Context) -> int:
                ctx.write_event_to_stream(Note(text=ev.n))
                return ev.n**2

            return Note(text=await ctx.relay_events(OneStep(child).run()))

        @step
        async def join(self, evs: list[Note]) -> StopEvent:
            return StopEvent(result=sum(ev.text for ev in evs))

    handler = Squares().run()
    assert sorted(texts(await read(handler))) == list(range(10))
    assert await handler == 285


@pytest.mark.parametrize("backend", BACKENDS)
def test_o2_program_that_ends_with_children_warns_of_nothing(backend: str) -> None:
    done = run_script(f"""
        import anyio
        from anyio_workflows import *

        class Child(Workflow):
            @step
            async def work(self, ev: StartEvent) -> StopEvent:
                began.set()
                try:
                    await anyio.sleep(100)
                finally:
                    print("child")
                return StopEvent()

        class Parent(Workflow):
            @step
            async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
                try:
                    await ctx.relay_events(Child().run())
                finally:
                    try:
                        Child().run()
                    except Exception as exc:
                        print(type(exc).__name__)
                return StopEvent()

        async def main():
            global began
            began = anyio.Event()
            Parent().run()
            await began.wait()

        anyio.run(main, backend={backend!r})
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.split()) == ["WorkflowRuntimeError", "child"]
