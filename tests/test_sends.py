"""What `send_event` tells its caller: the steps that took the event (R3)."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import anyio
import anyio.from_thread
import pytest

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    StartEvent,
    StopEvent,
    Workflow,
    catch_error,
    step,
)
from anyio_workflows.errors import WorkflowRuntimeError
from anyio_workflows.events import StepFailedEvent
from anyio_workflows.retry_policy import retry_policy, wait_fixed

from .running import read
from .samples import Answer, Item, Other, Part, Question

pytestmark = pytest.mark.anyio


class Rest(Workflow):
    """Steps that take what a test sends; `begin` waits until the test ends the run."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(skip_graph_checks=["reachability", "dead_end"], **kwargs)

    @step
    async def zeta(self, ev: Item) -> None: ...

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.wait_for_event(HumanResponseEvent)
        return StopEvent()

    @step
    async def alpha(self, ev: Item | Answer) -> None: ...

    @step
    async def pair(self, one: Part, other: Other) -> None: ...

    @step
    async def join(self, events: list[Item]) -> None: ...

    @step
    async def opens(self, ev: Other) -> list[Item]:
        return []

    @catch_error
    async def rescue(self, ev: StepFailedEvent) -> None: ...


@pytest.mark.parametrize(
    ("event", "target", "taken_by"),
    [
        pytest.param(Item(), None, ("zeta", "alpha"), id="in the order of definition, no join"),
        pytest.param(Item(), "alpha", ("alpha",), id="aimed"),
        pytest.param(Answer(), None, ("alpha",), id="one"),
        pytest.param(Part(), None, ("pair",), id="kept for a set"),
        pytest.param(Other(), None, ("pair", "opens"), id="kept for a set and started"),
        pytest.param(HumanResponseEvent(), None, ("begin",), id="answers a wait"),
        pytest.param(HumanResponseEvent(), "begin", ("begin",), id="aimed at a wait"),
        pytest.param(Question(), None, (), id="a question that goes to the stream only"),
        pytest.param(Event(), None, (), id="nobody"),
        pytest.param(StepFailedEvent, None, (), id="nobody: a failure that is none"),
        pytest.param(StopEvent(), None, (), id="a stop event ends the run"),
    ],
)
@pytest.mark.parametrize("way", ["handler", "handler's context"])
async def test_r3_returns_who_took_the_event(
    event: Any, target: str | None, taken_by: tuple[str, ...], way: str
) -> None:
    if event is StepFailedEvent:
        event = StepFailedEvent(
            step_name="alpha",
            input_event=Item(),
            exception=ValueError(),
            attempts=1,
            elapsed_seconds=0.0,
            failed_at=datetime.now(UTC),
        )
    handler = Rest().run()
    await anyio.sleep(1)
    if way == "handler":
        got = await handler.send_event(event, target)
    else:
        got = handler.ctx.send_event(event, target)
    assert got == taken_by
    await handler.cancel_run()


async def test_r3_a_queued_run_has_taken_it_too() -> None:
    handler = Rest().run()
    assert handler.ctx.send_event(Item()) == ("zeta", "alpha")
    assert handler.ctx.send_event(HumanResponseEvent()) == ()  # `begin` does not wait yet
    await handler.cancel_run()


async def test_r3_a_step_that_waits_and_one_that_accepts() -> None:
    """A step that both waits for a type and accepts it has it once, as its answer (W2)."""

    class Both(Workflow):
        @step
        async def accepts(self, ev: Answer) -> None: ...

        @step
        async def waits(self, ctx: Context, ev: StartEvent | Answer) -> StopEvent:
            async with anyio.create_task_group() as group:
                for n in range(2):
                    group.start_soon(ctx.wait_for_event, Answer, None, str(n))
            return StopEvent(result=type(ev).__name__)

    handler = Both().run()
    await anyio.sleep(1)
    assert await handler.send_event(Answer()) == ("accepts", "waits")
    assert await handler == "StartEvent"


async def test_r3_a_wait_that_is_kept_open_during_a_retry_delay_takes_it() -> None:
    class Retried(Workflow):
        @step(retry_policy=retry_policy(wait=wait_fixed(10)))
        async def asks(self, ctx: Context, ev: StartEvent) -> StopEvent:
            with anyio.fail_after(None if ctx.retry_info().retry_number else 1):
                return StopEvent(result=await ctx.wait_for_event(Answer))

    handler = Retried().run()
    await anyio.sleep(5)
    answer = Answer()
    assert await handler.send_event(answer) == ("asks",)
    assert await handler.send_event(answer) == ()
    assert await handler is answer


async def test_r3_within_a_step_and_its_thread() -> None:
    got: list[Any] = []

    class Threads(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | Part:
            got.append(ctx.send_event(Part()))
            return Item()

        @step
        def in_thread(self, ctx: Context, ev: Item) -> StopEvent:
            got.append(ctx.send_event(Part()))
            got.append(ctx.send_event(Other()))
            got.append(anyio.from_thread.run_sync(ctx.send_event, Part()))
            return StopEvent()

        @step
        async def one(self, ev: Part) -> None: ...

        @step
        async def two(self, ev: Part) -> None: ...

    await Threads().run()
    assert got == [("one", "two"), ("one", "two"), (), ("one", "two")]


async def test_r3_too_late_is_taken_by_nobody(caplog: pytest.LogCaptureFixture) -> None:
    got: list[Any] = []

    class Late(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | StopEvent:
            ctx.send_event(Item())
            await anyio.sleep(1)
            return StopEvent()

        @step
        async def work(self, ctx: Context, ev: Item) -> None:
            try:
                await anyio.sleep(10)
            finally:
                got.append(ctx.send_event(Item()))
                got.append(ctx.send_event(StopEvent()))
                got.append(await handler.send_event(Item()))

    caplog.set_level(logging.INFO, "anyio_workflows")
    handler = Late().run()
    with anyio.CancelScope(shield=True):
        await handler
    assert got[:2] == [(), ()]
    assert "Item was dropped, because it was sent after the outcome was decided" in caplog.text
    with pytest.raises(WorkflowRuntimeError, match="has ended"):
        await handler.send_event(Item())


async def test_r3_after_a_stop_event_nobody_takes_anything() -> None:
    handler = Rest().run()
    await anyio.sleep(1)
    assert await handler.send_event(StopEvent(result=1)) == ()
    assert handler.ctx.send_event(Item()) == ()
    assert len(await read(handler)) == 1
