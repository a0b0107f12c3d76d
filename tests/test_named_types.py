"""Types that snapshots know without being told: declared, or named in the code of the methods (P4)."""

from __future__ import annotations

import functools
import json
import types as module_types
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import anyio
import attrs
import pytest

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from anyio_workflows.errors import ContextSerdeError, WorkflowValidationError

pytestmark = pytest.mark.anyio


class Question(InputRequiredEvent):
    text: str


class Approval(HumanResponseEvent):
    approved: bool


class Other(HumanResponseEvent):
    text: str = ""


class Spaces:
    class Inner:
        class Deep(HumanResponseEvent):
            pass

    class Unnamed(HumanResponseEvent):
        pass


class Inherits(Spaces):
    pass


events = module_types.ModuleType("events")
vars(events).update(Approval=Approval, parts=module_types.ModuleType("parts"))
vars(vars(events)["parts"]).update(Other=Other)


class Touchy:
    """Somebody else's object, which must not be asked anything."""

    @property
    def secret(self) -> Any:
        raise AssertionError("a property was executed")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"it was asked for {name}")

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise AssertionError("a proxy was asked for its class")


class TouchyModule(module_types.ModuleType):
    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"it was asked for {name}")


touchy, touchy_module = Touchy(), TouchyModule("touchy")


class Asking(Workflow):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(Approval, Question(text="ok?"))
        return StopEvent(result=answer.approved)


async def test_p4_a_plain_wait_is_saved_and_restored_without_being_told_its_type() -> None:
    handler = Asking(timeout=None).run()
    await anext(handler.stream_events())
    data = json.loads(json.dumps(handler.ctx.to_dict()))
    await handler.cancel_run()
    workflow = Asking(timeout=None)
    again = workflow.run(ctx=Context.from_dict(workflow, data))
    await again.send_event(Approval(approved=True))
    assert await again is True


# --- Where names are looked up ------------------------------------------------------------------


OURS = [Question, Approval, Other, Spaces.Inner.Deep, Spaces.Unnamed]


def tagged(cls: type[Event]) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def with_state(workflow: type[Workflow[Any]], state: dict[str, Any]) -> dict[str, Any]:
    """Return a snapshot of a workflow that has a state and no work."""
    return {**Context(workflow()).to_dict(), "state": state}


def found(workflow: type[Workflow[Any]]) -> set[type[Event]]:
    """Return those of our event classes that a snapshot of a workflow may name."""

    def is_known(cls: type[Event]) -> bool:
        data = with_state(workflow, {"it": {"$": "type", "value": tagged(cls)}})
        try:
            Context.from_dict(workflow(), data)
        except ContextSerdeError:
            return False
        return True

    return set(filter(is_known, OURS))


def passing(func: Any) -> Any:
    @functools.wraps(func)
    async def wrapper(*args: Any) -> Any:
        return await func(*args)

    return wrapper


def hiding(func: Any) -> Any:
    async def wrapper(self: Any, ctx: Context, ev: StartEvent) -> StopEvent:
        stop: StopEvent = await func(self, ctx, ev)
        return stop

    return wrapper


