"""The manager of a run's resources: opened once, closed in reverse order, by one task (rule P5)."""

import asyncio
import contextvars
import inspect
import itertools
import math
import traceback
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from typing import Annotated, Any

import anyio
import attrs
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows._dependencies import Dependency, read_dependency
from anyio_workflows.errors import WorkflowConfigurationError, WorkflowRuntimeError
from anyio_workflows.resource import Resource, ResourceConfig

from .conftest import BACKENDS
from .resource_hosting import Hosted, Slow, Thing, dependency_on
from .running import run_virtually

pytestmark = pytest.mark.anyio


def task_id() -> int:
    return anyio.get_current_task().id


# --- Kinds of factories -----------------------------------------------------------------------------


class FactoryKinds:
    def __init__(self) -> None:
        self.log: list[str] = []

    def sync(self) -> Thing:
        return Thing()

    async def asynchronous(self) -> Thing:
        return await Thing().make_soon()

    def awaitable(self) -> Any:
        return Thing().make_soon()

    def generator(self) -> Iterator[Thing]:
        self.log.append("open")
        yield Thing()
        self.log.append("close")

    async def async_generator(self) -> AsyncIterator[Thing]:
        await anyio.sleep(1)
        self.log.append("open")
        yield Thing()
        await anyio.sleep(1)
        self.log.append("close")

    manager = contextmanager(generator)
    async_manager = asynccontextmanager(async_generator)


PLAIN = ["sync", "asynchronous", "awaitable"]
SCOPED = ["generator", "async_generator", "manager", "async_manager"]


@pytest.mark.parametrize("name", PLAIN + SCOPED)
async def test_p5_every_kind_of_factory(name: str) -> None:
    kinds = FactoryKinds()
    async with Hosted() as hosted:
        thing = await hosted.get(getattr(kinds, name))
        assert type(thing) is Thing
        assert not thing.entered
        assert await hosted.get(getattr(kinds, name)) is thing
        assert kinds.log == ["open"] * (name in SCOPED)
    assert kinds.log == ["open", "close"] * (name in SCOPED)
    assert (hosted.started, hosted.errors) == (1, [])


@pytest.mark.parametrize("name", PLAIN + SCOPED)
async def test_p5_every_kind_of_factory_without_cache(name: str) -> None:
    kinds = FactoryKinds()
    factory = getattr(kinds, name)
    async with Hosted() as hosted:
        async with hosted.supply(one=factory, two=factory) as given:
            assert type(given["one"]) is Thing
            assert given["one"] is given["two"]
            assert kinds.log == ["open"] * (name in SCOPED)
        assert kinds.log == ["open", "close"] * (name in SCOPED)
        async with hosted.supply(one=factory) as given_next:
            assert given_next["one"] is not given["one"]
        assert kinds.log == ["open", "close"] * 2 * (name in SCOPED)
    assert hosted.started == 0, "nothing cached, no task"


async def test_p5_classes_are_factories() -> None:
    async with Hosted() as hosted:
        assert type(await hosted.get(Thing)) is Thing


async def test_p5_a_wrapped_generator_that_returns_no_context_manager_is_handed_over() -> None:
    def numbers() -> Iterator[int]:
        yield 3

    def as_list() -> list[int]:
        return list(numbers())

    as_list.__wrapped__ = numbers  # type: ignore[attr-defined]
    async with Hosted() as hosted:
        assert await hosted.get(as_list) == [3]


async def test_p5_files_are_read_once_per_run(tmp_path: Any) -> None:
    file = tmp_path / "a.json"
    file.write_text("[1]")
    faults: list[str] = []
    dependency = read_dependency(Annotated[list[int], ResourceConfig(str(file))], faults, faults)
    assert dependency is not None
    async with Hosted() as hosted:
        value = await hosted.manager.get(dependency)
        file.write_text("[2")
        assert await hosted.manager.get(dependency) is value
    async with Hosted() as hosted:
        with pytest.raises(WorkflowConfigurationError, match=r"a\.json: not valid JSON: "):
            await hosted.manager.get(dependency)


colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour")


async def test_o7_factories_see_the_values_at_the_start() -> None:
    seen: list[str] = []

    async def look() -> AsyncIterator[None]:
        seen.append(colour.get())
        yield
        seen.append(colour.get())

    colour.set("red")
    async with Hosted() as hosted:
        colour.set("blue")
        await hosted.get(look)
    assert seen == ["red", "red"]


# --- Order, as a property ---------------------------------------------------------------------------


@attrs.define
class Plan:
    """A resource: how it is made, what it needs, what it does."""

    kind: str
    cache: bool
    needs: list[int]
    holds: str
    opening: int
    closing: int
    fails_to_open: bool
    fails_to_close: bool


@attrs.define
class StepPlan:
    starts: int
    wants: list[int]
    lasts: float
    fails: bool


class Refused(Exception):
    pass


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[Plan], list[StepPlan], float]:
    resources: list[Plan] = []
    for n in range(draw(st.integers(1, 6))):
        below = st.lists(st.integers(0, n - 1), unique=True, max_size=3) if n else st.just([])
        cache = draw(st.sampled_from([True, True, False]))
        resources.append(
            Plan(
                kind=draw(st.sampled_from(PLAIN[:2] + SCOPED)),
                cache=cache,
                needs=draw(below),
                holds=draw(st.sampled_from(["nothing", "scope", "deadline", "group"])),
                opening=draw(st.integers(0, 3)),
                closing=draw(st.integers(0, 1)),
                fails_to_open=draw(st.integers(0, 9)) == 0,
                fails_to_close=cache and draw(st.integers(0, 5)) == 0,
            )
        )
    wants = st.lists(st.integers(0, len(resources) - 1), unique=True, max_size=3)
    lasts = st.sampled_from([0.0, 1.0, 5.0, math.inf])
    steps = st.builds(StepPlan, st.integers(0, 9), wants, lasts, st.booleans())
    return resources, draw(st.lists(steps, max_size=6)), draw(st.sampled_from([2.0, 7.0, 60.0]))


