"""Joins that ask which event opened their batch: `Opener` (F8)."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows import (
    Context,
    Event,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    catch_error,
    step,
)
from anyio_workflows.collect import Collect, Opener, Take
from anyio_workflows.errors import ContextSerdeError
from anyio_workflows.events import StepState, StepStateChanged
from anyio_workflows.resource import Resource
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from anyio_workflows.testing import check_termination

from .conftest import BACKENDS
from .running import read_all, run_virtually
from .samples import Answer, Done, Item, Joined, Numbers, Other, Part, ProviderError, Question
from .snapshotting import pending_steps, resume, snapshot_at, through_json

pytestmark = pytest.mark.anyio


class Book(Workflow[Any]):
    """Item n has n parts: the joins note which event opened their batch."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**{"timeout": None, **config})
        self.opened: list[Event] = []
        self.joined: list[tuple[Event, list[int]]] = []

    @step
    async def split(self, ev: Numbers) -> list[Item]:
        self.opened.append(ev)
        return [Item(n=n) for n in ev.items]

    @step
    async def open(self, ev: Item) -> list[Part]:
        self.opened.append(ev)
        return [Part(n=ev.n)] * ev.n

    @step(num_workers=10)
    async def work(self, ev: Part) -> Other:
        await anyio.sleep(10 * ev.n)
        return Other(n=ev.n)

    @step
    async def inner(self, events: list[Other], origin: Annotated[Item, Opener()]) -> Done:
        self.joined.append((origin, [event.n for event in events]))
        return Done(n=origin.n)

    @step
    async def outer(
        self, ctx: Context, origin: Annotated[Numbers, Opener()], events: list[Done]
    ) -> StopEvent:
        self.joined.append((origin, sorted(event.n for event in events)))
        return StopEvent(result=origin.items)


def same(one: list[Event], other: list[Event]) -> bool:
    """Return whether these are the same objects, in whatever order."""
    return sorted(map(id, one)) == sorted(map(id, other))


async def test_f8_each_level_gets_the_event_that_opened_its_batch() -> None:
    workflow = Book()
    assert await workflow.run(items=[2, 0, 1]) == [2, 0, 1]
    origins = [origin for origin, _ in workflow.joined]
    assert same(origins, workflow.opened)
    assert sorted(workflow.joined, key=repr) == [
        (Item(n=0), []),
        (Item(n=1), [1]),
        (Item(n=2), [2, 2]),
        (Numbers(items=[2, 0, 1]), [0, 1, 2]),
    ]


async def test_f8_an_empty_outer_batch() -> None:
    workflow = Book()
    assert await workflow.run(items=[]) == []
    assert workflow.joined == [(Numbers(items=[]), [])]
    assert workflow.joined[0][0] is workflow.opened[0]


class Takers(Book):
    """Joins that do not wait for all."""

    def __init__(self, cancel: bool) -> None:
        super().__init__()
        self.cancel = cancel

    @step
    async def open(self, ev: Item) -> list[Part]:
        self.opened.append(ev)
        return [Part(n=n) for n in (1, 2, 3)[: ev.n]]


class TakersThatCancel(Takers):
    @step
    async def inner(
        self,
        events: Annotated[list[Other], Collect(Take(2, cancel=True))],
        origin: Annotated[Item, Opener()],
    ) -> Done:
        self.joined.append((origin, [event.n for event in events]))
        return Done(n=origin.n)


class TakersThatWait(Takers):
    @step
    async def inner(
        self,
        events: Annotated[list[Other], Collect(Take(2))],
        origin: Annotated[Item, Opener()],
    ) -> Done:
        self.joined.append((origin, [event.n for event in events]))
        return Done(n=origin.n)


@pytest.mark.parametrize("workflow_class", [TakersThatCancel, TakersThatWait])
async def test_f8_f4_joins_that_take_a_few(workflow_class: type[Takers]) -> None:
    workflow = workflow_class(cancel=True)
    assert await workflow.run(items=[3, 1, 0]) == [3, 1, 0]
    assert same([origin for origin, _ in workflow.joined], workflow.opened)
    found = {origin.n: got for origin, got in workflow.joined if isinstance(origin, Item)}
    assert found == {3: [1, 2], 1: [1], 0: []}


