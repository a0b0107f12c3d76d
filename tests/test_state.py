"""The store: values, dotted paths, atomic edits, and what they cost (rule P1)."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import anyio
import attrs
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows.errors import ContextStateError
from anyio_workflows.state import DictState, StateStore, StateStoreStatistics

from .conftest import BACKENDS
from .running import run_virtually

pytestmark = pytest.mark.anyio


class Counted:
    """Counts how often it gets copied."""

    copies = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Counted:
        Counted.copies += 1
        return Counted()


@pytest.fixture(autouse=True)
def _no_copies_yet():
    Counted.copies = 0


class Client:
    """Cannot be copied, and has fields."""

    def __init__(self) -> None:
        self.connection = threading.Lock()
        self.name = "one"


class Plain:
    """An object like any other."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


class Point(NamedTuple):
    x: int
    y: Any = None


@attrs.define
class User:
    name: str = "ada"
    tags: list[str] = attrs.field(factory=list)


@attrs.define
class Slotted:
    count: int = 0
    items: list[Any] = attrs.field(factory=list)
    other: Any = None
    user: User = attrs.field(factory=User)
    _private: int = 7

    def add(self, item: object) -> None:
        self.items.append(item)
        self.count += 1

    @property
    def last(self) -> Any:
        return self.items[-1]

    def __len__(self) -> int:
        return len(self.items)


@attrs.define(slots=False)
class Open(Slotted):
    pass


@dataclass
class Data:
    count: int = 0
    items: list[Any] = field(default_factory=list)
    other: Any = None
    user: User = field(default_factory=User)

    add = Slotted.add
    last = Slotted.last
    __len__ = Slotted.__len__


@dataclass(slots=True)
class SlottedData:
    count: int = 0
    items: list[Any] = field(default_factory=list)
    other: Any = None
    user: User = field(default_factory=User)

    add = Slotted.add
    last = Slotted.last
    __len__ = Slotted.__len__


@attrs.frozen
class Frozen:
    count: int = 0
    items: list[int] = attrs.field(factory=list)


@dataclass(frozen=True)
class FrozenData:
    count: int = 0
    items: list[int] = field(default_factory=list)


def items_of(state: Any) -> Any:
    """Return `state.items`, which is a method of an untyped state."""
    return state["items"] if isinstance(state, DictState) else state.items


TYPED = [Slotted, Open, Data, SlottedData]
typed = pytest.mark.parametrize("state_type", TYPED)
every_type = pytest.mark.parametrize("state_type", [DictState, *TYPED])


# --- DictState --------------------------------------------------------------------------------


def test_p1_keys_of_an_untyped_state_read_write_and_delete_as_attributes():
    state = DictState({"a": 1}, b=2)
    state.c = state.a + state["b"]
    del state.a
    assert dict(state) == {"b": 2, "c": 3} == state
    assert "c" in state
    assert repr(state) == "DictState({'b': 2, 'c': 3})"
    state["items"] = 1
    assert callable(state.items)


def test_p1_a_missing_attribute_names_the_key_and_the_known_ones():
    state = DictState(count=1)
    with pytest.raises(AttributeError, match=r"no 'coutn', did you mean 'count'\?"):
        _ = state.coutn
    with pytest.raises(AttributeError, match="no 'zzz', known: count"):
        del state.zzz
    assert not hasattr(state, "__wrapped__")


def test_p1_a_key_that_is_a_method_is_for_item_access_only():
    state = DictState()
    with pytest.raises(AttributeError, match=r"write `state\['items'\] = ...` instead"):
        state.items = 1
    assert not state


def test_p1_an_untyped_state_is_copied_and_pickled_like_a_dict():
    inner = [1]
    state = DictState(a=inner)
    assert copy.copy(state).a is inner
    assert copy.deepcopy(state).a is not inner
    assert pickle.loads(pickle.dumps(state)) == copy.deepcopy(state) == copy.copy(state) == state


# --- Construction -----------------------------------------------------------------------------


