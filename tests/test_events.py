"""Events: declaration, checking, mapping access, copies (rules E1-E5).

This module does without `from __future__ import annotations`; `test_events_postponed` has it.
"""

import abc
import collections
import copy
import datetime
import enum
import inspect
import itertools
import pickle
import pydoc
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    NewType,
    Optional,
    Protocol,
    TypedDict,
    TypeVar,
    Union,
)

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_workflows.errors import EventValidationError
from anyio_workflows.events import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
)

T = TypeVar("T")
OPEN_CLASSES = [Event, StartEvent, StopEvent, InputRequiredEvent, HumanResponseEvent]


class Found(Event):
    url: str
    rank: int = 0
    tags: list[str] = []


class Ranked(Found):
    score: float = 0.0


class Plain(StartEvent):
    """Declares nothing, so it is open."""


class Finished(StopEvent):
    total: int


class Named(Event):
    get: str
    values: list[int]
    items: list[str]


class Box(Event, Generic[T]):
    content: T


class IntBox(Box[int]):
    unit: str = "m"


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


def fault(make: Callable[[], object]) -> EventValidationError:
    with pytest.raises(EventValidationError) as caught:
        make()
    return caught.value


# --- E1: attrs classes without a decorator ----------------------------------------------------


def test_e1_a_subclass_is_an_attrs_class_made_in_place():
    assert attrs.has(Found)
    assert [field.name for field in attrs.fields(Found) if not field.name.startswith("_")] == [
        "url",
        "rank",
        "tags",
    ]
    assert Found in Event.__subclasses__()  # a slotted class would have been made anew


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Found("u"), "Found.url: events take their fields by keyword, Found(url='u')"),
        (
            lambda: Ranked("u", 2, ["t"]),
            "Ranked.url: events take their fields by keyword, Ranked(url='u', rank=2, tags=['t'])",
        ),
        (lambda: Ranked("u", 2, [], 1.0, 5), "Ranked.url: events take their fields by keyword, "),
        (lambda: Found("u", rank=1), "Found.url: events take their fields by keyword, "),
        (lambda: Found({"url": "u"}), "Found.url: ... by keyword, Found(**values)"),
        (lambda: Found(Found(url="u")), "Found.url: ... by keyword, Found(**values)"),
        (lambda: Event(5), "Event: events take their fields by keyword, Event(name=5)"),
        (lambda: Finished("u"), "Finished.total: ... by keyword, Finished(total='u')"),
        (lambda: StopEvent(1, 2), "StopEvent: takes nothing but result by position, and that once"),
        (lambda: StopEvent(1, result=2), "StopEvent: takes nothing but result by position, "),
    ],
)
def test_e2_what_is_given_by_position_is_refused_with_the_keywords(make, text: str):
    Found(url="u"), Ranked(url="u"), Finished(total=1)
    for _ in range(2):
        error = str(fault(make))
        start, _, end = text.partition("... ")
        assert error.startswith(start)
        assert end in error


class Ended(StopEvent):
    """Declares nothing more."""


class EndedWith(StopEvent):
    result: int


def test_e2_the_result_of_a_stop_event_may_be_given_by_position():
    for cls in (StopEvent, Ended, EndedWith):
        for _ in range(2):
            assert cls(3) == cls(result=3)
        assert cls(3, why="so") == cls(result=3, why="so")
    assert fault(lambda: EndedWith("x")).field == "result"
    assert StopEvent(None).result is None


@pytest.mark.parametrize("event", [Found(url="u"), StartEvent(url="u")], ids=repr)
@pytest.mark.parametrize("name", ["url", "new"])
def test_e1_events_are_frozen(event: Event, name: str):
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(event, name, "v")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        delattr(event, name)
    with pytest.raises(TypeError):
        event[name] = "v"
    with pytest.raises(TypeError):
        del event[name]
    assert dict(event)["url"] == "u"


def change_text(change: Callable[[], object]) -> str:
    with pytest.raises((AttributeError, TypeError)) as caught:
        change()
    return str(caught.value)


def test_e8_a_refused_change_names_class_field_and_the_copy():
    class Aliased(Event):
        number: int = attrs.field(alias="n")

    event, opened = Found(url="u"), StartEvent(url="u")
    set_ = "cannot be set, because events do not change; ev.replace("
    assert change_text(lambda: setattr(event, "url", "v")) == (
        f"Found.url {set_}url='v') makes a changed copy"
    )
    assert change_text(lambda: event.__setitem__("url", "v")).startswith(
        f"Found.url {set_}url='v')"
    )
    assert change_text(lambda: setattr(opened, "new", 2)).startswith(f"StartEvent.new {set_}new=2)")
    assert change_text(lambda: setattr(Aliased(n=1), "number", 2)).startswith(
        f"Aliased.number {set_}n=2)"
    )
    assert change_text(lambda: delattr(event, "url")) == (
        "Found.url cannot be deleted, because events do not change; ev.replace(url=...) makes a "
        "changed copy"
    )
    assert change_text(lambda: event.__delitem__("url")) == change_text(
        lambda: delattr(event, "url")
    )
    assert change_text(lambda: setattr(event, "rnak", 2)) == (
        "Found.rnak cannot be set, because events do not change; and Found has no such field, did you "
        "mean 'rank'?"
    )


def test_e8_a_refusal_pickles():
    with pytest.raises(AttributeError) as caught:
        Found(url="u").url = "v"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_e1_events_are_not_slotted():
    assert not hasattr(Found, "__slots__")
    assert vars(Found(url="u"))["url"] == "u"