async def test_f8_joins_of_one_batch_get_the_same_and_others_get_nothing() -> None:
    class Several(Workflow[Any]):
        @step
        async def split(self, ev: Numbers) -> list[Item]:
            return [Item(n=n) for n in ev.items]

        @step
        async def one(self, events: list[Item], origin: Annotated[Numbers, Opener()]) -> Other:
            found.append(origin)
            return Other()

        @step
        async def plain(self, events: list[Item]) -> Part:
            return Part()

        @step
        async def two(self, by: Annotated[StartEvent, Opener()], events: list[Item]) -> Done:
            found.append(by)
            return Done()

        @step
        async def end(self, a: Other, b: Done, c: Part) -> StopEvent:
            return StopEvent()

    found: list[Event] = []
    await Several().run(start_event=(start := Numbers(items=[1, 2])))
    assert [one is start for one in found] == [True, True]


class Shape(Event):
    n: int = 0


class Square(Shape): ...


async def test_f8_a_union_and_subclasses() -> None:
    class Shapes(Workflow[Any]):
        @step
        async def begin(self, ev: StartEvent) -> list[Square | Item]:
            return [Square(n=1), Item(n=2), Square(n=3)]

        @step(accept_event_subclasses=True)
        async def shape(self, ev: Shape) -> list[Part]:
            return [Part(n=ev.n)]

        @step
        async def item(self, ev: Item) -> list[Part]:
            return []

        @step
        async def inner(
            self, events: list[Part], origin: Annotated[Shape | Item, Opener()] | None
        ) -> Done:
            found.append((type(origin), origin.n if origin else None, len(events)))
            return Done()

        @step
        async def outer(self, events: list[Done], origin: Annotated[Event, Opener()]) -> StopEvent:
            return StopEvent(result=type(origin))

    found: list[Any] = []
    assert await Shapes().run() is StartEvent
    assert sorted(found, key=lambda one: one[1]) == [(Square, 1, 1), (Item, 2, 0), (Square, 3, 1)]


# --- Whatever becomes of the join -------------------------------------------------------------------


class Stubborn(Workflow[Any]):
    """Its join fails twice, changes what it was given, and then asks."""

    retrying = retry_policy(wait=wait_fixed(10), stop=stop_after_attempt(3))

    @step(retry_policy=retrying)
    async def split(self, ctx: Context, ev: Numbers) -> list[Item]:
        if ctx.retry_info().retry_number == 0:
            raise ProviderError
        return [Item(n=n) for n in ev.items]

    @step(retry_policy=retrying)
    async def join(
        self, ctx: Context, events: list[Item], origin: Annotated[Numbers, Opener()]
    ) -> StopEvent:
        self.seen.append(origin)
        assert [event.n for event in events] == origin.items
        events.clear()
        if ctx.retry_info().retry_number < 2:
            raise ProviderError
        await ctx.wait_for_event(Answer, Question())
        return StopEvent(result=origin.items)

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.seen: list[Event] = []


async def test_f8_x3_every_attempt_gets_the_very_same() -> None:
    workflow = Stubborn()
    handler = workflow.run(start_event=(start := Numbers(items=[1, 2])))
    await anyio.sleep(100)
    await handler.send_event(Answer())
    assert await handler == [1, 2]
    assert [one is start for one in workflow.seen] == [True] * 3


@pytest.mark.parametrize("seconds", [0, 5, 10, 15, 25, 40])
async def test_f8_p3_a_join_in_any_state_has_it_after_a_restore(seconds: float) -> None:
    data = await snapshot_at(seconds, Stubborn().run(items=[1, 2]))
    workflow = Stubborn()
    handler = resume(workflow, data)
    await anyio.sleep(100)
    await handler.send_event(Answer())
    assert await handler == [1, 2]
    assert workflow.seen == [Numbers(items=[1, 2])] * len(workflow.seen) != []


async def test_f8_x7_a_join_that_is_repeated_gets_it_again() -> None:
    class Failing(Book):
        failed = False

        @step
        async def outer(
            self, events: list[Done], origin: Annotated[Numbers, Opener()]
        ) -> StopEvent:
            self.joined.append((origin, []))
            if not Failing.failed:
                Failing.failed = True
                raise ProviderError
            return StopEvent(result=origin.items)

    handler = Failing().run(items=[1])
    with pytest.raises(ProviderError):
        await handler
    workflow = Failing()
    context = Context.from_dict(workflow, through_json(handler.ctx.to_dict()))
    context.retry_failed()
    assert await workflow.run(ctx=context) == [1]
    assert workflow.joined == [(Numbers(items=[1]), [])]


