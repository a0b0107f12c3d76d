"""The store: values by reference, dotted paths, atomic edits (rule P1)."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections import OrderedDict, UserList, defaultdict, deque
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
from anyio_workflows.state import (
    DictState,
    StateStore,
    StateStoreStatistics,
    _field_names,
    _shallow_copy,
)

from .conftest import BACKENDS
from .running import run_virtually

pytestmark = pytest.mark.anyio


class Plain:
    """An object like any other."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


class Uncopyable(Plain):
    def __copy__(self) -> Any:
        raise TypeError("a live connection cannot be copied")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise TypeError("a live connection cannot be copied")


class Client:
    """Cannot be copied, and has attributes of all kinds."""

    retries = 3

    def __init__(self) -> None:
        self.connection: Any = threading.Lock()
        self.name = "one"
        self._limit = 1

    @property
    def limit(self) -> int:
        return self._limit

    @limit.setter
    def limit(self, value: int) -> None:
        self._limit = value

    def ask(self) -> None: ...


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


@attrs.frozen
class FrozenUser:
    _name: Any = attrs.field(default="ada", validator=attrs.validators.in_(["ada", "eve"]))
    tags: list[str] = attrs.field(factory=list)
    made: int = attrs.field(init=False, default=1)


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
    with pytest.raises(AttributeError, match=r"no 'to_dict', dict\(state\) gives a dict"):
        state.to_dict()
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
    with pytest.raises(
        ContextStateError, match="is an attrs class, a dataclass or a pydantic model, not"
    ):
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


async def test_p1_set_changes_the_very_object_on_its_way():
    store = StateStore()
    state: dict[str, Any] = {
        "list": [[1], {}],
        "data": Data(),
        "plain": Plain(x=1),
        "live": Uncopyable(slot=1),
        "ordered": OrderedDict(a=1),
        "default": defaultdict(list),
        "deque": deque([1]),
        "users": UserList([1]),
        "state": DictState(),
        "client": Client(),
    }
    await store.set_state(cast(DictState, state))
    paths = ["list.0.0", "list.1.x", "data.count", "data.user.name", "plain.x", "live.slot"]
    paths += ["ordered.a", "default.x", "deque.0", "users.0", "state.x.y"]
    paths += ["client.name", "client.retries", "client.limit", "client.connection"]
    for path in paths:
        await store.set(path, 9)
        assert await store.get(path) == 9
    assert {key: await store.get(key) is value for key, value in state.items()} == dict.fromkeys(
        state, True
    )
    assert state["list"] == [[9], {"x": 9}]
    assert state["data"] == Data(count=9, user=User(name=cast(str, 9)))
    assert state["default"]["new"] == []
    assert state["state"] == {"x": {"y": 9}}
    assert (vars(state["client"])["retries"], state["client"]._limit) == (9, 9)


async def test_p1_set_replaces_what_cannot_be_changed_on_its_way():
    tags: list[str] = []
    frozen, other = Frozen(items=[1]), FrozenData()
    state: dict[str, Any] = {
        "tuple": (1, [2], (3,)),
        "point": Point(1),
        "frozen": {"it": frozen},
        "nested": (FrozenUser(tags=tags),),
        "data": other,
    }
    inner = state["frozen"]
    store = StateStore()
    await store.set_state(cast(DictState, state))
    for path in ["tuple.0", "tuple.1.0", "tuple.2.0", "point.0", "point.y", "frozen.it.count"]:
        await store.set(path, 9)
    await store.set("nested.0._name", "eve")
    await store.set("data.count", 9)
    new = await store.get_state()
    assert new.tuple == (9, [9], (9,))
    assert new.tuple[1] is state["tuple"][1]
    assert (new.point, type(new.point)) == (Point(9, 9), Point)
    assert new.frozen is inner
    assert inner["it"] == Frozen(9, [1])
    assert inner["it"].items is frozen.items
    assert new.nested == (FrozenUser("eve", tags),)
    assert new.nested[0].tags is tags
    assert new.data == FrozenData(9)
    assert (frozen.count, other.count, state["point"]) == (0, 0, Point(1))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("proxy.a", "'proxy.a' cannot be set: 'proxy' is a mappingproxy, which cannot be changed"),
        ("range.0", "set 'range' to another one"),
        ("set.a", "'set' is a set, which"),
        ("text.0", r"'text' \(str\) has no '0'"),
        ("tuple.1", r"'tuple' \(tuple\) has no '1', its length is 1"),
        ("tuple.x", "has no 'x'"),
        ("point.z", r"'point' \(Point\) has no 'z'"),
        ("list.1", "its length is 1"),
        ("list.-1", "has no '-1'"),
        ("list.a.b", "has no 'a'"),
        ("none.a", r"'none' \(NoneType\) has no 'a'"),
        ("frozen.coutn", "did you mean 'count'"),
        ("user.made", "'made' of FrozenUser, which is frozen, is not for its constructor"),
        ("user._name", "must be in"),
        ("client.nmae", "did you mean 'name'"),
        ("client.ask", "has no 'ask'"),
        ("client.__class__", "has no '__class__'"),
    ],
)
async def test_p1_set_refuses_what_is_not_there_and_changes_nothing(path: str, message: str):
    state = {
        "proxy": MappingProxyType({"a": 1}),
        "range": range(3),
        "set": {"a"},
        "text": "abc",
        "tuple": (1,),
        "point": Point(1),
        "list": [1],
        "none": None,
        "frozen": Frozen(),
        "user": FrozenUser(),
        "client": Client(),
    }
    store = StateStore()
    await store.set_state(cast(DictState, state))
    with pytest.raises(ValueError, match=message):
        await store.set(path, 1)
    assert await store.get_state() == state
    assert state["user"] == FrozenUser()


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


