"""Plain `def` steps, which run in worker threads: R5. Real threads, so in real time."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from anyio_workflows import (
    Context,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
    step,
)
from anyio_workflows.errors import (
    WorkflowCancelledByUser,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
)

from .conftest import BACKENDS
from .running import PATIENCE, check_ending, read, run_script, texts
from .samples import Answer, Item, Note, Question

T = TypeVar("T")
"""Real seconds after which a test that hangs fails."""

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


class Acts(Workflow):
    """Calls a function inside its step, in a worker thread."""

    def __init__(self, act: Callable[[Context], Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.act = act

    @step
    def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=self.act(ctx))


def run(backend: str, main: Callable[[], Awaitable[T]]) -> T:
    """Run `main` in an event loop with a real clock, but not for ever."""

    async def bounded() -> T:
        with anyio.fail_after(PATIENCE):
            return await main()

    return anyio.run(bounded, backend=backend)


async def until(condition: Callable[[], Any]) -> None:
    """Wait until something is true that another thread brings about."""
    while not condition():  # noqa: ASYNC110
        await anyio.sleep(0.001)


class Abandoned:
    """A sync step that blocks, and tries the acts when it is let go, long after anybody cares."""

    def __init__(self, *acts: Callable[[Context], Any]) -> None:
        self.acts = acts
        self.entered = threading.Event()
        self.release = threading.Event()
        self.over = threading.Event()
        self.outcomes: list[Any] = []

    def __call__(self, ctx: Context) -> None:
        self.entered.set()
        assert self.release.wait(PATIENCE)
        for act in self.acts:
            try:
                self.outcomes.append(act(ctx))
            except Exception as exc:
                self.outcomes.append(exc)
        self.over.set()

    def let_go(self) -> list[Any]:
        """Let the thread go on to its end, from any other thread; return what it met."""
        self.release.set()
        assert self.over.wait(PATIENCE)
        return self.outcomes


LATE_ACTS: list[Callable[[Context], Any]] = [
    lambda ctx: ctx.write_event_to_stream(Note(text="late")),
    lambda ctx: ctx.send_event(Item()),
    lambda ctx: ctx.send_event(StopEvent(result="late")),
    lambda ctx: ctx.collect_events(Item(), [Item, Item]),
    lambda ctx: anyio.from_thread.run(ctx.wait_for_event, Answer),
]


# --- Where it runs, and what it sees --------------------------------------------------------------


def test_r5_sync_step_runs_in_a_worker_thread(backend: str) -> None:
    async def main() -> None:
        thread = await Acts(lambda ctx: threading.current_thread()).run()
        assert thread is not threading.current_thread()

    run(backend, main)


def test_r5_loop_goes_on_while_a_sync_step_blocks(backend: str) -> None:
    async def main() -> None:
        step_of_mine = Abandoned()
        handler = Acts(step_of_mine).run()
        await until(step_of_mine.entered.is_set)
        assert not handler.is_done()
        step_of_mine.release.set()
        await handler

    run(backend, main)


def test_r5_context_variables_are_seen_and_do_not_leak(backend: str) -> None:
    class Two(Workflow):
        @step
        def one(self, ev: StartEvent) -> Item:
            seen.append(var.get())
            var.set("set in step one")
            return Item()

        @step
        def two(self, ev: Item) -> StopEvent:
            seen.append(var.get())
            return StopEvent()

    async def main() -> None:
        var.set("the caller's")
        handler = Two().run()
        var.set("set later")
        await handler
        assert seen == ["the caller's"] * 2
        assert var.get() == "set later"

    var: contextvars.ContextVar[str] = contextvars.ContextVar("var")
    seen: list[str] = []
    run(backend, main)


def test_r5_get_step_context_in_the_thread(backend: str) -> None:
    async def main() -> None:
        assert await Acts(lambda ctx: Context.get_step_context() is ctx).run() is True

    run(backend, main)


def test_r5_mixed_sync_and_async_steps(backend: str) -> None:
    class Mixed(Workflow):
        @step
        def one(self, ev: StartEvent) -> Item:
            return Item(n=1)

        @step
        async def two(self, ev: Item) -> Note:
            return Note(text=ev.n + 1)

        @step
        def three(self, ev: Note) -> StopEvent:
            return StopEvent(result=ev.text + 1)

    async def main() -> int:
        return await Mixed().run()

    assert run(backend, main) == 3


# --- The whole of the Context -----------------------------------------------------------------------


def test_r5_write_in_order(backend: str) -> None:
    def act(ctx: Context) -> None:
        for n in range(50):
            ctx.write_event_to_stream(Note(text=n))
        ctx.write_event_to_stream(None)

    async def main() -> list[Any]:
        return texts(await read(Acts(act).run()))

    assert run(backend, main) == list(range(50))


def test_r5_misuse_raises_in_the_thread_what_it_raises_elsewhere(backend: str) -> None:
    def act(ctx: Context) -> list[str]:
        messages = []
        for wrong in (
            lambda: ctx.write_event_to_stream("text"),  # type: ignore[arg-type]
            lambda: ctx.write_event_to_stream(StopEvent()),
            lambda: ctx.send_event("text"),  # type: ignore[arg-type]
            lambda: ctx.send_event(Item(), step="nope"),
            lambda: ctx.collect_events("text", []),  # type: ignore[arg-type]
        ):
            with pytest.raises(WorkflowRuntimeError) as caught:
                wrong()
            messages.append(str(caught.value))
        return messages

    async def main() -> list[str]:
        return await Acts(act).run()

    found = run(backend, main)
    assert ["loop" in message for message in found] == [False] * 5
    assert "no such step" in found[3]


def test_r5_send_collect_and_running_steps(backend: str) -> None:
    class Collector(Workflow):
        @step
        def fork(self, ctx: Context, ev: StartEvent) -> Item | None:
            for n in range(10):
                ctx.send_event(Item(n=n))
            ctx.send_event(Item(n=10), step="work")
            assert "fork" in anyio.from_thread.run(ctx.running_steps)
            return None

        @step(num_workers=4)
        def work(self, ctx: Context, ev: Item) -> StopEvent | None:
            assert "work" in anyio.from_thread.run(ctx.running_steps)
            items = ctx.collect_events(ev, [Item] * 11)
            if items is None:
                return None
            return StopEvent(result=sorted(item["n"] for item in items))

    async def main() -> list[int]:
        return await Collector().run()

    assert run(backend, main) == list(range(11))


def test_r5_wait_for_event(backend: str) -> None:
    def act(ctx: Context) -> list[str]:
        ask = functools.partial(ctx.wait_for_event, Answer)
        return [anyio.from_thread.run(ask, Question(text=word)).text for word in "abc"]

    async def main() -> None:
        handler = Acts(act).run()
        async for event in handler.stream_events():
            if isinstance(event, Question):
                assert handler.statistics().steps["work"].waiting == 1
                await handler.send_event(Answer(text=event.text.upper()))
        assert await handler == ["A", "B", "C"]
        assert handler.statistics().steps["work"].done == 1

    run(backend, main)


def test_r5_wait_for_event_that_times_out(backend: str) -> None:
    def act(ctx: Context) -> str:
        wait = functools.partial(ctx.wait_for_event, Answer, timeout=0.01)
        try:
            return anyio.from_thread.run(wait).text
        except TimeoutError as exc:
            return str(exc)

    async def main() -> str:
        return await Acts(act).run()

    assert "Answer" in run(backend, main)


def test_r5_waiting_thread_gives_its_place_to_the_next(backend: str) -> None:
    class OneWorker(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Item | None:
            for n in range(3):
                ctx.send_event(Item(n=n))
            return None

        @step(num_workers=1)
        def work(self, ctx: Context, ev: Item) -> StopEvent | None:
            if ev.n < 2:
                anyio.from_thread.run(ctx.wait_for_event, Answer)
            else:
                ctx.send_event(Answer())
            ended.append(ev.n)
            return StopEvent() if len(ended) == 3 else None

    async def main() -> None:
        await OneWorker(skip_graph_checks=["reachability"]).run()

    ended: list[int] = []
    run(backend, main)
    assert ended == [2, 0, 1]


def test_r5_child_run_and_relay_events(backend: str) -> None:
    async def inner(ctx: Context) -> str:
        ctx.write_event_to_stream(Note(text="from the child"))
        return "child's result"

    class Child(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await inner(ctx))

    def act(ctx: Context) -> str:
        child = anyio.from_thread.run_sync(Child().run)
        return anyio.from_thread.run(ctx.relay_events, child)

    async def main() -> None:
        handler = Acts(act).run()
        assert texts(await read(handler)) == ["from the child"]
        assert await handler == "child's result"

    run(backend, main)


def test_o5_run_started_from_a_sync_step_is_a_child(backend: str) -> None:
    class Child(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            try:
                await anyio.sleep(PATIENCE)
            finally:
                order.append("child cleaned up")
            return StopEvent()

    def act(ctx: Context) -> None:
        children.append(anyio.from_thread.run_sync(Child().run))
        blocked.release.wait(PATIENCE)

    async def main() -> None:
        handler = Acts(act).run()
        await until(lambda: children)
        await anyio.sleep(0.01)
        await handler.cancel_run()
        order.append("parent ended")
        assert children[0].is_done()
        blocked.release.set()

    blocked = Abandoned()
    children: list[Any] = []
    order: list[str] = []
    run(backend, main)
    assert order == ["child cleaned up", "parent ended"]


def test_o1_run_in_a_sync_step_gives_the_clear_error(backend: str) -> None:
    def act(ctx: Context) -> str:
        with pytest.raises(WorkflowRuntimeError, match=r"from_thread\.run_sync") as caught:
            Acts(lambda ctx: None).run()
        return str(caught.value)

    async def main() -> str:
        return await Acts(act).run()

    assert "Acts.run() needs a running event loop" in run(backend, main)


def test_o1_handler_of_a_running_run_raises_in_the_thread(backend: str) -> None:
    def act(ctx: Context) -> None:
        handler = handlers[0]
        with pytest.raises(WorkflowRuntimeError, match="loop and thread"):
            handler.cancel_run().send(None)
        with pytest.raises(WorkflowRuntimeError, match="loop and thread"):
            handler.send_event(Item()).send(None)

    async def main() -> None:
        handlers.append(Acts(act).run())
        await handlers[0]

    handlers: list[Any] = []
    run(backend, main)


def test_t10_cancel_run_from_the_own_thread_through_the_loop(backend: str) -> None:
    def act(ctx: Context) -> None:
        anyio.from_thread.run(handlers[0].cancel_run)

    async def main() -> None:
        handlers.append(Acts(act).run())
        with pytest.raises(WorkflowCancelledByUser):
            await handlers[0]

    handlers: list[Any] = []
    run(backend, main)


# --- How many ---------------------------------------------------------------------------------------


def test_r5_64_sync_steps_that_need_each_other_do_not_deadlock(backend: str) -> None:
    """More than the global limiter's 40 threads: all must be in progress at the same time."""

    class Meeting(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(64)]

        @step(num_workers=64)
        def meet(self, ev: Item) -> Note:
            barrier.wait(PATIENCE)
            return Note(text=ev.n)

        @step
        async def join(self, evs: list[Note]) -> StopEvent:
            return StopEvent(result=sorted(ev.text for ev in evs))

    async def main() -> list[int]:
        return await Meeting().run()

    barrier = threading.Barrier(64)
    assert run(backend, main) == list(range(64))


