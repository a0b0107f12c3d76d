"""The state of a run: in steps of every kind, before the run, after it, and in the next (P1, P2)."""

import gc
import threading
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Optional, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
import attrs
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import (
    Context,
    Event,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
    catch_error,
    step,
)
from anyio_workflows.collect import Collect, Take
from anyio_workflows.errors import (
    ContextStateError,
    WorkflowRuntimeError,
    WorkflowValidationError,
)
from anyio_workflows.retry_policy import retry_policy, wait_none
from anyio_workflows.state import DictState, StateStore

from .conftest import BACKENDS
from .running import check_ending, run_virtually

pytestmark = pytest.mark.anyio

PATIENCE = 10
"""Real seconds after which a test with threads fails that hangs."""


class Item(Event):
    n: int = 0


class Done(Event):
    n: int = 0


class Flaky(Exception):
    """What the steps here raise."""


@attrs.define
class Count:
    n: int = 0
    seen: list[Any] = attrs.field(factory=list)


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


class Acts(Workflow):
    """Awaits a function inside its step."""

    def __init__(self, act: Callable[[Context], Awaitable[Any]], **kwargs: Any) -> None:
        super().__init__(**{"timeout": None, **kwargs})
        self.act = act

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await self.act(ctx))


class SyncActs(Workflow):
    """Calls a function inside its step, in a worker thread."""

    def __init__(self, act: Callable[[Context], Any], **kwargs: Any) -> None:
        super().__init__(**{"timeout": None, **kwargs})
        self.act = act

    @step
    def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=self.act(ctx))


def annotated(annotation: Any) -> type[Workflow]:
    """Return a workflow that gives its state; its step has the context annotated like this."""

    class Annotates(Workflow):
        @step
        async def work(self, ctx: annotation, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await ctx.store.get_state())

    return Annotates


async def bump(store: StateStore[Any], pause: float = 1) -> int:
    """Count up in an edit that takes some time."""
    async with store.edit_state() as state:
        before: int = state.n
        await anyio.sleep(pause)
        state.n = before + 1
    return before + 1


async def count_for_ever(ctx: Context) -> None:
    """Begin an edit that never ends."""
    async with ctx.store.edit_state() as state:
        state.n = 99
        await anyio.sleep_forever()


async def seeded(workflow: Workflow, **values: Any) -> Context:
    """Return a context for a run, with a state."""
    ctx: Context = Context(workflow)
    await ctx.store.set_state(DictState(values))
    return ctx


# --- In steps -------------------------------------------------------------------------------------


async def test_p1_an_async_step_reads_and_writes() -> None:
    async def act(ctx: Context) -> Any:
        assert await ctx.store.get_state() == {}
        await ctx.store.set("user.name", "ada")
        async with ctx.store.edit_state() as state:
            state.user["age"] = 36
            state.n = 1
        return await ctx.store.get("user"), await ctx.store.get("n"), await ctx.store.get("m", 0)

    assert await Acts(act).run() == ({"name": "ada", "age": 36}, 1, 0)


async def test_p1_a_sync_step_reads_and_writes_through_the_loop() -> None:
    def act(ctx: Context) -> Any:
        anyio.from_thread.run(ctx.store.set, "n", 6)
        counted = anyio.from_thread.run(bump, ctx.store, 0)
        with pytest.raises(ValueError, match="missing"):
            anyio.from_thread.run(ctx.store.get, "missing")
        return counted, anyio.from_thread.run(ctx.store.get_state)

    handler = SyncActs(act).run()
    assert await handler == (7, {"n": 7})
    assert await handler.ctx.store.get("n") == 7


