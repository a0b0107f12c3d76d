"""Values to JSON and back: exact, strict, and closed to what nobody asked for (rules E4, P4)."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
import textwrap
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum, auto
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows._json.codec import MAX_DEPTH, JsonCodec, RestoredError
from anyio_workflows._json.formats import encoding_of
from anyio_workflows._json.reader import Reader
from anyio_workflows.errors import ContextSerdeError
from anyio_workflows.events import Event, StartEvent, StopEvent, WorkflowFailedEvent

T = TypeVar("T")
Meters = NewType("Meters", int)


class Color(Enum):
    RED = "red"
    BLUE = 2


class Shape(Enum):
    ROUND = ("round", 0)
    SQUARE = ("square", 4)


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Word(StrEnum):
    YES = "yes"


class Access(Flag):
    READ = auto()
    WRITE = auto()


class Odd(int):
    pass


class Point(NamedTuple):
    x: int


class Address(TypedDict):
    city: str


@attrs.define
class User:
    name: str = "ada"
    _born: date | None = None
    friends: list[User] = attrs.field(factory=list)
    seen: int = attrs.field(default=0, init=False)


@dataclass
class Data:
    n: int = 0
    when: datetime | None = None
    user: User = field(default_factory=User)
    late: str = field(default="", init=False)


@attrs.define
class Base:
    pass


@attrs.define
class Derived(Base):
    x: int = 0


@attrs.define
class Box(Generic[T]):
    content: T
    kind: Literal["box"] = "box"


class Everything(Event):
    """One field of each kind."""

    none: None = None
    flag: bool = False
    number: int = 0
    real: float = 0.0
    text: str = ""
    day: date = date(2024, 5, 1)
    ident: UUID = UUID(int=1)
    path: Path = Path("a")
    raw: bytes = b""
    color: Color = Color.RED
    level: Level = Level.LOW
    names: list[str] = []
    days: set[date] = set()
    pair: tuple[int, date] = (1, date(2024, 5, 1))
    many: tuple[bytes, ...] = ()
    ages: dict[str, timedelta] = {}
    by_color: dict[Color, int] = {}
    either: int | str | date = 0
    maybe: Data | None = None
    base: Base = attrs.field(factory=Base)
    boxed: Box[int] | None = None
    option: Literal["a", 1] | None = None
    numbers: Sequence[float] = []
    table: Mapping[str, Any] = {}
    error: Exception | None = None
    meters: Annotated[Meters, "long"] = Meters(0)
    anything: Any = None
    complex: complex = 0j


class Failed(Event):
    error: OSError


class Twice(Event):
    text: str = attrs.field(converter=str)


TYPES = [Everything, StartEvent, StopEvent, WorkflowFailedEvent, Derived, Shape, Access, Word]
CODEC = JsonCodec([*TYPES, Failed, Twice])


def through_json(value: Any, codec: JsonCodec = CODEC) -> Any:
    return codec.load(json.loads(json.dumps(codec.dump(value), allow_nan=False)))


def fault(act: Callable[..., object], *args: Any, **kwargs: Any) -> ContextSerdeError:
    with pytest.raises(ContextSerdeError) as caught:
        act(*args, **kwargs)
    return caught.value


def same(one: object, other: object) -> bool:
    """Compare values with their types, all the way down; what is no number equals itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))  # type: ignore[arg-type]
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))  # type: ignore[attr-defined]
    if isinstance(one, set | frozenset):
        return {(type(x), x) for x in one} == {(type(x), x) for x in other}  # type: ignore[attr-defined]
    if isinstance(one, Event):
        return same(dict(one.items()), dict(other.items()))  # type: ignore[attr-defined]
    if isinstance(one, Box):
        return same(one.content, other.content)  # type: ignore[attr-defined]
    if isinstance(one, BaseException):
        return same(one.args, other.args)  # type: ignore[attr-defined]
    return repr(one) == repr(other)


# --- Round trips ------------------------------------------------------------------------------

NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans(), st.complex_numbers(allow_nan=False))
OFFSETS = st.integers(-1000, 1000).map(lambda minutes: timezone(timedelta(minutes=minutes)))
MOMENTS = st.datetimes(timezones=st.one_of(st.none(), OFFSETS)).map(
    lambda value: value.replace(fold=0)
)
SCALARS = st.one_of(
    st.none(),
    NUMBERS,
    st.text(max_size=5),
    st.binary(max_size=5),
    st.binary(max_size=5).map(bytearray),
    st.dates(),
    MOMENTS,
    st.times().map(lambda value: value.replace(fold=0)),
    st.timedeltas(),
    st.decimals(),
    st.uuids(),
    st.sampled_from([Path("a/b"), PurePosixPath("/a"), PureWindowsPath("C:\\x")]),
    st.sampled_from([*Color, *Shape, *Level, *Word, *Access, Access(3), Access(0)]),
)
HASHABLE = st.recursive(
    SCALARS.filter(lambda value: not isinstance(value, bytearray | Decimal) and value == value),
    lambda inner: st.one_of(st.tuples(inner, inner), st.frozensets(inner, max_size=3)),
    max_leaves=3,
)
KEYS = st.one_of(st.text(max_size=3), st.just("$"), HASHABLE)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.sets(HASHABLE, max_size=3),
        st.frozensets(HASHABLE, max_size=3),
        st.dictionaries(KEYS, inner, max_size=3),
        st.builds(lambda x: StartEvent(**{"$": x, "a b": x}), inner),
        st.builds(lambda x: StopEvent(result=x, y=x), inner),
        st.builds(Box, inner),
        st.builds(ValueError, inner),
    ),
    max_leaves=10,
)
USERS = st.builds(User, st.text(max_size=3), st.one_of(st.none(), st.dates()))
DATA = st.builds(Data, st.integers(), st.one_of(st.none(), MOMENTS), USERS)
EVENTS = st.builds(
    Everything,
    flag=st.booleans(),
    number=st.one_of(st.integers(), st.booleans()),
    real=st.one_of(st.floats(), st.integers(), st.booleans()),
    text=st.one_of(st.text(), st.just(Word.YES)),
    day=st.one_of(st.dates(), MOMENTS),
    ident=st.uuids(),
    path=st.just(Path("x")),
    raw=st.binary(),
    color=st.sampled_from(Color),
    level=st.sampled_from(Level),
    names=st.lists(st.text(max_size=3), max_size=3),
    days=st.sets(st.one_of(st.dates(), MOMENTS), max_size=3),
    pair=st.tuples(st.integers(), st.dates()),
    many=st.lists(st.binary(max_size=3), max_size=3).map(tuple),
    ages=st.dictionaries(st.text(max_size=3), st.timedeltas(), max_size=3),
    by_color=st.dictionaries(st.sampled_from(Color), st.integers(), max_size=2),
    either=st.one_of(st.integers(), st.text(), st.dates(), st.booleans(), MOMENTS),
    maybe=st.one_of(st.none(), DATA),
    base=st.one_of(st.builds(Base), st.builds(Derived, st.integers())),
    boxed=st.one_of(st.none(), st.builds(Box, st.integers())),
    option=st.sampled_from(["a", 1, None]),
    numbers=st.one_of(st.lists(st.floats(), max_size=3), st.tuples(st.floats(), st.integers())),
    table=st.dictionaries(st.one_of(st.text(max_size=3), st.just("$")), VALUES, max_size=3),
    error=st.one_of(st.none(), st.builds(ValueError, st.text()), st.builds(OSError, st.just(2))),
    meters=st.integers(),
    anything=VALUES,
    complex=st.one_of(st.complex_numbers(allow_nan=False), st.integers(), st.floats()),
)


@given(VALUES)
def test_p4_values_come_back_as_they_were(value: Any):
    assert same(through_json(value), value)


@given(EVENTS)
def test_p4_events_come_back_as_they_were(event: Everything):
    assert same(through_json(event), event)
    plain = json.loads(json.dumps(CODEC.dump(event)))["value"]
    assert same(CODEC.load(plain, as_type=Everything), event)


def test_p4_fields_that_the_constructor_does_not_take_come_back():
    data, user = Data(), User(friends=[User("eve")])
    data.late, user.seen, user.friends[0].seen = "late", 1, 2
    assert through_json([data, user]) == [data, user]


def test_p4_very_long_integers_and_lone_surrogates_survive():
    for value in [10**5000, -(10**5000), "\ud800"]:
        assert through_json(value) == value
        assert through_json(Box(value)) == Box(value)


# --- The form of things -----------------------------------------------------------------------