def things() -> list[Any]:
    return [[1], {"a": [1]}, User(), Uncopyable(slot=1), threading.Lock(), anyio.Event(), iter(())]


@every_type
async def test_p1_values_are_handed_over_as_they_are(state_type: Any):
    store = StateStore(state_type)
    for thing in things():
        await store.set("other", thing)
        assert await store.get("other") is thing
        assert await store.get("other", None) is thing
        assert (await store.get_state()).other is thing
        async with store.edit_state() as state:
            assert state.other is thing
            state.other = other = [thing]
        assert await store.get("other") is other
        assert await store.get("other.0") is thing
        await store.set_state(await store.get_state())
        assert await store.get("other") is other


@every_type
async def test_p1_what_is_changed_inside_a_value_is_changed_at_once_for_everybody(state_type: Any):
    store = StateStore(state_type)
    mine: list[Any] = []
    await store.set("items", mine)
    (await store.get("items")).append("get")
    mine.append("the object that was set")
    items_of(await store.get_state()).append("get_state")
    async with store.edit_state() as state:
        items_of(state).append("edit")
        assert (await store.get("items"))[-1] == "edit"
    items_of(state).append("after the edit")
    assert await store.get("items") is mine
    assert mine == ["get", "the object that was set", "get_state", "edit", "after the edit"]


@every_type
async def test_p1_assigning_to_a_copy_of_the_state_changes_nothing(state_type: Any):
    store = StateStore(state_type)
    await store.set("count", 1)
    state = await store.get_state()
    assert type(state) is state_type
    state.count = 2
    assert await store.get("count") == 1
    await store.set_state(state)
    state.count = 3
    assert await store.get("count") == 2
    async with store.edit_state() as edited:
        edited.count = 4
    edited.count = 5
    assert await store.get("count") == 4
    store._restore(state)
    assert await store.get("count") == 3


async def test_p1_a_value_nested_deeply_costs_nothing():
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    store = StateStore()
    await store.set("deep", deep)
    assert await store.get("deep") is deep
    async with store.edit_state() as state:
        assert state.deep is deep
    while deep:  # or the interpreter recurses when it throws this away
        deep = deep[0]


# --- Shallow copies ---------------------------------------------------------------------------


def test_p1_a_shallow_copy_stores_what_the_original_does():
    calls = []

    @attrs.define
    class Hooked:
        n: int = attrs.field(default=1, validator=attrs.validators.gt(0))
        _hidden: Any = None
        made: Any = attrs.field(init=False, factory=object)
        lock: Any = attrs.field(factory=threading.Lock)

        def __attrs_post_init__(self) -> None:
            calls.append("init")

        def __getstate__(self) -> Any:
            calls.append("pickled")

    @attrs.define
    class Derived(Hooked):
        __private: int = 5
        more: int = 2

    @attrs.define(slots=False)
    class Half(Derived):
        last: int = 3

    for cls in (Hooked, Derived, Half):
        value: Any = cls(hidden=[1])
        if cls is Half:
            value.extra = "not a field"
        del value.n
        del calls[:]
        twin = _shallow_copy(value)
        assert type(twin) is cls
        assert twin is not value
        assert calls == []
        assert not hasattr(twin, "n")
        names = [name for name in _field_names(cls) if name != "n"]
        assert all(getattr(twin, name) is getattr(value, name) for name in names)
        assert vars(twin) == vars(value) if cls is Half else not hasattr(twin, "__dict__")
    twin.n = 9
    assert not hasattr(value, "n")


