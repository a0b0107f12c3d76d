"""Events as data, and back (E7): strict in, and exact where a snapshot is."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import PurePosixPath
from typing import Any, Generic, Literal, TypeVar
from uuid import UUID

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_workflows import Event, StartEvent, StopEvent, WorkflowFailedEvent, WorkflowTimedOutEvent
from anyio_workflows._json.codec import JsonCodec
from anyio_workflows._json.formats import MAX_DEPTH
from anyio_workflows.errors import ContextSerdeError, WorkflowError
from anyio_workflows.wire import from_data, json_schema, to_data

from .hostile import LONG, deep

T = TypeVar("T")


class Color(Enum):
    RED = "red"
    BLUE = 2


class Unknown(StrEnum):
    """Nothing that is written mentions it."""

    YES = "yes"


@attrs.define
class Point:
    x: int
    y: int = 0


@dataclass
class Line:
    points: list[Point]


class Said(Event):
    text: str
    tokens: int = 0


class Asked(Event):
    question: str
    options: list[str] = []


class Loud(Said):
    volume: int = 11


class Rich(Event):
    day: date = date(2024, 5, 1)
    color: Color = Color.RED
    line: Line = attrs.field(factory=lambda: Line([Point(1)]))
    said: Said | Asked | None = None
    pairs: dict[int, tuple[bytes, ...]] = {}
    anything: Any = None
    number: int = attrs.field(default=0, alias="n")


@attrs.define
class Size:
    x: int


class Box(Event, Generic[T]):
    content: T


def refused(data: Any, types: Any) -> ContextSerdeError:
    with pytest.raises(ContextSerdeError) as caught:
        from_data(data, types)
    assert len(str(caught.value)) <= 1000
    return caught.value


def through_json(event: Event, **how: Any) -> Any:
    return json.loads(json.dumps(to_data(event, **how), allow_nan=False))


# --- Data and back --------------------------------------------------------------------------------


def test_e7_the_data_of_an_event_are_its_fields():
    event = Rich(pairs={1: (b"a",)}, said=Asked(question="?"), n=3)
    assert to_data(event) == {
        "day": "2024-05-01",
        "color": "red",
        "line": {"points": [{"x": 1, "y": 0}]},
        "said": {"question": "?", "options": []},
        "pairs": {
            "$": "dict",
            "value": [[1, {"$": "tuple", "value": [{"$": "bytes", "value": "YQ=="}]}]],
        },
        "anything": None,
        "n": 3,
    }
    assert from_data(through_json(event), Rich) == event


@attrs.define
class Circle:
    size: int
    kind: Literal["circle"] = "circle"


@attrs.define
class Square:
    size: int
    kind: Literal["square"] = "square"


class Drawn(Event):
    shapes: list[Circle | Square]
    place: Point | Line | None = None
    size: Point | Size | dict[str, int] | None = None


def test_e7_in_a_union_a_record_is_tagged_only_if_its_fields_do_not_tell_it():
    event = Drawn(shapes=[Square(2), Circle(1)], place=Line([]), size=Size(1))
    assert to_data(event) == {
        "shapes": [{"size": 2, "kind": "square"}, {"size": 1, "kind": "circle"}],
        "place": {"points": []},
        "size": {"$": "tests.test_wire:Size", "value": {"x": 1}},
    }
    assert from_data(through_json(event), Drawn) == event
    assert to_data(Drawn(shapes=[], size=Point(1)))["size"]["$"] == "tests.test_wire:Point"


VALUES = [
    None,
    2.5,
    "a",
    float("inf"),
    10**5000,
    [1, (2, {3})],
    {"$": 1},
    {"$repr": "x"},
    {1: 2},
    datetime(2024, 5, 1, 12, tzinfo=UTC),
    timedelta(days=-1, microseconds=1),
    Decimal("1.50"),
    UUID(int=7),
    PurePosixPath("a/b"),
    b"\xff",
    Color.BLUE,
    Point(1, 2),
    Line([Point(1)]),
    Rich(),
    Said(text="a"),
    deep(MAX_DEPTH - 2, lambda value: [value]),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_e7_what_a_snapshot_can_hold_comes_back(value: Any):
    event = Rich(anything=value)
    data = through_json(event)
    assert from_data(data, Rich) == event
    assert data == JsonCodec([Rich]).dump(event)["value"]


@pytest.mark.parametrize("key", ["$", "$repr", "value", "a"])
def test_e7_open_events_keep_their_extra_values(key: str):
    event = StartEvent(**{key: Said(text="a"), "n": 1})
    data = to_data(event)
    assert ("$" in data) == (
        key[0] == "$"
    )  # else it would be taken for a tagged value, which it is then
    assert from_data(through_json(event), [StartEvent, Said]) == event


@pytest.mark.parametrize(
    "wrap", [lambda v: [v], lambda v: {1: v}, lambda v: (v,), lambda v: StartEvent(of=v)]
)
def test_e7_values_as_deep_as_snapshots_hold_come_back(wrap: Any):
    depth = 1
    while True:
        event = StopEvent(deep(depth, wrap))
        try:
            JsonCodec([StopEvent, StartEvent]).dump(event)
        except ContextSerdeError:
            break
        assert from_data(through_json(event, tagged=True), [StopEvent, StartEvent]) == event
        depth += 1
    assert depth > MAX_DEPTH // 4


def test_e7_exceptions_come_back_as_they_do_from_snapshots():
    class OwnError(Exception):
        pass

    for error in [OSError(5, "disk"), OwnError("own"), ValueError(threading.Lock())]:
        event = WorkflowFailedEvent(step_name="a", exception=error)
        data = to_data(event)
        assert data["exception"] == JsonCodec([StopEvent]).dump(error)
        again = from_data(data, WorkflowFailedEvent)
        assert JsonCodec([StopEvent]).dump(again.exception) == data["exception"]


def test_e7_an_exception_with_an_unknown_argument_comes_back_without_its_arguments():
    for argument in (Unknown.YES, Point(1), threading.Lock()):
        data = to_data(StopEvent(ValueError(argument)))
        assert data["result"]["value"].keys() == {"type", "text"}
        assert from_data(data, StopEvent)["result"].type_name == "ValueError"


def test_e7_a_value_that_an_annotation_admits_by_chance_comes_back():
    class Letters(Event):
        letters: Sequence[str]

    assert from_data(to_data(Letters(letters="abc")), Letters) == Letters(letters="abc")


def test_e7_a_generic_event_is_read_as_its_class():
    assert from_data({"content": 1}, Box[int]) == Box(content=1)


# --- Several types --------------------------------------------------------------------------------


@pytest.mark.parametrize("types", [[Said, Asked], (Said, Asked), Said | Asked, {Said: 1, Asked: 2}])
def test_e7_tagged_data_says_which_of_several_types_it_is(types: Any):
    for event in [Said(text="a"), Asked(question="?")]:
        data = through_json(event, tagged=True)
        assert data == {"$": f"tests.test_wire:{type(event).__name__}", "value": to_data(event)}
        assert from_data(data, types) == event
        assert from_data(data, type(event)) == event
        assert from_data(to_data(event), types) == event  # only one of them has these fields


def test_e7_data_that_fits_several_types_is_refused():
    class Written(Event):
        text: str

    error = refused({"text": "a"}, [Said, Written])
    assert "may be any of Said, Written" in error.problem
    assert '{"$": "tests.test_wire:Said", "value": ...}' in error.problem
    assert from_data({"text": "a", "tokens": 1}, [Said, Written]) == Said(text="a", tokens=1)
    assert refused({"text": "a"}, [Said, StopEvent])  # which takes anything

    class Counted(Event):
        text: int

    assert from_data({"text": "a"}, [Said, Counted]) == Said(text="a")  # by the values
    error = refused({"text": None}, [Said, Counted])
    assert "none of Said | Counted" in error.problem
    assert "Said: .text: expected str, got None" in error.problem


def test_e7_tagged_data_is_of_a_type_that_was_given():
    assert "unknown type" in refused(to_data(Asked(question="?"), tagged=True), Said).problem
    assert (
        "expected Rich | Said, got Point"
        in refused({"$": "tests.test_wire:Point", "value": {"x": 1}}, [Rich, Said]).problem
    )
    # A subclass is not known unless it is given.
    assert "unknown type" in refused(to_data(Loud(text="a"), tagged=True), Said).problem
    assert from_data(to_data(Loud(text="a"), tagged=True), [Said, Loud]) == Loud(text="a")


def test_e7_a_value_may_be_of_any_type_that_was_given():
    event = StopEvent([Said(text="a"), Color.RED])
    assert from_data(to_data(event), [StopEvent, Said, Rich]) == event
    assert refused(to_data(event), [StopEvent, Said]).path == "$.result[1]"


def twin() -> Any:
    class Twin(Event):
        n: int

    return Twin


ONE, OTHER = twin(), twin()


class Both(Event):
    one: ONE
    other: OTHER


def test_e7_two_types_that_data_cannot_tell_apart_are_refused():
    event = Both(one=ONE(n=1), other=OTHER(n=2))
    data = to_data(event)
    assert data == {"one": {"n": 1}, "other": {"n": 2}}
    for types in (Both, [Said, Both]):
        assert "cannot tell two types" in refused(data, types).problem
    assert "cannot tell two types" in refused({"n": 1}, [ONE, OTHER]).problem
    assert json_schema(Both)["properties"].keys() == {"one", "other"}


# --- Strictness -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "path", "problem"),
    [
        ({}, "$.text", "missing, Said needs it"),
        ({"text": 5}, "$.text", "expected str, got 5 (int)"),
        ({"text": "a", "tokens": "5"}, "$.tokens", "expected int, got '5' (str)"),
        ({"text": "a", "tokens": 1.0}, "$.tokens", "expected int"),
        ({"text": "a", "token": 5}, "$.token", "did you mean 'tokens'?"),
        ({"text": LONG, LONG: 5}, "$[", "no such field"),
        (
            {"text": {"$repr": "<lock>"}},
            "$.text",
            "could not be written, only its repr() was: '<lock>'",
        ),
        ({"$repr": LONG}, "$", "could not be written, only its repr()"),
        ([], "$", "got []"),
        (None, "$", "got None"),
        (Said(text="a"), "$", "got Said"),
        ({"$": "tests.test_wire:Said"}, "$", "a tagged value looks like"),
        ({"$": "type", "value": "tests.test_wire:Said"}, "$", "expected"),
        ({"$": "builtins:eval", "value": {}}, "$", "unknown type"),
        (deep(200, lambda value: {"text": value}), "$", "nested more than 100 levels"),
    ],
)
@pytest.mark.parametrize("types", [Said, [Said, Asked]], ids=["one", "several"])
def test_e7_what_is_no_event_is_refused_with_its_path(
    data: Any, path: str, problem: str, types: Any
):
    error = refused(data, types)
    if types is Said or "nested" in problem:
        assert error.path.startswith(path)
        assert problem in error.problem
    assert isinstance(error, ValueError)
    assert isinstance(error, WorkflowError)


@pytest.mark.parametrize(
    "types", [None, [], (), "Said", 5, int, [Said, int], Said | None, Said(text="a"), [None], Point]
)
def test_e7_types_that_are_none_are_an_error_of_the_caller(types: Any):
    with pytest.raises(TypeError, match="event class"):
        from_data({"text": "a"}, types)
    with pytest.raises(TypeError, match="event class"):
        json_schema(types)


def test_e7_a_text_is_not_taken_for_several_types():
    with pytest.raises(TypeError, match="or several, got 'Said'"):
        from_data({}, "Said")


@pytest.mark.parametrize("event", [None, Said, {"text": "a"}, "a"])
def test_e7_only_events_are_written(event: Any):
    with pytest.raises(TypeError, match=r"to_data\(\) takes an event"):
        to_data(event)


# --- Stop events ----------------------------------------------------------------------------------


class Finished(StopEvent):
    rows: int = 0


class FinishedAgain(Finished):
    pass


class Counted(StopEvent):
    rows: int = 0
    result: int | None = None


class Ended(StopEvent):
    pass


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (Finished(rows=1), {"rows": 1}),
        (FinishedAgain(rows=1), {"rows": 1}),
        (Finished(rows=1, result="x"), {"rows": 1, "result": "x"}),
        (Finished(result=0), {"rows": 0, "result": 0}),
        (Counted(rows=1), {"rows": 1, "result": None}),
        (StopEvent(), {"result": None}),
        (Ended(), {"result": None}),
        (
            WorkflowTimedOutEvent(timeout=1.5, active_steps=["a"]),
            {"timeout": 1.5, "active_steps": ["a"]},
        ),
        (
            StopEvent(Finished()),
            {"result": {"$": "tests.test_wire:Finished", "value": {"rows": 0}}},
        ),
    ],
    ids=repr,
)
def test_e2_e7_a_result_that_nobody_declared_is_left_out_if_there_is_none(event: Any, data: Any):
    written = to_data(event)
    assert written == data
    assert list(written) == [key for key in event if key in data]
    types = [type(event), Finished]
    assert from_data(to_data(event, tagged=True), types) == event
    assert JsonCodec(types).dump(event)["value"].keys() == dict(event).keys()


def test_e2_e7_a_failure_is_written_without_a_result():
    data = to_data(WorkflowFailedEvent(step_name="a", exception=ValueError("x")))
    assert list(data) == ["step_name", "exception", "attempts", "elapsed_seconds"]


# --- Subclasses of texts and numbers --------------------------------------------------------------


class Role(str, Enum):  # noqa: UP042 - as many programs have it
    USER = "user"


class Level(IntEnum):
    LOW = 1


class Share(float):
    def __float__(self) -> float:
        raise RuntimeError

    __repr__ = __float__  # type: ignore[assignment]


class Count(int):
    def __int__(self) -> int:
        raise RuntimeError

    __index__ = __trunc__ = __repr__ = __int__  # type: ignore[assignment]


class Name(str):
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


@attrs.define
class Hit:
    text: str
    score: float | None = None


class Found(Event):
    text: str = ""
    maybe: str | None = None
    either: int | str = 0
    number: int = 0
    score: float = 0.0
    literal: Literal["a"] = "a"
    texts: list[str] = []
    pair: tuple[str, float] = ("", 0.0)
    scores: dict[str, float] = {}
    names: dict[int, str] | None = None
    hits: list[Hit] = []
    role: Role | None = None
    role_or_text: Role | str = ""
    anything: Any = None


@pytest.mark.parametrize(
    ("name", "value", "data"),
    [
        ("text", Role.USER, "user"),
        ("text", Name("ada"), "ada"),
        ("text", Name(LONG), LONG),
        ("maybe", Role.USER, "user"),
        ("either", Level.LOW, 1),
        ("either", Name("ada"), "ada"),
        ("number", Level.LOW, 1),
        ("number", Count(2), 2),
        ("number", Count(1 << 3000), {"$": "int", "value": hex(1 << 3000)}),
        ("score", Share(0.5), 0.5),
        ("score", Level.LOW, 1),
        ("score", Share("inf"), {"$": "float", "value": "inf"}),
        ("texts", [Role.USER, Name("ada")], ["user", "ada"]),
        ("pair", (Role.USER, Share(1)), {"$": "tuple", "value": ["user", 1.0]}),
        ("scores", {Role.USER: Level.LOW, Name("ada"): Share(1)}, {"user": 1, "ada": 1.0}),
        ("names", {Level.LOW: Role.USER}, {"$": "dict", "value": [[1, "user"]]}),
        ("hits", [Hit(Role.USER, Share(1))], [{"text": "user", "score": 1.0}]),
        ("role", Role.USER, "user"),
        ("role_or_text", Role.USER, {"$": "tests.test_wire:Role", "value": "user"}),
        ("role_or_text", Name("ada"), "ada"),
        ("anything", [Share(1), {Name("a"): Count(2)}], [1.0, {"a": 2}]),
        ("anything", {Name("$"): 1}, {"$": "dict", "value": [["$", 1]]}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_e7_texts_and_numbers_of_a_subclass_are_written_as_plain_values(
    name: str, value: Any, data: Any
):
    event = Found(**{name: value})
    written = through_json(event)
    if name == "pair":
        data = data["value"]
    assert written[name] == data
    again = from_data(written, Found)
    assert again == event
    if name == "role":
        assert again.role is Role.USER
    if name == "role_or_text":
        assert type(again.role_or_text) is (Role if "$" in data else str)


def test_e7_a_text_of_a_subclass_is_plain_where_its_literal_is_meant():
    event = Found()
    object.__setattr__(event, "literal", Name("a"))  # a constructor would refuse it
    assert from_data(through_json(event), Found) == Found()


def test_e7_members_under_any_keep_their_tag():
    for value in (Role.USER, Level.LOW):
        data = to_data(Found(anything=[value]))["anything"]
        assert data == [{"$": f"tests.test_wire:{type(value).__name__}", "value": value.value}]


def test_e7_keys_that_would_become_one_are_not_lost():
    class Tag(str):
        __hash__ = object.__hash__

        def __eq__(self, other: object) -> bool:
            return self is other

    pairs = to_data(Found(anything={Tag("a"): 1, Tag("a"): 2}))["anything"]
    assert pairs == {"$": "dict", "value": [["a", 1], ["a", 2]]}


@pytest.mark.parametrize(
    "value",
    [Share(1), Count(1), type("Text", (str,), {})("a")],
    ids=lambda value: type(value).__name__,
)
def test_e7_a_snapshot_names_the_cure_for_a_text_or_number_of_a_subclass(value: Any):
    cls = type(value).__mro__[1].__name__
    with pytest.raises(ContextSerdeError, match=rf"put {cls}\(value\) in its place"):
        JsonCodec([Found]).dump(Found(anything=value))


# --- Fields that are not for others ---------------------------------------------------------------


@attrs.define
class Counter:
    limit: int
    _seen: list[int] = attrs.field(factory=list, init=False, eq=False)


@dataclass
class Timer:
    limit: int
    seen: int = field(default=0, init=False, compare=False)


class Joke(Event):
    joke: str
    counter: Counter | None = None
    parts: list[Timer | Counter] = []
    _cache: dict[str, Color] = attrs.field(factory=dict, init=False, repr=False, eq=False)


def used_joke() -> Joke:
    event = Joke(joke="x", counter=Counter(1), parts=[Timer(2), Counter(3)])
    event._cache["y"] = Color.RED
    for one in (event.counter, event.parts[1]):
        one._seen.append(7)  # type: ignore[union-attr]
    event.parts[0].seen = 5  # type: ignore[union-attr]
    return event


def test_e7_fields_that_no_constructor_takes_are_not_written():
    event = used_joke()
    data = through_json(event)
    assert data == {
        "joke": "x",
        "counter": {"limit": 1},
        "parts": [
            {"$": "tests.test_wire:Timer", "value": {"limit": 2}},
            {"$": "tests.test_wire:Counter", "value": {"limit": 3}},
        ],
    }
    again = from_data(data, Joke)
    assert again == event
    assert again._cache == {}
    assert to_data(StopEvent(Joke(joke="x")))["result"]["value"].keys() == {
        "joke",
        "counter",
        "parts",
    }  # of a class that the event does not mention


@pytest.mark.parametrize("types", [Joke, [Joke, Said]], ids=["one", "several"])
def test_e7_fields_that_no_constructor_takes_are_refused(types: Any):
    for data, path in (
        ({"joke": "x", "_cache": {}}, "$._cache"),
        ({"joke": "x", "counter": {"limit": 1, "seen": []}}, "$.counter.seen"),
        ({"joke": "x", "counter": {"limit": 1, "_seen": []}}, "$.counter._seen"),
        ({"joke": "x", "parts": [{"limit": 1, "seen": 5}]}, "$.parts[0]"),
        (
            {
                "joke": "x",
                "parts": [{"$": "tests.test_wire:Timer", "value": {"limit": 1, "seen": 5}}],
            },
            "$.parts[0].seen",
        ),
    ):
        error = refused(data, types)
        if types is Joke:
            assert error.path == path
            assert "no such field" in error.problem or path == "$.parts[0]"


def test_e7_fields_that_no_constructor_takes_are_not_described():
    schema = json_schema(Joke)
    assert schema["properties"].keys() == {"joke", "counter", "parts"}
    assert schema["$defs"].keys() == {"Counter", "Timer"}
    for one in schema["$defs"].values():
        assert one["properties"].keys() == {"limit"}


def test_e7_snapshots_have_the_fields_that_no_constructor_takes():
    event = used_joke()
    codec = JsonCodec([Joke])
    again = codec.load(json.loads(json.dumps(codec.dump(event))))
    assert again._cache == {"y": Color.RED}
    assert again.counter._seen == [7]
    assert again.parts[0].seen == 5


# --- What cannot be written -----------------------------------------------------------------------


def test_e7_what_has_no_form_costs_its_own_place_only():
    lock = threading.Lock()
    event = Rich(anything={"lock": lock, "list": [1, lock, Point(1, lock)]})
    written = {"$repr": repr(lock)}
    point = {"$": "tests.test_wire:Point", "value": {"x": 1, "y": written}}
    assert to_data(event)["anything"] == {"lock": written, "list": [1, written, point]}
    assert refused(to_data(event), Rich).path == "$.anything.lock"


def test_e7_the_path_leads_into_pairs():
    data = to_data(StopEvent({1: threading.Lock()}))
    assert refused(data, StopEvent).path == "$.result[0][1]"


def test_e7_values_of_a_wrong_type_are_written_as_what_they_are():
    event = Asked(question="?")
    event.options.extend([5, None, date(2024, 5, 1), {"a": 1}])  # type: ignore[list-item]
    day = {"$": "date", "value": "2024-05-01"}
    assert to_data(event)["options"] == [5, None, day, {"$": "dict", "value": [["a", 1]]}]
    assert refused(to_data(event), Asked).path == "$.options[0]"

    event = Rich(line=Line([]))
    event.line.points = "2024"  # type: ignore[assignment]
    assert to_data(event)["line"] == {"points": "2024"}


def test_e7_a_text_where_it_would_be_read_as_something_else_is_tagged():
    @attrs.define
    class When:
        day: date
        color: Color | None = None

    event = StopEvent(When("2024-05-01", "red"))  # type: ignore[arg-type]
    text = {"$": "str", "value": "2024-05-01"}
    assert to_data(event)["result"]["value"]["day"] == text


class Names(list[str]):
    def __iter__(self) -> Any:
        raise RuntimeError


class Day(datetime):
    pass


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (Unknown.YES, "yes"),
        (Names(["a", "b"]), ["a", "b"]),
        (type("Table", (dict,), {"__module__": __name__})({"a": 1}), {"a": 1}),
        (type("Pair", (tuple,), {"__module__": __name__})([1, 2]), [1, 2]),
        (Day(2024, 5, 1), "2024-05-01T00:00:00"),
    ],
)
def test_e7_values_of_unknown_classes_are_written_with_their_tag(value: Any, data: Any):
    tag = f"tests.test_wire:{type(value).__name__}"
    assert to_data(StopEvent(value)) == {"result": {"$": tag, "value": data}}
    assert "unknown type" in refused(to_data(StopEvent(value)), StopEvent).problem


# --- Classes --------------------------------------------------------------------------------------


def test_e7_nothing_keeps_classes_alive():
    def use() -> list[weakref.ref[type]]:
        @attrs.define
        class Part:
            n: int

        class Local(Event):
            part: Part

        class Other(Event):
            n: int

        event = Local(part=Part(1))
        assert from_data(to_data(event), Local) == event
        assert from_data(to_data(event, tagged=True), [StopEvent, Local, Other]) == event
        to_data(StopEvent([event, Other(n=1)]))
        json_schema(Local)
        return [weakref.ref(cls) for cls in (Part, Local, Other)]

    refs = use()
    gc.collect()
    assert [ref() for ref in refs] == [None, None, None]


def test_e7_a_subclass_has_a_codec_of_its_own():
    to_data(Said(text="a"))
    assert to_data(Loud(text="a")) == {"text": "a", "tokens": 0, "volume": 11}
    assert from_data({"text": "a", "volume": 1}, Loud) == Loud(text="a", volume=1)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_e7_reading_any_json_gives_an_event_or_an_error(data: Any):
    for types in (Said, StopEvent, [Said, Asked, Rich]):
        try:
            event = from_data(data, types)
        except ContextSerdeError:
            continue
        assert from_data(to_data(event, tagged=True), types) == event


class Earlier(Event):
    later: Later | None = None


EARLY = json_schema(Earlier)


class Later(Event):
    text: str


def test_e7_a_schema_before_all_names_are_defined_fixes_nothing():
    assert EARLY["properties"]["later"] == {"default": None}
    assert json_schema(Earlier)["$defs"].keys() == {"Later"}
    assert from_data({"later": {"text": "a"}}, Earlier) == Earlier(later=Later(text="a"))