@pytest.mark.parametrize("state_type", [dict, int, Plain, 5, list[int], DictState()], ids=str)
def test_p1_the_type_of_a_state_is_an_attrs_class_or_dataclass(state_type: Any):
    with pytest.raises(ContextStateError, match="is an attrs class or dataclass, not"):
        StateStore(state_type)


def test_p1_the_type_of_a_state_has_defaults():
    @attrs.define
    class Needs:
        name: str

    with pytest.raises(ContextStateError, match=r"Needs\(\) failed .*'name'.* defaults for all"):
        StateStore(Needs)


async def test_p1_a_new_store_holds_an_empty_or_default_state():
    assert await StateStore().get_state() == {}
    assert await StateStore(Data).get_state() == Data()


# --- Paths ------------------------------------------------------------------------------------


async def test_p1_paths_walk_mappings_attributes_and_indexes():
    store = StateStore()
    await store.set("users", [{"name": "ada"}, User(), Plain(name="eve"), Point(3)])
    await store.set("data", Data(items=[(1, 2)]))
    found = [await store.get(f"users.{n}.name") for n in range(3)]
    assert found == ["ada", "ada", "eve"]
    assert await store.get("users.3.x") == await store.get("users.3.0") == 3
    assert await store.get("data.items.0.1") == 2
    assert await store.get("data.last") == (1, 2)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nmae", r"no 'nmae', did you mean 'name'\?"),
        ("user.z", r"no 'user.z': 'user' \(User\) has no 'z', known: name, tags"),
        ("list.2.x", r"no 'list.2.x': 'list' \(list\) has no '2', its length is 2"),
        ("list.-1", r"'list' \(list\) has no '-1', its length is 2"),
        ("name.x.y", r"no 'name.x.y': 'name' \(str\) has no 'x', there are none"),
        ("user.__class__", r"\(User\) has no '__class__'"),
    ],
)
async def test_p1_a_missing_part_is_named_with_what_is_there(path: str, message: str):
    store = StateStore()
    await store.set_state(DictState(name="ada", user=User(), list=[1, 2]))
    with pytest.raises(ValueError, match=message):
        await store.get(path)
    assert await store.get(path, None) is None
    assert await store.get(path, default=5) == 5


@pytest.mark.parametrize("path", ["", ".", "a.", ".a", "a..b"])
async def test_p1_empty_parts_are_refused_even_with_a_default(path: str):
    store = StateStore()
    with pytest.raises(ValueError, match=r"has an empty part; paths look like 'user\.name'"):
        await store.get(path, None)
    with pytest.raises(ValueError, match="empty part"):
        await store.set(path, 1)


async def test_p1_set_makes_the_mappings_on_its_way():
    store = StateStore()
    await store.set("a.b.c", 1)
    await store.set("a.d", 2)
    assert await store.get_state() == {"a": {"b": {"c": 1}, "d": 2}}


async def test_p1_set_reaches_into_containers_of_all_kinds():
    store = StateStore()
    state = {
        "list": [[1], {}],
        "tuple": (1, [2]),
        "point": Point(1),
        "data": Data(),
        "plain": Plain(x=1),
        "ordered": OrderedDict(a=1),
        "default": defaultdict(list),
        "state": DictState(),
    }
    await store.set_state(cast(DictState, state))
    for path in ["list.0.0", "list.1.x", "tuple.1.0", "point.0", "data.count", "data.user.name"]:
        await store.set(path, 9)
    for path in ["plain.x", "ordered.a", "default.x", "state.x"]:
        await store.set(path, 9)
    new = await store.get_state()
    assert (new.list, new.tuple, new.point) == ([[9], {"x": 9}], (1, [9]), Point(9))
    assert type(new.point) is Point
    assert new.data == Data(count=9, user=User(name=cast(str, 9)))
    assert new.plain.x == new.ordered["a"] == new.default["x"] == new.state.x == 9
    assert type(new.ordered) is OrderedDict
    assert new.default["new"] == []
    assert state["data"] == Data()


