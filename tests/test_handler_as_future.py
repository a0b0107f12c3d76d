"""The handler, asked like a Future (T2): what it answers, and what asyncio can do with it."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterable
from typing import Any

import anyio
import pytest

from anyio_workflows import Context, StartEvent, StopEvent, Workflow, step
from anyio_workflows.errors import (
    WorkflowCancelledByUser,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
)
from anyio_workflows.events import WorkflowCancelledEvent, WorkflowFailedEvent

from .running import on_asyncio, on_each_backend, read, run_virtually
from .samples import ProviderError

pytestmark = pytest.mark.anyio


class Report(StopEvent):
    text: str


class Ends(Workflow):
    """Ends after a virtual second, in the way that it is told."""

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await anyio.sleep(1)
        match ev.how:
            case "fail":
                raise ProviderError("no luck")
            case "report":
                return Report(text="all is well")
            case "pretend":
                return WorkflowCancelledEvent()
            case "child":
                child = Ends().run(how="sleep")
                await child.cancel_run()
                await child
            case "sleep":
                await anyio.sleep_forever()
        return StopEvent(result=ev.how)


async def test_t2_a_run_with_a_result() -> None:
    handler = Ends().run(how="well")
    assert not handler.done()
    assert not handler.cancelled()
    assert await handler == "well"
    assert handler.done()
    assert not handler.cancelled()
    assert handler.result() == "well"
    assert handler.exception() is None


async def test_t2_the_result_of_a_subclass_is_the_event() -> None:
    handler = Ends().run(how="report")
    await handler
    assert handler.result() == Report(text="all is well")


async def test_t2_a_run_that_failed() -> None:
    handler = Ends().run(how="fail")
    with pytest.raises(ProviderError) as caught:
        await handler
    assert handler.done()
    assert not handler.cancelled()
    assert handler.exception() is caught.value
    with pytest.raises(ProviderError) as again:
        handler.result()
    assert again.value is caught.value


async def test_t2_a_run_that_timed_out() -> None:
    handler = Ends(timeout=0.5).run(how="well")
    await read(handler)
    assert handler.done()
    assert not handler.cancelled()
    assert isinstance(handler.exception(), WorkflowTimeoutError)


async def test_t2_a_run_that_was_cancelled() -> None:
    handler = Ends().run(how="sleep")
    await handler.cancel_run()
    assert handler.done()
    assert handler.cancelled()
    for call in (handler.result, handler.exception):
        with pytest.raises(WorkflowCancelledByUser, match=r"cancel_run\(\) was called"):
            call()


async def test_t2_only_a_cancelled_run_is_cancelled() -> None:
    """Not one that returns the event of a cancellation, or whose step awaited a cancelled run."""
    handler = Ends().run(how="pretend")
    await handler
    assert not handler.cancelled()
    assert handler.exception() is None
    handler = Ends().run(how="child")
    await read(handler)
    assert isinstance(handler.get_stop_event(), WorkflowFailedEvent)
    assert not handler.cancelled()
    assert isinstance(handler.exception(), WorkflowCancelledByUser)


@pytest.mark.parametrize("what", ["result", "exception"])
async def test_t2_before_the_end_there_is_nothing_to_return(what: str) -> None:
    async with Ends().run(how="well") as handler:
        with pytest.raises(WorkflowRuntimeError) as caught:
            getattr(handler, what)()
    assert str(caught.value) == (
        f"the run has not ended and has no {what} yet; 'await handler' waits for its end"
    )


@pytest.mark.parametrize("what", ["result", "exception"])
async def test_o6_a_failure_that_was_asked_for_is_not_logged(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    handler: Any = Ends().run(how="fail")
    await anyio.sleep(2)
    try:
        getattr(handler, what)()
    except ProviderError as exc:
        exc.__traceback__ = None
    with caplog.at_level(logging.INFO):
        del handler
        gc.collect()
    assert caplog.text == ""


async def test_o6_asking_whether_it_is_done_retrieves_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handler: Any = Ends().run(how="fail")
    await anyio.sleep(2)
    assert handler.done()
    assert not handler.cancelled()
    del handler
    gc.collect()
    assert "the exception was never retrieved" in caplog.text


async def test_o3_the_block_raises_a_failure_that_was_only_looked_at() -> None:
    async def look() -> None:
        async with Ends().run(how="fail") as handler:
            await anyio.sleep(2)
            assert isinstance(handler.exception(), ProviderError)

    with pytest.raises(ProviderError):
        await look()


@on_each_backend
def test_t2_an_ended_run_is_asked_after_its_loop(backend: str) -> None:
    handlers: list[Any] = []

    async def main() -> None:
        handlers.append(Ends().run(how="well"))
        await handlers[0]

    run_virtually(backend, main)
    assert handlers[0].done()
    assert handlers[0].result() == "well"
    assert handlers[0].exception() is None


# --- What asyncio can do with it ------------------------------------------------------------------------


@on_asyncio
async def test_asyncio_takes_a_handler_for_an_awaitable() -> None:
    workflow = Ends()
    assert await asyncio.gather(workflow.run(how="a"), workflow.run(how="b")) == ["a", "b"]
    assert await asyncio.wait_for(workflow.run(how="c"), 5) == "c"
    assert await asyncio.ensure_future(workflow.run(how="d")) == "d"
    assert await asyncio.shield(workflow.run(how="e")) == "e"
    found = [await each for each in asyncio.as_completed([workflow.run(how="f")])]
    assert found == ["f"]


@on_asyncio
async def test_asyncio_gives_up_waiting_but_not_the_run() -> None:
    handler = Ends().run(how="well")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(handler, 0.5)
    assert not handler.done()
    assert await handler == "well"


@on_asyncio
async def test_a_handler_needs_no_task() -> None:
    handler: Any = Ends().run(how="well")
    with pytest.raises(TypeError, match="await it for the result, no task is needed"):
        asyncio.create_task(handler)  # noqa: RUF006
    await handler
    assert "await" not in repr(handler)


@on_asyncio
async def test_a_handler_has_no_callbacks() -> None:
    handler: Any = Ends().run(how="well")
    with pytest.raises(AttributeError) as caught:
        await asyncio.wait([handler])
    assert str(caught.value) == (
        "'WorkflowHandler' object has no attribute 'add_done_callback'; 'await handler' where the "
        "result is needed; anyio.create_task_group() waits for several runs"
    )
    await handler


async def test_a_stream_is_not_for_a_plain_loop() -> None:
    handler: Any = Ends().run(how="well")
    assert not isinstance(handler.stream_events(), Iterable)
    with pytest.raises(TypeError, match="read with 'async for', not with 'for'"):
        list(handler.stream_events())
    assert await handler == "well"