# --- E2: value semantics ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (Found(url="u"), Found(url="u"), True),
        (Found(url="u"), Found(url="v"), False),
        (Found(url="u"), Ranked(url="u"), False),
        (StartEvent(a=1), StartEvent(a=1), True),
        (StartEvent(a=1), StartEvent(a=2), False),
        (StartEvent(a=1), StartEvent(), False),
        (StartEvent(a=1, b=2), StartEvent(b=2, a=1), True),
        (StartEvent(a=1), Plain(a=1), False),
        (StopEvent(result=1), StopEvent(result=1), True),
        (Event(), None, False),
    ],
)
def test_e2_events_are_compared_by_class_and_value(one: object, other: object, equal: bool):
    assert (one == other) is equal
    assert (one != other) is not equal


@pytest.mark.parametrize("cls", [Event, StartEvent, Plain, WorkflowCancelledEvent])
def test_e2_events_are_not_hashable_and_always_true(cls: type[Event]):
    with pytest.raises(TypeError, match="unhashable"):
        hash(cls())
    assert len(cls()) == len(dict(cls()))
    assert bool(cls()) is True


def test_e2_repr_shows_fields_and_extra_values():
    assert repr(Ranked(url="u")) == "Ranked(url='u', rank=0, tags=[], score=0.0)"
    assert repr(Plain(a=1, b="x")) == "Plain(a=1, b='x')"
    assert repr(StopEvent(result=3, why="so")) == "StopEvent(result=3, why='so')"


def test_e2_a_field_with_repr_false_is_not_shown():
    class Login(Event):
        user: str
        password: str = attrs.field(repr=False)

    assert repr(Login(user="me", password="secret")) == "Login(user='me')"


# --- E2: open and closed ----------------------------------------------------------------------


@pytest.mark.parametrize("cls", [*OPEN_CLASSES, Plain, type("P2", (Plain,), {})])
def test_e2_classes_without_fields_take_any_keyword(cls: type[Event]):
    event: Any = cls(topic="tea", count=2)
    assert event.topic == "tea"
    assert event["count"] == 2


def test_e2_a_class_variable_does_not_close_an_event():
    class Limited(Event):
        limit: ClassVar[int] = 3

    event: Any = Limited(topic="tea")
    assert event.topic == "tea"
    assert event.limit == 3
    assert "limit" not in event


@pytest.mark.parametrize("name", ["self", "cls", "event", "name", "kwargs", "result", "step"])
def test_e2_extra_values_may_have_any_ordinary_name(name: str):
    assert dict(StartEvent(**{name: 1})) == {name: 1}
    assert getattr(StartEvent(**{name: 1}), name) == 1


def test_e2_an_unknown_keyword_names_event_field_and_the_nearest_known():
    exc = fault(lambda: Found(url="u", rnak=1))
    assert (exc.event, exc.field) == ("Found", "rnak")
    assert exc.problem == "no such field, did you mean 'rank'?"
    assert str(exc) == "Found.rnak: no such field, did you mean 'rank'?"


def test_e2_an_unknown_keyword_near_to_nothing_lists_the_known():
    exc = fault(lambda: Found(url="u", zzz=1))
    assert exc.problem == "no such field, known: rank, tags, url"


def test_e2_inherited_fields_close_an_event():
    class Nothing(Found):
        pass

    assert fault(lambda: Nothing(url="u", zzz=1)).field == "zzz"
    assert fault(lambda: Ranked(url="u", scor=1)).problem.endswith("did you mean 'score'?")
    assert Nothing(url="u").url == "u"


def test_e2_stop_events_result_does_not_close_but_own_fields_do():
    assert StopEvent(result=1, why="so")["why"] == "so"
    assert Finished(total=1, result=2).result == 2
    assert fault(lambda: Finished(total=1, why="so")).field == "why"


def test_e2_the_private_mapping_is_no_field():
    assert fault(lambda: Found(url="u", _extra={"x": 1})).field == "x"
    assert fault(lambda: StartEvent(_extra=5)).field == "_extra"
    assert attrs.evolve(StartEvent(x=1, y=2), y=3) == StartEvent(x=1, y=3)
    assert dict(StartEvent()) == {}
    assert "_extra" not in StartEvent()


def test_e3_a_missing_field_is_named():
    exc = fault(lambda: Found())
    assert (exc.event, exc.field, exc.problem) == ("Found", "url", "missing, Found() needs it")


def test_e3_the_error_is_a_value_error():
    assert isinstance(fault(Found), ValueError)


# --- E2: reading like a mapping ---------------------------------------------------------------


def test_e2_mapping_access_covers_fields_and_extra_values():
    event = StopEvent(result=1, why="so")
    assert event["result"] == 1
    assert event["why"] == "so"
    assert event.get("why") == "so"
    assert event.get("no") is None
    assert event.get("no", 7) == 7
    assert "why" in event
    assert "no" not in event
    assert 3 not in event
    assert list(event) == list(event.keys()) == ["result", "why"]
    assert list(event.values()) == [1, "so"]
    assert list(event.items()) == [("result", 1), ("why", "so")]
    assert dict(event) == {**event} == {"result": 1, "why": "so"}
    assert len(event) == 2


def test_e2_mapping_access_keeps_the_order_of_declaration():
    assert list(Ranked(score=1.0, tags=["t"], url="u")) == ["url", "rank", "tags", "score"]


@pytest.mark.parametrize("event", [Found(url="u"), StartEvent(url="u")], ids=repr)
def test_e2_what_is_not_there_raises_as_attributes_and_mappings_do(event: Event):
    with pytest.raises(KeyError, match="nope"):
        event["nope"]
    with pytest.raises(AttributeError, match="nope"):
        event.nope  # noqa: B018
    assert not hasattr(event, "__deepcopy__")