async def test_f8_x4_what_fails_is_reported_by_its_list_and_a_handler_may_open_a_batch() -> None:
    class Rescued(Book):
        @step
        async def open(self, ev: Item) -> list[Part]:
            if ev.n == 7:
                raise ProviderError
            return await super().open(ev)

        @step
        async def inner(
            self, events: list[Other], origin: Annotated[Item | StepFailedEvent, Opener()]
        ) -> Done:
            if isinstance(origin, StepFailedEvent):
                return Done(n=-len(events))
            if origin.n == 2:
                raise ProviderError
            return Done(n=origin.n)

        @step
        async def outer(self, events: list[Done]) -> StopEvent:
            return StopEvent(result=sorted(event.n for event in events))

        @catch_error(for_steps=["open"])
        async def reopen(self, ev: StepFailedEvent) -> list[Part]:
            assert ev.input_event == Item(n=7)
            return [Part(n=1)] * 3

        @catch_error(for_steps=["inner"])
        async def give_up(self, ev: StepFailedEvent) -> Done:
            assert ev.input_event == [Other(n=2)] * 2
            return Done(n=-20)

    assert await Rescued().run(items=[1, 7, 2]) == [-20, -3, 1]


async def test_f8_with_a_resource_a_timeout_and_in_a_thread() -> None:
    class Loaded(Workflow[Any]):
        @step
        async def split(self, ev: Numbers) -> list[Item]:
            return [Item(n=n) for n in ev.items]

        @step(timeout=5)
        def join(
            self,
            /,
            *,
            origin: Annotated[Numbers, Opener()],
            factor: Annotated[int, Resource(lambda: 3)],
            events: list[Item],
        ) -> StopEvent:
            return StopEvent(result=(factor * len(events), origin.items))

    assert await Loaded().run(items=[1, 2]) == (6, [1, 2])


async def test_f8_a_free_step() -> None:
    class Free(Workflow[Any]):
        @step
        async def split(self, ev: Numbers) -> list[Item]:
            return [Item(n=n) for n in ev.items]

    @step(workflow=Free)
    async def join(events: list[Item], origin: Annotated[Numbers, Opener()]) -> StopEvent:
        return StopEvent(result=origin.items)

    assert await Free().run(items=[1]) == [1]


async def test_f8_i3_it_is_no_event_that_starts_the_join() -> None:
    events = await read_all(Book().run(items=[1]))
    names = [
        (ev.name, ev.input_event_name)
        for ev in events
        if isinstance(ev, StepStateChanged) and ev.step_state is StepState.RUNNING
    ]
    assert ("inner", "Other") in names
    assert ("outer", "Done") in names


async def test_f8_o6_nothing_is_kept_unless_a_join_asks() -> None:
    class Asking(Book):
        @step
        async def open(self, ev: Item) -> list[Part]:
            refs.append(weakref.ref(ev))
            return [Part()]

        @step
        async def work(self, ev: Part) -> Other:
            await anyio.sleep(1)
            gc.collect()
            alive.append(refs[-1]() is not None)
            return Other()

    class Plain(Asking):
        @step
        async def inner(self, events: list[Other]) -> Done:
            return Done()

    refs: list[Any] = []
    alive: list[bool] = []
    await Asking().run(items=[1])
    await Plain().run(items=[1])
    assert alive == [True, False]
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


def test_v2_the_toolkit_takes_it() -> None:
    check_termination(partial(Book, timeout=1000), start=Numbers(items=[1, 0]), max_examples=30)


# --- Snapshots ----------------------------------------------------------------------------------------


async def test_f8_p3_snapshots_hold_it_only_where_a_join_asks() -> None:
    class Half(Book):
        @step
        async def outer(self, events: list[Done]) -> StopEvent:
            return StopEvent()

    data = await snapshot_at(15, Half().run(items=[1, 2]))
    assert [batch["opener"] is None for batch in data["work"]["batches"]] == [True, False]
    assert {work["opener"] for work in data["work"]["work"]} == {None}