@pytest.mark.parametrize("state_type", [*TYPED, Frozen, FrozenData])
def test_p1_a_shallow_copy_equals_the_original(state_type: Any):
    value = state_type(count=3, items=[1])
    twin = _shallow_copy(value)
    assert twin == value
    assert twin.items is value.items
    assert hash(_shallow_copy(attrs.make_class("H", ["a"], cache_hash=True, unsafe_hash=True)(1)))


def test_p1_a_shallow_copy_is_up_to_a_class_that_says_how():
    @attrs.define(slots=False)
    class Copies:
        n: int = 1

        def __copy__(self) -> Copies:
            return Copies(self.n + 1)

    @dataclass
    class Builtin(dict[str, int]):
        n: int = 1

    assert _shallow_copy(Copies()) == Copies(2)
    value = Builtin(n=3)
    value["a"] = 1
    twin = _shallow_copy(value)
    assert (type(twin), dict(twin), twin.n) == (Builtin, {"a": 1}, 3)
    assert _shallow_copy(DictState(a=1)) == {"a": 1}


# --- Edits ------------------------------------------------------------------------------------


@typed
async def test_p1_the_state_in_an_edit_is_one_of_its_type(state_type: Any):
    store = StateStore(state_type)
    await store.set("items", [1])
    async with store.edit_state() as state:
        assert type(state) is state_type
        assert state == state_type(items=[1])
        state.add(2)
        assert len(state) == 2
        assert state.last == 2
        del state.other
    assert (await store.get("count"), await store.get("items")) == (1, [1, 2])
    assert await store.get("other", "deleted") in ("deleted", None)  # a dataclass has a default
    assert await store.get("_private", 7) == 7


async def test_p1_an_untyped_edit_takes_the_whole_interface_of_a_mapping():
    store = StateStore()
    await store.set("a", 1)
    before = await store.get_state()
    async with store.edit_state() as state:
        assert type(state) is DictState
        assert state.pop("a") == 1
        state.update(b=1)
        state.setdefault("c", []).append(5)
        state["items"] = 2
        assert await store.get_state() == {"a": 1}
    assert before == {"a": 1}
    assert await store.get_state() == {"b": 1, "c": [5], "items": 2}


@pytest.mark.parametrize("state_type", [Frozen, FrozenData])
async def test_p1_a_frozen_state_is_replaced(state_type: Any):
    store = StateStore(state_type)
    with pytest.raises(AttributeError):
        async with store.edit_state() as state:
            state.count = 1
    before = await store.get_state()
    await store.set("count", 1)
    assert await store.get_state() == state_type(count=1)
    assert before == state_type()
    await store.set_state(state_type(count=2))
    assert await store.get_state() == state_type(count=2)


@every_type
async def test_p1_readers_see_what_is_committed_and_do_not_wait(state_type: Any):
    store = StateStore(state_type)
    await store.set("items", [1])
    async with store.edit_state() as state:
        state.count = 1
        assert await store.get("items") == [1]
        assert await store.get("count", 0) == 0
        assert "count=1" not in repr(await store.get_state())
    assert await store.get("count") == 1


@every_type
@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
async def test_p1_what_an_edit_that_raises_has_assigned_is_dropped(
    state_type: Any, fault: type[BaseException]
):
    store = StateStore(state_type)
    await store.set("other", [1])
    before = store._snapshot()

    async def edit() -> None:
        async with store.edit_state() as state:
            state.other.append(2)
            state.other = "dropped"
            state.count = 9
            raise fault

    with pytest.raises(fault):
        await edit()
    assert store._snapshot() is before
    assert not store.statistics().writing
    await store.set("count", 1)
    assert await store.get("other") == [1, 2]


@every_type
async def test_p1_what_an_edit_that_is_cancelled_has_assigned_is_dropped(state_type: Any):
    store = StateStore(state_type)
    await store.set("other", [1])
    with anyio.move_on_after(1) as scope:
        async with store.edit_state() as state:
            state.other = [2]
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert await store.get("other") == [1]
    assert not store.statistics().writing