def test_e2_fields_named_like_the_mapping_methods_win():
    event = Named(get="g", values=[1], items=["i"])
    assert (event.get, event.values, event.items) == ("g", [1], ["i"])
    assert dict(event) == {"get": "g", "values": [1], "items": ["i"]}
    assert event["items"] == ["i"]
    assert repr(event) == "Named(get='g', values=[1], items=['i'])"
    assert event == Named(get="g", values=[1], items=["i"])
    assert event.replace(items=[]).items == []
    assert copy.deepcopy(event) == pickle.loads(pickle.dumps(event)) == event


def test_e2_a_field_named_keys_wins():
    class Rotated(Event):
        keys: list[str]

    assert Rotated(keys=["k"]).keys == ["k"]
    assert list(Rotated(keys=["k"])) == ["keys"]
    assert Rotated(keys=["k"])["keys"] == ["k"]


def test_e2_a_field_named_items_may_have_a_default():
    class Cart(Event):
        items: list[str] = []
        get: str = "x"

    assert Cart().items == []
    assert Cart().get == "x"
    assert Cart(items=["a"])["items"] == ["a"]


# --- E2: copies -------------------------------------------------------------------------------


def test_e2_replace_makes_a_changed_copy():
    event = Found(url="u", rank=1)
    assert event.replace(rank=2) == Found(url="u", rank=2)
    assert event == Found(url="u", rank=1)
    assert event.replace() == event
    assert event.replace() is not event


def test_e2_replace_keeps_extra_values_and_the_class():
    event = Plain(a=1, b=2).replace(b=3, c=4)
    assert event == Plain(a=1, b=3, c=4)
    assert type(event) is Plain


def test_e2_replace_is_checked_as_construction_is():
    assert fault(lambda: Found(url="u").replace(rank="x")).field == "rank"
    assert fault(lambda: Found(url="u").replace(rnak=1)).field == "rnak"


@pytest.mark.skipif(sys.version_info < (3, 13), reason="copy.replace() is new in Python 3.13")
def test_e2_copy_replace_does_what_replace_does():
    assert copy.replace(Plain(a=1, b=2), b=3) == Plain(a=1, b=3)


def test_e2_copy_is_shallow_and_deepcopy_is_deep():
    event = Plain(box=[1])
    assert copy.copy(event) == event
    assert copy.copy(event)["box"] is event["box"]
    deep = copy.deepcopy(event)
    assert deep == event
    assert deep["box"] is not event["box"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "event", [Found(url="u", tags=["t"]), Plain(a=1), Finished(total=2), Box[int](content=1)]
)
def test_e2_events_pickle(event: Event, protocol: int):
    assert pickle.loads(pickle.dumps(event, protocol)) == event


# --- E3: defaults -----------------------------------------------------------------------------


def test_e3_mutable_literal_defaults_are_never_shared():
    class Many(Event):
        items: list[Any] = [[]]
        named: dict[str, Any] = {}
        known: set[int] = set()
        raw: bytearray = bytearray()
        given: list[int] = attrs.field(default=[])

    one = Many()
    one.items[0].append(1)
    one.named["a"] = 1
    one.known.add(1)
    one.raw.append(1)
    one.given.append(1)
    assert dict(Many()) == {
        "items": [[]],
        "named": {},
        "known": set(),
        "raw": bytearray(),
        "given": [],
    }


def test_e3_a_given_value_is_kept_as_it_is():
    tags = ["t"]
    assert Found(url="u", tags=tags).tags is tags


# --- E5: attrs.field and friends --------------------------------------------------------------


def test_e5_attrs_field_defaults_and_factories():
    class Made(Event):
        n: int = attrs.field(default=3)
        tags: list[str] = attrs.field(factory=list)
        twice: int = attrs.field(default=attrs.Factory(lambda self: self.n * 2, takes_self=True))

    assert dict(Made(n=4)) == {"n": 4, "tags": [], "twice": 8}
    assert Made().tags is not Made().tags


def test_e5_attrs_field_validators_run():
    class Made(Event):
        n: int = attrs.field(validator=attrs.validators.gt(2))

    assert Made(n=3).n == 3
    with pytest.raises(ValueError, match="'n' must be > 2"):
        Made(n=2)
    with pytest.raises(ValueError, match="'n' must be > 2"):
        Made(n=3).replace(n=1)


def test_e5_the_type_is_checked_before_a_validator_sees_the_value():
    class Made(Event):
        n: int = attrs.field(validator=attrs.validators.gt(2))

    assert fault(lambda: Made(n="x")).field == "n"


def test_e5_a_decorated_validator_and_default_work():
    class Made(Event):
        low: int
        high: int = attrs.field()

        @high.default
        def _above(self) -> int:
            return self.low + 1

        @high.validator
        def _check(self, attribute: Any, value: int) -> None:
            if value < self.low:
                raise ValueError("high is low")

    assert Made(low=1).high == 2
    with pytest.raises(ValueError, match="high is low"):
        Made(low=1, high=0)


def test_e5_a_converter_takes_what_the_annotation_does_not():
    class Made(Event):
        n: int = attrs.field(converter=int)

    assert Made(n="5").n == 5


def test_e5_aliases_are_the_keyword_as_type_checkers_have_it():
    class Made(Event):
        number: int = attrs.field(alias="n")

    event = Made(n=1)
    assert event.number == event["number"] == 1
    assert dict(event) == {"number": 1}
    assert event.replace(n=2) == Made(n=2)
    assert fault(lambda: Made(n="x")).field in ("n", "number")