@typed
async def test_p1_set_refuses_unknown_fields_of_a_typed_state(state_type: Any):
    store = StateStore(state_type)
    with pytest.raises(ValueError, match=r"no 'coutn', did you mean 'count'\?"):
        await store.set("coutn", 1)
    with pytest.raises(ValueError, match=r"'user' \(User\) has no 'nam', did you mean 'name'\?"):
        await store.set("user.nam", 1)
    with pytest.raises(ValueError, match=r"'items' \(list\) has no '0', its length is 0"):
        await store.set("items.0", 1)
    with pytest.raises(ValueError, match=r"'count' \(int\) has no 'x'"):
        await store.set("count.x.y", 1)
    with pytest.raises(ValueError, match="the state has no 'add'"):
        await store.set("add", 1)
    assert await store.get_state() == state_type()


async def test_p1_a_part_that_refuses_a_value_leaves_everything_as_it_was():
    @attrs.define
    class Positive:
        n: int = attrs.field(default=1, validator=attrs.validators.gt(0))

    store = StateStore(Positive)
    with pytest.raises(ValueError, match="must be > 0"):
        await store.set("n", -1)
    with pytest.raises(ValueError, match="must be > 0"):
        async with store.edit_state() as state:
            state.n = -1
    assert await store.get("n") == 1


# --- Values -----------------------------------------------------------------------------------


@every_type
async def test_p1_what_goes_in_and_what_comes_out_is_a_copy(state_type: Any):
    store = StateStore(state_type)
    mine: list[Any] = [[1]]
    await store.set("items", mine)
    mine[0].append(2)
    (await store.get("items"))[0].append(3)
    state = await store.get_state()
    items_of(state)[0].append(4)
    assert await store.get("items") == [[1]]
    await store.set_state(state)
    assert await store.get("items") == [[1, 4]]
    async with store.edit_state() as view:
        view_items = items_of(view)
        view_items.append(mine)
    mine.append(5)
    view_items.append(6)
    assert await store.get("items") == [[1, 4], [[1, 2]]]


def uncopyable() -> list[Any]:
    return [Client(), threading.Lock(), threading.Condition(), memoryview(b"x")]


@every_type
async def test_p1_what_cannot_be_copied_is_kept_by_reference(state_type: Any):
    things = [*uncopyable(), asyncio.Lock()]
    store = StateStore(state_type)
    await store.set("other", {"deep": [things, (things[0], [1])], "user": User(name=things[1])})
    for _ in range(2):
        got = await store.get("other")
        state = await store.get_state()
        assert all(one is other for one, other in zip(got["deep"][0], things, strict=True))
        assert got["deep"][1][0] is things[0]
        assert got["user"].name is things[1]
        assert state.other["deep"][0][0] is things[0]
        for whole, parts in ((got, state.other), (got["deep"], state.other["deep"])):
            assert whole is not parts
        assert got["deep"][1][1] is not state.other["deep"][1][1]
        async with store.edit_state() as view:
            assert view.other["deep"][0][0] is things[0]
            view.other["deep"][1][1].append(2)


async def test_p1_a_failing_copy_leaves_no_half_copies_of_what_it_holds():
    shared = [1, threading.Lock(), 2]
    holder = Plain(shared=shared)
    store = StateStore()
    await store.set("all", [holder, shared])
    first, second = await store.get("all")
    assert first is holder
    assert second == shared
    assert second is not shared


async def test_p1_objects_that_lead_to_each_other_are_copied_together():
    one, other = Plain(), Plain()
    one.next, other.next = other, one
    loop: list[Any] = [one, other]
    loop.append((loop, deque([loop])))
    store = StateStore()
    await store.set("loop", loop)
    got = await store.get("loop")
    assert got[0].next is got[1]
    assert got[1].next is got[0]
    assert got[0] is not one
    assert got[2][0] is got
    assert got[2][1][0] is got


