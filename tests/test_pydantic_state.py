"""Pydantic models as the state of a run, in events and snapshots, and as what a file is read as (P6).

This module does without `from __future__ import annotations`, so that annotations can be computed.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, cast

import anyio
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
from anyio_workflows._dependencies import read_dependency
from anyio_workflows.errors import (
    ContextSerdeError,
    ContextStateError,
    EventValidationError,
    WorkflowConfigurationError,
    WorkflowValidationError,
)
from anyio_workflows.resource import ResourceConfig
from anyio_workflows.state import DictState, StateStore

from .snapshotting import resume, snapshot_at

pytest.importorskip("pydantic", reason="pydantic is not installed")

import pydantic
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, RootModel, field_validator

pytestmark = pytest.mark.anyio

T = TypeVar("T")


class Doc(BaseModel):
    text: str = ""


class Page(Doc):
    number: int = 1


class Pair(BaseModel):
    model_config = ConfigDict(frozen=True)
    left: int = 0
    right: list[int] = []


class State(BaseModel):
    count: int = 0
    docs: list[Doc] = []
    pair: Pair = Pair()
    main: Doc | None = None
    _cache: dict[str, int] = PrivateAttr(default_factory=dict)


class MoreState(State):
    more: str = ""


class Checked(BaseModel):
    model_config = ConfigDict(validate_assignment=True)
    count: int = Field(default=0, ge=0)


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    count: int = 0


class Needy(BaseModel):
    n: int
    m: int


class Box(BaseModel, Generic[T]):
    content: T | None = None


# --- P6: typed state --------------------------------------------------------------------------


async def test_p6_paths_lead_through_models():
    store = StateStore(State)
    await store.set("docs", [Doc(), Page()])
    await store.set("docs.1.number", 5)
    await store.set("main", Doc())
    await store.set("main.text", "a")
    assert await store.get("docs.1.number") == 5
    assert await store.get_state() == State(docs=[Doc(), Page(number=5)], main=Doc(text="a"))
    assert await store.get("docs.7", None) is None
    with pytest.raises(ValueError, match=r"the state has no 'docs.0.txt': 'docs.0' .*'text'"):
        await store.set("docs.0.txt", "")
    with pytest.raises(ValueError, match="the state has no 'cout', did you mean 'count'"):
        await store.set("cout", 1)
    for name in ("_cache", "__pydantic_private__", "__dict__", "model_fields", "__fields_set__"):
        with pytest.raises(ValueError, match="the state has no"):
            await store.set(name, {})


async def test_p6_values_are_shared_and_the_state_is_copied():
    store = StateStore(State)
    main = Doc()
    await store.set("main", main)
    assert await store.get("main") is main
    copied = await store.get_state()
    copied.count = 5
    assert await store.get("count") == 0
    assert copied.main is main
    copied._cache["a"] = 1
    await store.set_state(copied)
    assert (await store.get_state())._cache == {"a": 1}


async def test_p6_an_edit_commits_what_is_assigned_or_drops_it():
    store = StateStore(State)
    async with store.edit_state() as state:
        state.count = 3
        assert await store.get("count") == 0
    state.count = 4
    assert await store.get("count") == 3
    edit = store.edit_state()
    state = await edit.__aenter__()
    state.count, state.docs = 5, [Doc()]
    await edit.__aexit__(ZeroDivisionError, None, None)
    assert await store.get_state() == State(count=3)


async def test_p6_a_frozen_model_on_the_way_is_replaced_by_a_changed_copy():
    store = StateStore(State)
    before = await store.get("pair")
    await store.set("pair.left", 2)
    after = await store.get("pair")
    assert (before, after) == (Pair(), Pair(left=2))
    assert after.right is before.right
    frozen = StateStore(Pair)
    await frozen.set("left", 3)
    assert await frozen.get_state() == Pair(left=3)
    with pytest.raises(ValueError, match="the state has no 'middle'"):
        await frozen.set("middle", 3)


async def test_p6_a_model_that_checks_assignments_raises_its_own_error():
    store = StateStore(Checked)
    with pytest.raises(pydantic.ValidationError):
        await store.set("count", -1)
    with pytest.raises(pydantic.ValidationError):
        async with store.edit_state() as state:
            state.count = "many"  # type: ignore[assignment]
    await store.set("count", 2)
    assert await store.get_state() == Checked(count=2)


async def test_p6_a_model_may_take_any_name():
    store = StateStore(Open)
    await store.set("other", [1])
    await store.set("other.0", 2)
    assert await store.get("other") == [2]
    assert (await store.get_state()).model_extra == {"other": [2]}
    with pytest.raises(ValueError, match="the state has no '_other'"):
        await store.set("_other", 1)


async def test_p6_set_state_takes_a_model_of_a_base_class():
    store = StateStore(MoreState)
    await store.set("more", "kept")
    await store.set_state(cast(MoreState, State(count=2)))
    assert await store.get_state() == MoreState(count=2, more="kept")
    with pytest.raises(ContextStateError, match=r"is a MoreState, and set_state\(\) got a Doc"):
        await store.set_state(cast(MoreState, Doc()))
    await store.clear()
    assert await store.get_state() == MoreState()


async def test_p6_a_state_has_defaults_for_all_its_fields():
    with pytest.raises(ContextStateError) as caught:
        StateStore(Needy)
    assert str(caught.value) == (
        "Needy() failed (n: Field required (and 1 more)); the type of a state has defaults for all its "
        "fields"
    )


@pytest.mark.parametrize(
    ("annotation", "wanted"),
    [(State, State), ("State", State), (Box[int], Box[int]), (Box, Box)],
    ids=["class", "text", "generic", "without argument"],
)
async def test_p6_the_annotation_types_the_state(annotation: Any, wanted: type):
    class Annotates(Workflow):
        @step
        async def work(self, ctx: Context[annotation], ev: StartEvent) -> StopEvent:
            return StopEvent(result=await ctx.store.get_state())

    state = await Annotates().run()
    assert type(state) is wanted


async def test_p1_the_most_derived_model_wins():
    class Related(Workflow):
        @step
        async def first(self, ctx: Context[State], ev: StartEvent) -> Event:
            await ctx.store.set_state(State(count=1))
            return Event()

        @step
        async def last(self, ctx: Context[MoreState], ev: Event) -> StopEvent:
            return StopEvent(result=await ctx.store.get_state())

    assert await Related().run() == MoreState(count=1)

    class Unrelated(Related):
        @step
        async def last(self, ctx: Context[Doc], ev: Event) -> StopEvent:
            return StopEvent()

    with pytest.raises(WorkflowValidationError, match="Doc"):
        Unrelated().validate()


# --- P6: events and snapshots -----------------------------------------------------------------------


class Asked(Event):
    doc: Doc
    more: list[Doc] = []
    anything: Any = None


class Flow(Workflow):
    types = (Page,)

    @step
    async def begin(self, ctx: Context[State], ev: StartEvent) -> Asked:
        async with ctx.store.edit_state() as state:
            state.docs = [Page(text="in the state", number=7)]
            state.pair = Pair(left=1)
        return Asked(doc=Doc(text="a"), more=[Page(number=2)], anything={"x": Page()})

    @step
    async def ask(self, ctx: Context[State], ev: Asked) -> StopEvent:
        await ctx.wait_for_event(HumanResponseEvent, InputRequiredEvent(doc=ev.doc))
        return StopEvent(result=(ev, await ctx.store.get_state()))


class Untyped(Flow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Asked:
        await ctx.store.set("doc", Page(number=3))
        await ctx.store.set("docs", [Doc(text="x"), Page()])
        return Asked(doc=Page(number=4))

    @step
    async def ask(self, ctx: Context, ev: Asked) -> StopEvent:
        await ctx.wait_for_event(HumanResponseEvent)
        return StopEvent(result=(ev, await ctx.store.get_state()))


async def finish(workflow: Workflow, data: Any) -> Any:
    handler = resume(workflow, data)
    await anyio.sleep(1)
    await handler.send_event(HumanResponseEvent())
    return await handler


async def test_p6_a_run_with_models_continues_from_a_snapshot():
    data = await snapshot_at(1, Flow().run())
    event, state = await finish(Flow(), data)
    assert event == Asked(doc=Doc(text="a"), more=[Page(number=2)], anything={"x": Page()})
    assert state == State(docs=[Page(text="in the state", number=7)], pair=Pair(left=1))
    assert [type(doc) for doc in (*event.more, *state.docs)] == [Page, Page]


async def test_p6_models_in_untyped_state_come_back():
    data = await snapshot_at(1, Untyped().run())
    event, state = await finish(Untyped(), data)
    assert event == Asked(doc=Page(number=4))
    assert state == DictState(doc=Page(number=3), docs=[Doc(text="x"), Page()])


async def test_p6_a_snapshot_with_a_model_that_does_not_fit_is_refused():
    data = await snapshot_at(1, Flow().run())
    data["state"]["value"]["docs"][0]["value"]["number"] = "7"
    with pytest.raises(ContextSerdeError) as caught:
        Context.from_dict(Flow(), data)
    assert str(caught.value) == "$.state.docs[0].number: expected int, got '7' (str)"


async def test_p4_a_model_that_no_annotation_names_is_named_in_types():
    class Hidden(Untyped):
        types = ()

        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Asked:
            await ctx.store.set("box", Box[int](content=1))
            return Asked(doc=Doc())

    handler = Hidden().run()
    await anyio.sleep(1)
    with pytest.raises(ContextSerdeError, match=r"Box.* is not among the known types; name it in"):
        handler.ctx.to_dict()
    data = handler.ctx.to_dict(types=[Box[int]])
    await handler.cancel_run()
    ctx = Context.from_dict(Hidden(), data, types=[Box[int]])
    assert await ctx.store.get("box") == Box[int](content=1)


def test_e3_an_event_takes_models_and_converts_nothing():
    assert Asked(doc=Page()).doc == Page()
    with pytest.raises(EventValidationError, match=r"expected .*Doc, got {'text': 'a'}"):
        Asked(doc={"text": "a"})  # type: ignore[arg-type]


# --- E4: what a file is read as --------------------------------------------------------------------


class Limits(BaseModel):
    tokens: int = Field(ge=1)
    tags: list[str] = []

    @field_validator("tags")
    @classmethod
    def check(cls, tags: list[str]) -> list[str]:
        if "bad" in tags:
            raise ValueError("a bad tag")
        return tags


class Settings(BaseModel):
    limits: Limits
    nested: dict[str, Limits] = {}


def read(path: Path, data: Any, wanted: Any, selector: str | None = None) -> Any:
    file = path / "settings.json"
    file.write_text(json.dumps(data))
    faults: list[str] = []
    dependency = read_dependency(
        Annotated[wanted, ResourceConfig(str(file), selector)], faults, faults
    )
    assert dependency is not None
    assert faults == []
    return dependency.make()


def test_e4_a_file_is_read_as_a_model(tmp_path: Path):
    data = {"app": {"limits": {"tokens": 3}, "nested": {"a": {"tokens": 4, "tags": ["x"]}}}}
    limits = Limits(tokens=3)
    assert read(tmp_path, data, Settings, "app") == Settings(
        limits=limits, nested={"a": Limits(tokens=4, tags=["x"])}
    )
    assert read(tmp_path, data, Limits, "app.limits") == limits
    assert read(tmp_path, ["a"], RootModel[list[str]]).root == ["a"]
    assert read(tmp_path, [{"tokens": 1}], list[Limits]) == [Limits(tokens=1)]


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ({"tokens": "3"}, "app.limits.tokens: expected int, got '3' (str)"),
        ({"token": 3}, "app.limits.token: Limits has no such field, did you mean 'tokens'?"),
        ({}, "app.limits.tokens: missing, Limits needs it"),
        (
            {"tokens": 0},
            "app.limits.tokens: Limits does not take this: Input should be greater than or equal to 1",
        ),
        (
            {"tokens": 1, "tags": ["bad"]},
            "app.limits.tags: Limits does not take this: Value error, a bad tag",
        ),
    ],
    ids=str,
)
def test_e4_a_file_is_read_strictly(tmp_path: Path, limits: Any, problem: str):
    with pytest.raises(WorkflowConfigurationError) as caught:
        read(tmp_path, {"app": {"limits": limits}}, Settings, "app")
    assert str(caught.value) == f"{tmp_path / 'settings.json'}: {problem}"