GOLDEN: list[tuple[Any, Any]] = [
    ([None, True, 1, 1.5, "x", {"a": []}], [None, True, 1, 1.5, "x", {"a": []}]),
    (math.inf, {"$": "float", "value": "inf"}),
    (b"\x00\xff", {"$": "bytes", "value": "AP8="}),
    (date(2024, 5, 1), {"$": "date", "value": "2024-05-01"}),
    (datetime(2024, 5, 1, 2, tzinfo=UTC), {"$": "datetime", "value": "2024-05-01T02:00:00+00:00"}),
    (time(2, 3), {"$": "time", "value": "02:03:00"}),
    (timedelta(days=1, seconds=30.5), {"$": "timedelta", "value": "P1DT30.500000S"}),
    (-timedelta(seconds=1), {"$": "timedelta", "value": "-P0DT1S"}),
    (Decimal("1.50"), {"$": "Decimal", "value": "1.50"}),
    (UUID(int=1), {"$": "UUID", "value": "00000000-0000-0000-0000-000000000001"}),
    (Path("a/b"), {"$": "Path", "value": str(Path("a/b"))}),
    (1 + 2j, {"$": "complex", "value": "(1+2j)"}),
    ((1, (2,)), {"$": "tuple", "value": [1, {"$": "tuple", "value": [2]}]}),
    ({3, 1, 2}, {"$": "set", "value": [1, 2, 3]}),
    (frozenset(), {"$": "frozenset", "value": []}),
    ({1: "a"}, {"$": "dict", "value": [[1, "a"]]}),
    ({"$": "tuple"}, {"$": "dict", "value": [["$", "tuple"]]}),
    (Color.RED, {"$": "tests.test_json:Color", "value": "red"}),
    (Shape.ROUND, {"$": "tests.test_json:Shape", "value": "ROUND"}),
    (Access.READ | Access.WRITE, {"$": "tests.test_json:Access", "value": 3}),
    (
        Data(n=1, when=datetime(2024, 5, 1)),
        {
            "$": "tests.test_json:Data",
            "value": {
                "n": 1,
                "when": "2024-05-01T00:00:00",
                "user": {"name": "ada", "born": None, "friends": [], "seen": 0},
                "late": "",
            },
        },
    ),
    (
        StopEvent(result={1}, why="x"),
        {
            "$": "anyio_workflows.events:StopEvent",
            "value": {"result": {"$": "set", "value": [1]}, "why": "x"},
        },
    ),
    (
        KeyError("a"),
        {"$": "exception", "value": {"type": "KeyError", "text": "'a'", "args": ["a"]}},
    ),
    (
        FileNotFoundError(2, "gone", "x.txt"),
        {
            "$": "exception",
            "value": {
                "type": "FileNotFoundError",
                "text": "[Errno 2] gone: 'x.txt'",
                "args": [2, "gone", "x.txt"],
            },
        },
    ),
    (
        ContextSerdeError("$", "no"),
        {
            "$": "exception",
            "value": {"type": "anyio_workflows.errors.ContextSerdeError", "text": "$: no"},
        },
    ),
]


class Renamed(Enum):
    NEW = OLD = (1, 2)
    FIVE = FIVE_TOO = "5"


def test_p8_an_alias_of_an_enum_stands_for_the_name_that_a_member_once_had():
    codec, tag = JsonCodec([Renamed]), f"{__name__}:Renamed"
    assert codec.dump(Renamed.NEW) == {"$": tag, "value": "NEW"}
    assert codec.load({"$": tag, "value": "OLD"}) is Renamed.NEW
    assert codec.load({"$": tag, "value": "FIVE_TOO"}) is Renamed.FIVE
    assert "expected one of 'NEW', 'FIVE'" in fault(codec.load, {"$": tag, "value": "5"}).problem


@pytest.mark.parametrize(("value", "data"), GOLDEN, ids=lambda value: repr(value)[:40])
def test_p4_the_form_of_values(value: Any, data: Any):
    assert CODEC.dump(value) == data