def test_e5_aliases_and_private_names_are_inherited():
    class Made(Event):
        _tok: str
        number: int = attrs.field(alias="n", default=1)

    class Child(Made):
        more: int = 0

    assert dict(Child(_tok="t", n=2)) == {"_tok": "t", "number": 2, "more": 0}
    assert Child(_tok="t").replace(n=3)["number"] == 3
    assert fault(lambda: Child(_tok="t", number=3)).field == "number"


def test_e5_a_missing_alias_is_named():
    class Made(Event):
        number: int = attrs.field(alias="n")

    assert fault(lambda: Made()).field in ("n", "number")


def test_e5_an_alias_that_is_a_private_name_without_its_underscore():
    class Made(Event):
        _tok: str = attrs.field(alias="token")

    assert Made(token="t")["_tok"] == "t"


def test_e5_private_names_keep_their_keyword():
    class Made(Event):
        _tok: str

    event = Made(_tok="t")
    assert event._tok == event["_tok"] == "t"
    assert event.replace(_tok="u")._tok == "u"
    assert fault(lambda: Made(tok="t")).problem.endswith("did you mean '_tok'?")


@pytest.mark.parametrize("name", ["_values", "_extra", "_open", "_kinds", "_local_names"])
def test_e5_a_field_cannot_bear_a_private_name_of_the_librarys(name: str):
    def define() -> type:
        return types.new_class(
            "Probe", (Event,), exec_body=lambda ns: ns.update(__annotations__={name: int})
        )

    with pytest.raises(EventValidationError, match=rf"Probe\.{name}: .* another"):
        define()


@pytest.mark.parametrize("name", ["get", "keys", "values", "items", "replace"])
def test_e2_extra_values_read_as_attributes_whatever_their_name(name: str):
    event = StartEvent(**{name: 1})
    assert event[name] == 1
    assert getattr(event, name) == 1


def test_e5_fields_without_init_are_computed_and_shown():
    class Made(Event):
        low: int
        high: int = attrs.field(init=False)

        def __attrs_post_init__(self) -> None:
            object.__setattr__(self, "high", self.low + 1)

    assert dict(Made(low=1)) == {"low": 1, "high": 2}
    assert Made(low=1).replace(low=5).high == 6
    assert fault(lambda: Made(low=1, high=2)).field == "high"


def test_e5_post_init_of_an_open_event_sees_the_extra_values():
    seen: list[dict[str, Any]] = []

    class Made(StartEvent):
        def __attrs_post_init__(self) -> None:
            seen.append(dict(self))

    Made(a=1)
    assert seen == [{"a": 1}]


def test_e5_own_init_calling_super():
    class Made(Event):
        low: int
        high: int

        def __init__(self, low: int, **values: Any) -> None:
            super().__init__(low=low, **{"high": low + 1, **values})

    assert dict(Made(1)) == {"low": 1, "high": 2}
    assert Made(1).replace(high=9) == Made(1, high=9)
    assert copy.deepcopy(Made(1)) == Made(1)
    assert fault(lambda: Made(1, zzz=1)).field == "zzz"
    assert fault(lambda: Made(1, high="x")).field == "high"


# --- E5: inheritance, mixins, generics --------------------------------------------------------


def test_e5_inherited_fields_are_checked():
    assert fault(lambda: Ranked(url=1)).event == "Ranked"
    assert fault(lambda: Ranked()).field == "url"


def test_e5_a_subclass_may_declare_a_field_anew():
    class Wide(Found):
        rank: str = "first"

    assert Wide(url="u").rank == "first"
    assert fault(lambda: Wide(url="u", rank=1)).problem.startswith("expected str")
    assert Found(url="u", rank=1).rank == 1


def test_e5_two_event_bases():
    class Left(Event):
        a: int

    class Right(Event):
        b: str

    class Both(Left, Right):
        pass

    assert dict(Both(a=1, b="x")) in ({"a": 1, "b": "x"},)
    assert fault(lambda: Both(a="x", b="x")).field == "a"
    assert fault(lambda: Both(a=1, b=1)).field == "b"


def test_e5_mixins_give_methods():
    class Shouting:
        def shout(self) -> str:
            return self.url.upper()

    class Loud(Shouting, Found):
        pass

    assert Loud(url="u").shout() == "U"
    assert isinstance(Loud(url="u"), Found)


def test_e5_a_property_and_a_method_are_no_fields():
    class Sized(Event):
        n: int

        @property
        def double(self) -> int:
            return self.n * 2

    assert Sized(n=2).double == 4
    assert dict(Sized(n=2)) == {"n": 2}


def test_e5_an_attribute_error_in_a_property_names_what_is_missing():
    class Broken(Event):
        n: int

        @property
        def double(self) -> int:
            return self.n.nothing

    with pytest.raises(AttributeError, match=r"nothing|double"):
        Broken(n=2).double  # noqa: B018


def test_e5_generics():
    assert Box[int](content=1) == Box(content=1)
    assert Box[list[str]](content=["a"])["content"] == ["a"]
    assert IntBox(content=1) == IntBox(content=1, unit="m")
    assert issubclass(IntBox, Box)
    assert fault(lambda: Box(contant=1)).field == "contant"


def test_e5_function_local_classes():
    class Inner(Event):
        n: int

    class Outer(Event):
        inner: Inner
        many: list[Inner] = []
        later: "Later | None" = None

    class Later(Event):
        n: int

    assert Outer(inner=Inner(n=1), later=Later(n=2)).inner.n == 1
    assert fault(lambda: Outer(inner=3)).field == "inner"
    assert fault(lambda: Outer(inner=Inner(n=1), many=[1])).field == "many"
    assert fault(lambda: Outer(inner=Inner(n=1), later=3)).field == "later"