class Base(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        return StopEvent()


def in_a_helper() -> type[Workflow[Any]]:
    class Flow(Base):
        async def helper(self, ctx: Context) -> Event:
            return await ctx.wait_for_event(Approval)

    return Flow


def in_a_base_class() -> type[Workflow[Any]]:
    class Mixin:
        async def helper(self, ctx: Context) -> Event:
            return await ctx.wait_for_event(Approval)

    class Flow(Mixin, Base):
        pass

    return Flow


def in_a_nested_function() -> type[Workflow[Any]]:
    class Flow(Base):
        async def helper(self, ctx: Context) -> Any:
            async def ask() -> Any:
                return [await ctx.wait_for_event(one) for one in [lambda: Approval]]  # type: ignore[arg-type]

            return await ask()

    return Flow


def in_a_module() -> type[Workflow[Any]]:
    class Flow(Base):
        async def helper(self, ctx: Context) -> Any:
            return await ctx.wait_for_event(events.Approval)

    return Flow


def in_a_static_method() -> type[Workflow[Any]]:
    class Flow(Base):
        @staticmethod
        def kind() -> type[Event]:
            return Approval

    return Flow


def in_a_class_method() -> type[Workflow[Any]]:
    class Flow(Base):
        @classmethod
        def kind(cls) -> type[Event]:
            return Approval

    return Flow


def in_a_property() -> type[Workflow[Any]]:
    class Flow(Base):
        @property
        def kind(self) -> type[Event]:
            return Approval

        @functools.cached_property
        def other(self) -> type[Event]:
            return Approval

    return Flow


def in_a_default() -> type[Workflow[Any]]:
    class Flow(Base):
        async def helper(self, ctx: Context, *, kind: type[Event] = Approval) -> Any:
            return await ctx.wait_for_event(kind)

    return Flow


def in_a_closure() -> type[Workflow[Any]]:
    kind = Approval

    class Flow(Base):
        async def helper(self, ctx: Context) -> Any:
            return await ctx.wait_for_event(kind)

    return Flow


def in_the_workflow_itself() -> type[Workflow[Any]]:
    class Flow(Base):
        kind = Approval

        async def helper(self, ctx: Context) -> Any:
            return await ctx.wait_for_event(self.kind)

    return Flow


def in_a_wrapped_step() -> type[Workflow[Any]]:
    class Flow(Workflow):
        @step
        @passing
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.wait_for_event(Approval)
            return StopEvent()

    return Flow


def in_a_step_that_a_wrapper_hides() -> type[Workflow[Any]]:
    class Flow(Workflow):
        @step
        @hiding
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.wait_for_event(Approval)
            return StopEvent()

    return Flow


def in_a_free_step() -> type[Workflow[Any]]:
    class Flow(Workflow):
        pass

    @step
    async def only(ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.wait_for_event(Approval)
        return StopEvent()

    Flow.add_step(only)
    return Flow


@pytest.mark.parametrize(
    "make",
    [
        in_a_helper,
        in_a_base_class,
        in_a_nested_function,
        in_a_module,
        in_a_static_method,
        in_a_class_method,
        in_a_property,
        in_a_default,
        in_a_closure,
        in_the_workflow_itself,
        in_a_wrapped_step,
        in_a_step_that_a_wrapper_hides,
        in_a_free_step,
    ],
)
def test_p4_event_classes_that_the_code_names_are_known(
    make: Callable[[], type[Workflow[Any]]],
) -> None:
    assert found(make()) == {Approval}


def test_p4_attributes_of_classes_and_modules_are_followed_as_far_as_they_are_named() -> None:
    class Flow(Base):
        def kinds(self) -> Any:
            return Inherits.Inner.Deep, events.parts.Other

    assert found(Flow) == {Spaces.Inner.Deep, Other}


def test_p4_nothing_of_somebody_else_is_executed() -> None:
    class Flow(Base):
        def kinds(self) -> Any:
            return touchy.secret, touchy_module.secret, touchy_module.Deep

    assert found(Flow) == set()


def test_p4_a_name_that_is_not_there_yet_is_passed_over() -> None:
    class Flow(Base):
        def kinds(self) -> Any:
            return missing, nowhere, events.nothing  # type: ignore[name-defined]  # noqa: F821

    assert found(Flow) == set()
    missing = Approval

    class Later(Flow):
        """What the code of a class names is looked up once."""

    assert found(Later) == {Approval}


async def test_p4_two_classes_of_one_name_disturb_nobody() -> None:
    """An older version of a class is still in sight, as after a notebook cell was run again."""

    def version(default: int) -> type[Event]:
        class Reply(HumanResponseEvent):
            n: int = default

        return Reply

    old, new, other = version(1), version(2), version(3)

    class Flow(Base):
        def kinds(self) -> Any:
            return old, other

    class Takes(Base):
        @step
        async def reply(self, ev: new) -> None:  # type: ignore[valid-type]
            pass

        def kinds(self) -> Any:
            return old

    data = Context(Flow()).to_dict()
    assert Context.from_dict(Flow(), data, [new]).to_dict() == data
    state = {"it": {"$": tagged(new), "value": {}}}
    ctx = Context.from_dict(Takes(), with_state(Flow, state))
    assert type(await ctx.store.get("it")) is new
    ctx = Context.from_dict(Flow(), with_state(Flow, state), [new])
    assert type(await ctx.store.get("it")) is new
    with pytest.raises(ContextSerdeError, match="cannot tell two types"):
        Context(Flow()).to_dict([old, new])


# --- `types` of the class -------------------------------------------------------------------------


@attrs.define
class Draft:
    text: str


@dataclass
class Page:
    n: int


class Color(Enum):
    RED = "red"


class Declares(Base):
    types = (Draft, Color)


class Inheriting(Declares):
    types: ClassVar[Any] = [Page]


async def test_p4_types_of_a_workflow_class_and_its_bases_are_known() -> None:
    ctx = Context(Inheriting())
    values = [Draft("a"), Color.RED, Page(n=1)]
    await ctx.store.set("it", values)
    data = json.loads(json.dumps(ctx.to_dict()))
    assert await Context.from_dict(Inheriting(), data).store.get("it") == values
    with pytest.raises(ContextSerdeError, match=r"unknown type .*Page.*types=\["):
        Context.from_dict(Declares(), data)


async def test_p4_a_declared_type_and_one_given_twice_are_one() -> None:
    ctx = Context(Declares())
    await ctx.store.set("it", Draft("a"))
    data = ctx.to_dict([Draft])
    assert await Context.from_dict(Declares(), data, [Draft]).store.get("it") == Draft("a")


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (Draft, "types must be a tuple of classes, not"),
        ({"Draft": Draft}, "types must be a tuple of classes, not"),
        (
            (Draft, int),
            "<class 'int'> in types is not an event class, attrs class, dataclass, pydantic model or enum",
        ),
        (("Draft",), "'Draft' in types is not an event class"),
    ],
)
def test_p4_wrong_types_of_a_workflow_are_refused_when_it_is_defined(
    wrong: Any, problem: str
) -> None:
    with pytest.raises(WorkflowValidationError, match=problem):
        type("Wrong", (Base,), {"types": wrong})


async def test_p4_an_answer_that_came_is_saved_with_its_type() -> None:
    class Twice(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            first = await ctx.wait_for_event(Approval, Question(text="1"))
            second = await ctx.wait_for_event(Other, Question(text="2"))
            return StopEvent(result=(first.approved, second.text))

    handler = Twice(timeout=None).run()
    await handler.send_event(Approval(approved=False))
    stream = handler.stream_events()
    await anext(stream)
    await handler.send_event(Approval(approved=True))
    await anyio.sleep(1)
    data = json.loads(json.dumps(handler.ctx.to_dict()))
    await handler.cancel_run()
    again = Twice(timeout=None)
    resumed = again.run(ctx=Context.from_dict(again, data))
    await resumed.send_event(Other(text="so"))
    assert await resumed == (True, "so")