async def test_p1_a_state_that_cannot_be_copied_holds_up_nobody():
    @attrs.define
    class Bad:
        n: int = 0

        def __copy__(self) -> Bad:
            raise LookupError

    store = StateStore(Bad)
    with pytest.raises(LookupError):
        await store.edit_state().__aenter__()
    assert not store.statistics().writing
    await store.set("n", 1)
    assert await store.get("n") == 1


@attrs.define
class Needy(Slotted):
    count: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    extra: Any = None


@dataclass(frozen=True)
class MoreFrozen(FrozenData):
    extra: Any = None


async def test_p1_a_state_of_a_base_class_sets_its_fields_and_leaves_the_others():
    store = StateStore(Needy)
    items: list[Any] = [1]
    await store.set("extra", "kept")
    before = await store.get_state()
    await store.set_state(cast(Needy, Slotted(count=2, items=items, private=8)))
    assert await store.get_state() == Needy(count=2, items=items, extra="kept", private=8)
    assert await store.get("items") is items
    assert before == Needy(extra="kept")
    with pytest.raises(ValueError, match="'count' must be >= 0"):
        await store.set_state(cast(Needy, Slotted(count=-1, items=[])))
    assert await store.get("items") is items
    frozen = StateStore(MoreFrozen)
    await frozen.set("extra", "kept")
    await frozen.set_state(cast(MoreFrozen, FrozenData(count=2)))
    assert await frozen.get_state() == MoreFrozen(count=2, extra="kept")
    with pytest.raises(ContextStateError, match=r"is a Needy, and set_state\(\) got a Data"):
        await store.set_state(cast(Needy, Data()))
    with pytest.raises(ContextStateError, match=r"is a Needy, and set_state\(\) got a object"):
        await store.set_state(cast(Needy, object()))
    await StateStore(Slotted).set_state(Needy())


async def test_p1_a_state_of_a_base_class_waits_for_its_turn_and_merges_then():
    store = StateStore(Needy)
    async with anyio.create_task_group() as tasks, store.edit_state() as state:
        tasks.start_soon(store.set_state, Slotted(count=2))
        await anyio.wait_all_tasks_blocked()
        state.count, state.extra = 1, "of the edit"
    assert await store.get_state() == Needy(count=2, extra="of the edit")


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


async def test_p1_set_state_wants_the_right_type():
    with pytest.raises(ContextStateError, match=r"is a Data, and set_state\(\) got a DictState"):
        await StateStore(Data).set_state(cast(Data, DictState()))
    with pytest.raises(ContextStateError, match=r"is a DictState, and .* got a Data"):
        await StateStore().set_state(cast(DictState, Data()))
    store = StateStore()
    await store.set_state(cast(DictState, {"a": 1}))
    assert type(store._snapshot()) is DictState


@every_type
async def test_p1_clear_goes_back_to_the_beginning(state_type: Any):
    store = StateStore(state_type)
    await store.set("count", 3)
    await store.clear()
    assert await store.get_state() == state_type()


async def test_p1_snapshot_and_restore_are_immediate_and_do_not_copy():
    store = StateStore(Data)
    state = Data(count=4)
    store._restore(state)
    assert store._snapshot() is state
    assert await store.get_state() is not state
    async with store.edit_state() as view:
        view.count += 1
    assert (state.count, store._snapshot().count) == (4, 5)


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


async def test_p1_a_write_that_need_not_wait_is_no_checkpoint():
    store = StateStore()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.set("a", 1)
        async with store.edit_state() as state:
            state.b = 2
        async with store.edit_state() as state:
            state.a = 3
            await checkpoint()
    assert scope.cancelled_caught
    assert await store.get_state() == {"a": 1, "b": 2}
    async with store.edit_state(), anyio.create_task_group() as tasks:
        tasks.start_soon(store.set, "a", 4)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert await store.get_state() == {"a": 1, "b": 2}
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
    assert store._snapshot() == {"a": 1}


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
                seen = tuple(state.get(key, ()))
                state[key] = [*seen, n]
                await anyio.sleep(sleep)
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
    final = {key: tuple(value) for key, value in store._snapshot().items()}
    assert has_an_order(history, {}, final), history
    assert store.statistics() == StateStoreStatistics(writing=False, writers_waiting=0)


def test_the_search_for_an_order_finds_lost_updates():
    lost = [Done(0, 2, "edit", "x", 1, ()), Done(1, 3, "edit", "x", 2, ())]
    assert not has_an_order(lost, {}, {"x": (2,)})
    late = [Done(0, 1, "set", "x", 1, None), Done(2, 3, "get", "x", 0, ())]
    assert not has_an_order(late, {}, {"x": (1,)})