def test_e5_a_class_may_refer_to_itself():
    class Tree(Event):
        children: "list[Tree]" = []

    assert Tree(children=[Tree(), Tree()]).children == [Tree(), Tree()]
    assert fault(lambda: Tree(children=[1])).field == "children"


def test_e5_same_names_in_two_functions_are_two_classes():
    def make(cls: type) -> type[Event]:
        class Item:
            kind = cls

        class Holder(Event):
            item: "Item"
            Item_: ClassVar[type] = Item

        return Holder

    one, other = make(int), make(str)
    one(item=one.Item_())
    assert fault(lambda: one(item=other.Item_())).field == "item"


def test_e5_a_class_keeps_the_names_of_the_call_it_was_made_in():
    def make(earlier: tuple[Any, type] | None = None) -> tuple[Any, type]:
        class Item:
            pass

        class Holder(Event):
            item: "Item"

        if earlier is not None:  # first used while another call of its maker is running
            holder, item = earlier
            assert isinstance(holder(item=item()).item, item)
            assert fault(lambda: holder(item=Item())).field == "item"
        return Holder, Item

    make(make())


def test_e5_abstract_events():
    class Shape(Event, abc.ABC):
        name: str

        @abc.abstractmethod
        def area(self) -> float: ...

    class Square(Shape):
        side: float

        def area(self) -> float:
            return self.side**2

    assert Square(name="s", side=2).area() == 4
    with pytest.raises(TypeError, match="abstract"):
        Shape(name="s")


# --- E3: what an annotation admits ------------------------------------------------------------


class Movie(TypedDict):
    title: str


class Closeable(Protocol):
    def close(self) -> None: ...


UserId = NewType("UserId", int)
NOW = datetime.datetime(2024, 1, 1)

ADMITTED: list[tuple[Any, list[object], list[object]]] = [
    (int, [1, True, -(10**30)], ["1", 1.0, None, b"1"]),
    (float, [1.0, 1, True, float("nan")], ["1.0", None, 1j]),
    (complex, [1j, 1.0, 1], ["1j", None]),
    (bool, [True, False], [1, 0, "true", None]),
    (str, ["", "x"], [b"x", 1, None, ["x"]]),
    (bytes, [b"x"], ["x", 1]),
    (None, [None], [0, "", False]),
    (object, [1, None, "x"], []),
    (Any, [1, None, object()], []),
    (Optional[int], [1, None], ["1", 1.5]),  # noqa: UP045
    (Union[int, str], [1, "1"], [1.5, None, b"x"]),  # noqa: UP007
    (int | list[str] | None, [1, None, [], ["x"]], [[1], ("x",), "x"]),
    (Literal["a", 1], ["a", 1], ["b", 2, 1.0, True, None]),
    (list, [[], [1, "x"]], [(), "x", {}]),
    (list[str], [[], ["x", "y"]], [["x", 1], ("x",), "x", None]),
    (list[list[int]], [[], [[]], [[1], [2]]], [[1], [["x"]]]),
    (list[Any], [[], [1, None]], [(), "x"]),
    (dict, [{}, {1: 2}], [[], None]),
    (dict[str, int], [{}, {"a": 1}], [{"a": "b"}, {1: 1}, []]),
    (dict[str, list[int]], [{"a": [1]}], [{"a": ["1"]}, {"a": 1}]),
    (Mapping[str, int], [{"a": 1}, types.MappingProxyType({})], [{"a": "b"}, []]),
    (set[int], [set(), {1}], [{"x"}, [1], frozenset({1})]),
    (frozenset[int], [frozenset({1})], [{1}, frozenset({"x"})]),
    (tuple, [(), (1, "x")], [[], "x"]),
    (tuple[int, str], [(1, "x")], [(1,), (1, 2), ("x", 1), [1, "x"], (1, "x", 2)]),
    (tuple[int, ...], [(), (1,), (1, 2, 3)], [(1, "x"), [1]]),
    (tuple[()], [()], [(1,), []]),
    (Sequence[int], [[1], (1, 2), range(3)], [["x"], {1}, 1]),
    (type, [int, Event], [1, "int"]),
    (Color, [Color.RED], ["red", "RED", 1]),
    (UserId, [1], ["1", None]),
    (list[UserId], [[1]], [["1"]]),
    (Annotated[int, "positive"], [1], ["1"]),
    (list[Annotated[str, "word"]], [["x"]], [[1]]),
    (Movie, [{"title": "x"}], ["x", [("title", "x")]]),
    (datetime.datetime, [NOW], ["2024-01-01", NOW.date(), 0]),
    (datetime.date, [NOW.date(), NOW], ["2024-01-01"]),
    (Path, [Path("x")], ["x"]),
    (Event, [Event(), Found(url="u")], [Found, {}]),
    (list[Event], [[Found(url="u")]], [[Found]]),
    (Box[int], [Box(content=1), IntBox(content=1)], [1, Event()]),
    (BaseException, [ValueError("x"), KeyboardInterrupt()], [ValueError, "x"]),
    (collections.deque[int], [collections.deque([1])], [[1]]),
]