def test_r5_nested_runs_of_sync_steps_do_not_deadlock(backend: str) -> None:
    def act(depth: int, ctx: Context) -> int:
        if not depth:
            return 0
        child = Acts(functools.partial(act, depth - 1))
        handler = anyio.from_thread.run_sync(child.run)
        return 1 + anyio.from_thread.run(handler.stop_event_result).result  # type: ignore[no-any-return]

    async def main() -> int:
        return await Acts(functools.partial(act, 45)).run()

    assert run(backend, main) == 45


def test_r5_sync_steps_go_on_when_the_global_limiter_is_used_up(backend: str) -> None:
    async def main() -> None:
        limiter = anyio.to_thread.current_default_thread_limiter()
        limiter.total_tokens = 1
        await limiter.acquire()
        try:
            assert await Acts(lambda ctx: "went on").run() == "went on"
        finally:
            limiter.release()

    run(backend, main)


@pytest.mark.parametrize("workers", [1, 3])
def test_r5_threads_are_bounded_by_num_workers(backend: str, workers: int) -> None:
    class Pool(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(9)]

        @step(num_workers=workers)
        def work(self, ev: Item) -> Note:
            with lock:
                busy.add(ev.n)
                most.append(len(busy))
                started.append(ev.n)
            barrier.wait(PATIENCE)  # there are as many as there may be
            with lock:
                busy.discard(ev.n)
            return Note()

        @step
        async def join(self, evs: list[Note]) -> StopEvent:
            return StopEvent()

    async def main() -> None:
        await Pool().run()

    barrier = threading.Barrier(workers)
    lock = threading.Lock()
    busy: set[int] = set()
    most: list[int] = []
    started: list[int] = []
    run(backend, main)
    assert max(most) == workers
    if workers == 1:
        assert started == list(range(9))