async def test_p1_steps_of_every_kind_share_one_state() -> None:
    class Kinds(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> list[Item]:
            await ctx.store.set("seen", ["fork"])
            return [Item(n=1)]

        @step
        def thread(self, ctx: Context, ev: Item) -> Done:
            anyio.from_thread.run(note, ctx, "thread")
            return Done()

        @step
        async def join(self, ctx: Context, evs: list[Done]) -> Item | StopEvent:
            await note(ctx, "join")
            raise Flaky

        @catch_error
        async def rescue(self, ctx: Context, ev: StepFailedEvent) -> StopEvent:
            await note(ctx, "rescue")
            return StopEvent(result=await ctx.store.get("seen"))

    async def note(ctx: Context, what: str) -> None:
        async with ctx.store.edit_state() as state:
            state.seen.append(what)

    assert await Kinds(timeout=None).run() == ["fork", "thread", "join", "rescue"]


async def test_p2_the_step_context_that_is_looked_up_is_the_one_the_step_got() -> None:
    async def act(ctx: Context) -> bool:
        return Context.get_step_context() is ctx

    def in_thread(ctx: Context) -> bool:
        return Context.get_step_context() is ctx

    assert await Acts(act).run()
    assert await SyncActs(in_thread).run()


async def test_p1_steps_share_the_very_objects() -> None:
    class Shares(Workflow):
        @step
        async def make(self, ctx: Context, ev: StartEvent) -> Item:
            await ctx.store.set("seen", [])
            (await ctx.store.get("seen")).append("got")
            await ctx.store.set("ready", anyio.Event())
            return Item()

        @step
        async def wait(self, ctx: Context, ev: Item) -> StopEvent:
            await (await ctx.store.get("ready")).wait()
            return StopEvent(result=await ctx.store.get("seen"))

        @step
        def wake(self, ctx: Context, ev: Item) -> None:
            anyio.from_thread.run(ctx.store.get, "seen").append("in a thread")
            anyio.from_thread.run_sync(anyio.from_thread.run(ctx.store.get, "ready").set)

    workflow = Shares(timeout=None)
    handler = workflow.run()
    result = await handler
    assert result == ["got", "in a thread"]
    assert await handler.ctx.store.get("seen") is result


async def test_p1_p3_a_snapshot_is_a_copy_and_the_next_run_shares_the_values() -> None:
    async def act(ctx: Context) -> Any:
        seen = await ctx.store.get("seen")
        seen.append(len(seen))
        snapshots.append(ctx.to_dict())
        seen.append(len(seen))
        return seen

    snapshots: list[dict[str, Any]] = []
    workflow = Acts(act)
    ctx = await seeded(workflow, seen=(mine := []))
    assert await workflow.run(ctx=ctx) is mine
    assert await workflow.run(ctx=ctx) is mine
    assert mine == [0, 1, 2, 3]
    assert [data["state"]["seen"] for data in snapshots] == [[0], [0, 1, 2]]
    restored = Context.from_dict(workflow, snapshots[0])
    restored.discard_work()
    assert await workflow.run(ctx=restored) == [0, 1, 2]
    assert snapshots[0]["state"] == {"seen": [0]}
    assert mine == [0, 1, 2, 3]


@pytest.mark.parametrize("write", ["edit_state", "set", "set_state", "clear"])
async def test_p1_writing_inside_ones_own_edit_fails_the_step_and_frees_the_state(
    write: str,
) -> None:
    async def act(ctx: Context) -> None:
        async with ctx.store.edit_state() as state:
            state.n = 99
            if write == "edit_state":
                await ctx.store.edit_state().__aenter__()
            elif write == "clear":
                await ctx.store.clear()
            else:
                await getattr(ctx.store, write)(*{"set": ("n", 1), "set_state": ({},)}[write])

    workflow = Acts(act)
    handler = workflow.run(ctx=await seeded(workflow, n=0))
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowFailedEvent)
    assert isinstance(last.exception, ContextStateError)
    assert str(last.exception) == (
        f"{write}() inside an edit of the same task would wait for itself; use the state that "
        "`async with store.edit_state() as state:` gives"
    )
    assert await bump(handler.ctx.store) == 1


# --- Typed ----------------------------------------------------------------------------------------


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
    "annotation", [Context, "Context", Context | None, Context[Any], Context[DictState]], ids=str
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
        "step name: NamedCount, step lost: Count); let one of them derive from all others\n"
        "  2. step lost accepts Done, which no step returns; return it from a step, or derive it "
        "from HumanResponseEvent if it comes from outside"
    )