async def test_f8_p4_a_snapshot_from_before_the_join_asked_is_refused() -> None:
    class Before(Book):
        @step
        async def inner(self, events: list[Other]) -> Done:
            await anyio.sleep(10)
            return Done()

    workflow = Book()
    for seconds, where in [(5, "batches[1]"), (15, "work[0]")]:
        data = await snapshot_at(seconds, Before().run(items=[1]))
        with pytest.raises(ContextSerdeError) as caught:
            Context.from_dict(workflow, data)
        assert caught.value.path == f"$.work.{where}.opener"
        assert caught.value.problem == (
            "step inner takes the event that opened its batch as 'origin' (Item), but there is none; "
            "the snapshot was taken before the step asked for it, or by an earlier release: finish its "
            "run there"
        )
    old = without_openers(await snapshot_at(5, Book().run(items=[1])))
    with pytest.raises(ContextSerdeError, match="there is none"):
        Context.from_dict(workflow, {**old, "version": 2})


def without_openers(data: Any) -> Any:
    for one in (*data["work"]["batches"], *data["work"]["work"]):
        del one["opener"]
    return data


async def test_f8_p4_a_snapshot_from_before_the_join_stopped_asking_is_read() -> None:
    class After(Book):
        @step
        async def inner(self, events: list[Other]) -> Done:
            return Done(n=len(events))

        @step
        async def outer(self, events: list[Done]) -> StopEvent:
            return StopEvent(result=[event.n for event in events])

    class Slow(Book):
        @step
        async def inner(self, events: list[Other], origin: Annotated[Item, Opener()]) -> Done:
            await anyio.sleep(10)
            return Done()

    for seconds in (5, 15):
        data = await snapshot_at(seconds, Slow().run(items=[1]))
        assert await resume(After(), data) == [1]


# --- The property: trees, interrupted at any moment ------------------------------------------------------


class Tree(StartEvent):
    children: list[Any]
    path: list[int] = []
    """As of `Node`, so that both can be asked."""


class Node(Event):
    path: list[int]
    children: list[Any]
    """Trees of the next level; a number is a leaf that takes as many seconds."""


class Inner(Node): ...


class Leaf(Event):
    path: list[int]
    seconds: int


class Reached(Event):
    path: list[int]


class Grown(Event):
    path: list[int]
    leaves: list[Any]


class Branches(Grown): ...


class Forest(Workflow[Any]):
    """Three levels of batches. Steps fail at random places, and are retried or recovered."""

    retrying = retry_policy(wait=wait_fixed(3), stop=stop_after_attempt(2))

    def __init__(self, failing: set[str]) -> None:
        super().__init__(timeout=None)
        self.failing = failing

    def check(self, ctx: Context, what: str, path: list[int]) -> None:
        """Fail on the first attempt (`retry`), or on both."""
        name = f"{what} {path}"
        if name in self.failing or (name + " retry" in self.failing and _first(ctx)):
            raise ProviderError(name)

    @step
    async def plant(self, ev: Tree) -> list[Node]:
        return list(nodes(Node, ev.children, ev.path))

    @step(retry_policy=retrying, num_workers=2)
    async def sprout(self, ctx: Context, ev: Node) -> list[Inner]:
        await anyio.sleep(1)
        self.check(ctx, "sprout", ev.path)
        return list(nodes(Inner, ev.children, ev.path))

    @step(retry_policy=retrying, num_workers=2)
    async def grow(self, ctx: Context, ev: Inner) -> list[Leaf]:
        await anyio.sleep(2)
        self.check(ctx, "grow", ev.path)
        return [Leaf(path=[*ev.path, n], seconds=s) for n, s in enumerate(ev.children)]

    @step(num_workers=3)
    async def leaf(self, ev: Leaf) -> Reached:
        await anyio.sleep(ev.seconds)
        return Reached(path=ev.path)

    @step(retry_policy=retrying, num_workers=1)
    async def join_leaves(
        self,
        ctx: Context,
        events: list[Reached],
        origin: Annotated[Inner | StepFailedEvent, Opener()],
    ) -> Grown:
        inner = opened_by(origin, Inner)
        await anyio.sleep(1)
        self.check(ctx, "join", inner.path)
        paths = sorted(event.path for event in events)
        wanted = [] if origin is not inner else inner.children
        assert paths == [[*inner.path, n] for n in range(len(wanted))]
        return Grown(path=inner.path, leaves=paths)

    @step
    async def join_inner(
        self, events: list[Grown], origin: Annotated[Node | StepFailedEvent, Opener()]
    ) -> Branches:
        node = opened_by(origin, Node)
        await anyio.sleep(1)
        assert all(event.path[:-1] == node.path for event in events)
        assert len(events) == (len(node.children) if origin is node else 0)
        return Branches(path=node.path, leaves=sorted(event.path for event in events))

    @step
    async def join_nodes(
        self, ctx: Context, events: list[Branches], origin: Annotated[Tree, Opener()]
    ) -> StopEvent:
        await anyio.sleep(1)
        assert sorted(event.path for event in events) == [[n] for n in range(len(origin.children))]
        return StopEvent(result=sorted(event.path for event in events))

    @catch_error(for_steps=["sprout"], max_recoveries=100)
    async def no_sprout(self, ev: StepFailedEvent) -> list[Inner]:
        await anyio.sleep(1)
        return []

    @catch_error(for_steps=["grow"], max_recoveries=100)
    async def no_growth(self, ev: StepFailedEvent) -> list[Leaf]:
        await anyio.sleep(1)
        return []

    @catch_error(for_steps=["join_leaves"], max_recoveries=100)
    async def no_join(self, ev: StepFailedEvent) -> Grown:
        [note] = [str(ev.exception)]
        return Grown(path=[int(n) for n in note[6:-1].split(", ")], leaves=[])