BARE: list[tuple[str, Any, Any]] = [
    ("real", 1, 1),
    ("real", True, {"$": "bool", "value": True}),
    ("number", True, {"$": "bool", "value": True}),
    ("real", math.nan, {"$": "float", "value": "nan"}),
    ("day", date(2024, 5, 1), "2024-05-01"),
    ("day", datetime(2024, 5, 1), {"$": "datetime", "value": "2024-05-01T00:00:00"}),
    ("ident", UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ("raw", b"\x00\xff", "AP8="),
    ("color", Color.BLUE, 2),
    ("days", {date(2024, 5, 1)}, ["2024-05-01"]),
    ("pair", (1, date(2024, 5, 1)), [1, {"$": "date", "value": "2024-05-01"}]),
    ("many", (b"",), [""]),
    ("ages", {"a": timedelta(1)}, {"a": "P1DT0S"}),
    ("by_color", {Color.RED: 1}, {"$": "dict", "value": [[CODEC.dump(Color.RED), 1]]}),
    ("either", "2024-05-01", "2024-05-01"),
    ("either", date(2024, 5, 1), {"$": "date", "value": "2024-05-01"}),
    ("base", Base(), {}),
    ("base", Derived(1), {"$": "tests.test_json:Derived", "value": {"x": 1}}),
    ("boxed", Box(1), {"content": 1, "kind": "box"}),
    ("table", {"$": 1}, {"$": "dict", "value": [["$", 1]]}),
    ("numbers", (1.0,), {"$": "tuple", "value": [1.0]}),
    ("meters", 3, 3),
]


@pytest.mark.parametrize(("name", "value", "data"), BARE, ids=lambda value: repr(value)[:40])
def test_p4_what_the_annotation_announces_has_its_usual_form(name: str, value: Any, data: Any):
    written = CODEC.dump(Everything(**{name: value}))["value"][name]
    assert written == data
    assert type(written) is type(data)


# --- Reading what others wrote ----------------------------------------------------------------

READ: list[tuple[Any, Any, Any]] = [
    (int, 5, 5),
    (float, 5, 5),
    (bool, True, True),
    (date, "2024-05-01", date(2024, 5, 1)),
    (datetime, "2024-05-01T00:00Z", datetime(2024, 5, 1, tzinfo=UTC)),
    (timedelta, "P1W2DT3H4M5.5S", timedelta(days=9, hours=3, minutes=4, seconds=5.5)),
    (UUID, "{00000000-0000-0000-0000-000000000001}", UUID(int=1)),
    (Path, "a/b", Path("a/b")),
    (PurePath, "a/b", PurePath("a/b")),
    (Path | None, None, None),
    (Path | None, "a", Path("a")),
    (Color, 2, Color.BLUE),
    (Word, "yes", Word.YES),
    (Level, 1, Level.LOW),
    (Access, 3, Access(3)),
    (list[date], ["2024-05-01"], [date(2024, 5, 1)]),
    (set[Color], ["red"], {Color.RED}),
    (frozenset[int], [1], frozenset({1})),
    (tuple[date, int], ["2024-05-01", 1], (date(2024, 5, 1), 1)),
    (dict[Color, int], {"red": 1}, {Color.RED: 1}),
    (Mapping[date, Path], {"2024-05-01": "a"}, {date(2024, 5, 1): Path("a")}),
    (date | UUID, "00000000-0000-0000-0000-000000000001", UUID(int=1)),
    (date | str, "2024-05-01", "2024-05-01"),
    (list[date] | None, ["2024-05-01"], [date(2024, 5, 1)]),
    (list[int] | list[str], ["a"], ["a"]),
    (list[date] | dict[str, date], {"a": "2024-05-01"}, {"a": date(2024, 5, 1)}),
    (User | Derived, {"x": 1}, Derived(1)),
    (Derived | dict[str, int], {"x": 1}, {"x": 1}),
    (Color | int, 2, 2),
    (Literal["a", 1], 1, 1),
    (Literal[Color.RED, "x"], {"$": "tests.test_json:Color", "value": "red"}, Color.RED),
    (Annotated[Meters, 1], 3, 3),
    (User, {"name": "eve", "born": "2024-05-01"}, User("eve", date(2024, 5, 1))),
    (Box[int], {"content": 1}, Box(1)),
    (Address, {"city": "x"}, {"city": "x"}),
    (complex, 1, 1),
    (complex, "1j", 1j),
    (object, [1], [1]),
    (StartEvent, {"a": {"$": "date", "value": "2024-05-01"}}, StartEvent(a=date(2024, 5, 1))),
    (Twice, {"text": 5}, Twice(text="5")),
]


@pytest.mark.parametrize(("annotation", "data", "value"), READ, ids=lambda value: repr(value)[:40])
def test_e4_the_usual_text_forms_are_read(annotation: Any, data: Any, value: Any):
    assert same(CODEC.load(data, as_type=annotation), value)


REFUSED: list[tuple[Any, Any, str, str]] = [
    (int, "5", "$", "expected int, got '5' (str)"),
    (int, True, "$", "expected int, got True (bool)"),
    (int, 5.0, "$", "expected int, got 5.0 (float)"),
    (bool, 1, "$", "expected bool, got 1 (int)"),
    (str, 1, "$", "expected str, got 1 (int)"),
    (float, "1", "$", "expected float, got '1' (str)"),
    (float, math.nan, "$", "expected float, got nan (float)"),
    (Any, math.inf, "$", "no JSON value: inf (float)"),
    (date, "yesterday", "$", "no date in its usual text form: 'yesterday'"),
    (date, 5, "$", "no date in its usual text form: 5"),
    (timedelta, "P", "$", "no timedelta in its usual text form: 'P'"),
    (bytes, "x!", "$", "no bytes in its usual text form: 'x!'"),
    (date, {"$": "UUID", "value": str(UUID(int=1))}, "$", "expected datetime.date, got UUID("),
    (Color, "green", "$", "expected one of 'red', 2 (Color), got 'green'"),
    (Level, True, "$", "expected one of 1, 2 (Level), got True"),
    (Access, 8, "$", "expected one of 1, 2 (Access), got 8"),
    (list[int], "12", "$", "expected list[int], got '12' (str)"),
    (list[int], [1, "2"], "$[1]", "expected int, got '2' (str)"),
    (tuple[int, int], [1], "$", "expected tuple[int, int], got [1] (list)"),
    (set[list[int]], [[1]], "$", "no item of a set: unhashable type"),
    (dict[Decimal, int], {"sNaN": 1}, "$", "no key of a dict: Cannot hash"),
    (dict[str, int], {"a b": "x"}, "$['a b']", "expected int, got 'x' (str)"),
    (dict[Color, int], {"green": 1}, "$.green", "expected one of 'red', 2"),
    (int | str, 1.5, "$", "expected int | str, got 1.5 (float)"),
    (User | Derived, {"y": 1}, "$", "got {'y': 1} (dict)"),
    (User | None, {"name": 1}, "$.name", "expected str, got 1 (int)"),
    (Literal["a"], "b", "$", "expected Literal['a'], got 'b' (str)"),
    (User, [], "$", "expected tests.test_json.User, got [] (list)"),
    (User, {"nmae": "x"}, "$.nmae", "User has no such field, did you mean 'name'?"),
    (User, {"friends": [{}, {"name": 1}]}, "$.friends[1].name", "expected str, got 1 (int)"),
    (Box, {}, "$.content", "missing, Box needs it"),
    (Everything, {"numbre": 1}, "$.numbre", "did you mean 'number'?"),
    (Everything, {"number": "1"}, "$.number", "expected int, got '1' (str)"),
    (StartEvent, {"_extra": {}}, "$._extra", "StartEvent has no such field"),
    (Any, {"a": {"$": "os:system", "value": 1}}, "$.a", "unknown type 'os:system'"),
    (Any, {"$": "tuple"}, "$", 'a tagged value looks like {"$": "tag", "value": ...}'),
    (Any, {"$": 1, "value": 1}, "$", "a tagged value looks like"),
    (Any, {"$": "tuple", "value": 1, "x": 2}, "$", "a tagged value looks like"),
    (Any, {"$": "dict", "value": [[1]]}, "$", "no pairs of keys and values"),
    (Any, {"$": "dict", "value": [[[], 1]]}, "$", "no pairs of keys and values"),
    (Any, {"$": "set", "value": [[]]}, "$", "no item of a set"),
    (Any, {"$": "bool", "value": 1}, "$", "expected bool, got 1 (int)"),
    (Any, [{1: 2}], "$[0][1]", "the keys of a JSON object are texts"),
    (Any, [(1,)], "$[0]", "no JSON value: (1,) (tuple)"),
    (ValueError, {"$": "exception", "value": {"type": "x.Y", "text": ""}}, "$", "expected ValueE"),
]


@pytest.mark.parametrize(
    ("annotation", "data", "path", "problem"), REFUSED, ids=lambda value: repr(value)[:40]
)
def test_e4_what_does_not_fit_is_refused_with_its_path(
    annotation: Any, data: Any, path: str, problem: str
):
    error = fault(CODEC.load, data, as_type=annotation)
    assert error.path == path
    assert problem in error.problem
    assert str(error) == f"{error.path}: {error.problem}"
    assert error.args == (error.path, error.problem)


def test_e4_the_path_goes_on_from_where_the_value_stands():
    assert fault(CODEC.load, {"a": ["x"]}, dict[str, list[int]], "$.run").path == "$.run.a[0]"
    assert fault(CODEC.dump, [object()], "$.state").path == "$.state[0]"


def test_e4_what_a_class_has_against_its_values_is_told():
    @attrs.define
    class Positive:
        n: int = attrs.field(validator=attrs.validators.gt(0))

    error = fault(CODEC.load, [{"n": 1}, {"n": -1}], as_type=list[Positive])
    assert error.path == "$[1]"
    assert error.problem.startswith("Positive does not take this: 'n' must be > 0")
    assert isinstance(error.__cause__, ValueError)


def test_e4_what_a_validator_of_attrs_refuses_is_told_without_its_internals():
    @attrs.define
    class Chosen:
        a: str = attrs.field(validator=attrs.validators.in_(["x"]))
        _b: str = attrs.field(default="b", validator=attrs.validators.matches_re("b+"))

    class Wanted(Event):
        a: str = attrs.field(validator=attrs.validators.in_(["x"]))
        key: str = attrs.field(default="x", alias="of", validator=attrs.validators.in_(["x"]))

    for cls, data, text in (
        (Chosen, {"a": "abc"}, "$.a: Chosen does not take this: 'a' must be in ['x'] (got 'abc')"),
        (Wanted, {"a": "abc"}, "$.a: Wanted does not take this: 'a' must be in ['x'] (got 'abc')"),
        (Wanted, {"a": "x", "of": "y"}, "$.of: Wanted does not take this: 'key' must be in ['x']"),
        (
            Chosen,
            {"a": "x", "b": "c"},
            "$.b: Chosen does not take this: '_b' must match regex 'b+'",
        ),
        (
            Chosen,
            {"a": "x" * 5000},
            "$.a: Chosen does not take this: 'a' must be in ['x'] (got 'xx",
        ),
    ):
        error = fault(CODEC.load, data, as_type=cls)
        assert str(error).startswith(text)
        assert "Attribute(" not in str(error)
        assert len(str(error)) < 500

    @attrs.define
    class Around:
        a: Any = attrs.field(default=None, converter=lambda data: Chosen(a="abc"))

    # The field of another class is no place in the data.
    error = fault(CODEC.load, {"a": 1}, as_type=Around)
    assert str(error) == "$: Around does not take this: 'a' must be in ['x'] (got 'abc')"


@pytest.mark.parametrize("data", [5, [1], {"a": {"$": "os:system", "value": 1}}, "x", None])
def test_e4_a_field_of_a_type_of_its_own_takes_no_plain_value(data: Any):
    @attrs.define
    class Holder:
        odd: Odd

    error = fault(JsonCodec([Holder]).load, {"odd": data}, as_type=Holder)
    assert error.path.startswith("$.odd")


def test_e4_the_first_member_of_a_union_that_fits_is_taken():
    text = "2024-05-01"
    for annotation, cls in [(date | datetime, date), (datetime | date, datetime)]:
        assert type(CODEC.load(text, as_type=annotation)) is cls


def test_e4_annotations_without_a_hash_are_checked_too():
    @attrs.define
    class Holder:
        names: list[Annotated[str, []]] | None = None

    codec = JsonCodec([Holder])
    assert through_json(Holder(["a"]), codec) == Holder(["a"])
    assert fault(codec.load, {"names": [1]}, as_type=Holder).path == "$.names[0]"


def test_e5_classes_that_are_local_to_a_function_are_understood():
    class Inner(Enum):
        A = "a"

    class Local(Event):
        inner: Inner
        day: date

    @dataclass
    class Plain:
        inner: list[Inner]

    codec = JsonCodec([Local, Plain])
    for value in [Local(inner=Inner.A, day=date(2024, 5, 1)), Plain([Inner.A])]:
        assert same(through_json(value, codec), value)
    assert codec.load({"inner": ["a"]}, as_type=Plain) == Plain([Inner.A])


# --- What cannot be written -------------------------------------------------------------------


class Client:
    pass


BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("value", "path", "problem"),
    [
        ({"a": [Client()]}, "$.a[0]", "a value of type Client cannot be written as JSON; give"),
        ({1: {Client}}, "$[1][0]", "a value of type type cannot be written as JSON"),
        (Odd(1), "$", "a value of type Odd cannot be written"),
        (OrderedDict(), "$", "a value of type OrderedDict cannot be written"),
        (Point(1), "$", "a value of type Point cannot be written"),
        (StartEvent(x=Client()), "$.x", "a value of type Client cannot be written"),
        (
            Everything(anything=[Client()]),
            "$.anything[0]",
            "a value of type Client cannot be written",
        ),
        (Client, "$", "a value of type type cannot be written"),
        (time(1, tzinfo=BERLIN), "$", "datetime.time(1, 0, tzinfo="),
        (len, "$", "a value of type builtin_function_or_method cannot be written"),
        (Event(), "$", "Event is not among the known types; name it in types=[...]"),
        (Data(n="x"), "$.n", "expected int, got 'x' (str)"),  # type: ignore[arg-type]
        (
            Failed(error=type("Down", (OSError,), {})()),
            "$.error",
            "a value of type Down would come back as no",
        ),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_p3_what_cannot_be_written_is_named(value: Any, path: str, problem: str):
    error = fault(CODEC.dump, value)
    assert error.path == path
    assert error.problem.startswith(problem)


def test_p3_nesting_is_bounded_in_both_directions():
    def nested(depth: int) -> list[Any]:
        value: list[Any] = []
        for _ in range(depth):
            value = [value]
        return value

    assert through_json(nested(MAX_DEPTH)) == nested(MAX_DEPTH)
    for depth in (MAX_DEPTH + 1, 500, 100_000):
        deep = nested(depth)
        error = fault(CODEC.load, deep)
        assert error == fault(CODEC.load, deep, path="$") or error.path == "$"
        assert "nested more than 100 levels deep" in error.problem
        assert "nested" in fault(CODEC.dump, deep).problem
        while deep:
            deep = deep[0]
    ring: list[Any] = []
    ring.append({"a": ring})
    assert fault(CODEC.dump, ring).problem == "nested too deeply, or it contains itself"


@attrs.define
class Chain:
    next: Chain | None = None


@attrs.define
class Link:
    next: Link | Derived | None = None
    more: list[Link | Derived] | dict[str, Link] | None = None


def test_p3_what_can_be_written_can_be_read_however_deep():
    codec = JsonCodec([Link, Chain])
    chain = Link()
    for n in range(20):
        chain = Link(chain) if n % 2 else Link(more={"x": chain})
    assert through_json(chain, codec) == chain
    long = Chain()
    for _ in range(MAX_DEPTH - 2):
        long = Chain(long)
    assert through_json(long, codec) == long


def test_p4_hostile_data_takes_no_exponential_time():
    codec = JsonCodec([Link])
    data: Any = {"next": {"wrong": 1}}
    for _ in range(90):
        data = {"next": data}
    assert fault(codec.load, data, as_type=Link).problem.startswith("expected")
    assert "unknown type" in fault(codec.load, {"$": "x" * 1_000_000, "value": 1}).problem
    assert "no such field" in fault(codec.load, {"x" * 1_000_000: 1}, as_type=Link).problem


@attrs.define
class Envelope:
    content: StartEvent


class Tree:
    """A type alias that contains itself, as `type Tree = list[Tree] | dict[str, Tree] | int` makes in 3.12."""

    @functools.cached_property
    def __value__(self) -> Any:
        return list[self] | dict[str, self] | int  # type: ignore[valid-type]


def test_p4_an_alias_that_contains_itself_is_encoded_once():
    encoding = encoding_of(Tree())
    data: Any = 1
    for n in range(MAX_DEPTH):
        data = [data] if n % 2 else {"a": data}
    assert Reader(CODEC._registry).read(data, encoding) == data
    seen, ahead = set[int](), [encoding]
    while ahead and len(seen) < 10:
        one = ahead.pop()
        if id(one) not in seen:
            seen.add(id(one))
            ahead += [one.item, *one.parts]
    assert not ahead


def test_p4_each_value_is_written_once_however_deep():
    """An event with a keyword "$" looks like a tagged value, which is seen once it is written."""
    data: Any = 1
    for _ in range(MAX_DEPTH // 4):
        event = {"$": "anyio_workflows.events:StartEvent", "value": {"$": data}}
        data = {"$": "tests.test_json:Envelope", "value": {"content": event}}
    codec = JsonCodec([Envelope, StartEvent])
    assert codec.dump(codec.load(data)) == data


# --- Exceptions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x", 1, (2,)),
        KeyError("x"),
        FileNotFoundError(2, "gone", "x.txt"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        SystemExit(3),
        KeyboardInterrupt(),
        StopIteration([1]),
        ExceptionGroup("several", [ValueError("x"), ExceptionGroup("more", [KeyError(1)])]),
        BaseExceptionGroup("several", [SystemExit()]),
    ],
    ids=repr,
)
def test_p4_builtin_exceptions_come_back_as_their_type(error: BaseException):
    back = through_json(error)
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert repr(back) == repr(error)
    assert back.__traceback__ is None


def test_p4_other_exceptions_come_back_as_a_stand_in():
    class Custom(ValueError):
        def __init__(self, code: int) -> None:
            super().__init__(f"code {code}")

    impostor = type("KeyError", (Exception,), {})
    unprintable = type("Unprintable", (Exception,), {"__str__": lambda self: 1 / 0})
    for error, text in [
        (Custom(5), "code 5"),
        (impostor("x"), "x"),
        (unprintable(), "(it has no text)"),
        (ValueError(Client), str(Client)),
    ]:
        back = through_json(error)
        assert type(back) is RestoredError
        assert str(back) == text
        assert type(error).__name__ in repr(back)
        again = through_json(back)
        assert (type(again), repr(again), again.args) == (RestoredError, repr(back), back.args)


def test_p4_notes_are_kept():
    error = ValueError("x")
    error.add_note("one")
    assert through_json(error).__notes__ == ["one"]
    failed = WorkflowFailedEvent(step_name="s", exception=ContextSerdeError("$", "no"))
    failed.exception.add_note("two")
    back = through_json(failed)
    assert isinstance(back, WorkflowFailedEvent)
    assert back.exception.__notes__ == ["two"]


@pytest.mark.parametrize(
    "value",
    [
        {"type": "ValueError"},
        {"type": 1, "text": ""},
        {"type": "ValueError", "text": "", "args": 1},
        {"type": "ValueError", "text": "", "notes": [1]},
        {"type": "ValueError", "text": "", "more": 1},
        {"type": "UnicodeDecodeError", "text": "", "args": []},
        {"type": "ExceptionGroup", "text": "", "args": ["x", [1]]},
    ],
    ids=repr,
)
def test_p4_malformed_exceptions_are_refused(value: Any):
    fault(CODEC.load, {"$": "exception", "value": value})


@pytest.mark.parametrize("name", ["eval", "print", "__import__", "int", "__name__", "", "os.error"])
def test_p4_only_exceptions_are_looked_up_among_the_builtins(name: str):
    back = CODEC.load({"$": "exception", "value": {"type": name, "text": "t", "args": ["1"]}})
    assert type(back) is RestoredError


# --- The registry -----------------------------------------------------------------------------


def test_p4_types_that_annotations_mention_are_known():
    codec = JsonCodec([Everything])
    for value in [Color.RED, Level.LOW, Data(), User(), Base(), Box(1)]:
        assert through_json(value, codec) == value
    assert "not among the known types" in fault(codec.dump, Derived()).problem


@pytest.mark.parametrize("wrong", [int, Client, 5, list[int], Point])
def test_p4_only_types_with_fields_or_members_can_be_given(wrong: Any):
    assert (
        "is not an event class, attrs class, dataclass, pydantic model or enum"
        in fault(lambda: JsonCodec([wrong]).dump(1)).problem
    )


def test_p4_two_types_of_one_name_are_refused():
    def make() -> type:
        @dataclass
        class Twin:
            pass

        return Twin

    twin = make()
    assert "cannot tell two types" in fault(JsonCodec, [twin, make()]).problem
    assert through_json(twin(), JsonCodec([twin, twin])) == twin()


# --- Hostile data -----------------------------------------------------------------------------

TAGS = st.sampled_from(
    [
        "$",
        "value",
        "type",
        "text",
        "args",
        "notes",
        "tuple",
        "set",
        "dict",
        "exception",
        "date",
        "os:system",
        "subprocess:Popen",
        "name",
        "n",
        "SystemExit",
        "antigravity:x",
        "int",
        "float",
        "tests.test_json:Data",
        "tests.test_json:Color",
        "anyio_workflows.events:StartEvent",
    ]
)
JSON_TEXT = st.one_of(TAGS, st.text(max_size=3), st.just("2024-05-01"))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), JSON_TEXT),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(JSON_TEXT, inner, max_size=4),
        st.fixed_dictionaries({"$": JSON_TEXT, "value": inner}),
    ),
    max_leaves=15,
)
ANNOTATIONS = st.sampled_from(
    [None, Everything, Data, User, StartEvent, list[Data], Link, Box[int]]
)