@pytest.mark.parametrize(
    ("annotation", "shown"),
    [
        (Context[int], "int"),
        (Context[dict], "dict"),
        (Context[dict[str, int]], "dict[str, int]"),
        (Context[None], "NoneType"),
        (Context[Count | None], "tests.test_run_state.Count | None"),
        ("Context[str] | None", "str"),
    ],
    ids=str,
)
def test_v1_what_is_no_state_type_is_a_fault_of_the_signature(annotation: Any, shown: str) -> None:
    with pytest.raises(WorkflowValidationError) as caught:
        annotated(annotation)
    assert str(caught.value) == (
        f"Annotates: step work: Context[{shown}]: the state is an attrs class or a dataclass, or "
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


# --- Before, during and after the run -------------------------------------------------------------


async def test_p2_a_state_is_seeded_before_the_run() -> None:
    async def act(ctx: Context) -> int:
        return await bump(ctx.store)

    workflow = Acts(act)
    ctx = await seeded(workflow, n=6)
    handler = workflow.run(ctx=ctx)
    assert await handler == 7
    assert await ctx.store.get("n") == await handler.ctx.store.get("n") == 7


async def test_p2_a_typed_state_is_seeded_before_the_run() -> None:
    workflow = annotated(Context[Count])()
    ctx: Context[Count] = Context(workflow)
    await ctx.store.set_state(given := Count(n=3))
    got = await workflow.run(ctx=ctx)
    assert got == given
    assert got is not given
    with pytest.raises(ContextStateError, match="this state is a Count, and set_state"):
        await ctx.store.set_state(Basket())  # type: ignore[arg-type]


async def test_p2_contexts_and_runs_without_one_start_with_states_of_their_own() -> None:
    workflow = Acts(lambda ctx: ctx.store.get("n", None))
    one, two = await seeded(workflow, n=1), await seeded(workflow, n=2)
    handlers = [workflow.run(ctx=one), workflow.run(ctx=two), workflow.run()]
    assert [await handler for handler in handlers] == [1, 2, None]


async def test_p2_the_state_is_carried_from_run_to_run() -> None:
    async def act(ctx: Context) -> int:
        return await bump(ctx.store)

    workflow = Acts(act)
    ctx = await seeded(workflow, n=0)
    first = workflow.run(ctx=ctx)
    await first
    assert await workflow.run(ctx=first.ctx) == 2
    assert await Acts(act).run(ctx=ctx) == 3, "another instance of the workflow may go on"


@pytest.mark.parametrize("second", BACKENDS)
@pytest.mark.parametrize("first", BACKENDS)
def test_p2_the_state_is_carried_from_event_loop_to_event_loop(first: str, second: str) -> None:
    async def act(ctx: Context) -> int:
        return await bump(ctx.store)

    async def run() -> int:
        return await workflow.run(ctx=ctx)

    async def seed() -> Context:
        return await seeded(workflow, n=0)

    workflow = Acts(act)
    ctx = run_virtually(first, seed)
    assert [run_virtually(backend, run) for backend in (first, second, first)] == [1, 2, 3]


@pytest.mark.parametrize("second", BACKENDS)
@pytest.mark.parametrize("first", BACKENDS)
def test_o2_an_edit_that_the_end_of_the_loop_cut_off_holds_up_no_later_run(
    first: str, second: str
) -> None:
    async def start() -> Context:
        workflow = Acts(count_for_ever)
        ctx = await seeded(workflow, n=0)
        workflow.run(ctx=ctx)
        await anyio.sleep(1)
        return ctx

    async def go_on() -> Any:
        ctx.discard_work()
        return await Acts(lambda ctx: bump(ctx.store)).run(ctx=ctx)

    ctx = run_virtually(first, start)
    assert run_virtually(second, go_on) == 1


@pytest.mark.parametrize("how", ["stop", "failure", "deadline", "cancel"])
async def test_t7_the_state_is_read_and_written_after_the_end(how: str) -> None:
    async def act(ctx: Context) -> None:
        await ctx.store.set("n", 7)
        if how == "failure":
            raise Flaky
        if how != "stop":
            await anyio.sleep_forever()

    handler = Acts(act, timeout=10 if how == "deadline" else None).run()
    if how == "cancel":
        await anyio.sleep(1)
        await handler.cancel_run()
    await check_ending(handler)
    assert await handler.ctx.store.get_state() == {"n": 7}
    assert await bump(handler.ctx.store) == 8


async def test_p2_a_context_has_one_run_at_a_time() -> None:
    async def act(ctx: Context) -> None:
        with pytest.raises(ContextStateError):
            workflow.run(ctx=ctx)
        await anyio.sleep(1)

    workflow = Acts(act)
    handler = workflow.run(ctx=(ctx := await seeded(workflow)))
    for same in (ctx, handler.ctx):
        with pytest.raises(ContextStateError) as caught:
            workflow.run(ctx=same)
    assert str(caught.value) == (
        "the run of this context is still going on; await its handler first, or use another context"
    )
    await check_ending(handler)
    await check_ending(workflow.run(ctx=ctx))


async def test_p2_a_context_is_of_one_workflow_class() -> None:
    with pytest.raises(ContextStateError) as caught:
        Acts(count_for_ever).run(ctx=Context(annotated(Context)()))
    assert str(caught.value) == "the context is for runs of Annotates, not of Acts"


async def test_p2_the_owner_shares_the_state_of_a_run_in_progress() -> None:
    async def act(ctx: Context) -> Any:
        await ctx.store.set("n", 1)
        await anyio.sleep(2)
        return await bump(ctx.store)

    began = anyio.current_time()
    handler = Acts(act).run()
    await anyio.sleep(1)
    assert await handler.ctx.store.get("n") == 1
    async with handler.ctx.store.edit_state() as state:  # from 1 to 5; the step waits from 2 on
        await anyio.sleep(4)
        state.n = 10
    assert await handler == 11
    assert anyio.current_time() - began == 6


async def test_p2_an_edit_of_the_owner_outlives_the_run() -> None:
    handler = Acts(lambda ctx: anyio.sleep(3)).run()
    async with handler.ctx.store.edit_state() as state:
        await handler
        state.n = 1
    assert await handler.ctx.store.get_state() == {"n": 1}


def test_o1_the_state_of_a_run_in_progress_is_not_for_other_threads() -> None:
    async def act(ctx: Context) -> int:
        async with ctx.store.edit_state() as state:
            state.mine = 1
            await anyio.to_thread.run_sync(meddle, handler)
        return await ctx.store.get_state()

    def meddle(handler: Any) -> None:
        with pytest.raises(WorkflowRuntimeError):
            anyio.run(lambda: handler.ctx.store.set("other", 2))

    async def main() -> Any:
        nonlocal handler
        handler = Acts(act).run()
        return await handler

    handler: Any = None
    assert anyio.run(main) == {"mine": 1}


async def test_p2_child_runs_have_a_state_of_their_own() -> None:
    async def act(ctx: Context) -> Any:
        await ctx.store.set("n", 1)
        child = Acts(inner).run()
        return await child, await ctx.store.get_state(), await child.ctx.store.get_state()

    async def inner(ctx: Context) -> Any:
        before = await ctx.store.get_state()
        await ctx.store.set("m", 2)
        return before

    assert await Acts(act).run() == ({}, {"n": 1}, {"m": 2})


async def test_p2_a_child_run_goes_on_from_the_context_that_its_parent_gives_it() -> None:
    async def act(ctx: Context) -> Any:
        workflow = Acts(lambda inner: bump(inner.store))
        given = await seeded(workflow, n=4)
        async with ctx.store.edit_state() as state:  # no edit of the child's state
            state.n = await workflow.run(ctx=given)
        return await ctx.store.get("n"), await given.store.get("n")

    assert await Acts(act).run() == (5, 5)


async def test_o6_nothing_is_pinned() -> None:
    async def run() -> list[weakref.ref[Any]]:
        workflow = Acts(lambda ctx: bump(ctx.store))
        ctx = await seeded(workflow, n=0)
        handler = workflow.run(ctx=ctx)
        await handler
        return [weakref.ref(it) for it in (workflow, ctx, ctx.store, handler, handler.ctx)]

    found = await run()
    await anyio.sleep(1)
    gc.collect()
    assert [ref() for ref in found] == [None] * 5


# --- Several at once ------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 4, 20])
async def test_p1_edits_of_parallel_workers_lose_nothing(workers: int) -> None:
    class Counts(Workflow):
        @step
        async def fork(self, ctx: Context[Count], ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(20)]

        @step(num_workers=workers)
        async def work(self, ctx: Context[Count], ev: Item) -> Done:
            async with ctx.store.edit_state() as state:
                before = state.n
                await anyio.sleep(ev.n % 3)
                state.n = before + 1
                state.seen.append(ev.n)
            return Done(n=ev.n)

        @step
        async def join(self, ctx: Context[Count], evs: list[Done]) -> StopEvent:
            return StopEvent(result=await ctx.store.get_state())

    state = await Counts().run()
    assert state == Count(20, list(range(20)))


async def test_p1_edits_of_parallel_threads_lose_nothing() -> None:
    class Counts(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(20)]

        @step(num_workers=5)
        def work(self, ctx: Context, ev: Item) -> Done:
            anyio.from_thread.run(bump, ctx.store)
            return Done()

        @step
        async def join(self, ctx: Context, evs: list[Done]) -> StopEvent:
            return StopEvent(result=await ctx.store.get("n"))

    workflow = Counts(timeout=None)
    assert await workflow.run(ctx=await seeded(workflow, n=0)) == 20


async def test_p1_readers_do_not_wait_and_see_what_is_committed() -> None:
    class Two(Workflow):
        @step
        async def edit(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await bump(ctx.store, 10)
            await anyio.sleep(3)
            return StopEvent()

        @step
        async def look(self, ctx: Context, ev: StartEvent) -> None:
            for _ in range(3):
                await anyio.sleep(4)
                seen.append(await ctx.store.get("n"))

    seen: list[int] = []
    workflow = Two()
    await workflow.run(ctx=await seeded(workflow, n=0))
    assert seen == [0, 0, 1]


# --- Edits that fail ------------------------------------------------------------------------------


async def test_p1_a_failing_step_leaves_no_half_edit_and_frees_the_state_at_once() -> None:
    class Fails(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> Item:
            async with ctx.store.edit_state() as state:
                state.n = 99
                await anyio.sleep(3)
                raise Flaky

        @step
        async def wait(self, ctx: Context, ev: StartEvent) -> None:
            await anyio.sleep(1)
            began = anyio.current_time()
            seen["counted"] = await bump(ctx.store, 0)
            seen["waited"] = anyio.current_time() - began

        @catch_error
        async def rescue(self, ctx: Context, ev: StepFailedEvent) -> Item:
            await anyio.sleep(1)
            return Item()

        @step
        async def end(self, ev: Item) -> StopEvent:
            return StopEvent()

    seen: dict[str, float] = {}
    workflow = Fails()
    await workflow.run(ctx=await seeded(workflow, n=0))
    assert seen == {"counted": 1, "waited": 2}


async def test_x3_a_retry_sees_what_was_committed_and_nothing_else() -> None:
    class Retries(Workflow):
        @step(retry_policy=retry_policy(wait=wait_none()))
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            seen.append(await ctx.store.get("n"))
            await bump(ctx.store)
            async with ctx.store.edit_state() as state:
                state.n += 100
                if len(seen) < 3:
                    raise Flaky
            return StopEvent(result=await ctx.store.get("n"))

    seen: list[int] = []
    workflow = Retries()
    assert await workflow.run(ctx=await seeded(workflow, n=0)) == 103
    assert seen == [0, 1, 2]


async def test_r8_an_edit_is_rolled_back_at_the_timeout_of_its_step() -> None:
    class Slow(Workflow):
        @step(timeout=5, retry_policy=retry_policy(wait=wait_none()))
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            if ctx.retry_info().retry_number == 0:
                await ctx.store.set("committed", True)
                await count_for_ever(ctx)
            return StopEvent(result=(await ctx.store.get_state(), await bump(ctx.store)))

    workflow = Slow()
    began = anyio.current_time()
    result = await workflow.run(ctx=await seeded(workflow, n=0))
    assert result == ({"n": 0, "committed": True}, 1)
    assert anyio.current_time() - began == 6


@pytest.mark.parametrize("how", ["cancel", "deadline", "failure", "stop"])
async def test_p1_an_edit_is_rolled_back_when_the_run_ends(how: str) -> None:
    class Ends(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> None:
            await count_for_ever(ctx)

        @step
        async def end(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep(2 if how in ("failure", "stop") else 1000)
            if how == "failure":
                raise Flaky
            return StopEvent()

    workflow = Ends(timeout=2 if how == "deadline" else None)
    handler = workflow.run(ctx=await seeded(workflow, n=0))
    if how == "cancel":
        await anyio.sleep(2)
        await handler.cancel_run()
    _, last = await check_ending(handler)
    kinds = {
        "cancel": WorkflowCancelledEvent,
        "deadline": WorkflowTimedOutEvent,
        "failure": WorkflowFailedEvent,
        "stop": StopEvent,
    }
    assert type(last) is kinds[how]
    assert await handler.ctx.store.get_state() == {"n": 0}
    assert not handler.ctx.store.statistics().writing
    assert await bump(handler.ctx.store) == 1


async def test_f4_an_edit_is_rolled_back_when_its_batch_is_cancelled() -> None:
    class Races(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Item]:
            return [Item(n=0), Item(n=1)]

        @step
        async def work(self, ctx: Context, ev: Item) -> Done:
            if ev.n == 0:
                await count_for_ever(ctx)
            await anyio.sleep(3)
            return Done(n=ev.n)

        @step
        async def join(
            self, ctx: Context, evs: Annotated[list[Done], Collect(Take(1, cancel=True))]
        ) -> StopEvent:
            began = anyio.current_time()
            counted = await bump(ctx.store, 0)
            return StopEvent(result=(counted, anyio.current_time() - began))

    workflow = Races()
    assert await workflow.run(ctx=await seeded(workflow, n=0)) == (1, 0)


async def test_t7_what_a_step_writes_while_it_cleans_up_stays() -> None:
    async def act(ctx: Context) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await ctx.store.set("cleaned", True)

    handler = Acts(act, timeout=5).run()
    await check_ending(handler)
    assert await handler.ctx.store.get("cleaned") is True


# --- Too late -------------------------------------------------------------------------------------


async def test_t7_a_step_cannot_use_the_state_after_the_run() -> None:
    async def act(ctx: Context) -> None:
        kept.append(ctx)

    kept: list[Context] = []
    handler = Acts(act).run()
    await handler
    with pytest.raises(WorkflowRuntimeError) as caught:
        _ = kept[0].store
    assert str(caught.value) == (
        "the context of a step cannot be used: the run has ended, it returned StopEvent"
    )
    assert await handler.ctx.store.get_state() == {}


async def outlast(ctx: Context, released: anyio.Event, act: Callable[[], Awaitable[Any]]) -> None:
    """Go on after the run has given the step up, and do the act then."""
    with anyio.CancelScope(shield=True):
        await released.wait()
        with pytest.raises(WorkflowRuntimeError):
            await act()


async def test_t6_a_step_that_was_given_up_cannot_use_the_state() -> None:
    async def act(ctx: Context) -> None:
        async def write() -> None:
            await ctx.store.set("n", 99)

        await outlast(ctx, released, write)
        over.set()

    released, over = anyio.Event(), anyio.Event()
    workflow = Acts(act, timeout=5)
    handler = workflow.run(ctx=await seeded(workflow, n=0))
    await check_ending(handler)
    released.set()
    await over.wait()
    assert await handler.ctx.store.get("n") == 0


async def test_t6_a_step_that_was_given_up_cannot_use_a_store_that_it_kept() -> None:
    async def act(ctx: Context) -> None:
        store = ctx.store
        await outlast(ctx, released, lambda: store.set("n", 99))
        over.set()

    released, over = anyio.Event(), anyio.Event()
    workflow = Acts(act, timeout=5)
    handler = workflow.run(ctx=await seeded(workflow, n=0))
    await check_ending(handler)
    released.set()
    with anyio.move_on_after(5):
        await over.wait()
    assert await handler.ctx.store.get("n") == 0


async def test_t6_an_edit_of_a_step_that_was_given_up_is_rolled_back_and_released() -> None:
    async def act(ctx: Context) -> None:
        if await ctx.store.get("again", False):
            await bump(ctx.store)
            return
        try:
            async with ctx.store.edit_state() as state:
                state.n = 99
                with anyio.CancelScope(shield=True):
                    await released.wait()
        finally:
            over.set()

    released, over = anyio.Event(), anyio.Event()
    workflow = Acts(act, timeout=5)
    handler = workflow.run(ctx=await seeded(workflow, n=0))
    await check_ending(handler)
    try:
        handler.ctx.discard_work()
        with anyio.fail_after(5):
            await handler.ctx.store.set("again", True)
        await check_ending(workflow.run(ctx=handler.ctx))
    finally:
        released.set()
        await over.wait()
    await anyio.sleep(1)
    assert await handler.ctx.store.get("n") == 1


class Abandoned(Workflow):
    """A thread of it is given up with its batch, and does the act when it is let go."""

    def __init__(self, act: Callable[[Context, StateStore[Any]], Any]) -> None:
        super().__init__(timeout=None)
        self.act = act
        self.entered, self.released, self.over = (threading.Event() for _ in range(3))
        self.outcome: Any = None

    @step
    async def fork(self, ev: StartEvent) -> list[Item]:
        return [Item(n=0), Item(n=1)]

    @step
    def work(self, ctx: Context, ev: Item) -> Done:
        if ev.n == 1:
            assert self.entered.wait(PATIENCE)
            return Done()
        store = ctx.store
        self.entered.set()
        assert self.released.wait(PATIENCE)
        try:
            self.outcome = self.act(ctx, store)
        except BaseException as exc:
            self.outcome = exc
        self.over.set()
        return Done()

    @step
    async def join(self, evs: Annotated[list[Done], Collect(Take(1, cancel=True))]) -> StopEvent:
        await anyio.sleep(1)
        self.released.set()
        assert await anyio.to_thread.run_sync(self.over.wait, PATIENCE)
        return StopEvent()


async def test_f4_a_thread_that_was_given_up_cannot_use_the_state() -> None:
    workflow = Abandoned(lambda ctx, store: ctx.store)
    await workflow.run()
    assert isinstance(workflow.outcome, WorkflowRuntimeError)
    assert str(workflow.outcome) == "step work was cancelled with its batch and has ended"


async def test_f4_a_thread_that_was_given_up_cannot_use_a_store_that_it_kept() -> None:
    workflow = Abandoned(lambda ctx, store: anyio.from_thread.run(store.set, "n", 99))
    handler = workflow.run()
    await handler
    assert isinstance(workflow.outcome, BaseException)
    assert await handler.ctx.store.get_state() == {}


async def test_r8_a_thread_that_was_given_up_cannot_use_the_state() -> None:
    class Slow(Workflow):
        @step(timeout=1)
        def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            entered.set()
            assert released.wait(PATIENCE)
            try:
                _ = ctx.store
            except Exception as exc:
                outcomes.append(exc)
            over.set()
            return StopEvent()

        @step
        async def keep_the_clock_standing(self, ev: StartEvent) -> None:
            while not entered.is_set():
                await checkpoint()

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            released.set()
            assert await anyio.to_thread.run_sync(over.wait, PATIENCE)
            return StopEvent(result=ev.exception)

    entered, released, over = (threading.Event() for _ in range(3))
    outcomes: list[Exception] = []
    assert isinstance(await Slow(timeout=None).run(), TimeoutError)
    assert [str(exc) for exc in outcomes] == [
        "step work was cancelled at its timeout and has ended"
    ]
    assert isinstance(outcomes[0], WorkflowRuntimeError)


async def test_t6_who_waits_for_an_edit_of_a_step_that_was_given_up_gets_its_turn() -> None:
    async def act(ctx: Context) -> None:
        async with ctx.store.edit_state():
            with anyio.CancelScope(shield=True):
                await released.wait()

    released = anyio.Event()
    handler = Acts(act, timeout=5, cleanup_timeout=2).run()
    began = anyio.current_time()
    await anyio.sleep(6)
    try:
        with anyio.fail_after(100):
            await handler.ctx.store.set("n", 1)
        assert anyio.current_time() - began == 7
    finally:
        released.set()
    assert await handler.ctx.store.get_state() == {"n": 1}
    await check_ending(handler)


async def test_t6_several_edits_of_steps_that_were_given_up() -> None:
    async def act(ctx: Context) -> None:
        release = releases[await ctx.store.get("run")]
        async with ctx.store.edit_state() as state:
            state.run = 99
            with anyio.CancelScope(shield=True):
                await release.wait()

    releases = [anyio.Event() for _ in range(3)]
    workflow = Acts(act, timeout=5)
    ctx: Context = Context(workflow)
    try:
        with anyio.fail_after(1000):
            for number in range(3):
                await ctx.store.set("run", number)
                ctx.discard_work()
                handler = workflow.run(ctx=ctx)
                await anyio.sleep(1)
                if number:
                    releases[number - 1].set()  # while the next one is in its edit
                await check_ending(handler)
            await ctx.store.set("run", 3)
    finally:
        for release in releases:
            release.set()
    await anyio.sleep(1)
    assert await ctx.store.get("run") == 3
