"""The JSON Schema of event classes (E7): what the reader takes untagged, as the package `jsonschema` sees it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, IntFlag
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NewType, TypedDict, TypeVar
from uuid import UUID

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_workflows import Event, StartEvent, StopEvent
from anyio_workflows.errors import ContextSerdeError
from anyio_workflows.wire import from_data, json_schema, to_data

jsonschema = pytest.importorskip("jsonschema", reason="it checks the schemas")

T = TypeVar("T")
Meters = NewType("Meters", int)


class Color(Enum):
    """What can be seen."""

    RED = "red"
    BLUE = 2


class Shape(Enum):
    ROUND = 1.5
    FLAT = 2.5


class Level(IntEnum):
    LOW = 1


class Bits(IntFlag):
    ONE = 1


class Address(TypedDict):
    city: str


class Opaque:
    pass


@attrs.define
class Node:
    value: int
    children: list[Node] = attrs.field(factory=list)
    kind: str = attrs.field(default="node", alias="of", metadata={"description": "What it is."})


@dataclass
class Data:
    n: int = field(default=0, metadata={"description": "A number."})
    late: str = field(default="", init=False)  # data does not have it


class Said(Event):
    """Somebody said something.

    It is written down.
    """

    text: str = attrs.field(metadata={"description": "Word by word."})
    tokens: int = 0
    reply: Said | None = None


class Asked(Event):
    question: str


class Everything(Event):
    none: None = None
    flag: bool = False
    number: int = 0
    real: float = 0.0
    text: str = ""
    imaginary: complex = 0
    day: date = date(2024, 5, 1)
    at: datetime | None = None
    clock: time = time(1)
    delay: timedelta = timedelta(1)
    amount: Decimal = Decimal(1)
    ident: UUID = UUID(int=1)
    path: Path = Path("a")
    raw: bytes = b"a"
    color: Color = Color.RED
    shape: Shape = Shape.ROUND
    level: Level = Level.LOW
    bits: Bits = Bits.ONE
    names: list[str] = ["a"]
    numbers: Sequence[float] = []
    days: set[date] = set()
    frozen: frozenset[int] = frozenset()
    pair: tuple[int, str] = (1, "a")
    many: tuple[str, ...] = ()
    any_tuple: tuple = ()  # type: ignore[type-arg]
    ages: dict[str, int] = {}
    by_day: dict[date, int] = {}
    by_color: Mapping[Color, Any] = {}
    by_number: dict[int, str] = {}
    either: int | str | None = None
    record: Node | Data | None = None
    option: Literal["a", 1] | None = "a"
    one: Literal["x"] = "x"
    member: Literal[Color.RED] = Color.RED
    node: Node | None = None
    meters: Annotated[Meters, "long"] = Meters(0)
    address: Address | None = None
    anything: Any = None
    opaque: Opaque | None = None
    converted: int = attrs.field(default=0, converter=int)
    made: list[int] = attrs.field(factory=list)
    said: Said | None = None


class Box(Event, Generic[T]):
    content: T


def check(schema: dict[str, Any]) -> Any:
    """Return what checks data against a schema, which is one itself."""
    jsonschema.Draft202012Validator.check_schema(schema)
    json.dumps(schema, allow_nan=False)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("cls", [Everything, Said, Box, Event, StartEvent, StopEvent])
def test_e7_a_schema_is_one(cls: type[Event]):
    check(json_schema(cls))


def pairs(key: Any, value: Any) -> dict[str, Any]:
    pair = {"type": "array", "prefixItems": [key, value], "minItems": 2, "maxItems": 2}
    return {
        "type": "object",
        "properties": {"$": {"const": "dict"}, "value": {"type": "array", "items": pair}},
        "required": ["$", "value"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("key", "value", "names"),
    [
        (Level, Level.LOW, None),
        (Bits, Bits.ONE, None),
        (tuple[int, ...], (1, 2), None),
        (Shape, Shape.ROUND, ["ROUND"]),
        (Literal[1], 1, None),
        (Literal["a", 1], 1, ["a"]),
        (int | None, None, None),
        (int | str, 1, ["a"]),
        (Path, Path("a"), ["a"]),
    ],
    ids=str,
)
def test_e7_a_mapping_is_described_as_it_is_written_and_read(key: Any, value: Any, names: Any):
    class Mapped(Event):
        part: dict[key, list[int]]  # type: ignore[valid-type]

    schema = check(json_schema(Mapped))
    event = Mapped(part={value: [1]})
    data = json.loads(json.dumps(to_data(event)))
    schema.validate(data)
    assert from_data(data, Mapped) == event
    for name in names or ["a", "1"]:
        data = {"part": {name: [1]}}
        assert schema.is_valid(data) == (names is not None)
        if names is not None:
            from_data(data, Mapped)
        else:
            with pytest.raises(ContextSerdeError):
                from_data(data, Mapped)


def test_e7_fields_are_described_by_their_annotations():
    schema = json_schema(Everything)
    found = schema["properties"]
    text = {"type": "string"}
    defaults = {name: part.pop("default") for name, part in found.items() if "default" in part}
    assert found == {
        "none": {"type": "null"},
        "flag": {"type": "boolean"},
        "number": {"type": "integer"},
        "real": {"type": "number"},
        "text": text,
        "imaginary": {"type": ["number", "string"]},
        "day": text | {"format": "date"},
        "at": {"anyOf": [text | {"format": "date-time"}, {"type": "null"}]},
        "clock": text | {"format": "time"},
        "delay": text | {"format": "duration"},
        "amount": text,
        "ident": text | {"format": "uuid"},
        "path": text,
        "raw": text | {"contentEncoding": "base64"},
        "color": {"$ref": "#/$defs/Color"},
        "shape": {"$ref": "#/$defs/Shape"},
        "level": {"$ref": "#/$defs/Level"},
        "bits": {"$ref": "#/$defs/Bits"},
        "names": {"type": "array", "items": text},
        "numbers": {"type": "array", "items": {"type": "number"}},
        "days": {"type": "array", "items": text | {"format": "date"}, "uniqueItems": True},
        "frozen": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        "pair": {
            "type": "array",
            "prefixItems": [{"type": "integer"}, text],
            "minItems": 2,
            "maxItems": 2,
        },
        "many": {"type": "array", "items": text},
        "any_tuple": {"type": "array"},
        "ages": {"type": "object", "additionalProperties": {"type": "integer"}},
        "by_day": {
            "anyOf": [
                {
                    "type": "object",
                    "additionalProperties": {"type": "integer"},
                    "propertyNames": text | {"format": "date"},
                },
                pairs({}, {"type": "integer"}),
            ]
        },
        "by_color": {
            "anyOf": [
                {"type": "object", "propertyNames": {"$ref": "#/$defs/Color"}},
                pairs({}, {}),
            ]
        },
        "by_number": {
            "anyOf": [{"type": "object", "maxProperties": 0}, pairs({"type": "integer"}, text)]
        },
        "either": {"anyOf": [{"type": "integer"}, text, {"type": "null"}]},
        "record": {"anyOf": [{"$ref": "#/$defs/Node"}, {"$ref": "#/$defs/Data"}, {"type": "null"}]},
        "option": {"anyOf": [{"enum": ["a", 1]}, {"type": "null"}]},
        "one": {"const": "x"},
        "member": {},
        "node": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
        "meters": {"type": "integer"},
        "address": {"anyOf": [{"type": "object"}, {"type": "null"}]},
        "anything": {},
        "opaque": {"anyOf": [{}, {"type": "null"}]},
        "converted": {},
        "made": {"type": "array", "items": {"type": "integer"}},
        "said": {"anyOf": [{"$ref": "#/$defs/Said"}, {"type": "null"}]},
    }
    assert "required" not in schema
    written = to_data(Everything())
    tagged = ("by_day", "by_color", "by_number", "member")
    assert defaults == {name: written[name] for name in found if name not in ("made", *tagged)}


def test_e7_classes_are_described_by_what_they_say_about_themselves():
    schema = json_schema(Said)
    assert schema["$ref"] == "#/$defs/Said"  # it may contain itself
    said = schema["$defs"]["Said"]
    assert said["title"] == "Said"
    assert said["description"] == "Somebody said something.\n\nIt is written down."
    assert said["properties"]["text"] == {"type": "string", "description": "Word by word."}
    assert said["required"] == ["text"]
    defs = json_schema(Everything)["$defs"]
    assert defs["Color"] == {
        "title": "Color",
        "description": "What can be seen.",
        "enum": ["red", 2],
    }
    assert defs["Shape"] == {"title": "Shape", "enum": ["ROUND", "FLAT"]}
    assert defs["Bits"]["type"] == "integer"
    assert defs["Node"] == {
        "title": "Node",
        "type": "object",
        "properties": {
            "value": {"type": "integer"},
            "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
            "of": {"type": "string", "default": "node", "description": "What it is."},
        },
        "required": ["value"],
        "additionalProperties": False,
    }
    assert "description" not in defs["Data"]  # `@dataclass` wrote it
    assert defs["Data"]["properties"].keys() == {"n"}
    assert json_schema(Asked) == {
        "title": "Asked",
        "type": "object",
        "properties": {"question": {"type": "string"}},
        "required": ["question"],
        "additionalProperties": False,
    }


@dataclass
class Sized:
    n: int = field(default=0, metadata={"json_schema_extra": {"minimum": 1}})


EXTRA = {"minimum": 1, "title": "The last word", "x-unit": ["m"]}


class Described(Event):
    day: date = attrs.field(
        metadata={
            "title": "Day",
            "description": "When it is.",
            "examples": [date(2024, 5, 1), "2024-05-02", object(), b"tagged"],
            "deprecated": "use 'at'",
            "other": 1,
        }
    )
    n: int = attrs.field(
        default=1,
        validator=attrs.validators.ge(1),
        metadata={"title": "N", "deprecated": False, "json_schema_extra": EXTRA},
    )
    odd: int = attrs.field(
        default=1, metadata={"title": 1, "description": None, "json_schema_extra": print}
    )
    sized: Sized | None = None


def test_e6_e7_fields_are_described_by_their_metadata():
    schema = json_schema(Described)
    properties = schema["properties"]
    assert properties["day"] == {
        "type": "string",
        "format": "date",
        "title": "Day",
        "description": "When it is.",
        "examples": ["2024-05-01", "2024-05-02"],
        "deprecated": True,
    }
    assert properties["n"] == {"type": "integer", "default": 1} | EXTRA
    assert properties["n"]["x-unit"] is not EXTRA["x-unit"]
    assert properties["odd"] == {"type": "integer", "default": 1}
    assert schema["$defs"]["Sized"]["properties"]["n"]["minimum"] == 1
    assert check(schema).is_valid({"day": "2024-05-01", "n": 1})
    assert not check(schema).is_valid({"day": "2024-05-01", "n": 0})


def test_e6_e7_what_pydantic_says_of_a_field_reaches_the_schema():
    pydantic = pytest.importorskip("pydantic")
    told = {"title": "N", "examples": [1], "json_schema_extra": {"minimum": 1}}

    class Model(pydantic.BaseModel):  # type: ignore[name-defined,misc]
        n: int = pydantic.Field(**told)

    class Carrier(Event):
        n: int = pydantic.Field(**told)
        model: Model

    schema = json_schema(Carrier)
    described = {"type": "integer", "title": "N", "examples": [1], "minimum": 1}
    assert schema["properties"]["n"] == described
    assert schema["$defs"]["Model"]["properties"]["n"] == described


def test_e7_an_open_class_takes_more():
    schema = json_schema(StopEvent)
    assert schema["additionalProperties"] is True
    assert schema["properties"] == {"result": {"default": None}}


def another_node() -> Any:
    @attrs.define
    class Node:
        text: str

    return Node


NAMESAKE = another_node()


class Both(Event):
    mine: Node
    other: NAMESAKE


def test_e7_two_classes_of_one_name_are_told_apart():
    schema = json_schema(Both)
    names = {key: part["$ref"] for key, part in schema["properties"].items()}
    assert names == {
        "mine": "#/$defs/Node",
        "other": "#/$defs/tests.test_wire_schema.another_node._locals_.Node",
    }
    assert check(schema).is_valid({"mine": {"value": 1}, "other": {"text": "a"}})
    assert not check(schema).is_valid({"mine": {"text": "a"}, "other": {"text": "a"}})


@attrs.define
class Odd:
    n: int = None  # type: ignore[assignment]
    names: list[str] = attrs.field(default=[1])  # type: ignore[list-item]
    opaque: Any = attrs.field(default=object())


class Oddity(Event):
    odd: Odd


def test_e7_a_default_that_data_cannot_be_is_left_out():
    assert json_schema(Oddity)["$defs"]["Odd"]["properties"] == {
        "n": {"type": "integer"},
        "names": {"type": "array", "items": {"type": "string"}},
        "opaque": {},
    }


class Tree:
    """A type alias that contains itself, as `type Tree = list[Tree] | int` makes in 3.12."""

    __name__ = "Tree"

    @functools.cached_property
    def __value__(self) -> Any:
        return list[self] | int  # type: ignore[valid-type]


TREE: Any = Tree()


class Planted(Event):
    tree: TREE
    trees: list[TREE] = []


def test_e7_an_alias_that_contains_itself_has_a_definition():
    schema = json_schema(Planted)
    assert schema["properties"]["trees"]["items"] == {"$ref": "#/$defs/Tree"}
    assert schema["$defs"]["Tree"] == {
        "anyOf": [{"type": "array", "items": {"$ref": "#/$defs/Tree"}}, {"type": "integer"}]
    }
    assert check(schema).is_valid({"tree": [1, [2, []]]})
    event = Planted(tree=[1, [2, []]], trees=[3, [4]])
    assert from_data(to_data(event), Planted) == event
    assert not check(schema).is_valid({"tree": [1, ["a"]]})


# --- Against the reader ---------------------------------------------------------------------------

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
NODES: st.SearchStrategy[Node] = st.deferred(
    lambda: st.builds(Node, st.integers(), st.lists(NODES, max_size=2), of=st.text())
)
EVENTS = st.builds(
    Everything,
    flag=st.booleans(),
    number=st.integers(-(2**60), 2**60),
    real=NUMBERS,
    text=st.text(),
    imaginary=NUMBERS | st.complex_numbers(allow_nan=False),
    day=st.dates(),
    at=st.none() | st.datetimes(),
    clock=st.times(),
    delay=st.timedeltas(),
    amount=st.decimals(allow_nan=False),
    ident=st.uuids(),
    raw=st.binary(),
    color=st.sampled_from(Color),
    bits=st.sampled_from([Bits(0), Bits.ONE]),
    names=st.lists(st.text()),
    numbers=st.lists(NUMBERS),
    days=st.sets(st.dates()),
    frozen=st.frozensets(st.integers(0, 2**60)),
    pair=st.tuples(st.integers(), st.text()),
    many=st.lists(st.text()).map(tuple),
    ages=st.dictionaries(st.text().filter(lambda key: key[:1] != "$"), st.integers()),
    by_day=st.dictionaries(st.dates(), st.integers(-(2**60), 2**60)),
    by_color=st.dictionaries(st.sampled_from(Color), st.none() | st.dates()),
    by_number=st.dictionaries(st.integers(-(2**60), 2**60), st.text()),
    either=st.none() | st.integers() | st.text(),
    option=st.sampled_from(["a", 1, None]),
    member=st.just(Color.RED),
    node=st.none() | NODES,
    said=st.none() | st.builds(Said, text=st.text(), reply=st.builds(Said, text=st.text())),
)
# A member in a `Literal` and a record of a union are tagged.
TAGGED = ("member", "record")
EVERYTHING = check(json_schema(Everything))


@given(EVENTS)
def test_e7_what_is_written_untagged_has_the_schema(event: Everything):
    data = json.loads(json.dumps(to_data(event)))
    assert from_data(data, Everything) == event
    for name in TAGGED:
        del data[name]
    EVERYTHING.validate(data)
    from_data(data, Everything)


BAD = [
    None,
    [],
    "a",
    {"extra": 1},
    {"none": 1},
    {"flag": 1},
    {"number": "1"},
    {"number": True},
    {"number": 1.5},
    {"real": "1"},
    {"text": None},
    {"imaginary": None},
    {"day": 1},
    {"raw": 5},
    {"color": "green"},
    {"color": ["red"]},
    {"shape": 1.5},
    {"level": 7},
    {"bits": "ONE"},
    {"names": "a"},
    {"names": [1]},
    {"numbers": {}},
    {"days": [1]},
    {"pair": [1]},
    {"pair": [1, "a", 3]},
    {"pair": ["a", "a"]},
    {"many": [1]},
    {"ages": []},
    {"ages": {"a": "b"}},
    {"by_day": {"2024-05-01": "b"}},
    {"by_color": {"green": 1}},
    {"by_number": {"1": "a"}},
    {"by_number": {"a": "a"}},
    {"by_number": []},
    {"by_number": {"$": "dict", "value": [["1", "a"]]}},
    {"by_number": {"$": "dict", "value": [[1, 1]]}},
    {"by_number": {"$": "dict", "value": [[1]]}},
    {"by_number": {"$": "dict", "value": {}}},
    {"by_number": {"$": "list", "value": []}},
    {"by_number": {"$": "dict", "value": [], "a": 1}},
    {"either": 1.5},
    {"record": {"m": 1}},
    {"record": {"value": "a"}},
    {"option": "b"},
    {"option": True},
    {"one": "y"},
    {"node": {}},
    {"node": {"value": 1, "children": [{"value": "a"}]}},
    {"node": {"value": 1, "kind": "a"}},
    {"address": "a"},
    {"said": {"tokens": 1}},
    {"said": {"text": "a", "reply": {"text": 1}}},
]


@pytest.mark.parametrize("data", BAD, ids=repr)
def test_e7_what_a_schema_refuses_is_refused(data: Any):
    assert not EVERYTHING.is_valid(data)
    with pytest.raises(ContextSerdeError):
        from_data(data, Everything)


GOOD = [
    {},
    {"real": 1},
    {"imaginary": "1j"},
    {"at": "2024-05-01T00:00:00"},
    {"by_day": {"2024-05-01": 1}},
    {"by_color": {"red": None}},
    {"by_day": {"$": "dict", "value": [[{"$": "date", "value": "2024-05-01"}, 1]]}},
    {"by_number": {}},
    {"by_number": {"$": "dict", "value": []}},
    {"by_number": {"$": "dict", "value": [[1, "a"]]}},
    {"record": {"n": 1}},
    {"record": {"value": 1}},
    {"node": {"value": 1, "of": "a"}},
    {"address": {"city": 1}},
    {"anything": {"a": [1]}},
    {"either": None},
    {"said": {"text": "a", "reply": {"text": "b"}}},
]


@pytest.mark.parametrize("data", GOOD, ids=repr)
def test_e7_what_a_schema_takes_is_taken(data: Any):
    EVERYTHING.validate(data)
    from_data(data, Everything)
