"""Whole runs under `asyncio.run()` and `trio.run()`, without AnyIO's runner: T8, R5, and the rest.

Real clocks: what waits, waits for an event, and a time limit is short where it has to pass.
"""

from __future__ import annotations

import contextvars
import functools
import logging
import threading
from collections.abc import Callable
from typing import Annotated, Any

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import (
    Context,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowHandler,
    catch_error,
    step,
)
from anyio_workflows.errors import (
    WorkflowCancelledByUser,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
)
from anyio_workflows.events import StepFailedEvent
from anyio_workflows.resource import Resource
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from .bare import BARE_RUNNERS, PATIENCE, call_in_loop, run_bare
from .running import check_ending, read, run_script, texts
from .samples import Answer, Asks, Done, Item, Joined, Note, Other, Part, Question

SHORT = 0.01

Runner = Callable[..., Any]

each_runner = pytest.mark.parametrize("runner", BARE_RUNNERS)


@each_runner
def test_nobody_tells_anyio_which_library_runs(runner: Runner) -> None:
    sniffio = pytest.importorskip("sniffio")

    async def main() -> None:
        assert sniffio.current_async_library_cvar.get() is None

    run_bare(runner, main)


# --- Canonical workflows -------------------------------------------------------------------------


class Fan(Workflow):
    @step
    async def split(self, ev: StartEvent) -> list[Item]:
        return [Item(n=n) for n in range(20)]

    @step(num_workers=4)
    async def work(self, ctx: Context, ev: Item) -> Done:
        await checkpoint()
        ctx.write_event_to_stream(Note(text=ev.n))
        return Done(n=ev.n)

    @step
    async def join(self, results: list[Done]) -> StopEvent:
        return StopEvent(result=sorted(result.n for result in results))


class Nested(Workflow):
    @step
    async def rows(self, ev: StartEvent) -> list[Part]:
        return [Part(n=n) for n in range(4)]

    @step
    async def cells(self, ev: Part) -> list[Item]:
        return [Item(n=ev.n) for _ in range(ev.n)]

    @step
    def work(self, ev: Item) -> Done:
        return Done(n=ev.n)

    @step
    async def inner(self, results: list[Done]) -> Joined:
        return Joined(n=sum(result.n for result in results))

    @step
    async def outer(self, rows: list[Joined]) -> StopEvent:
        return StopEvent(result=sorted(row.n for row in rows))


@each_runner
def test_f2_fan_out_and_join(runner: Runner) -> None:
    async def main() -> None:
        events, last = await check_ending(Fan().run())
        assert sorted(texts(events)) == list(range(20))
        assert last.result == list(range(20))

    run_bare(runner, main)


@each_runner
def test_f3_nested_joins_with_threads(runner: Runner) -> None:
    async def main() -> Any:
        return await Nested().run()

    assert run_bare(runner, main) == [0, 1, 4, 9]


@each_runner
def test_o1_many_runs_at_once(runner: Runner) -> None:
    async def main() -> None:
        handlers = [Fan(num_concurrent_runs=2).run() for _ in range(10)]
        for handler in handlers:
            assert await handler == list(range(20))

    run_bare(runner, main)


class AsksThrice(Workflow):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        words = [(await ctx.wait_for_event(Answer, Question(text=word))).text for word in "abc"]
        return StopEvent(result=words)


class AsksInThread(Workflow):
    @step
    def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        wait = functools.partial(ctx.wait_for_event, Answer)
        words = [anyio.from_thread.run(wait, Question(text=word)).text for word in "abc"]
        return StopEvent(result=words)


@each_runner
@pytest.mark.parametrize("workflow", [AsksThrice, AsksInThread])
def test_w1_questions_and_answers(runner: Runner, workflow: type[Workflow]) -> None:
    async def main() -> None:
        handler = workflow().run()
        async for event in handler.stream_events():
            if isinstance(event, Question):
                await handler.send_event(Answer(text=event.text.upper()))
        assert await handler == ["A", "B", "C"]

    run_bare(runner, main)