# --- Timeout, cancel, and what comes too late --------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "timeout", "other step"])
def test_r5_thread_is_abandoned_and_refused_at_the_end_of_the_run(backend: str, how: str) -> None:
    class Two(Workflow):
        @step
        def block(self, ctx: Context, ev: StartEvent) -> None:
            mine(ctx)

        @step
        async def other(self, ev: StartEvent) -> StopEvent:
            await until(mine.entered.is_set)
            if how != "other step":
                await anyio.sleep(PATIENCE)
            return StopEvent(result="other")

    async def main() -> None:
        handler = Two(
            timeout=0.05 if how == "timeout" else PATIENCE, cleanup_timeout=PATIENCE
        ).run()
        await until(mine.entered.is_set)
        began = time.monotonic()
        if how == "cancel":
            await handler.cancel_run()
        _, last = await check_ending(handler)
        assert time.monotonic() - began < PATIENCE / 2
        assert handler.statistics().steps["block"].running == 0
        if how == "timeout":
            assert isinstance(last, WorkflowTimedOutEvent)
            assert last.active_steps == ["block", "other"]
        await anyio.to_thread.run_sync(mine.let_go)
        assert [type(outcome) for outcome in mine.outcomes] == [WorkflowRuntimeError] * 5
        assert handler.get_stop_event() is last

    mine = Abandoned(*LATE_ACTS)
    run(backend, main)