class World:
    """Factories for the plans, and what was seen of them."""

    def __init__(self, plans: list[Plan]) -> None:
        self.plans = plans
        self.needs: list[Dependency] = []
        self.markers: dict[int, Resource] = {}
        self.opened: list[int] = []
        self.closed: list[int] = []
        self.failed: list[tuple[str, BaseException]] = []
        self.alive: dict[int, int] = dict.fromkeys(range(len(plans)), 0)
        self.tasks: set[int] = set()
        for n, plan in enumerate(plans):
            factory: Any = getattr(self, plan.kind)(n, plan)
            bare = getattr(factory, "__wrapped__", factory)
            bare.__name__ = factory.__name__ = bare.__qualname__ = f"r{n}"
            bare.__signature__ = inspect.Signature(
                [
                    inspect.Parameter(
                        f"x{i}",
                        inspect.Parameter.KEYWORD_ONLY,
                        annotation=Annotated[Any, self.markers[i]],
                    )
                    for i in plan.needs
                ]
            )
            self.markers[n] = Resource(factory, plan.cache)
            self.needs.append(dependency_on(factory, plan.cache))

    def open(self, n: int, plan: Plan, given: dict[str, Any]) -> str:
        assert given == {f"x{i}": f"r{i}" for i in plan.needs}
        assert all(self.alive[i] for i in plan.needs if self.plans[i].kind in SCOPED)
        if plan.fails_to_open:
            raise Refused(f"r{n}")
        if plan.cache:
            assert n not in self.opened
            self.tasks.add(task_id())
            self.opened.append(n)
        self.alive[n] += plan.kind in SCOPED
        return f"r{n}"

    def close(self, n: int, plan: Plan) -> None:
        assert all(self.alive[i] for i in plan.needs if self.plans[i].kind in SCOPED)
        self.alive[n] -= 1
        if plan.cache:
            self.tasks.add(task_id())
            self.closed.append(n)
        if plan.fails_to_close:
            error = Refused(f"r{n}")
            if plan.cache:
                self.failed.append((f"r{n}", error))
            raise error

    def sync(self, n: int, plan: Plan) -> Any:
        return lambda **given: self.open(n, plan, given)

    def asynchronous(self, n: int, plan: Plan) -> Any:
        async def make(**given: Any) -> str:
            await anyio.sleep(plan.opening)
            return self.open(n, plan, given)

        return make

    def generator(self, n: int, plan: Plan) -> Any:
        def make(**given: Any) -> Iterator[str]:
            value = self.open(n, plan, given)
            try:
                yield value
            finally:
                self.close(n, plan)

        return make

    def async_generator(self, n: int, plan: Plan) -> Any:
        async def make(**given: Any) -> AsyncIterator[str]:
            await anyio.sleep(plan.opening)
            held: dict[str, Any] = {
                "nothing": nullcontext(),
                "scope": anyio.CancelScope(),
                "deadline": anyio.CancelScope(deadline=anyio.current_time() + 1000),
                "group": anyio.create_task_group(),
            }
            async with as_async(held[plan.holds]) as group:
                if plan.holds == "group":
                    group.start_soon(anyio.sleep_forever)
                value = self.open(n, plan, given)
                try:
                    yield value
                finally:
                    with anyio.CancelScope(shield=True):
                        await anyio.sleep(plan.closing)
                    if plan.holds == "group":
                        group.cancel_scope.cancel()
                    self.close(n, plan)

        return make

    def manager(self, n: int, plan: Plan) -> Any:
        return contextmanager(self.generator(n, plan))

    def async_manager(self, n: int, plan: Plan) -> Any:
        return asynccontextmanager(self.async_generator(n, plan))


@asynccontextmanager
async def as_async(manager: Any) -> AsyncIterator[Any]:
    """Enter any context manager; take its own exception out of a group."""
    try:
        if hasattr(manager, "__aenter__"):
            async with manager as value:
                yield value
        else:
            with manager as value:
                yield value
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


async def attempt(hosted: Hosted, world: World, plan: StepPlan) -> None:
    await anyio.sleep(plan.starts)
    wanted = {f"x{n}": world.needs[n] for n in plan.wants}
    error = ValueError()
    broken = {f"r{n}" for n, plan in enumerate(world.plans) if plan.fails_to_open}
    caught: BaseException | None = None
    try:
        async with hosted.manager.supply(wanted) as given:
            assert given == {f"x{n}": f"r{n}" for n in plan.wants}
            await anyio.sleep(plan.lasts)
            if plan.fails:
                raise error
    except (ValueError, Refused) as exc:
        caught = exc
    own = not all(world.plans[n].cache for n in plan.wants)
    assert caught is None or caught is error or str(caught) in broken or own


@pytest.mark.parametrize("backend", BACKENDS)
@given(plans())
@settings(max_examples=60)
def test_p5_resources_nest_whatever_happens(
    backend: str, drawn: tuple[list[Plan], list[StepPlan], float]
) -> None:
    resources, steps, ends = drawn
    world = World(resources)

    async def main() -> None:
        async with Hosted(timeout=100) as hosted:
            with anyio.move_on_after(ends):
                async with anyio.create_task_group() as group:
                    for plan in steps:
                        group.start_soon(attempt, hosted, world, plan)
            await hosted.close()
        assert hosted.errors == world.failed
        assert hosted.started <= 1

    run_virtually(backend, main)
    scoped = [n for n in world.opened if resources[n].kind in SCOPED]
    assert world.closed == scoped[::-1]
    assert not any(world.alive.values())
    assert len(world.tasks) <= 1, "one task opens and closes them"


# --- Asking -----------------------------------------------------------------------------------------


