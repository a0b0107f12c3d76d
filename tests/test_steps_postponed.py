"""Steps under `from __future__ import annotations`: every annotation is text (E5, V1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import pytest

from anyio_workflows import Context, Event, StartEvent, StopEvent, Workflow, step
from anyio_workflows.errors import WorkflowValidationError

if TYPE_CHECKING:
    from decimal import Decimal

pytestmark = pytest.mark.anyio


class Flow(Workflow):
    @step
    async def one(self, ctx: Annotated[Context, "mine"], ev: StartEvent) -> Optional[A | B]:  # noqa: UP045
        return A(n=3)

    @step
    async def two(self, ev: A | B, *, ctx: Context) -> StopEvent:
        return StopEvent(result=(ev, ctx.is_running))


class A(Event):
    n: int


class B(Event):
    pass


class Nesting(Workflow):
    class Middle(Event):
        n: int

    @step
    async def one(self, ev: StartEvent) -> Middle:
        return self.Middle(n=1)

    @step
    async def two(self, ev: Middle) -> StopEvent:
        return StopEvent(result=ev.n)


async def test_e5_events_may_be_defined_after_the_workflow():
    graph = Flow().graph
    assert graph.steps["one"].returns == (A, B)
    assert graph.steps["one"].returns_none
    assert await Flow().run() == (A(n=3), True)


async def test_e5_events_may_be_defined_in_the_body_of_the_workflow():
    assert await Nesting().run() == 1


async def test_e5_a_subclass_inherits_steps_that_name_what_its_base_nests():
    class Child(Nesting):
        @step
        async def one(self, ev: StartEvent) -> Nesting.Middle:
            return self.Middle(n=2)

    assert await Child().run() == 2


async def test_e5_everything_local_to_a_function():
    def make() -> type[Workflow]:
        class Start(StartEvent):
            n: int

        class Local(Workflow):
            @step
            async def one(self, ctx: Context, ev: Start) -> Middle:
                return Middle(n=ev.n)

            @step
            async def two(self, ev: Middle) -> StopEvent:
                return StopEvent(result=ev.n)

        class Middle(Event):
            n: int

        Local().validate()
        return Local

    assert await make()().run(n=4) == 4


def test_v1_a_name_that_only_type_checkers_see_is_reported():
    class Typed(Workflow):
        @step
        async def one(self, ev: StartEvent, price: Decimal) -> StopEvent: ...

    with pytest.raises(WorkflowValidationError, match="'price' names 'Decimal', which is not"):
        Typed()


async def test_a_free_function_with_postponed_annotations():
    class Free(Workflow):
        pass

    @step(workflow=Free)
    async def one(ev: StartEvent) -> Later:
        return Later()

    @step(workflow=Free)
    async def two(ev: Later) -> StopEvent:
        return StopEvent(result="later")

    class Later(Event):
        pass

    Free().validate()
    assert await Free().run() == "later"
