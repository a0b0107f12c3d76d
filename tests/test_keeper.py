"""The keeper of a run's resources: opened once, closed in reverse order, by one task (P5)."""

import asyncio
import contextvars
import gc
import inspect
import itertools
import logging
import math
import traceback
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from typing import Annotated, Any, Self

import anyio
import attrs
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows._backend import find_loop
from anyio_workflows._dependencies import Dependency, read_dependency
from anyio_workflows._engine.resources import ResourceManager
from anyio_workflows.errors import WorkflowConfigurationError, WorkflowRuntimeError
from anyio_workflows.resource import Resource, ResourceConfig

from .conftest import BACKENDS
from .running import run_script, run_virtually

pytestmark = pytest.mark.anyio


def need_of(factory: Callable[..., Any], cache: bool = True) -> Dependency:
    faults: list[str] = []
    need = read_dependency(Annotated[Any, Resource(factory, cache)], faults, faults)
    assert faults == []
    assert need is not None
    return need


class Hosted:
    """A keeper in a task group that is cancelled before the keeper is closed, as a run does it."""

    def __init__(self, timeout: float = 5.0) -> None:
        self.timeout = timeout
        self.started = 0
        self.errors: list[tuple[str, BaseException]] = []

    async def __aenter__(self) -> Self:
        loop = find_loop()
        assert loop is not None
        context = contextvars.copy_context()
        self.group = await anyio.create_task_group().__aenter__()

        def start(coroutine: Any) -> None:
            self.started += 1
            self.group.create_task(coroutine, context=context)

        self.resources = ResourceManager("run x", start, loop.uncancel_current_task)
        return self

    async def __aexit__(self, *exc_info: object) -> bool | None:
        self.group.cancel_scope.cancel()
        await self.close()
        return await self.group.__aexit__(*exc_info)  # type: ignore[arg-type]

    async def close(self) -> None:
        self.errors = await self.resources.close(self.timeout)

    async def get(self, factory: Callable[..., Any]) -> Any:
        return await self.resources.get(need_of(factory))

    def supply(self, **factories: Any) -> Any:
        return self.resources.supply({name: need_of(f, False) for name, f in factories.items()})


def task_id() -> int:
    return anyio.get_current_task().id


# --- Kinds of factories -----------------------------------------------------------------------------


class Thing:
    """Also a context manager, which nobody enters."""

    def __init__(self) -> None:
        self.entered = False

    def __enter__(self) -> Self:
        self.entered = True
        return self

    def __exit__(self, *exc_info: object) -> None: ...

    async def make_soon(self) -> "Thing":
        await anyio.sleep(1)
        return self

    def make(self) -> "Thing":
        return self


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
    need = read_dependency(Annotated[list[int], ResourceConfig(str(file))], faults, faults)
    assert need is not None
    async with Hosted() as hosted:
        value = await hosted.resources.get(need)
        file.write_text("[2")
        assert await hosted.resources.get(need) is value
    async with Hosted() as hosted:
        with pytest.raises(WorkflowConfigurationError, match=r"a\.json: no valid JSON: "):
            await hosted.resources.get(need)


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
            self.needs.append(need_of(factory, plan.cache))

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
        async with hosted.resources.supply(wanted) as given:
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