def test_r8_timeout_of_a_sync_step(backend: str) -> None:
    class Slow(Workflow):
        @step(timeout=0.2)
        def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            mine(ctx)
            return StopEvent(result="too late")

    async def main() -> None:
        handler = Slow().run()
        with pytest.raises(TimeoutError, match=r"work took longer than 0\.2 s"):
            await handler
        stop = handler.get_stop_event()
        assert isinstance(stop, WorkflowFailedEvent)
        assert stop.step_name == "work"
        await anyio.to_thread.run_sync(mine.let_go)
        assert [type(outcome) for outcome in mine.outcomes] == [WorkflowRuntimeError] * 5

    mine = Abandoned(*LATE_ACTS)
    run(backend, main)


def test_r8_timeout_of_a_sync_step_does_not_count_its_waits(backend: str) -> None:
    class Slow(Workflow):
        @step(timeout=0.2)
        def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=anyio.from_thread.run(ctx.wait_for_event, Answer).text)

    async def main() -> str:
        handler = Slow().run()
        await anyio.sleep(0.3)
        await handler.send_event(Answer(text="slow"))
        return await handler

    assert run(backend, main) == "slow"


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_r5_thread_that_waits_for_an_event_is_let_go_at_the_end(backend: str, how: str) -> None:
    def act(ctx: Context) -> None:
        try:
            anyio.from_thread.run(ctx.wait_for_event, Answer)
        except BaseException as exc:
            ends.append(exc)
        over.set()

    async def main() -> None:
        handler = Acts(act, timeout=1 if how == "timeout" else None).run()
        await until(lambda: handler.statistics().steps["work"].waiting)
        if how == "cancel":
            await handler.cancel_run()
        with pytest.raises((WorkflowCancelledByUser, WorkflowTimeoutError)):
            await handler
        await until(over.is_set)
        found = handler.statistics().steps["work"]
        assert (found.running, found.waiting, found.done) == (0, 0, 1)

    over = threading.Event()
    ends: list[BaseException] = []
    run(backend, main)
    assert len(ends) == 1