def _first(ctx: Context) -> bool:
    return ctx.retry_info().retry_number == 0


def nodes(cls: Any, children: list[Any], path: list[int]) -> Iterator[Any]:
    for n, below in enumerate(children):
        yield cls(path=[*path, n], children=below)


def opened_by(origin: Event, cls: type[Node]) -> Any:
    """Return the node whose step opened the batch, itself or through its error handler."""
    event = origin.input_event if isinstance(origin, StepFailedEvent) else origin
    assert isinstance(event, cls)
    return event


leaves = st.lists(st.integers(0, 3), max_size=3)
trees = st.lists(st.lists(leaves, max_size=3), max_size=3)
paths = st.lists(st.integers(0, 2), min_size=1, max_size=2)
failures = st.sets(
    st.builds(
        "{} {}{}".format,
        st.sampled_from(["sprout", "grow", "join"]),
        paths,
        st.sampled_from(["", " retry"]),
    ),
    max_size=4,
)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=150, deadline=None)
@given(
    children=trees,
    failing=failures,
    moments=st.lists(st.integers(0, 12).map(lambda n: n / 2 + 0.25), max_size=3),
)
def test_f8_p3_trees_that_fail_and_are_interrupted(
    backend: str, children: list[Any], failing: set[str], moments: list[float]
) -> None:
    async def main() -> Any:
        handler = Forest(failing).run(children=children)
        for seconds in moments:
            await anyio.sleep(seconds)
            data = through_json(handler.ctx.to_dict())
            if data["work"] is None:  # the outcome is decided
                break
            await handler.cancel_run()
            handler = resume(Forest(failing), data)
        return await handler

    assert run_virtually(backend, main) == [[n] for n in range(len(children))]


async def test_f8_p3_the_snapshot_of_a_batch_whose_elements_are_gone() -> None:
    data = await snapshot_at(5, Book().run(items=[1]))
    assert pending_steps(data) == [("work", 1)]
    workflow = Book()
    assert await resume(workflow, data) == [1]
    assert workflow.joined == [(Item(n=1), [1]), (Numbers(items=[1]), [1])]


async def test_f8_a_join_of_joined_events_goes_through_one_more_step() -> None:
    """What the fault tells: a join returns one event, and another step makes the list of it."""

    class Again(Workflow[Any]):
        @step
        async def split(self, ev: Numbers) -> list[Item]:
            return [Item(n=n) for n in ev.items]

        @step
        async def join(self, events: list[Item]) -> Joined:
            return Joined(n=len(events))

        @step
        async def split_again(self, ev: Joined) -> list[Part]:
            return [Part(n=n) for n in range(ev.n)]

        @step
        async def end(self, events: list[Part], origin: Annotated[Joined, Opener()]) -> StopEvent:
            return StopEvent(result=(len(events), origin.n))

    assert await Again().run(items=[5, 6]) == (2, 2)