async def test_p5_built_once_also_when_several_ask_at_once() -> None:
    slow = Slow()
    values: list[int] = []

    async def ask() -> None:
        values.append(await hosted.get(slow.plain))

    async with Hosted() as hosted:
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(ask)
        assert values == [1] * 5
        assert await hosted.get(slow.plain) == 1


async def test_p5_an_asker_that_gives_up_stops_nobody() -> None:
    slow = Slow(3)
    async with Hosted() as hosted, anyio.create_task_group() as group:
        values: list[int] = []

        async def ask() -> None:
            values.append(await hosted.get(slow.plain))

        with anyio.move_on_after(1) as impatience:
            await hosted.get(slow.plain)
        assert impatience.cancelled_caught
        group.start_soon(ask)
        await anyio.sleep(5)
        assert values == [1]


async def test_p5_a_build_that_nobody_waits_for_is_kept() -> None:
    slow = Slow(3)
    async with Hosted() as hosted:
        with anyio.move_on_after(1):
            await hosted.get(slow.plain)
        await anyio.sleep(5)
        with anyio.fail_after(0.5):
            assert await hosted.get(slow.plain) == 1


async def test_p5_what_a_resource_needs_is_shared() -> None:
    slow = Slow()

    def left(slow: Annotated[int, Resource(slow.plain)]) -> tuple[str, int]:
        return "left", slow

    def right(slow: Annotated[int, Resource(slow.plain)]) -> tuple[str, int]:
        return "right", slow

    async with Hosted() as hosted:
        assert await hosted.get(left) == ("left", 1)
        assert await hosted.get(right) == ("right", 1)
        assert await hosted.get(slow.plain) == 1


async def test_p5_without_cache_each_has_its_own_until_the_attempt_ends() -> None:
    slow = Slow()

    def client(
        own: Annotated[int, Resource(slow.scoped, cache=False)],
        shared: Annotated[int, Resource(slow.plain)],
    ) -> tuple[int, int]:
        return own, shared

    async with Hosted() as hosted:
        async with hosted.supply(a=client, b=client) as given:
            assert given == {"a": (1, 2), "b": (1, 2)}
            assert slow.log == ["begin"]
        async with hosted.supply(a=client) as given:
            assert given == {"a": (3, 2)}
        assert slow.log == ["begin", "end"] * 2
        assert await hosted.get(client) == (4, 2)  # a cached one has its own, as long as it lives
        assert slow.log[4:] == ["begin"]
    assert slow.log[4:] == ["begin", "end"]


class Diamond:
    """One transaction, two repositories that share it, a service that needs both."""

    def __init__(self, cached: Sequence[str] = (), fails: str | None = None) -> None:
        self.log: list[str] = []
        self.fails = fails
        self.transactions = itertools.count(1)
        transaction = self.make("transaction", cached)
        users = self.make("users", cached, transaction=transaction)
        orders = self.make("orders", cached, transaction=transaction)
        self.service = self.make("service", cached, users=users, orders=orders)
        self.users, self.orders, self.transaction = users, orders, transaction

    def make(self, name: str, cached: Sequence[str], **needs: Resource) -> Resource:
        async def factory(**given: Any) -> AsyncIterator[Any]:
            if name == self.fails:
                raise ConnectionError(name)
            value = given or next(self.transactions)
            self.log.append(f"open {name}")
            try:
                yield value
            finally:
                self.log.append(f"close {name}")

        factory.__qualname__ = name
        annotated = {key: Annotated[Any, need] for key, need in needs.items()}
        factory.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, annotation=a)
                for key, a in annotated.items()
            ]
        )
        return Resource(factory, cache=name in cached)

    def supplied_by(self, hosted: Hosted, *wanted: Resource) -> Any:
        needs = {str(n): dependency_on(one.factory, one.cache) for n, one in enumerate(wanted)}
        return hosted.manager.supply(needs)


NESTED = ["transaction", "users", "orders", "service"]