def test_r5_dropped_thread_holds_no_place_and_the_run_goes_on(backend: str) -> None:
    """`Take(1, cancel=True)` abandons the thread that is too slow, not the run."""
    from typing import Annotated

    from anyio_workflows.collect import Collect, Take

    class Race(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Item]:
            return [Item(n=0), Item(n=1)]

        @step
        def work(self, ctx: Context, ev: Item) -> Note:
            if ev.n == 0:
                mine(ctx)
            else:
                assert mine.entered.wait(PATIENCE)
            return Note(text=ev.n)

        @step
        async def first(
            self, ctx: Context, evs: Annotated[list[Note], Collect(Take(1, cancel=True))]
        ) -> StopEvent:
            await until(lambda: handlers[0].statistics().steps["work"].running == 0)
            await anyio.to_thread.run_sync(mine.let_go)
            return StopEvent(result=[ev.text for ev in evs])

    async def main() -> None:
        handlers.append(Race().run())
        assert texts(await read(handlers[0])) == []
        assert await handlers[0] == [1]
        assert [type(outcome) for outcome in mine.outcomes] == [WorkflowRuntimeError] * 5

    handlers: list[Any] = []
    mine = Abandoned(*LATE_ACTS)
    run(backend, main)


# --- What it raises -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ValueError("mine"),
        TimeoutError("mine"),
        RuntimeError("mine"),
        ExceptionGroup("mine", [ValueError("inner")]),
        KeyboardInterrupt("mine"),
        SystemExit(3),
        anyio.RunFinishedError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_t5_exceptions_keep_their_identity(backend: str, error: BaseException) -> None:
    def act(ctx: Context) -> None:
        raise error

    async def main() -> None:
        handler = Acts(act).run()
        with pytest.raises(type(error)) as caught:
            await handler
        assert caught.value is error
        assert "act" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]

    run(backend, main)


def test_t5_stop_iteration_comes_as_a_cause(backend: str) -> None:
    async def main() -> None:
        with pytest.raises(WorkflowRuntimeError, match="StopIteration") as caught:
            await Acts(lambda ctx: next(iter(()))).run()
        assert isinstance(caught.value.__cause__, StopIteration)

    run(backend, main)


def test_t8_cancellation_exception_raised_in_a_thread_is_a_failure(backend: str) -> None:
    def act(ctx: Context) -> None:
        raise asyncio.CancelledError("nobody did")

    async def main() -> None:
        handler = Acts(act).run()
        expected = WorkflowRuntimeError if backend == "asyncio" else asyncio.CancelledError
        with pytest.raises(expected):
            await handler
        assert isinstance(handler.get_stop_event(), WorkflowFailedEvent)

    run(backend, main)


def test_r4_sync_step_that_returns_a_coroutine_fails(backend: str) -> None:
    async def forgotten() -> StopEvent:
        return StopEvent()

    class Forgets(Workflow):
        @step
        def work(self, ev: StartEvent) -> StopEvent:
            coroutines.append(forgotten())
            return coroutines[0]  # type: ignore[no-any-return]

    async def main() -> None:
        with pytest.raises(WorkflowRuntimeError, match="returned <coroutine"):
            await Forgets().run()
        coroutines[0].close()

    coroutines: list[Any] = []
    run(backend, main)


# --- From elsewhere -------------------------------------------------------------------------------------


def in_foreign_thread(act: Callable[[], Any]) -> Any:
    """Call a function in a thread of nobody; return what it returned or raised."""

    def body() -> None:
        try:
            found.append(act())
        except BaseException as exc:
            found.append(exc)

    found: list[Any] = []
    thread = threading.Thread(target=body)
    thread.start()
    thread.join(PATIENCE)
    return found[0]


def test_r5_foreign_thread_gets_a_clear_error(backend: str) -> None:
    def tries(ctx: Context) -> list[Any]:
        acts = [functools.partial(act, ctx) for act in LATE_ACTS[:4]]
        return [in_foreign_thread(act) for act in acts]

    async def act(ctx: Context) -> list[Any]:
        return await anyio.to_thread.run_sync(tries, ctx)

    class Async(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await act(ctx))

    async def main() -> None:
        for errors in (await Async().run(), await Acts(tries).run()):
            assert [type(error) for error in errors] == [WorkflowRuntimeError] * 4
            assert ["thread of a sync step" in str(error) for error in errors] == [True] * 4

    run(backend, main)


@pytest.mark.parametrize("other", BACKENDS)
def test_r5_another_event_loop_gets_a_clear_error(backend: str, other: str) -> None:
    def tries(ctx: Context) -> list[Any]:
        async def elsewhere(act: Callable[[Context], Any]) -> Any:
            return act(ctx)

        async def waits() -> Any:
            return await ctx.wait_for_event(Answer, timeout=0.05)

        acts = [functools.partial(elsewhere, act) for act in LATE_ACTS[:4]]
        return [
            in_foreign_thread(functools.partial(anyio.run, act, backend=other))
            for act in (*acts, waits)
        ]

    async def main() -> None:
        errors = await Acts(tries).run()
        assert [type(error) for error in errors] == [WorkflowRuntimeError] * 5

    run(backend, main)


