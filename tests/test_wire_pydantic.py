"""Events as fields of pydantic models, and models as values of events, as data (E7, P6)."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from enum import Enum
from typing import Any, Generic, TypeVar

import attrs
import pytest

pydantic = pytest.importorskip("pydantic", reason="these events are fields of its models")

from pydantic import BaseModel, Field, RootModel, SecretStr, TypeAdapter, ValidationError  # noqa: E402

from anyio_workflows import Event, StopEvent  # noqa: E402
from anyio_workflows.wire import from_data, json_schema, to_data  # noqa: E402

T = TypeVar("T")


class Color(Enum):
    RED = "red"


@attrs.define
class Node:
    n: int
    children: list[Node] = attrs.field(factory=list)


class Said(Event):
    """Somebody said something."""

    text: str
    day: date | None = None
    node: Node | None = None
    color: Color = Color.RED


class Loud(Said):
    volume: int = 11


class Asked(Event):
    question: str
    about: Said | None = None


class Box(Event, Generic[T]):
    content: T


class Reply(BaseModel):
    last: Said
    all: list[Said] = []
    either: Said | Asked | None = None
    other: str | Said | int = 0


class Holder(BaseModel, Generic[T]):
    held: T


SAID = Said(text="a", day=date(2024, 5, 1), node=Node(1, [Node(2)]))
DATA = {
    "text": "a",
    "day": "2024-05-01",
    "node": {"n": 1, "children": [{"n": 2, "children": []}]},
    "color": "red",
}


# --- Events in models -----------------------------------------------------------------------------


def test_e7_a_field_of_a_model_holds_the_very_event():
    assert Reply(last=SAID).last is SAID
    loud = Loud(text="b")
    assert Reply(last=loud).last is loud


def test_e7_a_model_writes_and_reads_the_data_of_an_event():
    reply = Reply(last=SAID, all=[SAID], either=Asked(question="?", about=SAID), other=SAID)
    assert reply.model_dump() == {
        "last": DATA,
        "all": [DATA],
        "either": {"question": "?", "about": DATA},
        "other": DATA,
    }
    assert reply.model_dump(mode="json") == reply.model_dump()
    assert json.loads(reply.model_dump_json()) == reply.model_dump()
    assert Reply.model_validate_json(reply.model_dump_json()) == reply
    assert Reply.model_validate(reply.model_dump()) == reply
    for other in ("text", 5):
        again = Reply(last=SAID, other=other)
        assert Reply.model_validate_json(again.model_dump_json()) == again


@pytest.mark.parametrize(
    ("last", "problem"),
    [
        ({"text": "a", "node": {"n": "5"}}, "$.node.n: expected int, got '5' (str)"),
        ({}, "$.text: missing, Said needs it"),
        ({"text": "a", "txt": "b"}, "$.txt: Said has no such field, did you mean 'text'?"),
        ({"text": {"$repr": "<lock>"}}, "$.text: this value could not be written"),
        ("a", "got 'a' (str)"),
        (None, "got None"),
    ],
)
def test_e7_a_model_reads_events_strictly(last: Any, problem: str):
    for validate in (
        lambda: Reply(last=last),
        lambda: Reply.model_validate_json(json.dumps({"last": last})),
    ):
        with pytest.raises(ValidationError) as caught:
            validate()
        [error] = caught.value.errors()
        assert (error["loc"], error["type"]) == (("last",), "event_data")
        assert problem in error["msg"]


def test_e7_a_model_refuses_events_of_other_classes():
    with pytest.raises(ValidationError, match="got Asked"):
        Reply(last=Asked(question="?"))  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match=r"either\.function-plain\[Said"):
        Reply(last=SAID, either=StopEvent())  # type: ignore[arg-type]


def test_e7_a_subclass_is_written_with_its_tag():
    loud = {"$": "tests.test_wire_pydantic:Loud", "value": {**DATA, "volume": 11}}
    event = Loud(text="a", day=SAID.day, node=SAID.node)
    assert Reply(last=event).model_dump()["last"] == loud
    with pytest.raises(ValidationError, match="unknown type"):
        Reply.model_validate({"last": loud})
    either = Holder[Said | Loud](held=event)
    assert Holder[Said | Loud].model_validate_json(either.model_dump_json()) == either


def test_e7_what_cannot_be_written_fails_no_response():
    event = StopEvent(object())
    assert Holder[StopEvent](held=event).model_dump()["held"]["result"].keys() == {"$repr"}


def test_e7_a_value_that_is_no_event_is_no_event():
    reply = Reply.model_construct(last=5)
    with pytest.warns(UserWarning, match="expected Said"):
        assert reply.model_dump()["last"] == 5


def test_e7_type_adapters_and_generic_models_know_events():
    adapter = TypeAdapter(list[Said | Asked])
    events = [SAID, Asked(question="?")]
    assert adapter.validate_json(adapter.dump_json(events)) == events
    holder = Holder[Box[int]](held=Box(content=5))
    assert Holder[Box[int]].model_validate_json(holder.model_dump_json()) == holder


# --- Schemas --------------------------------------------------------------------------------------


def test_e7_the_schema_of_a_model_has_that_of_its_events():
    schema = Reply.model_json_schema()
    ours = json_schema(Said)
    definitions = {"Said": {key: ours[key] for key in ours if key != "$defs"}, **ours["$defs"]}
    asked = json_schema(Asked)
    definitions["Asked"] = {key: asked[key] for key in asked if key != "$defs"}
    assert schema["$defs"] == definitions
    assert schema["properties"]["last"] == {"$ref": "#/$defs/Said"}
    assert schema["properties"]["all"]["items"] == {"$ref": "#/$defs/Said"}
    assert Reply.model_json_schema(mode="serialization")["$defs"] == definitions


class Chain(Event):
    n: int
    next: Chain | None = None


def test_e7_the_schema_of_an_event_may_refer_to_itself():
    for model in (Chain, list[Chain], Holder[Chain]):
        schema = TypeAdapter(model).json_schema()
        chain = schema["$defs"]["Chain"]
        assert chain["properties"]["next"]["anyOf"][0] == {"$ref": "#/$defs/Chain"}


def test_e7_schemas_follow_the_references_of_others():
    """FastAPI collects the schemas of all models under its own names."""
    _, schema = pydantic.json_schema.models_json_schema(
        [(Reply, "validation"), (Reply, "serialization"), (Holder[Said], "validation")],
        ref_template="#/components/schemas/{model}",
    )
    text = json.dumps(schema)
    assert '"#/components/schemas/Color"' in text
    assert '"#/$defs' not in text
    for reference in set(text.split('"#/components/schemas/')[1:]):
        assert reference.partition('"')[0] in schema["$defs"]


# --- Models in events -----------------------------------------------------------------------------


class Message(BaseModel):
    """What a provider said."""

    role: str = "user"
    content: str = Field(description="The text.")
    key: SecretStr | None = None
    unfit: str = None  # type: ignore[assignment]
    token: str = Field(default="", exclude=True)


class Names(RootModel[list[str]]):
    pass


class Received(Event):
    message: Message
    names: Names = Names([])
    anything: Any = None


def test_e7_models_are_written_field_by_field():
    event = Received(
        message=Message(content="a"), names=Names(["x"]), anything=[Message(content="b")]
    )
    data = to_data(event)
    message = {"role": "user", "content": "a", "key": None}
    assert data == {
        "message": message,
        "names": ["x"],
        "anything": [
            {"$": "tests.test_wire_pydantic:Message", "value": {**message, "content": "b"}}
        ],
    }
    assert from_data(json.loads(json.dumps(data)), Received) == event


def test_e7_a_model_that_cannot_be_written_costs_only_its_place():
    secret = Message(content="a", key=SecretStr("hidden"), token="hidden")
    secret.content = object()  # type: ignore[assignment]
    data = to_data(StopEvent(secret))["result"]["value"]
    assert data["content"].keys() == {"$repr"}
    assert "hidden" not in json.dumps(data)
    assert data["role"] == "user"


def test_e7_models_are_described_with_what_they_say():
    defs = json_schema(Received)["$defs"]
    assert defs["Message"]["description"] == "What a provider said."
    assert defs["Message"]["properties"]["content"] == {
        "type": "string",
        "description": "The text.",
    }
    assert defs["Message"]["properties"]["role"] == {"type": "string", "default": "user"}
    assert defs["Message"]["required"] == ["content"]
    assert defs["Names"] == {"title": "Names", "type": "array", "items": {"type": "string"}}


# --- Without pydantic -----------------------------------------------------------------------------


def test_e7_pydantic_is_imported_only_for_models():
    source = """
import sys
from anyio_workflows import StopEvent
from anyio_workflows.wire import from_data, json_schema, to_data
from_data(to_data(StopEvent("a")), StopEvent), json_schema(StopEvent)
assert not [name for name in sys.modules if name.startswith("pydantic")]
"""
    subprocess.run([sys.executable, "-c", source], check=True)