@pytest.mark.parametrize(
    ("annotation", "good", "bad"), ADMITTED, ids=[str(row[0]) for row in ADMITTED]
)
def test_e3_an_annotation_admits_what_type_checkers_admit(
    annotation: Any, good: list[object], bad: list[object]
):
    cls = types.new_class(
        "Probe", (Event,), exec_body=lambda ns: ns.update(__annotations__={"x": annotation})
    )
    for value in good:
        assert cls(x=value)["x"] is value
    for value in bad:
        exc = fault(lambda value=value: cls(x=value))
        assert (exc.event, exc.field) == ("Probe", "x")
        assert f"({type(value).__qualname__})" in exc.problem


@pytest.mark.parametrize(
    "annotation",
    [Callable[[int], str], Closeable, T, type[int], Literal, "NoSuchName", list["NoSuchName"]],  # noqa: F821
    ids=str,
)
def test_e3_what_cannot_be_checked_cheaply_is_let_through(annotation: Any):
    cls = types.new_class(
        "Probe", (Event,), exec_body=lambda ns: ns.update(__annotations__={"x": annotation})
    )
    assert cls(x=str)["x"] is str


def test_e3_the_message_names_event_field_expected_and_got():
    exc = fault(lambda: Found(url=5))
    assert str(exc) == "Found.url: expected str, got 5 (int)"
    exc = fault(lambda: Found(url="u", tags=["x", 1]))
    assert str(exc) == "Found.tags: expected list[str], got ['x', 1] (list)"


def test_e3_long_values_are_cut_in_the_message():
    exc = fault(lambda: Found(url=list(range(1000))))
    assert len(str(exc)) < 120
    assert "..." in str(exc)


def test_e3_a_value_whose_repr_raises_still_gives_the_error():
    class Rude:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert fault(lambda: Found(url=Rude())).field == "url"


@pytest.mark.parametrize(
    ("annotation", "default", "text"),
    [
        (int, "three", "expected int, got the default 'three' (str)"),
        (int, None, "expected int, got the default None (NoneType); annotate it with 'int | None'"),
        (list[str], ["x", 1], "expected list[str], got the default ['x', 1] (list)"),
        (dict[str, int], {"x": "y"}, "expected dict[str, int], got the default {'x': 'y'} (dict)"),
        (int, attrs.field(default="x"), "expected int, got the default 'x' (str)"),
        (int, attrs.field(default="x", init=False), "expected int, got the default 'x' (str)"),
        (int, attrs.field(factory=str), "expected int, got the default '' (str)"),
        (int, attrs.field(factory=str, init=False), "expected int, got the default '' (str)"),
        (
            int,
            attrs.field(default=attrs.Factory(lambda self: "x", takes_self=True)),
            "expected int",
        ),
    ],
)
def test_e3_a_default_is_checked_like_a_given_value(annotation: Any, default: Any, text: str):
    def body(namespace: dict[str, Any]) -> None:
        namespace.update(n=default, __annotations__={"n": annotation})

    cls = types.new_class("Job", (Event,), exec_body=body)
    child = types.new_class("Job", (cls,))
    for make in (cls, cls, child, child, cls):
        assert str(fault(make)).startswith(f"Job.n: {text}")


def test_e3_a_literal_default_is_checked_with_the_first_instance_whether_it_uses_it_or_not():
    class Job(Event):
        name: str
        retries: int = "three"

    for _ in range(2):
        assert fault(lambda: Job(name="x", retries=3)).field == "retries"


def test_e3_what_a_factory_makes_is_checked_only_where_it_is_used():
    class Job(Event):
        name: str
        retries: int = attrs.field(factory=lambda: made.pop())

    made: list[object] = [3, "three", 2]
    assert Job(name="x").retries == 2
    assert fault(lambda: Job(name="x")).field == "retries"
    assert Job(name="x", retries=1).retries == 1
    assert Job(name="x").retries == 3


def test_e3_good_defaults_pass():
    class Child(Found):
        rank: str = "first"

    class Fine(Event):
        share: float = 1
        name: str | None = None
        flag: int = True
        found: Found = Found(url="u")
        one: Literal["a", "b"] = "a"
        converted: int = attrs.field(default="5", converter=int)
        unseen: "NoSuchName" = 5  # noqa: F821
        items: list[int] = []
        child: Found = attrs.field(factory=lambda: Child(url="u"))

    for _ in range(2):
        assert (Fine().share, Fine().converted, Fine().unseen) == (1, 5, 5)
        assert Fine().items is not Fine().items
        assert Fine().child.rank == "first"


def test_e3_a_default_that_a_subclass_replaces_is_not_checked():
    class Abstract(Event):
        n: int = None

    class Concrete(Abstract):
        n: int = 3

    assert Concrete().n == 3
    assert fault(Abstract).field == "n"


def test_e5_the_fields_of_a_mixin_are_fields():
    @attrs.frozen
    class Mixin:
        n: int
        given: int = 2

    class Mixed(Event, Mixin):
        text: str = ""

    for _ in range(2):
        assert dict(Mixed(n=1)) == {"n": 1, "given": 2, "text": ""}
        assert fault(lambda: Mixed(n="x")).field == "n"


def test_e3_the_terminal_events_are_checked_too():
    assert WorkflowTimedOutEvent(timeout=3, active_steps=["a"]).result is None
    assert fault(lambda: WorkflowTimedOutEvent(timeout="3", active_steps=[])).field == "timeout"
    error = ValueError("x")
    event = WorkflowFailedEvent(step_name="s", exception=error)
    assert (event.exception, event.attempts, event.elapsed_seconds) == (error, None, None)


# --- Properties -------------------------------------------------------------------------------

plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
extra_values = st.dictionaries(
    st.sampled_from(["a", "b", "topic", "count", "_hidden", "self", "result"]),
    plain_values,
    max_size=4,
)


