"""What a run belongs to, and what it keeps: its event loop, its context variables, its memory (O1, O2, O6, O7)."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowHandler,
    step,
)
from anyio_workflows.errors import (
    WorkflowCancelledByUser,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
)

from .conftest import BACKENDS
from .running import PATIENCE, on_asyncio, on_each_backend, read, run_script, run_virtually
from .samples import Answer, AsksByReturning, Job, Next, Note, OneStep, ProviderError, Question

pytestmark = pytest.mark.anyio

# --- O1: where runs start and handlers are used -------------------------------------------------


async def test_o1_no_step_begins_inside_run() -> None:
    job = Job()
    handler = job.run()
    assert not job.begun
    assert not handler.is_done()
    await handler.cancel_run()


def test_o1_outside_a_loop_raises() -> None:
    with pytest.raises(WorkflowRuntimeError, match="running event loop"):
        Job().run()
    gc.collect()  # nothing un-awaited or unclosed is left to warn


async def test_o1_from_a_worker_thread_raises() -> None:
    with pytest.raises(WorkflowRuntimeError, match="running event loop"):
        await anyio.to_thread.run_sync(Job().run)


async def test_o1_from_a_worker_thread_through_anyio_works() -> None:
    def start() -> WorkflowHandler[Any]:
        return anyio.from_thread.run_sync(Job().run)

    handler = await anyio.to_thread.run_sync(start)
    assert await handler == "done"


@on_asyncio
async def test_o1_from_a_callback_of_the_loop() -> None:
    handlers: list[WorkflowHandler[Any]] = []
    asyncio.get_running_loop().call_soon(lambda: handlers.append(Job().run()))
    await anyio.sleep(1)
    assert await handlers[0] == "done"


async def test_o1_from_a_task_that_ends_at_once() -> None:
    handlers: list[WorkflowHandler[Any]] = []

    async def start() -> None:
        handlers.append(Job().run())

    async with anyio.create_task_group() as group:
        group.start_soon(start)
    assert await handlers[0] == "done"


@pytest.mark.parametrize("event", [Answer(text="Ann"), StopEvent(result="Ann")])
async def test_o1_send_event_right_after_run(event: Event) -> None:
    handler = AsksByReturning().run()
    await handler.send_event(event)
    assert await handler == "Ann"


async def test_o1_event_sent_at_once_comes_after_the_start_event() -> None:
    class Order(Workflow):
        @step(num_workers=1)
        async def take(self, ev: StartEvent | HumanResponseEvent) -> StopEvent | None:
            taken.append(type(ev))
            return StopEvent() if len(taken) == 2 else None

    taken: list[type[Event]] = []
    handler = Order().run()
    await handler.send_event(HumanResponseEvent())
    await handler
    assert taken == [StartEvent, HumanResponseEvent]


async def test_o1_sending_what_is_no_event_raises() -> None:
    handler = AsksByReturning().run()
    for wrong in ("text", StopEvent, None):
        with pytest.raises(WorkflowRuntimeError, match="only events"):
            await handler.send_event(wrong)  # type: ignore[arg-type]
    with pytest.raises(WorkflowRuntimeError, match="no such step"):
        await handler.send_event(Answer(), step="nobody")
    with pytest.raises(WorkflowRuntimeError, match="accepts Answer only"):
        await handler.send_event(Next(), step="take")
    await handler.send_event(Answer(text="Ann"), step="take")
    assert await handler == "Ann"


async def _await(handler: WorkflowHandler[Any]) -> object:
    return await handler


async def _enter(handler: WorkflowHandler[Any]) -> object:
    async with handler:
        return None


async def _next(handler: WorkflowHandler[Any]) -> object:
    return await handler.stream_events().__anext__()


async def test_o1_send_event_is_a_checkpoint() -> None:
    handler = AsksByReturning().run()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await handler.send_event(Answer(text="never sent"))
    assert scope.cancelled_caught
    await handler.send_event(Answer(text="Ann"))
    assert await handler == "Ann"


FOREIGN_ACTS: dict[str, Any] = {
    "await": _await,
    "stop_event_result": lambda handler: handler.stop_event_result(),
    "send_event": lambda handler: handler.send_event(Answer(text="thief")),
    "cancel_run": lambda handler: handler.cancel_run(),
    "enter": _enter,
    "read": _next,
}


@pytest.mark.parametrize("name", FOREIGN_ACTS)
async def test_o1_handler_raises_in_another_loop(name: str) -> None:
    """With an event in the stream, so that nobody has to wait for it."""

    def in_thread() -> None:
        async def main() -> None:
            with pytest.raises(WorkflowRuntimeError, match="was started"):
                await FOREIGN_ACTS[name](handler)

        asyncio.run(main())

    handler = AsksByReturning(timeout=None).run()  # virtual time goes on while the thread runs
    await anyio.sleep(1)
    await anyio.to_thread.run_sync(in_thread)
    await handler.send_event(Answer(text="Ann"))
    assert await read(handler) == [
        Question(text="well?"),
        StopEvent(result="Ann"),
    ]
    assert await handler == "Ann"


@on_each_backend
@pytest.mark.parametrize("elsewhere", BACKENDS)
def test_o1_what_has_ended_is_read_in_another_loop(backend: str, elsewhere: str) -> None:
    async def main() -> WorkflowHandler[Any]:
        handler = Job().run(how="raise")
        with pytest.raises(ProviderError):
            await handler
        return handler

    async def later() -> None:
        with pytest.raises(ProviderError):
            await handler
        with pytest.raises(ProviderError):
            await handler.stop_event_result()
        await handler.cancel_run()
        with pytest.raises(WorkflowRuntimeError, match="has ended"):
            await handler.send_event(HumanResponseEvent())
        assert await read(handler) == [handler.get_stop_event()]

    handler = run_virtually(backend, main)
    assert handler.is_done()
    thread = threading.Thread(target=run_virtually, args=(elsewhere, later))
    thread.start()
    thread.join(PATIENCE)
    with pytest.raises(WorkflowRuntimeError, match="already been consumed"):
        run_virtually(elsewhere, lambda: read(handler))


# --- O2: the run belongs to the loop ------------------------------------------------------------


async def test_o2_leaving_the_callers_scopes_does_not_touch_the_run() -> None:
    with anyio.CancelScope() as scope:
        handler = Job().run()
        scope.cancel()
        await checkpoint()
    with anyio.move_on_after(1):
        await handler
    async with anyio.create_task_group() as group:
        group.cancel_scope.cancel()
    assert await handler == "done"


async def test_o2_callers_deadline_is_not_the_runs() -> None:
    with anyio.move_on_after(5):
        handler = Job().run()
        await anyio.sleep(100)
    assert not handler.is_done()
    assert await handler == "done"


async def test_o2_callers_shield_is_not_the_runs() -> None:
    with anyio.CancelScope(shield=True):  # noqa: ASYNC100
        handler = Job(timeout=1).run()
    with pytest.raises(WorkflowTimeoutError):
        await handler


@on_each_backend
@pytest.mark.parametrize("turns", range(8))
def test_o2_loop_ends_right_after_the_start(
    backend: str, turns: int, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio throws tasks away that are cancelled before their first step."""

    async def main() -> WorkflowHandler[Any]:
        handler = job.run()
        for _ in range(turns):
            await checkpoint()
        return handler

    job = Job()
    handler = run_virtually(backend, main)
    assert handler.is_done()
    assert handler.get_stop_event() == WorkflowCancelledEvent()
    assert job.cleaned == job.begun
    gc.collect()
    assert caplog.text == ""
    assert all(counts.running == 0 for counts in handler.statistics().steps.values())


