"""Events: making, comparing, reading and copying them, what is shown of them (rules E1, E2, E8).

This module does without `from __future__ import annotations`; `test_events_postponed` has it.
"""

import copy
import inspect
import pickle
import pydoc
import sys
import types
from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_workflows.events import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    WorkflowCancelledEvent,
)

from .event_classes import Box, Finished, Found, IntBox, Plain, Ranked, fault

OPEN_CLASSES = [Event, StartEvent, StopEvent, InputRequiredEvent, HumanResponseEvent]


class Named(Event):
    get: str
    values: list[int]
    items: list[str]


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
        (lambda: StopEvent(1, 2), "StopEvent: takes only result by position, and only once"),
        (lambda: StopEvent(1, result=2), "StopEvent: takes only result by position, "),
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


@pytest.mark.parametrize("name", ["get", "keys", "values", "items", "replace"])
def test_e2_extra_values_read_as_attributes_whatever_their_name(name: str):
    event = StartEvent(**{name: 1})
    assert event[name] == 1
    assert getattr(event, name) == 1


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
            f"(*, url: str, later: list[{Found.__module__}.Found] = [], made: list[int] = <factory>, "
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


def test_e8_help_shows_the_fields():
    text = pydoc.render_doc(Ranked, renderer=pydoc.plaintext)
    assert "Ranked(*, url: str, rank: int = 0, tags: list[str] = [], score: float = 0.0)" in text


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("model_dump", "dict(ev) gives the fields of an event, anyio_workflows.wire.to_data(ev) "),
        ("dict", "dict(ev) "),
        ("to_dict", "dict(ev) "),
        ("model_dump_json", "dict(ev) "),
        ("json", "dict(ev) "),
        ("copy", "ev.replace(field=...) "),
        ("model_copy", "ev.replace(field=...) "),
        ("update", "ev.replace(field=...) "),
        ("model_validate", "anyio_workflows.wire.from_data(data, EventClass) "),
        ("parse_obj", "anyio_workflows.wire.from_data(data, EventClass) "),
        ("schema", "anyio_workflows.wire.json_schema(EventClass) "),
        ("model_fields", "attrs.fields(EventClass) "),
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


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("model_validate", "anyio_workflows.wire.from_data(data, EventClass) "),
        ("parse_raw", "anyio_workflows.wire.from_data(data, EventClass) "),
        ("model_json_schema", "anyio_workflows.wire.json_schema(EventClass) "),
        ("schema", "anyio_workflows.wire.json_schema(EventClass) "),
        ("model_fields", "attrs.fields(EventClass) "),
    ],
)
def test_e7_what_model_classes_have_names_ours(name: str, remedy: str):
    with pytest.raises(AttributeError) as caught:
        getattr(Found, name)
    assert str(caught.value).startswith(f"'Found' has no {name!r}; {remedy}")
    cls = types.new_class(
        "Probe", (Event,), exec_body=lambda ns: ns.update(__annotations__={name: int})
    )
    assert getattr(cls(**{name: 1}), name) == 1