@given(extra_values)
def test_e2_property_extra_values_survive_every_copy(values: dict[str, Any]):
    event = Plain(**values)
    assert dict(event) == values
    assert Plain(**dict(event)) == event
    assert event.replace() == event
    assert Plain().replace(**values) == event
    assert copy.copy(event) == copy.deepcopy(event) == event
    assert pickle.loads(pickle.dumps(event)) == event


@given(extra_values, extra_values)
def test_e2_property_equal_exactly_if_the_values_are(one: dict[str, Any], other: dict[str, Any]):
    assert (Plain(**one) == Plain(**other)) is (one == other)
    assert Plain(**one).replace(**other) == Plain(**(one | other))


found = st.builds(
    Ranked,
    url=st.text(),
    rank=st.integers(),
    tags=st.lists(st.text(), max_size=3),
    score=st.floats(allow_nan=False) | st.integers(),
)


@given(found, found)
def test_e2_property_declared_fields_survive_every_copy(one: Ranked, other: Ranked):
    assert Ranked(**dict(one)) == one
    assert one.replace(**dict(other)) == other
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    assert (one == other) is (dict(one) == dict(other))


Check = Callable[[Any], bool]


def _is_int(value: object) -> bool:
    return isinstance(value, int)


leaf_annotations: st.SearchStrategy[tuple[Any, Check]] = st.sampled_from(
    [
        (int, _is_int),
        (str, lambda v: isinstance(v, str)),
        (bool, lambda v: v is True or v is False),
        (float, lambda v: isinstance(v, float | int)),
        (None, lambda v: v is None),
        (Any, lambda v: True),
        (Color, lambda v: v in list(Color)),
        (UserId, _is_int),
        (Literal["a", 1], lambda v: (type(v), v) in [(str, "a"), (int, 1)]),
    ]
)


def _compound(inner: st.SearchStrategy[tuple[Any, Check]]) -> st.SearchStrategy[tuple[Any, Check]]:
    def list_of(item: tuple[Any, Check]) -> tuple[Any, Check]:
        kind, check = item
        return list[kind], lambda v: isinstance(v, list) and all(map(check, v))

    def dict_of(item: tuple[Any, Check]) -> tuple[Any, Check]:
        kind, check = item
        return (
            dict[str, kind],
            lambda v: (
                isinstance(v, dict)
                and all(isinstance(key, str) and check(val) for key, val in v.items())
            ),
        )

    def tuple_of(items: list[tuple[Any, Check]]) -> tuple[Any, Check]:
        kinds, checks = [kind for kind, _ in items], [check for _, check in items]
        return (
            tuple[(*kinds,)],
            lambda v: (
                isinstance(v, tuple)
                and len(v) == len(checks)
                and all(check(part) for check, part in zip(checks, v, strict=True))
            ),
        )

    def union_of(items: list[tuple[Any, Check]]) -> tuple[Any, Check]:
        checks = [check for _, check in items]
        return Union[tuple(kind for kind, _ in items)], lambda v: any(c(v) for c in checks)  # noqa: UP007

    some = st.lists(inner, min_size=1, max_size=3)
    return inner.map(list_of) | inner.map(dict_of) | some.map(tuple_of) | some.map(union_of)


annotations = st.recursive(leaf_annotations, _compound, max_leaves=4)
atoms = st.sampled_from([0, 1, True, "a", "b", 1.5, None, Color.RED, b"x"])
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from(["k", "l", 3]), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(annotations, st.lists(values, min_size=1, max_size=5))
def test_e3_property_a_value_is_accepted_exactly_if_the_oracle_says_so(
    drawn: tuple[Any, Check], candidates: list[Any]
):
    annotation, admits = drawn
    cls = types.new_class(
        "Probe", (Event,), exec_body=lambda ns: ns.update(__annotations__={"x": annotation})
    )
    for value in candidates:
        if admits(value):
            assert cls(x=value)["x"] is value
        else:
            fault(lambda value=value: cls(x=value))


# --- The constructor that is written when the first instance is made ------------------------------


class Oddly(Event):
    general: int
    cls: str = "c"
    stored: list[int] = []
    sloppy: int | None = None
    made: list[int] = attrs.field(factory=list)


class OddlyToo(Oddly):
    cls: str = "too"


class OwnWay(Oddly):
    def __init__(self, number: int) -> None:
        super().__init__(general=number)


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (
            lambda: Oddly(general=1),
            {"general": 1, "cls": "c", "stored": [], "sloppy": None, "made": []},
        ),
        (
            lambda: Oddly(general=1, cls="d"),
            {"general": 1, "cls": "d", "stored": [], "sloppy": None, "made": []},
        ),
        (
            lambda: Oddly(sloppy=4, stored=[3], cls="d", general=1),
            {"general": 1, "cls": "d", "stored": [3], "sloppy": 4, "made": []},
        ),
        (
            lambda: OddlyToo(general=1),
            {"general": 1, "cls": "too", "stored": [], "sloppy": None, "made": []},
        ),
        (
            lambda: OddlyToo(general=1, stored=[], sloppy=2),
            {"general": 1, "cls": "too", "stored": [], "sloppy": 2, "made": []},
        ),
        (lambda: OwnWay(2), {"general": 2, "cls": "c", "stored": [], "sloppy": None, "made": []}),
        (lambda: StopEvent(), {"result": None}),
        (lambda: StopEvent(result=3), {"result": 3}),
        (lambda: StopEvent(more=4), {"result": None, "more": 4}),
        (lambda: StopEvent(result=3, more=4), {"result": 3, "more": 4}),
        (lambda: StartEvent(), {}),
        (lambda: StartEvent(one=1, two=2), {"one": 1, "two": 2}),
    ],
)
def test_e5_later_instances_are_made_like_the_first(make, values):
    made = [make() for _ in range(3)]
    assert [dict(event) for event in made] == [values] * 3
    assert made[0] == made[1] == pickle.loads(pickle.dumps(made[2])) == copy.deepcopy(made[1])
    for one, other in itertools.pairwise(made):
        assert all(one[k] is not other[k] for k in values if type(values[k]) is list)