@on_each_backend
@pytest.mark.parametrize("number", [1, 20])
def test_o2_loop_ends_in_the_middle_of_runs(
    backend: str, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> list[WorkflowHandler[Any]]:
        handlers = [job.run() for job in jobs]
        await anyio.sleep(1)
        return handlers

    jobs = [Job() for _ in range(number)]
    for handler in run_virtually(backend, main):
        assert handler.get_stop_event() == WorkflowCancelledEvent()
        assert handler.is_done()
    assert all(job.cleaned for job in jobs)
    assert caplog.text == ""


@on_each_backend
def test_o2_loop_ends_with_an_exception(backend: str) -> None:
    async def main() -> None:
        handlers.append(job.run())
        await anyio.sleep(1)
        raise ProviderError("of main")

    handlers: list[WorkflowHandler[Any]] = []
    job = Job()
    with pytest.raises(ProviderError, match="of main"):
        run_virtually(backend, main)
    assert handlers[0].get_stop_event() == WorkflowCancelledEvent()
    assert job.cleaned


def test_o2_every_task_is_cancelled_natively_and_the_loop_goes_on() -> None:
    async def main() -> list[Event]:
        handler = job.run()
        await asyncio.sleep(1)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        with anyio.fail_after(10):
            return await read(handler)

    job = Job()
    assert run_virtually("asyncio", main)[-1] == WorkflowCancelledEvent()


def test_o2_runner_ends_between_two_main_functions() -> None:
    async def start() -> WorkflowHandler[Any]:
        handler = job.run()
        await asyncio.sleep(0)
        return handler

    async def go_on() -> None:
        await asyncio.sleep(0.001)
        assert not handler.is_done()

    job = Job(cleanup_timeout=0)
    with asyncio.Runner() as runner:
        handler = runner.run(start())
        runner.run(go_on())
    assert handler.get_stop_event() == WorkflowCancelledEvent()


PROGRAM = """
import sys
import anyio
from anyio_workflows import *

class Tidy(Workflow):
    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        try:
            await anyio.sleep(1000)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.001)
            print("tidy", flush=True)
        return StopEvent()

async def main():
    handler = Tidy().run()
    for _ in range({turns}):
        await anyio.lowlevel.checkpoint()
    {then}

anyio.run(main, backend={backend!r})
print("over")
"""


@on_each_backend
@pytest.mark.parametrize(
    ("turns", "then", "said"),
    [
        (0, "pass", None),  # on trio the step has begun, or it has not
        (1, "pass", None),
        (20, "pass", "tidy over"),
        (20, "del handler", "tidy over"),
        (20, "sys.exit(0)", "tidy"),
        (20, "await handler.cancel_run()", "tidy over"),
    ],
)
def test_o2_end_of_the_program_warns_of_nothing(
    backend: str, turns: int, then: str, said: str | None
) -> None:
    done = run_script(PROGRAM.format(turns=turns, then=then, backend=backend))
    assert done.stderr == ""
    assert done.stdout.split() in ([said.split()] if said else [["over"], ["tidy", "over"]])
    assert done.returncode == 0


@on_each_backend
def test_o2_keyboard_interrupt_of_a_step_reaches_the_program(backend: str) -> None:
    async def main() -> None:
        async def act(ctx: Context) -> None:
            raise KeyboardInterrupt

        await OneStep(act).run()

    with pytest.raises(KeyboardInterrupt):
        run_virtually(backend, main)


# --- O6: nothing is pinned, nothing is silent ---------------------------------------------------


def _collected(*refs: weakref.ref[Any]) -> bool:
    for _ in range(3):
        gc.collect()
    return not any(ref() for ref in refs)


@pytest.mark.parametrize("how", ["return", "raise", "cancel", "timeout"])
@pytest.mark.parametrize("read_it", [True, False])
async def test_o6_everything_is_collectable_after_the_end(how: str, read_it: bool) -> None:
    async def use() -> list[weakref.ref[Any]]:
        workflow = Job(timeout=5 if how == "timeout" else 45)
        handler = workflow.run(how=how)
        await anyio.sleep(1)
        if how == "cancel":
            await handler.cancel_run()
        with suppress(ProviderError, WorkflowCancelledByUser, WorkflowTimeoutError):
            await handler
        if read_it:
            await read(handler)
        referents = [workflow, handler, handler.ctx, handler._run, handler._run.ledger]
        return [weakref.ref(referent) for referent in referents]

    refs = await use()
    await anyio.sleep(1)
    assert _collected(*refs)


@pytest.mark.parametrize("how", ["return", "cancel", "timeout"])
async def test_o6_a_run_that_has_ended_is_freed_with_its_handler(how: str) -> None:
    """At once, with all events in it; it does not wait for the garbage collector."""
    handler = Job(timeout=5 if how == "timeout" else 45).run(how=how)
    await anyio.sleep(1)
    if how == "cancel":
        await handler.cancel_run()
    await read(handler)
    await anyio.sleep(1)
    refs = [weakref.ref(handler._run), weakref.ref(handler._run.ledger)]
    assert handler.get_stop_event() is not None
    gc.collect()
    gc.disable()
    try:
        del handler
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


async def test_o6_running_run_survives_its_handler() -> None:
    class Survivor(Workflow):
        @step
        async def work(self, ev: StartEvent) -> Next:
            await anyio.sleep(10)
            return Next()

        @step
        async def more(self, ev: Next) -> StopEvent:
            ended.append(True)
            return StopEvent()

    ended: list[bool] = []
    Survivor().run()
    for _ in range(4):
        gc.collect()
        await anyio.sleep(5)
    assert ended == [True]


async def test_o6_idle_run_survives_its_handler() -> None:
    """Nothing else refers to it: no deadline, no step in progress."""
    handler = AsksByReturning(timeout=None).run()
    await anyio.sleep(1)
    run = weakref.ref(handler._run)
    del handler
    assert not _collected(run)


async def test_o6_stream_keeps_the_handler_alive() -> None:
    events = [event async for event in Job().run().stream_events()]
    assert events == [StopEvent(result="done")]


def _complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    gc.collect()
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def test_o6_failure_that_nobody_saw_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    Job().run(how="raise")
    await anyio.sleep(20)
    [complaint] = _complaints(caplog)
    assert "Job" in complaint
    assert "ProviderError: down" in caplog.text


async def test_o6_failure_is_logged_when_the_handler_goes(caplog: pytest.LogCaptureFixture) -> None:
    handler = Job().run(how="raise")
    await anyio.sleep(20)
    assert _complaints(caplog) == []
    del handler
    assert len(_complaints(caplog)) == 1
    gc.collect()
    assert len(_complaints(caplog)) == 1


async def test_o6_timeout_that_nobody_saw_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    Job(timeout=1).run()
    await anyio.sleep(20)
    assert len(_complaints(caplog)) == 1
    assert "WorkflowTimeoutError" in caplog.text


async def test_o6_failure_that_an_unfinished_reader_did_not_reach_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Notes(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(Note(text="one"))
            raise ProviderError("down")

    async for _ in Notes().run().stream_events():
        break
    await anyio.sleep(1)
    assert len(_complaints(caplog)) == 1


@pytest.mark.parametrize("how", ["await", "get_stop_event", "stream", "async with"])
async def test_o6_failure_that_was_seen_is_not_logged(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Job().run(how="raise")
    if how == "await":
        with pytest.raises(ProviderError):
            await handler
    elif how == "stream":
        await read(handler)
    elif how == "async with":
        with pytest.raises(ProviderError):
            async with handler:
                pass
    else:
        await anyio.sleep(20)
        assert isinstance(handler.get_stop_event(), WorkflowFailedEvent)
    del handler
    assert _complaints(caplog) == []


async def test_o6_cancellation_and_success_that_nobody_saw_are_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handler = Job().run()
    await anyio.sleep(1)
    await handler.cancel_run()
    del handler
    Job().run()
    await anyio.sleep(20)
    assert _complaints(caplog) == []


@on_each_backend
def test_o6_failure_seen_by_nobody_before_the_loop_ended(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        handler = Job().run(how="raise")
        await anyio.sleep(20)
        assert handler.is_done()

    run_virtually(backend, main)
    assert len(_complaints(caplog)) == 1


# --- O7: context variables --------------------------------------------------------------------


user: ContextVar[Any] = ContextVar("user")


class Incomparable:
    def __eq__(self, other: object) -> bool:
        raise ProviderError("not comparable")

    __hash__ = None  # type: ignore[assignment]


class Sets(Workflow):
    """Each step notes the value it finds and sets another."""

    def __init__(self, values: list[Any]) -> None:
        super().__init__()
        self.values = values
        self.found: list[Any] = []

    @step
    async def loop(self, ev: StartEvent | Next) -> Next | StopEvent:
        self.found.append(user.get("unset"))
        n = ev.n if isinstance(ev, Next) else 0
        if n == len(self.values):
            return StopEvent()
        user.set(self.values[n])
        return Next(n=n + 1)


async def test_o7_steps_see_the_callers_values_at_run() -> None:
    user.set("Ann")
    workflow = Sets([])
    handler = workflow.run()
    user.set("Bob")
    await handler
    assert workflow.found == ["Ann"]


async def test_o7_what_a_step_sets_leaks_nowhere() -> None:
    user.set("Ann")
    workflow = Sets(["x", "y", None, "Ann", 0])
    await workflow.run()
    assert workflow.found == ["Ann"] * 6
    assert user.get() == "Ann"


async def test_o7_variable_that_the_caller_has_not_set() -> None:
    workflow = Sets(["x", "y"])
    await workflow.run()
    assert workflow.found == ["unset"] * 3


async def test_o7_values_that_cannot_be_compared() -> None:
    mine = Incomparable()
    user.set(mine)
    workflow = Sets([Incomparable(), Incomparable()])
    await workflow.run()
    assert all(found is mine for found in workflow.found)
    assert user.get() is mine


@pytest.mark.parametrize(("mine", "equal"), [(1, True), ([], []), ({}, {})])
async def test_o7_equal_value_is_another_value(mine: Any, equal: Any) -> None:
    user.set(mine)
    workflow = Sets([equal, equal])
    await workflow.run()
    assert all(found is mine for found in workflow.found)


async def test_o7_concurrent_executions_have_their_own() -> None:
    class Side(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Next | StopEvent:
            for n in range(4):
                ctx.send_event(Next(n=n))
            await anyio.sleep(10)
            return StopEvent(result=user.get())

        @step
        async def set_it(self, ev: Next) -> None:
            before = user.get()
            user.set(ev.n)
            await anyio.sleep(1)
            seen.append((before, user.get() == ev.n))

    seen: list[Any] = []
    user.set("Ann")
    assert await Side().run() == "Ann"
    assert seen == [("Ann", True)] * 4


async def test_o7_step_started_from_outside_sees_the_values_at_run() -> None:
    class Later(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> InputRequiredEvent:
            return InputRequiredEvent()

        @step
        async def take(self, ev: HumanResponseEvent) -> StopEvent:
            return StopEvent(result=user.get())

    user.set("Ann")
    handler = Later().run()
    await anyio.sleep(1)
    user.set("Bob")
    await handler.send_event(HumanResponseEvent())
    assert await handler == "Ann"


async def test_o7_failing_step_leaks_nothing_to_the_caller() -> None:
    async def act(ctx: Context) -> None:
        user.set("leak")
        raise ProviderError

    user.set("Ann")
    with pytest.raises(ProviderError):
        await OneStep(act).run()
    assert user.get() == "Ann"