def test_r5_worker_thread_that_an_async_step_starts_may_use_the_context(backend: str) -> None:
    class Async(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await anyio.to_thread.run_sync(ctx.write_event_to_stream, Note(text="from a thread"))
            return StopEvent()

    async def main() -> list[Any]:
        return texts(await read(Async().run()))

    assert run(backend, main) == ["from a thread"]


# --- The end of the loop -------------------------------------------------------------------------------


def test_o2_loop_ends_while_a_thread_goes_on(backend: str) -> None:
    async def main() -> Any:
        handler = Acts(mine).run()
        await until(mine.entered.is_set)
        return handler

    mine = Abandoned(*LATE_ACTS[:4])
    began = time.monotonic()
    handler = anyio.run(main, backend=backend)
    assert time.monotonic() - began < PATIENCE / 2
    assert handler.is_done()
    assert [type(outcome) for outcome in mine.let_go()] == [WorkflowRuntimeError] * 4


def test_o2_ended_run_refuses_a_thread_whose_loop_stands_still(backend: str) -> None:
    """Between two main functions nobody would answer the thread: it must not ask."""
    if backend != "asyncio":
        pytest.skip("a trio loop cannot stand still")

    async def main() -> None:
        handler = Acts(mine).run()
        await until(mine.entered.is_set)
        await handler.cancel_run()

    mine = Abandoned(*LATE_ACTS[:4])
    with asyncio.Runner() as runner:
        runner.run(main())
        mine.release.set()
        refused_at_once = mine.over.wait(PATIENCE)
        runner.run(until(mine.over.is_set))
    assert [type(outcome) for outcome in mine.outcomes] == [WorkflowRuntimeError] * 4
    assert refused_at_once


SCRIPT = """
    import functools, threading, time
    import anyio, anyio.from_thread
    from anyio_workflows import *
    from anyio_workflows.errors import WorkflowRuntimeError

    class Answer(HumanResponseEvent):
        pass

    began, go, over = threading.Event(), threading.Event(), threading.Event()

    class Mine(Workflow):
        @step
        def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            if ev["what"] == "returns":
                return StopEvent(result="fine")
            began.set()
            if ev["what"] == "waits":
                anyio.from_thread.run(ctx.wait_for_event, Answer)
            go.wait({patience})
            try:
                ctx.write_event_to_stream(Event())
            except WorkflowRuntimeError:
                print("refused")
            over.set()

    async def main():
        assert await Mine().run(what="returns") == "fine"
        handler = Mine().run(what={what!r})
        while not began.is_set() or {what!r} == "waits" and not handler.statistics().steps["work"].waiting:
            await anyio.sleep(0.01)
        if {cancel}:
            await handler.cancel_run()
            go.set()
            await anyio.sleep(0.05)

    anyio.run(main, backend={backend!r})
    go.set()
    assert {what!r} == "waits" or over.wait({patience})  # trio's threads are daemons
"""


@pytest.mark.parametrize(
    ("what", "cancel"), [("blocks", True), ("blocks", False), ("waits", True), ("waits", False)]
)
def test_o2_program_with_abandoned_threads_ends_without_a_warning(
    backend: str, what: str, cancel: bool
) -> None:
    done = run_script(SCRIPT.format(what=what, cancel=cancel, backend=backend, patience=PATIENCE))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused"] * (what == "blocks")
    if backend == "asyncio" and what == "waits" and not cancel:
        # asyncio cancels the task in which AnyIO runs `from_thread.run()`, and then reports that
        # AnyIO ended it with another exception; `from_thread.run(anyio.sleep, 9)` does the same.
        assert "Warning" not in done.stderr
    else:
        assert done.stderr == ""


def test_r5_a_thread_can_ask_whether_the_run_is_undecided(backend: str) -> None:
    async def main() -> bool:
        handler = Acts(lambda ctx: (ctx.is_running, ctx.run_id)).run(run_id="mine")
        assert await handler == (True, "mine")
        return handler.ctx.is_running

    assert run(backend, main) is False
