"""Steps that return `None`, declared or not (R4)."""

from __future__ import annotations

import functools
import logging
from typing import Any, NoReturn

import anyio
import pytest

from anyio_workflows import (
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowTimedOutEvent,
    catch_error,
    step,
)
from anyio_workflows.errors import WorkflowStalledError
from anyio_workflows.events import StepFailedEvent
from anyio_workflows.testing import Fault, Scenario, replay

from .conftest import BACKENDS
from .running import check_ending
from .samples import Done, Item, Other

pytestmark = pytest.mark.anyio


def none_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings, each without the run that it names."""
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    return [record.getMessage().partition(": ")[2].partition(";")[0] for record in warnings]


async def stalled(workflow: Workflow, **start: Any) -> WorkflowStalledError:
    with pytest.raises(WorkflowStalledError) as caught:
        await workflow.run(**start)
    return caught.value


def make_sorter() -> type[Workflow]:
    class Sorter(Workflow):
        @step
        async def small(self, ev: StartEvent) -> Item:
            if ev.n < 10:
                return Item()
            return None  # type: ignore[return-value]

        @step
        def large(self, ev: StartEvent) -> Done:  # in a thread
            if 10 <= ev.n < 100:
                return Done()
            return None  # type: ignore[return-value]

        @step
        async def end(self, ev: Item | Done) -> StopEvent:
            return StopEvent(result=type(ev).__name__)

    return Sorter


async def test_r4_an_undeclared_none_starts_nothing() -> None:
    cls = make_sorter()
    assert await cls().run(n=3) == "Item"
    assert await cls().run(n=30) == "Done"


async def test_r4_one_warning_per_step_whatever_the_run_and_the_instance(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cls = make_sorter()
    for n in (300, 300, 3, 30):
        with pytest.raises(WorkflowStalledError) if n == 300 else anyio.CancelScope():
            await cls().run(n=n)
    assert sorted(none_warnings(caplog)) == [
        "step large returned None, though it declares Done",
        "step small returned None, though it declares Item",
    ]


async def test_r4_a_subclass_inherits_the_step_and_a_new_step_is_warned_of_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Parent(Workflow):
        @step
        async def one(self, ev: StartEvent) -> StopEvent:
            return None  # type: ignore[return-value]

    class Heir(Parent): ...

    class Other(Parent):
        @step
        async def one(self, ev: StartEvent) -> StopEvent:
            return None  # type: ignore[return-value]

    class Wraps(Parent):
        @functools.wraps(Parent.one)
        async def one(self, *args: Any, **kwargs: Any) -> Any:
            return await super().one(*args, **kwargs)

    for cls in (Parent, Heir, Wraps):
        await stalled(cls())
    assert len(none_warnings(caplog)) == 1
    await stalled(Other())
    assert len(none_warnings(caplog)) == 2


async def test_r4_where_it_is_declared_there_is_no_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Declared(Workflow):
        @step
        async def one(self, ev: StartEvent) -> StopEvent | None:
            return None

        @step
        async def two(self, ev: StartEvent) -> None: ...

    error = await stalled(Declared())
    assert error.last_acts == {"one": "returned None", "two": "returned None"}
    assert none_warnings(caplog) == []


async def test_t9_says_what_was_declared() -> None:
    class Forgets(Workflow):
        @step
        async def one(self, ev: StartEvent) -> list[Item] | Done:
            return None  # type: ignore[return-value]

        @step
        async def never(self, ev: StartEvent) -> NoReturn:
            return None  # type: ignore[misc]

        @step
        async def end(self, ev: Item | Done) -> StopEvent:
            return StopEvent()

    error = await stalled(Forgets())
    assert error.last_acts["one"] == "returned None, though it declares Done | list[Item]"
    assert error.last_acts["never"] == "returned None, though it declares NoReturn"


async def test_r4_none_ends_a_branch_and_the_join_gets_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Fan(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(6)]

        @step
        async def score(self, ev: Item) -> Done:
            if ev.n % 2:
                return Done(n=ev.n)
            return None  # type: ignore[return-value]

        @step
        async def join(self, events: list[Done]) -> StopEvent:
            return StopEvent(result=sorted(ev.n for ev in events))

    assert await Fan().run() == [1, 3, 5]
    assert none_warnings(caplog) == ["step score returned None, though it declares Done"]


async def test_f1_an_undeclared_none_opens_no_batch() -> None:
    class NoBatch(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item]:
            return None  # type: ignore[return-value]

        @step
        async def join(self, events: list[Item]) -> StopEvent:
            return StopEvent()

    error = await stalled(NoBatch())
    assert error.last_acts["split"] == "returned None, though it declares list[Item]"
    assert error.last_acts["join"] == "has not run"


async def test_r4_a_join_may_return_none() -> None:
    class Nested(Workflow):
        @step
        async def outer(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(3)]

        @step
        async def inner(self, ev: Item) -> list[Done]:
            return [Done(n=ev.n)]

        @step
        async def inner_join(self, events: list[Done]) -> Other:
            if events[0].n != 1:
                return Other()
            return None  # type: ignore[return-value]

        @step
        async def outer_join(self, events: list[Other]) -> StopEvent:
            return StopEvent(result=len(events))

    assert await Nested().run() == 2


async def test_r4_catch_error_may_return_none(caplog: pytest.LogCaptureFixture) -> None:
    class Rescued(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(3)]

        @step
        async def work(self, ev: Item) -> Done:
            return Done(n=1 // ev.n)

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> Done:
            return None  # type: ignore[return-value]

        @step
        async def join(self, events: list[Done]) -> StopEvent:
            return StopEvent(result=[ev.n for ev in events])

    assert await Rescued().run() == [1, 0]
    assert none_warnings(caplog) == ["step rescue returned None, though it declares Done"]


async def test_r4_after_the_decision_none_is_no_matter(caplog: pytest.LogCaptureFixture) -> None:
    class Swallows(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            try:
                await anyio.sleep(100)
            except anyio.get_cancelled_exc_class():
                return None  # type: ignore[return-value]

    _, last = await check_ending(Swallows(timeout=1).run())
    assert isinstance(last, WorkflowTimedOutEvent)
    assert none_warnings(caplog) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_v2_the_toolkit_has_nothing_against_none(backend: Any) -> None:
    cls = make_sorter()
    faults = (Fault("small", "swallow cancellation"),)
    replay(
        lambda **kwargs: cls(**kwargs),
        Scenario(faults=faults),
        backend=backend,
        start=StartEvent(n=3),
    )