def loads_or_refuses(data: Any, annotation: Any) -> None:
    modules = set(sys.modules)
    try:
        value = CODEC.load(data, as_type=annotation)
    except ContextSerdeError as error:
        assert error.path.startswith("$")  # noqa: PT017
    else:
        if annotation is None:
            assert same(CODEC.load(CODEC.dump(value)), value)
    assert set(sys.modules) == modules


@given(JSON, ANNOTATIONS)
@settings(max_examples=500)
def test_p4_any_json_loads_or_is_refused(data: Any, annotation: Any):
    loads_or_refuses(data, annotation)


def places(data: Any) -> list[tuple[Any, Any]]:
    """Return all pairs of a container and a key or index in it."""
    if not isinstance(data, dict | list):
        return []
    keys = list(data) if isinstance(data, dict) else list(range(len(data)))
    return [(data, key) for key in keys] + [p for key in keys for p in places(data[key])]


@given(st.one_of(EVENTS, VALUES), st.data())
@settings(max_examples=300)
def test_p4_damaged_data_loads_or_is_refused(value: Any, draw: st.DataObject):
    data = CODEC.dump(value)
    for _ in range(draw.draw(st.integers(1, 3))):
        if found := places(data):
            holder, key = draw.draw(st.sampled_from(found))
            if draw.draw(st.booleans()):
                holder[key] = draw.draw(JSON)
            else:
                del holder[key]
    loads_or_refuses(data, draw.draw(st.sampled_from([None, type(value)])))


def test_p4_reading_imports_nothing():
    source = """
        import sys
        from anyio_workflows._json.codec import JsonCodec
        from anyio_workflows.errors import ContextSerdeError
        codec = JsonCodec()
        before = set(sys.modules)
        for tag in ["antigravity:fly", "this:s", "wave:open", "wave"]:
            try:
                codec.load({"$": tag, "value": {}})
            except ContextSerdeError:
                pass
            codec.load({"$": "exception", "value": {"type": tag, "text": "", "args": []}})
        print(sorted(set(sys.modules) - before))
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