async def test_p5_without_cache_all_of_one_attempt_share_it() -> None:
    diamond = Diamond()
    async with Hosted() as hosted:
        async with diamond.supplied_by(hosted, diamond.service, diamond.transaction) as given:
            assert given["0"]["users"]["transaction"] == given["0"]["orders"]["transaction"] == 1
            assert given["1"] == 1
        assert diamond.log == [f"open {n}" for n in NESTED] + [f"close {n}" for n in NESTED[::-1]]
        async with diamond.supplied_by(hosted, diamond.orders, diamond.users) as given:
            assert given == {"0": {"transaction": 2}, "1": {"transaction": 2}}
        assert hosted.started == 0


async def test_p5_without_cache_attempts_at_the_same_time_do_not_share_it() -> None:
    diamond = Diamond()
    async with (
        Hosted() as hosted,
        diamond.supplied_by(hosted, diamond.users) as one,
        diamond.supplied_by(hosted, diamond.orders, diamond.users) as two,
    ):
        assert one == {"0": {"transaction": 1}}
        assert two == {"0": {"transaction": 2}, "1": {"transaction": 2}}


async def test_p5_a_cached_resource_has_its_own_of_what_is_not_cached() -> None:
    diamond = Diamond(cached=["service"])
    async with Hosted() as hosted:
        for n in (2, 3):
            async with diamond.supplied_by(hosted, diamond.service, diamond.users) as given:
                assert given["0"] == {"users": {"transaction": 1}, "orders": {"transaction": 1}}
                assert given["1"] == {"transaction": n}
        assert diamond.log[-2:] == ["close users", "close transaction"]
        before = len(diamond.log)
    assert diamond.log[before:] == [f"close {name}" for name in NESTED[::-1]]


async def test_p5_two_cached_resources_do_not_share_what_is_not_cached() -> None:
    diamond = Diamond(cached=["users", "orders"])
    async with (
        Hosted() as hosted,
        diamond.supplied_by(hosted, diamond.service, diamond.transaction) as given,
    ):
        assert given["0"] == {"users": {"transaction": 1}, "orders": {"transaction": 2}}
        assert given["1"] == 3


async def test_p5_without_cache_a_failed_build_closes_what_was_shared_once() -> None:
    diamond = Diamond(fails="orders")
    async with Hosted() as hosted:
        for _ in range(2):
            with pytest.raises(ConnectionError, match="orders"):
                async with diamond.supplied_by(hosted, diamond.service):
                    raise AssertionError("not to be reached")
    opened = ["transaction", "users"]
    once = [f"open {n}" for n in opened] + [f"close {n}" for n in opened[::-1]]
    assert diamond.log == once * 2


async def test_p5_what_a_step_raises_passes_unchanged() -> None:
    """Resources see it, and neither swallow nor wrap it (T5)."""
    seen: list[BaseException] = []

    def swallows() -> Iterator[None]:
        try:
            yield
        except ValueError as exc:
            seen.append(exc)

    async def wraps() -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            yield

    error = ValueError("of the step")
    async with Hosted() as hosted:
        for factory in (swallows, wraps):
            with pytest.raises(ValueError, match="of the step") as caught:
                async with hosted.supply(it=factory):
                    raise error
            assert caught.value is error
    assert seen == [error]


async def test_p5_what_a_resource_raises_for_it_replaces_it() -> None:
    def translates() -> Iterator[None]:
        try:
            yield
        except ValueError as exc:
            raise KeyError from exc

    async with Hosted() as hosted:
        with pytest.raises(KeyError):
            async with hosted.supply(it=translates):
                raise ValueError


async def test_p5_cancelling_a_step_closes_what_is_its_own() -> None:
    slow = Slow()
    async with Hosted() as hosted:
        with anyio.move_on_after(5) as scope:
            async with hosted.supply(it=slow.scoped):
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert slow.log == ["begin", "end"]


# --- Builds that fail -------------------------------------------------------------------------------