@each_runner
def test_w3_wait_that_times_out(runner: Runner) -> None:
    class Impatient(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            with pytest.raises(TimeoutError, match="Answer"):
                await ctx.wait_for_event(Answer, timeout=SHORT)
            return StopEvent()

    async def main() -> None:
        await Impatient().run()

    run_bare(runner, main)


class UsesThreads(Workflow):
    @step
    def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
        assert threading.current_thread() is not threading.main_thread()
        for n in range(10):
            ctx.write_event_to_stream(Note(text=n))
            ctx.send_event(Item(n=n))

    @step(num_workers=4)
    def work(self, ctx: Context, ev: Item) -> StopEvent | None:
        found = ctx.collect_events(ev, [Item] * 10)
        return None if found is None else StopEvent(result=sorted(task["n"] for task in found))


@each_runner
def test_r5_steps_in_threads_write_send_and_collect(runner: Runner) -> None:
    async def main() -> None:
        events, last = await check_ending(UsesThreads().run())
        assert texts(events) == list(range(10))
        assert last.result == list(range(10))

    run_bare(runner, main)


class SendsAndBlocks(Workflow):
    """Its step in a thread goes on only when what it has sent was taken."""

    def __init__(self, count: int) -> None:
        super().__init__(timeout=PATIENCE)
        self.count = count
        self.taken = threading.Semaphore(0)

    @step
    def begin(self, ctx: Context, ev: StartEvent) -> Other | StopEvent:
        for n in range(self.count):
            ctx.send_event(Other(n=n))
            assert self.taken.acquire(timeout=PATIENCE)
        return StopEvent(result="all were taken")

    @step
    async def take(self, ev: Other) -> None:
        self.taken.release()


@each_runner
def test_r3_what_a_thread_sends_is_worked_on_at_once(runner: Runner) -> None:
    async def main() -> Any:
        return await SendsAndBlocks(5).run()

    assert run_bare(runner, main) == "all were taken"


class Parent(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await ctx.relay_events(Fan().run()))


class ParentInThread(Workflow):
    @step
    def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
        child = anyio.from_thread.run_sync(Fan().run)
        return StopEvent(result=anyio.from_thread.run(ctx.relay_events, child))


@each_runner
@pytest.mark.parametrize("workflow", [Parent, ParentInThread])
def test_o5_child_runs(runner: Runner, workflow: type[Workflow]) -> None:
    async def main() -> None:
        events, last = await check_ending(workflow().run())
        assert sorted(texts(events)) == list(range(20))
        assert last.result == list(range(20))

    run_bare(runner, main)


class Fails(Workflow):
    @step(retry_policy=retry_policy(wait=wait_fixed(SHORT), stop=stop_after_attempt(3)), timeout=5)
    async def fail(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Note(text=ctx.retry_info().retry_number))
        raise ValueError("never")

    @catch_error
    async def recover(self, ev: StepFailedEvent) -> StopEvent:
        return StopEvent(result=ev.attempts)


@each_runner
def test_x1_retries_and_recovery(runner: Runner) -> None:
    async def main() -> None:
        events, last = await check_ending(Fails().run())
        assert texts(events) == [0, 1, 2]
        assert last.result == 3

    run_bare(runner, main)


class Cleans(Workflow):
    """Waits for ever, and says so when it is cancelled."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.begun = anyio.Event()

    @step
    async def wait(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            ctx.write_event_to_stream(Note(text="cleaned"))
        return StopEvent()


@each_runner
def test_t2_timeout(runner: Runner) -> None:
    async def main() -> None:
        handler = Cleans(timeout=0.3).run()  # the step has to begin before that
        with pytest.raises(WorkflowTimeoutError):
            await handler
        assert texts(await read(handler)) == ["cleaned"]

    run_bare(runner, main)


@each_runner
def test_r8_timeout_of_a_step(runner: Runner) -> None:
    class Slow(Workflow):
        @step(timeout=SHORT)
        async def wait(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep_forever()
            return StopEvent()

    async def main() -> None:
        with pytest.raises(TimeoutError, match="took longer"):
            await Slow().run()

    run_bare(runner, main)


@each_runner
def test_t10_cancel(runner: Runner) -> None:
    async def main() -> None:
        workflow = Cleans()
        handler = workflow.run()
        await workflow.begun.wait()
        await handler.cancel_run()
        with pytest.raises(WorkflowCancelledByUser):
            await handler
        assert texts(await read(handler)) == ["cleaned"]

    run_bare(runner, main)


@each_runner
def test_o3_block_that_is_left(runner: Runner) -> None:
    async def main() -> None:
        workflow = Cleans()
        with pytest.raises(KeyError):  # noqa: PT012 - the whole block is what is tested
            async with workflow.run() as handler:
                await workflow.begun.wait()
                raise KeyError
        assert texts(await read(handler)) == ["cleaned"]

    run_bare(runner, main)


@each_runner
def test_p5_resources(runner: Runner) -> None:
    async def connect() -> Any:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            yield "connected"
            group.cancel_scope.cancel()

    class Uses(Workflow):
        @step
        def use(self, ev: StartEvent, db: Annotated[str, Resource(connect)]) -> StopEvent:
            return StopEvent(result=db)

    async def main() -> Any:
        return await Uses().run()

    assert run_bare(runner, main) == "connected"


@each_runner
def test_p3_a_run_goes_on_from_its_snapshot(runner: Runner) -> None:
    async def main() -> Any:
        workflow = Asks()
        handler = workflow.run()
        async for event in handler.stream_events():
            if isinstance(event, Question):
                break
        data = handler.ctx.to_dict()
        await handler.cancel_run()
        again = workflow.run(ctx=Context.from_dict(workflow, data))
        await again.send_event(Answer(text="yes"))
        return await again

    assert run_bare(runner, main) == "yes"


# --- From a callback of the loop, where there is no current task ---------------------------------


class CalledBack(Workflow):
    """Has `act` called in a callback of the loop, with the context of its step, and waits for Other."""

    def __init__(self, act: Callable[[Context], object], sides: int = 1, **kwargs: Any) -> None:
        super().__init__(timeout=PATIENCE, **kwargs)
        self.act, self.sides = act, sides
        self.seen: list[int] = []
        self.found: list[object] = []

    def call(self, ctx: Context) -> None:
        try:
            self.found.append(self.act(ctx))
        except BaseException as exc:
            self.found.append(exc)
            raise

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Other | None:
        call_in_loop(self.call, ctx)
        await anyio.sleep_forever()
        return None

    @step
    async def take(self, ev: Other) -> StopEvent | None:
        self.seen.append(ev.n)
        return StopEvent(result=self.seen) if len(self.seen) == self.sides else None


def send_many(ctx: Context) -> None:
    for n in range(30):
        ctx.send_event(Other(n=n))


def send_one_after_the_other(ctx: Context) -> None:
    def send(n: int) -> None:
        ctx.send_event(Other(n=n))
        if n < 29:
            call_in_loop(send, n + 1)

    send(0)


@each_runner
def test_r3_send_event(runner: Runner) -> None:
    async def main() -> Any:
        return await CalledBack(lambda ctx: ctx.send_event(Other(n=7))).run()

    assert run_bare(runner, main) == [7]


@each_runner
@pytest.mark.parametrize("act", [send_many, send_one_after_the_other])
def test_r3_send_many_events(runner: Runner, act: Callable[[Context], None]) -> None:
    async def main() -> Any:
        return await CalledBack(act, sides=30).run()

    assert run_bare(runner, main) == list(range(30))


@each_runner
def test_t4_stop_event_that_is_sent(runner: Runner) -> None:
    async def main() -> Any:
        return await CalledBack(lambda ctx: ctx.send_event(StopEvent(result="sent"))).run()

    assert run_bare(runner, main) == "sent"


@each_runner
def test_s1_write(runner: Runner) -> None:
    def act(ctx: Context) -> None:
        assert ctx.is_running
        ctx.write_event_to_stream(Note(text="from a callback"))
        ctx.send_event(StopEvent())

    async def main() -> Any:
        return texts(await read(CalledBack(act).run()))

    assert run_bare(runner, main) == ["from a callback"]


@each_runner
def test_p3_snapshot_and_statistics(runner: Runner) -> None:
    def act(ctx: Context) -> None:
        ctx.to_dict()
        assert handlers[0].statistics().steps["begin"].running == 1
        assert "begin: 1 running" in repr(handlers[0])
        ctx.send_event(StopEvent())

    async def main() -> None:
        handlers.append(CalledBack(act).run())
        await handlers[0]

    handlers: list[WorkflowHandler[Any]] = []
    run_bare(runner, main)


@each_runner
def test_w2_answer(runner: Runner) -> None:
    class Waits(CalledBack):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Other | StopEvent:
            call_in_loop(self.call, ctx)
            return StopEvent(result=(await ctx.wait_for_event(Answer)).text)

    async def main() -> Any:
        return await Waits(lambda ctx: ctx.send_event(Answer(text="yes"))).run()

    assert run_bare(runner, main) == "yes"


@each_runner
def test_x1_what_is_sent_is_retried(runner: Runner) -> None:
    class Retries(CalledBack):
        @step(retry_policy=retry_policy(wait=wait_fixed(SHORT), stop=stop_after_attempt(3)))
        async def take(self, ctx: Context, ev: Other) -> StopEvent:
            if ctx.retry_info().retry_number < 2:
                raise ValueError
            return StopEvent(result=ctx.retry_info().retry_number)

    async def main() -> Any:
        return await Retries(lambda ctx: ctx.send_event(Other())).run()

    assert run_bare(runner, main) == 2


@each_runner
def test_o5_child_that_is_started(runner: Runner) -> None:
    def act(ctx: Context) -> None:
        children.append(Cleans(timeout=None).run())
        ctx.send_event(Other())

    async def main() -> None:
        await CalledBack(act).run()
        if runner_copies_context:
            assert children[0].is_done()  # it was the step's child
        else:
            await children[0].cancel_run()

    runner_copies_context = "trio" not in runner.__name__
    children: list[WorkflowHandler[Any]] = []
    run_bare(runner, main)


@each_runner
def test_o1_run_that_is_started_outside_of_steps(runner: Runner) -> None:
    async def main() -> Any:
        def start() -> None:
            handlers.append(UsesThreads().run())
            started.set()

        started = anyio.Event()
        call_in_loop(start)
        await started.wait()
        return await handlers[0]

    handlers: list[WorkflowHandler[Any]] = []
    if "trio" in runner.__name__:
        pytest.skip("trio's callbacks run in a task of trio, which is no place to start runs in")
    assert run_bare(runner, main) == list(range(10))


@each_runner
def test_r3_event_that_comes_before_the_first_step(runner: Runner) -> None:
    async def main() -> Any:
        workflow = CalledBack(lambda ctx: None)
        handler = workflow.run()
        call_in_loop(handler.ctx.send_event, Other(n=3))
        return await handler

    assert run_bare(runner, main) == [3]


@each_runner
def test_r7_event_that_comes_while_the_run_waits_for_its_turn(runner: Runner) -> None:
    async def main() -> Any:
        workflow = CalledBack(lambda ctx: None, num_concurrent_runs=1)
        first, second = workflow.run(), workflow.run()
        call_in_loop(second.ctx.send_event, Other(n=4))
        await anyio.sleep(SHORT)
        assert not second.is_done()
        await first.cancel_run()
        return await second

    assert run_bare(runner, main) == [4]


@each_runner
def test_t7_what_comes_after_the_end_raises(runner: Runner) -> None:
    async def main() -> None:
        handler = Fan().run()
        await handler
        call_in_loop(try_it, handler.ctx)
        await done.wait()

    def try_it(ctx: Context) -> None:
        with pytest.raises(WorkflowRuntimeError, match="has ended"):
            ctx.send_event(Item(n=1))
        done.set()

    async def with_event() -> None:
        nonlocal done
        done = anyio.Event()
        await main()

    done: anyio.Event
    run_bare(runner, with_event)


def test_r3_without_sniffio() -> None:
    """AnyIO finds asyncio's loop in another way where sniffio is not installed."""
    done = run_script(
        """
        import sys
        sys.modules["sniffio"] = None
        import asyncio
        from anyio_workflows import Context, Event, StartEvent, StopEvent, Workflow, step

        class Other(Event):
            pass

        class Sends(Workflow):
            @step
            def begin(self, ctx: Context, ev: StartEvent) -> Other | None:
                ctx.send_event(Other())

            @step
            async def call_back(self, ctx: Context, ev: Other) -> StopEvent:
                asyncio.get_running_loop().call_soon(ctx.send_event, StopEvent(result="sent"))
                await asyncio.sleep(10)

        async def main():
            print(await Sends().run())

        asyncio.run(main())
        """
    )
    assert (done.stdout, done.returncode) == ("sent\n", 0), done.stderr


# --- Errors of the way into the loop, and of what is called there -----------------------------------


@each_runner
@pytest.mark.parametrize("error", [RuntimeError("mine"), LookupError("mine")])
def test_r5_error_of_the_call_itself_is_raised_in_the_thread(
    runner: Runner, error: Exception
) -> None:
    class Raising(str):
        def __hash__(self) -> int:  # called in the event loop, where the buffers are
            raise error

    class Collects(Workflow):
        @step
        def collect(self, ctx: Context, ev: StartEvent) -> StopEvent:
            with pytest.raises(type(error), match="mine") as caught:
                ctx.collect_events(ev, [StartEvent], buffer_id=Raising())
            return StopEvent(result=caught.value)

    async def main() -> Any:
        return await Collects().run()

    assert run_bare(runner, main) is error


@each_runner
def test_r5_context_raises_in_a_thread_that_is_not_of_its_run(runner: Runner) -> None:
    def act(ctx: Context) -> None:
        def send() -> None:
            with pytest.raises(WorkflowRuntimeError, match="used in the event loop of its run"):
                ctx.send_event(Other())
            raised.set()

        thread = threading.Thread(target=contextvars.copy_context().run, args=(send,))
        thread.start()
        thread.join()
        ctx.send_event(Other())

    async def main() -> None:
        await CalledBack(act).run()

    raised = threading.Event()
    run_bare(runner, main)
    assert raised.is_set()


# --- O8: a run that nobody awaited -------------------------------------------------------------------


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name.startswith("anyio_workflows")]