async def test_p1_a_value_nested_too_deeply_is_an_error_and_changes_nothing():
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    store = StateStore()
    with pytest.raises(RecursionError):
        await store.set("deep", deep)
    with pytest.raises(RecursionError):
        await store.set("deep", [Plain(x=deep)])
    assert await store.get_state() == {}
    while deep:  # or the interpreter recurses when it throws this away
        deep = deep[0]


async def test_p1_what_is_set_inside_an_uncopyable_object_is_set_in_itself():
    client, context = Client(), MappingProxyType({"a": 1})
    store = StateStore()
    await store.set("client", client)
    await store.set("client.name", "two")
    assert client.name == "two"
    assert await store.get("client") is client
    await store.set("context", context)
    assert await store.get("context.a") == 1
    with pytest.raises(TypeError, match="mappingproxy"):
        await store.set("context.a", 2)


# --- Cost -------------------------------------------------------------------------------------


@every_type
async def test_p1_a_write_does_not_copy_what_it_does_not_touch(state_type: Any):
    store = StateStore(state_type)
    await store.set("other", {"a": [Counted()], "b": {"c": Counted()}})
    before = Counted.copies
    await store.set("count", 1)
    await store.set("other.b.d", 1)
    await store.set("other.new", [2])
    async with store.edit_state() as state:
        state.count += 1
        if state_type is not DictState:
            state.add(5)
    assert await store.get("other.b.d") == 1
    assert Counted.copies == before == 2
    assert await store.get("count") in (2, 3)
    async with store.edit_state() as state:
        state.other["x"] = 1
    assert Counted.copies == 6  # once into the edit, once out of it


@every_type
async def test_p1_each_write_makes_a_new_state_that_shares_the_rest(state_type: Any):
    store = StateStore(state_type)
    await store.set("items", [1])
    await store.set("other", {"a": [1], "b": [2]})
    old = store.snapshot()
    seen = copy.deepcopy(old)
    await store.set("other.a", 5)
    async with store.edit_state() as state:
        state.count = 9
    async with store.edit_state():
        pass
    new = store.snapshot()
    assert old == seen
    assert type(new) is state_type
    assert new is not old
    assert new.other["b"] is old.other["b"]
    assert items_of(old) is items_of(new)


# --- Edits ------------------------------------------------------------------------------------


