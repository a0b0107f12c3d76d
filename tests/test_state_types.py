"""The class of a run's state, which the signatures of the steps name (rules P1, V1).

This module does without `from __future__ import annotations`, so that annotations can be computed.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Optional, TypeVar

import attrs
import pytest

from anyio_workflows import Context, StartEvent, StopEvent, Workflow, WorkflowFailedEvent, step
from anyio_workflows.errors import ContextStateError, WorkflowValidationError
from anyio_workflows.state import DictState

from .running import check_ending
from .samples import Done, Item
from .stateful import Count

pytestmark = pytest.mark.anyio


@attrs.define
class NamedCount(Count):
    name: str = "ada"


@attrs.define
class ColouredCount(Count):
    colour: str = "red"


@attrs.define
class FullCount(NamedCount):
    full: bool = True


@dataclass
class Basket:
    items: list[int] = field(default_factory=list)


@attrs.define
class Strict:
    n: int


def annotated(annotation: Any) -> type[Workflow]:
    """Return a workflow that gives its state; its step has the context annotated like this."""

    class Annotates(Workflow):
        @step
        async def work(self, ctx: annotation, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await ctx.store.get_state())

    return Annotates


@pytest.mark.parametrize(
    "annotation",
    [
        Context[Count],
        "Context[Count]",
        Context["Count"],
        Context[Count] | None,
        Optional["Context[Count]"],
        "None | Context[Count]",
        Annotated[Context[Count], "note"],
    ],
    ids=str,
)
async def test_p1_the_annotation_types_the_state(annotation: Any) -> None:
    state = await annotated(annotation)().run()
    assert type(state) is Count
    assert state == Count()


@pytest.mark.parametrize(
    "annotation",
    [Context, "Context", Context | None, Context[Any], Context[DictState], Context[dict]],
    ids=str,
)
async def test_p1_without_a_type_the_state_is_a_mapping(annotation: Any) -> None:
    state = await annotated(annotation)().run()
    assert type(state) is DictState
    assert state == {}


async def test_p1_a_dataclass_types_the_state() -> None:
    class Shops(Workflow):
        @step
        async def work(self, ctx: Context[Basket], ev: StartEvent) -> StopEvent:
            async with ctx.store.edit_state() as basket:
                basket.items.append(7)
            return StopEvent(result=await ctx.store.get_state())

    assert await Shops().run() == Basket([7])


async def test_p1_a_state_class_may_be_local_to_a_function() -> None:
    @attrs.define
    class Local:
        n: int = 5

    class Postponed(Workflow):
        @step
        async def work(self, ctx: "Context[Local]", ev: StartEvent) -> StopEvent:
            return StopEvent(result=await ctx.store.get_state())

    assert await Postponed().run() == await annotated(Context[Local])().run() == Local(5)


async def test_p1_a_state_without_defaults_is_an_error_when_it_is_used() -> None:
    workflow = annotated(Context[Strict])()
    with pytest.raises(ContextStateError) as caught:
        _ = Context(workflow).store
    assert str(caught.value) == (
        "Strict() failed (Strict.__init__() missing 1 required positional argument: 'n'); the type "
        "of a state has defaults for all its fields"
    )
    _, last = await check_ending(workflow.run())
    assert isinstance(last, WorkflowFailedEvent)
    assert str(last.exception) == str(caught.value)


@pytest.mark.parametrize(
    ("types", "winner"),
    [
        ((Count, NamedCount), NamedCount),
        ((NamedCount, Count), NamedCount),
        ((None, NamedCount, FullCount), FullCount),
        ((FullCount, Count, None), FullCount),
        ((Count, Count, Count), Count),
        ((None, None, None), DictState),
    ],
)
async def test_p1_the_most_derived_type_wins(types: tuple[Any, ...], winner: type) -> None:
    one, two, three = (Context if cls is None else Context[cls] for cls in (*types, None)[:3])

    class Related(Workflow):
        @step
        async def first(self, ctx: one, ev: StartEvent) -> Item:
            found.append(await ctx.store.get_state())
            return Item()

        @step
        async def second(self, ctx: two, ev: Item) -> Done:
            found.append(await ctx.store.get_state())
            return Done()

        @step
        async def third(self, ctx: three, ev: Done) -> StopEvent:
            found.append(await ctx.store.get_state())
            return StopEvent()

    found: list[Any] = []
    await Related().run()
    assert [type(state) for state in found] == [winner] * 3


async def test_p1_a_type_that_unites_the_others_wins() -> None:
    @attrs.define(slots=False)
    class One:
        one: int = 1

    @attrs.define(slots=False)
    class Two:
        two: int = 2

    @attrs.define(slots=False)
    class Both(One, Two):
        pass

    class Unites(Workflow):
        @step
        async def first(self, ctx: Context[One], ev: StartEvent) -> Item:
            return Item()

        @step
        async def second(self, ctx: Context[Two], ev: Item) -> Done:
            return Done()

        @step
        async def third(self, ctx: Context[Both], ev: Done) -> StopEvent:
            return StopEvent(result=await ctx.store.get_state())

    assert await Unites().run() == Both(two=2, one=1)


async def test_p1_a_step_that_knows_a_base_class_sets_its_part_of_the_state() -> None:
    class Two(Workflow):
        @step
        async def base(self, ctx: Context[Count], ev: StartEvent) -> Item:
            await ctx.store.set_state(Count(n=3, seen=["base"]))
            return Item()

        @step
        async def derived(self, ctx: Context[NamedCount], ev: Item) -> StopEvent:
            return StopEvent(result=await ctx.store.get_state())

    workflow = Two()
    ctx: Context[NamedCount] = Context(workflow)
    await ctx.store.set("name", "eve")
    assert await workflow.run(ctx=ctx) == NamedCount(n=3, seen=["base"], name="eve")


def test_v1_unrelated_types_are_a_fault() -> None:
    class Unrelated(Workflow):
        @step
        async def count(self, ctx: Context[ColouredCount], ev: StartEvent) -> Item:
            return Item()

        @step
        async def name(self, ctx: Context[NamedCount], ev: Item) -> StopEvent:
            return StopEvent()

        @step
        async def lost(self, ctx: Context[Count], ev: Done) -> None: ...

    with pytest.raises(WorkflowValidationError) as caught:
        Unrelated(skip_graph_checks=["terminal_event"]).run()
    assert str(caught.value) == (
        "Unrelated has 2 faults:\n"
        "  1. its steps name classes of the state that are unrelated (step count: ColouredCount, "
        "step name: NamedCount, step lost: Count); derive one of them from all others\n"
        "  2. step lost accepts Done, which no step returns; return it from a step, or derive it "
        "from HumanResponseEvent if it comes from outside"
    )


@pytest.mark.parametrize(
    ("annotation", "shown"),
    [
        (Context[int], "int"),
        (Context[dict[str, int]], "dict[str, int]"),
        (Context[None], "NoneType"),
        (Context[Count | None], f"{Count.__module__}.Count | None"),
        ("Context[str] | None", "str"),
    ],
    ids=str,
)
def test_v1_what_is_no_state_type_is_a_fault_of_the_signature(annotation: Any, shown: str) -> None:
    with pytest.raises(WorkflowValidationError) as caught:
        annotated(annotation)
    assert str(caught.value) == (
        f"Annotates: step work: Context[{shown}]: the state is an attrs class, a dataclass or a pydantic model, or "
        "untyped"
    )


StateT = TypeVar("StateT")


class Generally(Workflow, Generic[StateT]):
    """Leaves it to its subclasses of which type the state is."""

    @step
    async def first(self, ctx: Context[StateT], ev: StartEvent) -> Item:
        return Item()

    @step
    async def last(self, ctx: Context[Count], ev: Item) -> StopEvent:
        return StopEvent(result=await ctx.store.get_state())


async def test_p1_a_type_variable_names_no_type() -> None:
    assert type(await Generally().run()) is Count


async def test_p1_inherited_steps_count_and_overridden_ones_do_not() -> None:
    class Adds(Generally[NamedCount]):
        @step
        async def spare(self, ctx: Context[NamedCount], ev: Item) -> None: ...

    class Overrides(Generally[Basket]):
        @step
        async def last(self, ctx: Context[Basket], ev: Item) -> StopEvent:
            return StopEvent(result=await ctx.store.get_state())

    assert type(await Adds().run()) is NamedCount
    assert type(await Overrides().run()) is Basket
    assert type(await Generally().run()) is Count


async def test_p1_a_free_function_that_is_added_counts() -> None:
    Base = annotated(Context[Count])  # noqa: N806

    @step
    async def spare(ctx: Context[NamedCount], ev: StartEvent) -> None: ...

    assert type(await Base().run()) is Count
    Base.add_step(spare)
    assert type(await Base().run()) is NamedCount


async def test_p2_a_typed_state_is_seeded_before_the_run() -> None:
    workflow = annotated(Context[Count])()
    ctx: Context[Count] = Context(workflow)
    await ctx.store.set_state(given := Count(n=3))
    got = await workflow.run(ctx=ctx)
    assert got == given
    assert got is not given
    with pytest.raises(ContextStateError, match="this state is a Count, and set_state"):
        await ctx.store.set_state(Basket())  # type: ignore[arg-type]
