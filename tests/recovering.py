"""What the tests of `@catch_error` share: a step that fails, its handler, and how the run ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from anyio_workflows import (
    Context,
    Event,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowFailedEvent,
    WorkflowHandler,
    catch_error,
    step,
)
from anyio_workflows.events import StepFailedEvent

from .running import check_ending
from .samples import Answer, Item, Other, Part, ProviderError, Question

Act = Callable[..., Awaitable[Any]]


def line(work: Act, rescue: Act, *, budget: int = 1, **options: Any) -> Workflow:
    """Make a workflow of a step `work` and a handler `rescue` that do what the test gives."""

    class Line(Workflow):
        @step(**options)
        async def work(self, ctx: Context, ev: StartEvent | Item) -> Item | Part | StopEvent:
            return await work(ctx, ev)

        @catch_error(for_steps=["work"], max_recoveries=budget)
        async def rescue(
            self, ctx: Context, ev: StepFailedEvent
        ) -> Item | Other | list[Part] | Question | StopEvent | None:
            return await rescue(ctx, ev)

        @step(num_workers=1)
        async def take(self, ev: Other | Part | Answer) -> Other | StopEvent:
            return StopEvent(result=ev)

    return Line(timeout=None, skip_graph_checks=["reachability"])


async def fail(ctx: Context, ev: Event) -> StopEvent:
    """A step that always fails."""
    raise ProviderError("broken")


async def tell(ctx: Context, ev: StepFailedEvent) -> StopEvent:
    """A handler that ends the run with what it was given."""
    return StopEvent(result=ev)


async def ended_well(handler: WorkflowHandler[Any]) -> Any:
    """Return the result of a run that must succeed."""
    _, last = await check_ending(handler)
    assert type(last) is StopEvent
    return last.result


async def failed(handler: WorkflowHandler[Any], step_name: str, error: type[BaseException]) -> Any:
    """Return what a run failed with, that must fail in the given step."""
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowFailedEvent)
    assert last.step_name == step_name
    assert type(last.exception) is error
    return last.exception