@each_runner
def test_o8_forgotten_run_is_logged_when_the_loop_ends(
    runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> str:
        workflow = Cleans()
        handler = workflow.run()
        await workflow.begun.wait()
        return handler.run_id

    caplog.set_level(logging.INFO)
    run_id = run_bare(runner, main)
    (record,) = logged(caplog)
    assert record.levelname == "INFO"
    assert f"run {run_id} of Cleans: cancelled, because its event loop ended" in record.message
    assert record.message.endswith("active steps: wait")


@each_runner
def test_o8_run_that_had_not_begun_is_logged_too(
    runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> str:
        workflow = Cleans(num_concurrent_runs=1)
        workflow.run()
        second = workflow.run()
        await workflow.begun.wait()
        return second.run_id

    caplog.set_level(logging.INFO)
    run_id = run_bare(runner, main)
    found = sorted(record.message.partition("active steps: ")[2] for record in logged(caplog))
    assert found == ["none", "wait"]
    assert sum(run_id in record.message for record in logged(caplog)) == 1


@each_runner
def test_o8_child_is_the_business_of_its_parent(
    runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    class Starts(Cleans):
        @step
        async def wait(self, ev: StartEvent) -> StopEvent:
            child = Cleans()
            child.run()
            await child.begun.wait()
            self.begun.set()
            await anyio.sleep_forever()
            return StopEvent()

    async def main() -> None:
        workflow = Starts()
        workflow.run()
        await workflow.begun.wait()

    caplog.set_level(logging.INFO)
    run_bare(runner, main)
    (record,) = logged(caplog)
    assert "of Starts" in record.message


@each_runner
def test_o8_nothing_is_logged_of_a_run_that_somebody_awaited(
    runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        workflow = Cleans()
        handler = workflow.run()
        await workflow.begun.wait()
        with anyio.move_on_after(SHORT):
            await handler

    caplog.set_level(logging.INFO)
    run_bare(runner, main)
    assert logged(caplog) == []


@each_runner
def test_o8_nothing_is_logged_of_a_run_that_ended_in_time(
    runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        handler = Fan().run()
        await read(handler)

    caplog.set_level(logging.INFO)
    run_bare(runner, main)
    assert logged(caplog) == []