@pytest.mark.parametrize(
    ("given", "field", "problem"),
    [
        ({}, "general", "missing"),
        ({"general": "x"}, "general", "expected int"),
        ({"general": 1, "cls": 2}, "cls", "expected str"),
        ({"general": 1, "sloppy": "x"}, "sloppy", "expected int"),
        ({"general": 1, "made": None}, "made", "expected list"),
        ({"general": 1, "other": 2}, "other", "no such field"),
    ],
)
@pytest.mark.parametrize("cls", [Oddly, OddlyToo])
def test_e3_later_instances_are_checked_like_the_first(cls, given, field, problem):
    for _ in range(3):
        error = fault(lambda: cls(**given))
        assert (error.field, problem in str(error)) == (field, True)
        cls(general=1)


# --- E8: what help() and notebooks show ---------------------------------------------------------------


class Shown(Event):
    url: str
    later: "list[Found]" = []
    made: list[int] = attrs.field(factory=list)
    hidden: int = attrs.field(init=False, default=1)
    aliased: "Unknown" = attrs.field(alias="short", default=None)  # noqa: F821
    kind: ClassVar[int] = 1


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        (Found, "(*, url: str, rank: int = 0, tags: list[str] = [])"),
        (Ranked, "(*, url: str, rank: int = 0, tags: list[str] = [], score: float = 0.0)"),
        (
            Shown,
            f"(*, url: str, later: list[{__name__}.Found] = [], made: list[int] = <factory>, "
            "short: 'Unknown' (unchecked: name 'Unknown' is not defined) = None)",
        ),
        (Event, "(**values)"),
        (StartEvent, "(**values)"),
        (Plain, "(**values)"),
        (StopEvent, "(result: Any = None, **values)"),
        (Ended, "(result: Any = None, **values)"),
        (EndedWith, "(result: int, **values)"),
        (Finished, "(*, result: Any = None, total: int)"),
        (IntBox, "(*, content: ~T, unit: str = 'm')"),
    ],
)
def test_e8_the_signature_has_the_fields(cls: type[Event], text: str):
    assert str(inspect.signature(cls)) == text
    values = {"url": "u", "total": 1, "content": 1, "result": 1}
    names = inspect.signature(cls).parameters
    cls(**{name: value for name, value in values.items() if name in names})
    assert str(inspect.signature(cls)) == text
    if cls is not Shown:  # it is made by the constructor for all classes
        own = inspect.signature(cls.__init__)
        assert str(own.replace(parameters=[*own.parameters.values()][1:])) == text


def test_e8_the_signature_of_an_own_constructor_is_its_own():
    class Child(OwnWay):
        more: int = 1

    assert str(inspect.signature(OwnWay)) == "(number: int) -> None"
    assert str(inspect.signature(Child)) == "(number: int) -> None"


def test_e8_help_shows_the_fields():
    text = pydoc.render_doc(Ranked, renderer=pydoc.plaintext)
    assert "Ranked(*, url: str, rank: int = 0, tags: list[str] = [], score: float = 0.0)" in text


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("model_dump", "dict(ev) "),
        ("dict", "dict(ev) "),
        ("to_dict", "dict(ev) "),
        ("model_dump_json", "json.dumps(dict(ev)) "),
        ("json", "json.dumps(dict(ev)) "),
        ("copy", "ev.replace(field=...) "),
        ("model_copy", "ev.replace(field=...) "),
        ("update", "ev.replace(field=...) "),
        ("model_validate", "Event(**fields) "),
        ("parse_obj", "Event(**fields) "),
    ],
)
@pytest.mark.parametrize("event", [Found(url="u"), StopEvent("x")], ids=repr)
def test_e8_the_methods_of_model_classes_name_ours(event: Event, name: str, remedy: str):
    with pytest.raises(AttributeError) as caught:
        getattr(event, name)
    assert str(caught.value).startswith(f"{type(event).__name__!r} has no field {name!r}; {remedy}")
    assert not hasattr(event, name)
    assert name not in dir(event)
    assert StartEvent(**{name: 1})[name] == getattr(StartEvent(**{name: 1}), name) == 1


@pytest.mark.parametrize("name", ["model_validate", "model_validate_json"])
def test_e8_the_constructors_of_model_classes_name_ours(name: str):
    with pytest.raises(AttributeError, match=rf"'Found' has no '{name}'; Event\(\*\*fields\)"):
        getattr(Found, name)
    cls = types.new_class(
        "Probe", (Event,), exec_body=lambda ns: ns.update(__annotations__={name: int})
    )
    assert getattr(cls(**{name: 1}), name) == 1


def test_e1_fields_may_be_called_as_builtins_are():
    class Record(Event):
        type: str
        isinstance: int
        data: Any
        object: Any = None

    for n in range(3):  # the constructor is written when the first instance is made
        made = Record(type="a", isinstance=n, data=[n])
        assert (made.type, made.isinstance, made.data, made.object) == ("a", n, [n], None)
    with pytest.raises(EventValidationError, match=r"Record\.isinstance: expected int"):
        Record(type="a", isinstance="b", data=1)