@typed
async def test_p1_the_state_in_an_edit_passes_for_one_of_its_type(state_type: Any):
    store = StateStore(state_type)
    await store.set("items", [1])
    async with store.edit_state() as state:
        assert isinstance(state, state_type)
        assert state.__class__ is state_type
        same = state_type(items=[1])
        assert state == same
        assert same == state
        assert repr(state) == repr(same)
        state.add(2)
        assert len(state) == 2
        assert state.last == 2
        assert state != same
        for twin in (copy.copy(state), copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
            assert type(twin) is state_type
            assert twin == state
        copy.copy(state).items.append(3)
        assert (attrs.evolve if attrs.has(state_type) else copy.copy)(state) == state
    assert await store.get_state() == state_type(count=1, items=[1, 2, 3])
    assert type(await store.get_state()) is state_type


async def test_p1_all_ways_into_the_contents_lead_to_copies():
    store = StateStore(Data)
    await store.set("items", [1])
    async with store.edit_state() as state:
        vars(state)["items"].append(2)
        del state.other
    assert store.snapshot().items == [1, 2]
    assert "other" not in vars(store.snapshot())
    untyped = StateStore()
    await untyped.set("a", [1])
    before = untyped.snapshot()
    async with untyped.edit_state() as view:
        for value in view.values():
            value.append(2)
        copy.copy(view).a.append(3)
        copy.deepcopy(view).a.append(4)
        assert view.get("a") == view.pop("a") == [1, 2, 3]
        view.update(b=1)
        view.setdefault("c", []).append(5)
        assert isinstance(view, DictState)
    assert before == {"a": [1]}
    assert untyped.snapshot() == {"b": 1, "c": [5]}
    assert type(untyped.snapshot()) is DictState


@pytest.mark.parametrize("state_type", [Frozen, FrozenData])
async def test_p1_a_frozen_state_is_replaced_as_a_whole(state_type: Any):
    store = StateStore(state_type)
    with pytest.raises(AttributeError):
        async with store.edit_state() as state:
            state.count = 1
    with pytest.raises(AttributeError):
        await store.set("count", 1)
    await store.set_state(state_type(count=2))
    assert await store.get_state() == state_type(count=2)


async def test_p1_a_state_type_is_not_told_of_views():
    told = []

    @dataclass
    class Base:
        n: int = 0

        def __init_subclass__(cls, *, why: str, **kwargs: Any) -> None:
            told.append(cls)

    store = StateStore(Base)
    async with store.edit_state() as state:
        state.n = 1
    assert told == []
    assert await store.get("n") == 1


@every_type
async def test_p1_readers_see_what_is_committed_and_do_not_wait(state_type: Any):
    store = StateStore(state_type)
    await store.set("items", [1])
    async with store.edit_state() as state:
        items_of(state).append(2)
        state.count = 1
        assert await store.get("items") == [1]
        assert await store.get("count", 0) == 0
        assert "count=1" not in repr(await store.get_state())
    assert await store.get("items") == [1, 2]
    assert await store.get("count") == 1


@every_type
@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
async def test_p1_an_edit_that_raises_leaves_no_trace(state_type: Any, fault: type[BaseException]):
    store = StateStore(state_type)
    await store.set("other", [1])
    before = store.snapshot()

    async def edit() -> None:
        async with store.edit_state() as state:
            state.other.append(2)
            state.count = 9
            raise fault

    with pytest.raises(fault):
        await edit()
    assert store.snapshot() is before
    await store.set("count", 1)
    assert await store.get("other") == [1]


@every_type
async def test_p1_an_edit_that_is_cancelled_leaves_no_trace(state_type: Any):
    store = StateStore(state_type)
    await store.set("other", [1])
    with anyio.move_on_after(1) as scope:
        async with store.edit_state() as state:
            state.other.append(2)
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert await store.get("other") == [1]
    assert not store.statistics().writing


ACTS: list[Callable[[StateStore[Any]], Any]] = [
    lambda store: store.set("a", 1),
    lambda store: store.set_state(DictState()),
    lambda store: store.clear(),
    lambda store: store.edit_state().__aenter__(),
]


@pytest.mark.parametrize("act", ACTS)
async def test_p1_writing_inside_ones_own_edit_raises_at_once(act: Callable[..., Any]):
    store = StateStore()
    async with store.edit_state() as state:
        with pytest.raises(ContextStateError, match="inside an edit of the same task would wait"):
            await act(store)
        state.b = 2
    assert await store.get_state() == {"b": 2}


async def test_p1_the_state_of_an_edit_is_read_only_after_it():
    store, typed_store = StateStore(), StateStore(Data)
    async with store.edit_state() as state:
        state.a = [1]
    async with typed_store.edit_state() as data:
        data.items.append(1)
    assert (state.a, data.items, data.user) == ([1], [1], User())
    for act in (
        lambda: setattr(state, "a", 2),
        lambda: state.clear(),
        lambda: setattr(data, "count", 1),
        lambda: delattr(data, "count"),
    ):
        with pytest.raises(ContextStateError, match="this edit has ended"):
            act()
    state.a.append(2)
    data.user.tags.append("x")
    assert await store.get_state() == {"a": [1]}
    assert await typed_store.get_state() == Data(items=[1])


async def test_p1_set_state_wants_the_right_type():
    with pytest.raises(ContextStateError, match=r"is a Data, and set_state\(\) got a DictState"):
        await StateStore(Data).set_state(cast(Data, DictState()))
    with pytest.raises(ContextStateError, match=r"is a DictState, and .* got a Data"):
        await StateStore().set_state(cast(DictState, Data()))
    store = StateStore()
    await store.set_state(cast(DictState, {"a": 1}))
    assert type(store.snapshot()) is DictState


@every_type
async def test_p1_clear_goes_back_to_the_beginning(state_type: Any):
    store = StateStore(state_type)
    await store.set("count", 3)
    await store.clear()
    assert await store.get_state() == state_type()


async def test_p1_snapshot_and_restore_are_immediate_and_do_not_copy():
    store = StateStore(Data)
    state = Data(count=4)
    store.restore(state)
    assert store.snapshot() is state
    assert await store.get_state() is not state
    async with store.edit_state() as view:
        view.count += 1
    assert (state.count, store.snapshot().count) == (4, 5)


# --- Turns ------------------------------------------------------------------------------------


async def test_p1_writers_come_in_turn_and_statistics_tell():
    store = StateStore()
    idle = StateStoreStatistics(writing=False, writers_waiting=0)
    assert store.statistics() == idle
    assert repr(store) == "<StateStore of DictState: idle>"

    async def write(n: int) -> None:
        async with store.edit_state() as state:
            await anyio.sleep(1)
            state.order = [*state.get("order", []), n]

    async with anyio.create_task_group() as tasks:
        for n in range(4):
            tasks.start_soon(write, n)
            await anyio.wait_all_tasks_blocked()
        assert store.statistics() == StateStoreStatistics(writing=True, writers_waiting=3)
        assert repr(store) == "<StateStore of DictState: writing, 3 waiting>"
    order = await store.get("order")
    assert order == list(range(4))
    assert store.statistics() == idle


async def test_p1_whoever_gives_up_waiting_writes_nothing_and_holds_up_nobody():
    store = StateStore()
    gave_up = []

    async def impatient() -> None:
        with anyio.move_on_after(1):
            await store.set("a", "impatient")
        gave_up.append(anyio.current_time())

    async with anyio.create_task_group() as tasks, store.edit_state() as state:
        tasks.start_soon(impatient)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(store.set, "b", "patient")
        await anyio.sleep(2)
        state.c = 1
    assert len(gave_up) == 1
    assert await store.get_state() == {"c": 1, "b": "patient"}
    assert not store.statistics().writing


async def test_p1_a_cancelled_scope_writes_nothing():
    store = StateStore()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.set("a", 1)
    assert scope.cancelled_caught
    assert await store.get_state() == {}
    assert not store.statistics().writing


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_p1_native_cancellation_lets_the_next_one_write():
    store = StateStore()

    async def edit() -> None:
        async with store.edit_state() as state:
            state.a = 1
            await asyncio.sleep(60)

    tasks = [asyncio.create_task(edit()) for _ in range(3)]
    await asyncio.sleep(0.1)
    for task in tasks[1::-1]:  # the one that waits, and the one that edits
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [task.cancelled() for task in tasks] == [True, True, False]
    assert await store.get_state() == {"a": 1}


@pytest.mark.parametrize("backend", BACKENDS)
def test_p1_a_store_outlives_its_event_loops(backend: str):
    store = StateStore()

    async def count() -> int:
        async def one() -> None:
            async with store.edit_state() as state:
                n = state.get("n", 0)
                await checkpoint()
                state.n = n + 1

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(one)
        return cast(int, await store.get("n"))

    loops = [backend, *BACKENDS]
    assert [run_virtually(name, count) for name in loops] == [3, 6, 9][: len(loops)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_p1_an_edit_that_a_loop_left_open_does_not_block_the_next_loop(backend: str):
    store = StateStore()
    left_open: list[Any] = []

    async def leave_open() -> None:
        edit = store.edit_state().__aenter__()
        left_open.append(edit)
        await edit

    async def write() -> None:
        with anyio.fail_after(1):
            await store.set("a", 1)

    run_virtually(backend, leave_open)
    run_virtually(backend, write)
    assert store.snapshot() == {"a": 1}


# --- One order for all ------------------------------------------------------------------------

KEYS = st.sampled_from("xy")
SLEEPS = st.sampled_from([0, 0, 0.5, 1])
OPERATIONS = st.one_of(
    st.tuples(st.just("get"), KEYS, SLEEPS),
    st.tuples(st.just("set"), KEYS, SLEEPS),
    st.tuples(st.just("edit"), KEYS, SLEEPS),
    st.tuples(st.just("fail"), KEYS, SLEEPS),
    st.tuples(st.just("give up"), KEYS, SLEEPS),
    st.tuples(st.just("clear"), KEYS, SLEEPS),
    st.tuples(st.just("get_state"), KEYS, SLEEPS),
)
SCRIPTS = st.lists(st.lists(OPERATIONS, min_size=1, max_size=3), min_size=2, max_size=4)


@attrs.frozen
class Done:
    """An operation that has been done: when it began and ended, and what it saw."""

    began: int
    ended: int
    kind: str
    key: str
    wrote: int
    saw: Any


async def perform(store: StateStore[DictState], kind: str, key: str, sleep: float, n: int) -> Any:
    if kind == "get":
        return tuple(await store.get(key, ()))
    if kind == "get_state":
        return {k: tuple(v) for k, v in (await store.get_state()).items()}
    if kind == "set":
        return await store.set(key, [n])
    if kind == "clear":
        return await store.clear()
    with anyio.move_on_after(0.75 if kind == "give up" else float("inf")) as scope:
        try:
            async with store.edit_state() as state:
                state.setdefault(key, []).append(n)
                await anyio.sleep(sleep)
                seen = tuple(state[key][:-1])
                if kind == "fail":
                    raise LookupError
                return seen
        except LookupError:
            return seen
    assert scope.cancelled_caught
    return "gave up"


def apply(done: Done, state: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]] | None:
    """Return the state after an operation, or `None` if it cannot have seen what it saw."""
    before = state.get(done.key, ())
    if done.saw == "gave up":
        return state
    if done.kind == "get_state":
        return state if done.saw == state else None
    if done.kind in ("get", "edit", "fail", "give up") and done.saw != before:
        return None
    if done.kind == "set":
        return {**state, done.key: (done.wrote,)}
    if done.kind in ("edit", "give up"):
        return {**state, done.key: (*before, done.wrote)}
    return {} if done.kind == "clear" else state


def has_an_order(history: list[Done], state: dict[str, tuple[int, ...]], final: Any) -> bool:
    """Return whether some order of the operations explains what they saw and left behind."""
    if not history:
        return state == final
    first_end = min(done.ended for done in history)
    for done in history:
        after = apply(done, state) if done.began < first_end or done.ended == first_end else None
        if after is not None and has_an_order([d for d in history if d is not done], after, final):
            return True
    return False


@pytest.mark.parametrize("backend", BACKENDS)
@given(scripts=SCRIPTS)
@settings(max_examples=150)
def test_p1_all_that_happens_has_one_order(backend: str, scripts: list[list[Any]]):
    store = StateStore()
    history: list[Done] = []
    now = iter(range(1000))
    numbers = iter(range(1000))

    async def follow(script: list[Any]) -> None:
        for kind, key, sleep in script:
            began, n = next(now), next(numbers)
            saw = await perform(store, kind, key, sleep, n)
            history.append(Done(began, next(now), kind, key, n, saw))
            await anyio.sleep(sleep)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for script in scripts:
                tasks.start_soon(follow, script)

    run_virtually(backend, main)
    final = {key: tuple(value) for key, value in store.snapshot().items()}
    assert has_an_order(history, {}, final), history
    assert store.statistics() == StateStoreStatistics(writing=False, writers_waiting=0)


def test_the_search_for_an_order_finds_lost_updates():
    lost = [Done(0, 2, "edit", "x", 1, ()), Done(1, 3, "edit", "x", 2, ())]
    assert not has_an_order(lost, {}, {"x": (2,)})
    late = [Done(0, 1, "set", "x", 1, None), Done(2, 3, "get", "x", 0, ())]
    assert not has_an_order(late, {}, {"x": (1,)})