class Flaky:
    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)

    async def make(self) -> str:
        await anyio.sleep(1)
        if self.errors:
            raise self.errors.pop(0)
        return "made"

    def client(self) -> Any:
        def client(made: Annotated[str, Resource(self.make)]) -> str:
            return made

        return client


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), SystemExit(), TimeoutError()])
async def test_p5_everybody_gets_the_error_of_a_build_and_it_is_not_cached(
    error: BaseException,
) -> None:
    flaky = Flaky(error)
    client = flaky.client()
    caught: list[BaseException] = []

    async def ask(factory: Any) -> None:
        try:
            await hosted.get(factory)
        except BaseException as exc:
            caught.append(exc)

    async with Hosted() as hosted:
        async with anyio.create_task_group() as group:
            for factory in (client, client, client):
                group.start_soon(ask, factory)
        assert len(caught) == 3
        assert all(exc is error for exc in caught)
        assert await hosted.get(client) == "made"
    assert hosted.errors == []


async def test_t5_the_traceback_does_not_grow() -> None:
    lengths: list[int] = []
    flaky = Flaky(ValueError())

    async def ask() -> None:
        try:
            await hosted.get(flaky.make)
        except ValueError as exc:
            lengths.append(len(traceback.extract_tb(exc.__traceback__)))

    async with Hosted() as hosted, anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(ask)
    assert len(lengths) == 3
    assert len(set(lengths)) == 1


async def test_p5_what_was_opened_for_a_failed_build_is_closed() -> None:
    slow = Slow()
    error = ValueError()

    async def group() -> AsyncIterator[Any]:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            yield group

    async def client(
        own: Annotated[int, Resource(slow.scoped, cache=False)],
        group: Annotated[Any, Resource(group, cache=False)],
    ) -> None:
        raise error

    async with Hosted() as hosted:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            await hosted.get(client)
        assert caught.value is error
        assert slow.log == ["begin", "end"]
    assert hosted.errors == []


async def test_p5_a_need_cannot_swallow_the_failure_of_what_needs_it() -> None:
    def swallows() -> Iterator[None]:
        with suppress(ValueError):
            yield

    def client(it: Annotated[None, Resource(swallows, cache=False)]) -> None:
        raise ValueError("of the client")

    async with Hosted() as hosted:
        with pytest.raises(ValueError, match="of the client"):
            await hosted.get(client)


async def test_p5_a_generator_that_yields_nothing_is_an_error() -> None:
    async def nothing() -> AsyncIterator[None]:
        if nothing is None:
            yield

    async with Hosted() as hosted:
        with pytest.raises(RuntimeError, match="generator didn't yield"):
            await hosted.get(nothing)


@pytest.mark.parametrize("grouped", [False, True])
async def test_t8_a_cancellation_that_nobody_asked_for_is_an_error(grouped: bool) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await checkpoint()
        except BaseException as exc:
            cancellation = exc
            raise
    stray = BaseExceptionGroup("", [cancellation]) if grouped else cancellation

    async def leaks() -> None:
        raise stray

    async with Hosted() as hosted:
        with pytest.raises(WorkflowRuntimeError) as caught:
            await hosted.get(leaks)
        assert caught.value.__cause__ is stray
        assert "leaks raised a cancellation, although it had not been cancelled" in str(
            caught.value
        )
        assert type(await hosted.get(Thing)) is Thing
    assert hosted.errors == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_t8_a_factory_may_cancel_its_own_task() -> None:
    async def cancels() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    async def cancels_later() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return "made"

    slow = Slow()
    async with Hosted() as hosted:
        await hosted.get(slow.scoped)
        with pytest.raises(WorkflowRuntimeError, match="raised a cancellation"):
            await hosted.get(cancels)
        assert await hosted.get(cancels_later) == "made"
        await anyio.sleep(1)
        assert slow.log == ["begin"]
        assert type(await hosted.get(Thing)) is Thing
    assert (hosted.errors, slow.log) == ([], ["begin", "end"])