class Slow:
    """Counts how often it is made."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.made = 0
        self.seconds = seconds
        self.log: list[str] = []

    async def plain(self) -> int:
        self.made += 1
        await anyio.sleep(self.seconds)
        return self.made

    async def scoped(self) -> AsyncIterator[int]:
        self.log.append("begin")
        try:
            yield await self.plain()
        finally:
            self.log.append("end")


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
        needs = {str(n): need_of(one.factory, one.cache) for n, one in enumerate(wanted)}
        return hosted.resources.supply(needs)


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
        assert "leaks raised a cancellation, but nobody had cancelled it" in str(caught.value)
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


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- The end ----------------------------------------------------------------------------------------


async def test_p5_no_task_without_need() -> None:
    async with Hosted() as hosted:
        pass
    assert (hosted.started, hosted.errors) == (0, [])


async def test_p5_after_the_end_nothing_can_be_had() -> None:
    for asked in (False, True):
        async with Hosted() as hosted:
            if asked:
                await hosted.get(Thing)
            await hosted.close()
            with pytest.raises(WorkflowRuntimeError) as caught:
                await hosted.get(Thing)
        assert str(caught.value) == "resource Thing cannot be had: the run is ending"


async def test_p5_closing_again_changes_nothing() -> None:
    def fails() -> Iterator[None]:
        yield
        raise ValueError

    async with Hosted() as hosted:
        await hosted.get(fails)
        await hosted.close()
        first = hosted.errors
        await hosted.close()
        assert hosted.errors == first
        assert [name for name, _ in first] == ["fails"]


async def test_p5_the_keeper_outlives_the_cancellation_of_its_group() -> None:
    slow = Slow()
    async with Hosted() as hosted:
        await hosted.get(slow.scoped)
        hosted.group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.sleep(3)
            assert slow.log == ["begin"]
            assert await hosted.get(slow.scoped) == 1
            assert await hosted.get(slow.plain) == 2
    assert slow.log == ["begin", "end"]


async def test_p5_asked_for_when_the_group_is_already_cancelled() -> None:
    slow = Slow()
    async with Hosted() as hosted:
        hosted.group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            assert await hosted.get(slow.scoped) == 1
    assert slow.log == ["begin", "end"]


@pytest.mark.parametrize("ticks", range(6))
async def test_p5_closed_just_when_it_begins(ticks: int) -> None:
    slow = Slow()
    async with Hosted() as hosted, anyio.create_task_group() as group:
        group.start_soon(hosted.get, slow.scoped)
        for _ in range(ticks):
            await checkpoint()
        group.cancel_scope.cancel()
    assert slow.log in ([], ["begin", "end"])
    assert hosted.errors == []


async def test_p5_a_hanging_build_is_cancelled() -> None:
    slow = Slow(math.inf)
    other = Slow()
    async with Hosted() as hosted:
        await hosted.get(other.scoped)

        def client(slow: Annotated[int, Resource(slow.scoped)]) -> None: ...

        with anyio.move_on_after(1):
            await hosted.get(client)
        begun = anyio.current_time()
    assert anyio.current_time() - begun < 1
    assert slow.log == other.log == ["begin", "end"]
    assert hosted.errors == []


async def test_t4_what_a_cancelled_build_raises_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails() -> AsyncIterator[None]:
        try:
            await anyio.sleep_forever()
            yield
        finally:
            raise ValueError

    async with Hosted() as hosted:
        with anyio.move_on_after(1):
            await hosted.get(fails)
    assert hosted.errors == []
    assert warned(caplog) == ["run x: too late: resource fails failed"]


async def test_p5_who_still_waits_at_the_end_gets_an_error() -> None:
    slow = Slow(math.inf)
    caught: list[str] = []

    async def ask(factory: Any) -> None:
        with anyio.CancelScope(shield=True):
            try:
                await hosted.get(factory)
            except WorkflowRuntimeError as exc:
                caught.append(str(exc))

    async with Hosted() as hosted:
        hosted.group.start_soon(ask, slow.plain)
        await anyio.sleep(1)
        hosted.group.start_soon(ask, Thing)
        await anyio.sleep(1)
    assert sorted(caught) == [
        "resource Slow.plain cannot be had: the run is ending",
        "resource Thing cannot be had: the run is ending",
    ]


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt()])
async def test_p5_a_failure_to_close_prevents_no_other(error: BaseException) -> None:
    slow = Slow()

    async def fails(it: Annotated[int, Resource(slow.scoped)]) -> AsyncIterator[None]:
        yield
        raise error

    def fails_too(it: Annotated[None, Resource(fails)]) -> Iterator[None]:
        yield
        raise KeyError

    async with Hosted() as hosted:
        await hosted.get(fails_too)
    assert slow.log == ["begin", "end"]
    assert [(name, type(exc)) for name, exc in hosted.errors] == [
        ("fails_too", KeyError),
        ("fails", type(error)),
    ]
    assert hosted.errors[1][1] is error


async def test_p5_closing_that_hangs_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    slow = Slow()

    async def hangs(it: Annotated[int, Resource(slow.scoped)]) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            yield
            await anyio.sleep_forever()

    async with Hosted(timeout=3) as hosted:
        await hosted.get(hangs)
        begun = anyio.current_time()
        await hosted.close()
        assert anyio.current_time() - begun == pytest.approx(3, abs=0.1)
        assert slow.log == ["begin", "end"]
    assert hosted.errors == []
    assert warned(caplog) == [
        "run x: cancelled its resources, which did not close within 3 seconds: hangs, Slow.scoped"
    ]


async def test_p5_closing_that_cannot_be_cancelled_is_left_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def hangs() -> AsyncIterator[None]:
        yield
        with anyio.CancelScope(shield=True):
            await anyio.sleep(100)
        raise ValueError

    async with Hosted(timeout=3) as hosted:
        await hosted.get(hangs)
        begun = anyio.current_time()
        await hosted.close()
        assert anyio.current_time() - begun == pytest.approx(3, abs=0.1)
        assert hosted.errors == []
    assert anyio.current_time() - begun == pytest.approx(100, abs=0.1)
    first, last = warned(caplog)
    assert first == "run x: cancelled its resources, which did not close within 3 seconds: hangs"
    assert last == "run x: too late: resource hangs failed"


async def test_p5_a_build_that_cannot_be_cancelled_is_left_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow = Slow()

    async def hangs(it: Annotated[int, Resource(slow.scoped)]) -> str:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(100)
        return "made"

    async with Hosted(timeout=3) as hosted:
        with anyio.move_on_after(5):
            await hosted.get(hangs)
        begun = anyio.current_time()
        await hosted.close()
        assert anyio.current_time() - begun == pytest.approx(3, abs=0.1)
    assert slow.log == ["begin", "end"]
    assert [text.rpartition(": ")[2] for text in warned(caplog)] == ["hangs, Slow.scoped"]


# --- Resources that are cancelled from within --------------------------------------------------------


class Fragile:
    """Holds a task group in which something fails when told to, or a scope that is cancelled."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.log: list[str] = []
        self.error = ValueError("in the background")
        self.trigger: Any = None

    async def fail(self) -> None:
        raise self.error

    async def make(self) -> AsyncIterator[int]:
        self.log.append("begin")
        try:
            if self.how == "fails":
                async with anyio.create_task_group() as group:
                    self.trigger = lambda: group.start_soon(self.fail)
                    yield len(self.log)
            else:
                with anyio.CancelScope() as scope:
                    self.trigger = scope.cancel
                    yield len(self.log)
        finally:
            self.log.append("end")


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_p5_a_resource_that_is_cancelled_from_within(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    before, fragile, after = Slow(), Fragile(how), Slow()

    def client(it: Annotated[int, Resource(fragile.make)]) -> int:
        return it

    async with Hosted() as hosted:
        await hosted.get(before.scoped)
        assert await hosted.get(client) == 1
        await hosted.get(after.scoped)
        fragile.trigger()
        await anyio.sleep(1)
        assert fragile.log == after.log == ["begin", "end"]
        assert before.log == ["begin"]
        assert await hosted.get(client) == 3, "made again, with a new one"
    assert before.log == ["begin", "end"]
    assert fragile.log == ["begin", "end"] * 2
    ((name, error),) = hosted.errors
    assert name == "Fragile.make"
    if how == "fails":
        assert isinstance(error, ExceptionGroup)
        assert error.exceptions == (fragile.error,)
    else:
        assert isinstance(error, WorkflowRuntimeError)
        assert "was cancelled while it was open" in str(error)
    assert warned(caplog) == [
        "run x: resource Fragile.make failed while it was open; closed because of that: "
        "Slow.scoped, client, Fragile.make"
    ]


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_p5_builds_that_it_interrupts_fail(how: str) -> None:
    fragile, slow = Fragile(how), Slow(10)
    caught: list[BaseException] = []

    def client(it: Annotated[int, Resource(slow.scoped)]) -> int:
        return it

    async def ask(factory: Any) -> None:
        try:
            await hosted.get(factory)
        except WorkflowRuntimeError as exc:
            caught.append(exc)

    async with Hosted() as hosted:
        await hosted.get(fragile.make)
        async with anyio.create_task_group() as group:
            group.start_soon(ask, slow.scoped)
            group.start_soon(ask, client)
            await anyio.sleep(1)
            fragile.trigger()
        (_, error), *_ = hosted.resources._errors
        assert {exc.__cause__ for exc in caught} == {error}
        assert "could not be opened: resource Fragile.make failed meanwhile" in str(caught[0])
        assert await hosted.get(client) == 2
    assert slow.log == ["begin", "end"] * 2
    assert len(hosted.errors) == 1


async def test_p5_a_resource_that_fails_at_the_end() -> None:
    fragile = Fragile("fails")
    async with Hosted() as hosted:
        await hosted.get(fragile.make)
        fragile.trigger()
    ((_, error),) = hosted.errors
    assert isinstance(error, ExceptionGroup)
    assert fragile.log == ["begin", "end"]


async def test_p5_a_resource_may_be_bounded_in_time(caplog: pytest.LogCaptureFixture) -> None:
    async def bounded() -> AsyncIterator[None]:
        with anyio.move_on_after(3):
            yield

    async with Hosted() as hosted:
        await hosted.get(bounded)
        await anyio.sleep(5)
        assert len(warned(caplog)) == 1
    assert [type(error) for _, error in hosted.errors] == [WorkflowRuntimeError]


async def test_p5_a_plain_factory_that_leaves_a_scope_open_fails() -> None:
    async def leaves_open() -> Any:
        scope = anyio.CancelScope()
        scope.__enter__()
        return scope

    with suppress(ExceptionGroup):  # AnyIO's task group notices as well, on asyncio
        async with Hosted() as hosted:
            with pytest.raises(WorkflowRuntimeError) as caught:
                await hosted.get(leaves_open)
            assert str(caught.value) == (
                "resource leaves_open left a cancel scope or task group open; make it a generator "
                "function that yields inside of it"
            )


# --- The event loop ends ------------------------------------------------------------------------------


LOOP_ENDS = """
    import anyio
    from contextvars import copy_context
    from typing import Annotated, Any
    from anyio_workflows._backend import find_loop
    from anyio_workflows._engine.resources import ResourceManager
    from anyio_workflows._dependencies import read_dependency
from anyio_workflows.resource import Resource

    async def inner():
        with anyio.move_on_after(1000):
            print("open inner")
            yield "inner"
            await anyio.sleep(0.01)
            print("close inner")

    async def outer(inner: Annotated[Any, Resource(inner)]):
        async with anyio.create_task_group() as group:
            if {child}:
                group.start_soon(anyio.sleep_forever)
            print("open outer")
            yield "outer"
            group.cancel_scope.cancel()
        print("close outer")

    need = read_dependency(Annotated[Any, Resource(outer)], [], [])

    async def host():
        async with anyio.create_task_group() as group:
            keeper = ResourceManager("run x", group.create_task, loop.uncancel_current_task)
            async def step():
                try:
                    print("got", await keeper.get(need))
                    await anyio.sleep_forever()
                finally:
                    with anyio.CancelScope(shield=True):
                        await anyio.sleep(0.01)
                    print("step ends")
            task = group.create_task(step())
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                group.cancel_scope.cancel()
                with anyio.move_on_after(0.1, shield=True):
                    await task.wait()
                print("errors", await keeper.close(1))
                raise

    async def main():
        global loop
        loop = find_loop()
        loop.start(host, lambda: print("over"))
        for _ in range({ticks}):
            await anyio.lowlevel.checkpoint()

    anyio.run(main, backend={backend!r})
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_o2_the_loop_ends(backend: str) -> None:
    done = run_script(LOOP_ENDS.format(backend=backend, ticks=30, child=True))
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "open inner",
        "open outer",
        "got outer",
        "step ends",
        "close outer",
        "close inner",
        "errors []",
        "over",
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ticks", range(8))
def test_o2_the_loop_ends_while_the_keeper_begins(backend: str, ticks: int) -> None:
    done = run_script(LOOP_ENDS.format(backend=backend, ticks=ticks, child=False))
    assert "Warning" not in done.stderr
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[-1] == "over"
    for name in ("inner", "outer"):
        assert lines.count(f"open {name}") == lines.count(f"close {name}")


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_o2_a_keeper_that_asyncio_throws_away_is_not_waited_for() -> None:
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[None]] = []

    def start(coroutine: Any) -> None:
        tasks.append(loop.create_task(coroutine))
        tasks[-1].cancel()

    loop = find_loop()
    assert loop is not None
    keeper = ResourceManager("run x", start, loop.uncancel_current_task)
    need = need_of(Thing)
    asker = loop.create_task(keeper.get(need))
    await asyncio.sleep(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert await keeper.close(5) == []
        gc.collect()
    with pytest.raises(WorkflowRuntimeError, match="the run is ending"):
        await asker
    assert tasks[0].cancelled()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_o2_closing_is_interrupted_natively_once() -> None:
    tasks: list[Any] = []
    slow = Slow()

    async def interrupted(it: Annotated[int, Resource(slow.scoped)]) -> AsyncIterator[None]:
        tasks.append(asyncio.current_task())
        yield
        await anyio.sleep(3)

    async with Hosted() as hosted:
        await hosted.get(interrupted)
        asyncio.get_running_loop().call_later(1, lambda: tasks[0].cancel())
    assert slow.log == ["begin", "end"]
    ((name, error),) = hosted.errors
    assert name == "interrupted"
    assert isinstance(error.__cause__, asyncio.CancelledError)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_o2_a_native_cancellation_of_who_closes_is_taken_in() -> None:
    slow = Slow()

    async def closes_slowly() -> AsyncIterator[None]:
        yield
        await anyio.sleep(3)
        slow.log.append("closed")

    async def host() -> None:
        async with Hosted() as hosted:
            await hosted.get(closes_slowly)

    task = asyncio.create_task(host())
    await anyio.sleep(1)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.1)
    await asyncio.wait([task])
    assert slow.log == ["closed"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_o2_after_a_native_cancellation_resources_close_as_ever() -> None:
    """A scope that is left with a native cancellation pending does not catch its own."""
    keeper: list[Any] = []

    async def linger() -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(1)

    async def group() -> AsyncIterator[None]:
        keeper.append(asyncio.current_task())
        async with anyio.create_task_group() as group:
            yield
            group.start_soon(linger)
            await checkpoint()
            group.cancel_scope.cancel()

    async with Hosted() as hosted:
        await hosted.get(group)
        keeper[0].cancel()
        await anyio.sleep(1)
        assert keeper[0].cancelling() == 0
    assert hosted.errors == []
