"""Pydantic models as one more kind of record: in JSON, exactly and strictly (rules P6, E4, P4).

This module does without `from __future__ import annotations`, so that models may be local to a test.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Optional, TypeVar
from uuid import UUID, uuid4

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows._json.codec import JsonCodec
from anyio_workflows.errors import ContextSerdeError
from anyio_workflows.events import Event

pytest.importorskip("pydantic", reason="pydantic is not installed")

import pydantic
from pydantic import (
    AliasChoices,
    AliasPath,
    AnyUrl,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    HttpUrl,
    MongoDsn,
    PositiveInt,
    PrivateAttr,
    RootModel,
    SecretStr,
    SerializeAsAny,
    computed_field,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypedDict

T = TypeVar("T")


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Said(Event):
    text: str


class Doc(BaseModel):
    text: str = ""
    when: date | None = None


class Page(Doc):
    number: int = 1


class Slip(BaseModel):
    model_config = ConfigDict(frozen=True)
    n: int


@attrs.define
class Shelf:
    docs: list[Doc] = attrs.field(factory=list)


@dataclass
class Note:
    doc: Doc


class Everything(BaseModel):
    """One field of each kind."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    any: Any = None
    raw: bytes = b""
    real: float = 0.0
    day: date = date(2024, 5, 1)
    ident: UUID = UUID(int=1)
    path: Path = Path("a")
    colour: Colour = Colour.RED
    pair: tuple[int, date] = (1, date(2024, 5, 1))
    slips: set[Slip] = set()
    docs: list[Doc] = []
    by_name: dict[str, Doc] = {}
    either: Doc | Said | None = None
    said: Said | None = None
    shelf: Shelf | None = None
    note: Note | None = None
    node: SerializeAsAny[Doc] | None = None
    limited: Annotated[int, Field(ge=0)] = 0
    positive: PositiveInt = 1
    zoned: AwareDatetime | None = None
    url: AnyUrl | None = None
    link: HttpUrl | str | None = None
    error: Exception | None = None


VALUES = {
    "nothing": {},
    "any": {"any": [Doc(), Page(number=2), (1, {2}), b"x", math.inf, Said(text="a"), Colour.BLUE]},
    "raw": {"raw": b"\xff\x00", "real": math.inf, "ident": UUID(int=2), "path": Path("b")},
    "pair": {"pair": (2, date(2025, 1, 1)), "colour": Colour.BLUE},
    "sets": {"slips": {Slip(n=1), Slip(n=2)}},
    "subclasses": {"docs": [Doc(text="a"), Page(text="b", number=7)], "node": Page(number=3)},
    "nested": {"by_name": {"$": Doc(text="x"), "a b": Page()}},
    "unions": {"either": Said(text="a")},
    "unions of models": {"either": Page(number=2)},
    "events": {"said": Said(text="hello")},
    "other records": {"shelf": Shelf([Doc(), Page()]), "note": Note(Page())},
    "constraints": {"limited": 3, "positive": 4},
    "times": {"zoned": datetime(2024, 5, 1, tzinfo=UTC)},
    "urls": {"url": HttpUrl("https://a.b/c?d"), "link": HttpUrl("http://e.f")},
    "text for a url": {"link": "nowhere"},
    "urls anywhere": {"any": [AnyUrl("a://b"), MongoDsn("mongodb://h1,h2/db")]},
    "named": {"any": {"$": "list", "value": []}},
}

KNOWN = [Everything, Page, Said, Colour]


def there_and_back(value: Any, types: Any = None) -> Any:
    codec = JsonCodec([type(value)] if types is None else types)
    return codec.load(json.loads(json.dumps(codec.dump(value))))


def fault(function: Callable[..., Any], *args: Any) -> ContextSerdeError:
    with pytest.raises(ContextSerdeError) as caught:
        function(*args)
    assert len(str(caught.value)) <= 1000
    return caught.value


# --- P6: what was written comes back --------------------------------------------------------------


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_p6_a_model_comes_back_as_it_was(values: dict[str, Any]):
    model = Everything(**values)
    back = there_and_back(model, KNOWN)
    assert type(back) is Everything
    assert back == model
    assert back.model_fields_set == model.model_fields_set
    assert [type(getattr(back, name)) for name in values] == [
        type(getattr(model, name)) for name in values
    ]


def test_p6_values_keep_their_types_where_the_dump_of_pydantic_loses_them():
    model = Everything(docs=[Page(number=2)], any=(b"a", math.nan))
    back = there_and_back(model, KNOWN)
    assert type(back.docs[0]) is Page
    assert type(back.any) is tuple
    assert back.any[0] == b"a"
    assert math.isnan(back.any[1])


def test_p6_an_exception_in_a_model_comes_back():
    back = there_and_back(Everything(error=ValueError("no")), KNOWN)
    assert type(back.error) is ValueError
    assert str(back.error) == "no"


def test_p6_what_nobody_set_is_left_out_and_stays_unset():
    assert JsonCodec([Page]).dump(Page(text="a"))["value"] == {"text": "a"}
    back = there_and_back(Page(text="a"))
    assert back.model_fields_set == {"text"}


def test_p6_a_default_that_was_made_for_the_instance_is_written():
    class Named(BaseModel):
        id: UUID = Field(default_factory=uuid4)
        tags: list[str] = []

    named = Named()
    named.tags.append("a")
    assert there_and_back(named) == named


def test_p6_a_default_that_does_not_fit_its_annotation_comes_back_as_the_default():
    class Loose(BaseModel):
        name: str = None  # type: ignore[assignment]
        size: tuple[int, ...] = []  # type: ignore[assignment]

    assert there_and_back(Loose()) == Loose()
    named = Loose(name="a")
    named.name = None  # type: ignore[assignment]
    back = there_and_back(named)
    assert (back.name, back.size) == (None, [])


def test_p6_another_value_that_does_not_fit_is_refused_when_it_is_written():
    doc = Doc()
    doc.text = 5  # type: ignore[assignment]
    error = fault(JsonCodec([Shelf]).dump, Shelf([Doc(), doc]))
    assert str(error) == (
        "$.docs[1].text: expected str, got 5 (int); assign what fits, or annotate Doc.text with what "
        "it holds"
    )
    page = Everything.model_construct(limited=-1)
    error = fault(JsonCodec(KNOWN).dump, page)
    assert str(error) == (
        "$.limited: Everything does not take back what it holds: Input should be greater than or "
        "equal to 0"
    )


def test_p6_an_int_for_a_float_is_no_misfit():
    class Warm(BaseModel):
        degrees: float = 0

    warm = Warm()
    warm.degrees = 3
    assert there_and_back(warm) == warm


def test_p6_a_validator_that_changes_valid_values_is_refused_when_it_is_written():
    class Twice(BaseModel):
        n: int

        @field_validator("n")
        @classmethod
        def double(cls, n: int) -> int:
            return 2 * n

    error = fault(JsonCodec([Twice]).dump, Twice(n=1))
    assert str(error) == (
        "$.n: Twice makes 4 of 2 when it is made of its values again; let its validators return valid "
        "values unchanged"
    )


def test_p6_a_value_that_cannot_be_compared_and_is_made_anew_is_refused():
    @attrs.define(eq=False)
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise TypeError("no")

    class Renewing(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        odd: Annotated[Odd, BeforeValidator(lambda odd: Odd())]

    error = fault(JsonCodec([Renewing]).dump, Renewing(odd=Odd()))
    assert error.path == "$.odd"
    assert "when it is made of its values again" in error.problem


def test_p6_validators_that_accept_their_own_results_are_fine():
    class Tags(BaseModel):
        tags: Annotated[
            list[str], BeforeValidator(lambda v: v.split(",") if isinstance(v, str) else v)
        ]
        upper: str = ""

        @field_validator("upper")
        @classmethod
        def to_upper(cls, upper: str) -> str:
            return upper.upper()

        @model_validator(mode="before")
        @classmethod
        def without_blanks(cls, data: Any) -> Any:
            return {key: value for key, value in data.items() if value != ""}

        @field_serializer("upper")
        def hide(self, upper: str) -> str:
            return "***"

        @model_serializer(mode="wrap")
        def nothing(self, handler: Any) -> dict[str, Any]:
            return {}

        @computed_field
        @property
        def count(self) -> int:
            return len(self.tags)

    tags = Tags(tags="a,b", upper="x")  # type: ignore[arg-type]
    assert there_and_back(tags) == tags
    assert JsonCodec([Tags]).dump(tags)["value"] == {"tags": ["a", "b"], "upper": "X"}


def test_p6_extra_values_come_back_with_their_types():
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        n: int = 0

    value = Open(n=1, _extra=2, pair=(1, 2), doc=Page(), **{"$": 3})
    back = there_and_back(value, [Open, Page])
    assert back == value
    assert back.model_extra == {"_extra": 2, "pair": (1, 2), "doc": Page(), "$": 3}


def test_p6_a_frozen_model_comes_back():
    assert there_and_back(Slip(n=1)) == Slip(n=1)


def test_p6_private_attributes_are_made_anew():
    class Counter(BaseModel):
        n: int = 0
        _calls: int = PrivateAttr(default=0)

    counter = Counter(n=2)
    counter._calls = 5
    back = there_and_back(counter)
    assert (back.n, back._calls) == (2, 0)


def test_p6_a_deprecated_field_is_written_without_a_warning():
    class Old(BaseModel):
        n: int = Field(default=0, deprecated="use m")

    assert vars(there_and_back(Old(n=1))) == {"n": 1}


def test_p6_a_model_with_enum_values_keeps_them():
    class Painted(BaseModel):
        model_config = ConfigDict(use_enum_values=True)
        colour: Colour
        more: list[Colour] = []
        plain: Colour = Colour.RED

    painted = Painted(colour=Colour.BLUE, more=[Colour.RED])
    back = there_and_back(painted)
    assert back == painted
    assert (back.colour, back.more, back.plain) == ("blue", ["red"], Colour.RED)


# --- Generic, recursive and root models, and such with a constructor of their own -----------------------


class Listed(BaseModel, Generic[T]):
    items: list[T]
    first: T | None = None


class Tree(BaseModel):
    name: str
    below: "list[Tree]" = []
    doc: "Later | None" = None


class Later(BaseModel):
    n: int = 0


class Early(BaseModel):
    inner: "Inner | None" = None


class Inner(BaseModel):
    n: int = 0


class Words(RootModel[list[str]]):
    pass


class Maybe(RootModel[int | None]):
    root: int | None = None


class Holder(BaseModel):
    words: Words | None = None
    maybe: Maybe | None = None
    number: RootModel[float] | None = None
    either: Words | Doc | int = 0


class Greeting(BaseModel):
    text: str
    blocks: list[str] = []

    def __init__(self, content: str | None = None, **values: Any) -> None:
        if content is not None:
            values["text"] = content
        super().__init__(**values)


class Narrow(BaseModel):
    name: str
    upper: str

    def __init__(self, name: str) -> None:
        super().__init__(name=name, upper=name.upper())


@pytest.mark.parametrize(
    "value",
    [
        Listed[int](items=[1], first=2),
        Listed[Doc](items=[Page(), Doc()]),
        Listed[Listed[int]](items=[Listed[int](items=[])]),
        Listed(items=[1, "a", None]),
        Tree(name="a", below=[Tree(name="b"), Tree(name="c", doc=Later(n=2))]),
        Words(["a"]),
        Maybe(None),
        Maybe(3),
        Holder(words=Words([]), maybe=Maybe(None), number=RootModel[float](math.inf)),
        Holder(maybe=None, either=Words(["x"])),
        Holder(either=Doc(text="a")),
        Greeting("hello", blocks=["a"]),
    ],
    ids=repr,
)
def test_p6_models_of_all_kinds_come_back(value: Any):
    back = there_and_back(value, [type(value), Page])
    assert type(back) is type(value)
    assert back == value


def test_p6_a_model_may_name_what_is_defined_later():
    codec = JsonCodec([Early])  # nothing has made an instance, which completes the class
    assert codec.load({"inner": {"n": 3}}, Early) == Early(inner=Inner(n=3))
    assert fault(codec.load, {"inner": {"n": "3"}}, Early).path == "$.inner.n"


class Reply(BaseModel):
    said: Said
    others: list[Said | Doc] = []


def test_p6_e7_events_in_models_come_back():
    reply = Reply(said=Said(text="a"), others=[Said(text="b"), Page(number=2)])
    assert there_and_back(reply, [Reply, Page]) == reply
    assert JsonCodec().load({"said": {"text": "a"}}, Reply) == Reply(said=Said(text="a"))
    assert fault(JsonCodec().load, {"said": {"text": 5}}, Reply).path == "$.said.text"


def test_p6_a_root_model_is_written_as_its_root():
    codec = JsonCodec([Holder])
    assert codec.dump(Holder(words=Words(["a"])))["value"] == {"words": ["a"]}
    assert codec.load(["a"], Words) == Words(["a"])
    assert fault(codec.load, {"words": ["a", 1]}, Holder).path == "$.words[1]"
    assert codec.load({"either": ["a"]}, Holder).either == Words(["a"])


def test_p6_a_constructor_that_takes_no_fields_is_refused_when_it_is_written():
    assert str(fault(JsonCodec([Narrow]).dump, Narrow("a"))) == (
        "$: Narrow does not take back what it holds: Narrow.__init__() got an unexpected keyword "
        "argument 'upper'"
    )


def test_p6_a_field_that_pydantic_would_leave_out_is_left_out_if_it_cannot_be_written():
    class Memory(BaseModel):
        messages: list[str] = []
        count: int = Field(default=0, exclude=True)
        tokenizer: Callable[[str], int] = Field(default_factory=lambda: len, exclude=True)

    memory = Memory(messages=["a"], count=3, tokenizer=str.__len__)
    back = there_and_back(memory)
    assert vars(back) == {"messages": ["a"], "count": 3, "tokenizer": len}

    class Needy(BaseModel):
        tokenizer: Callable[[str], int] = Field(exclude=True)

    assert fault(JsonCodec([Needy]).dump, Needy(tokenizer=len)).path == "$.tokenizer"


# The message and node classes of a well-known library, in a few lines.


class Role(StrEnum):
    USER = "user"
    TOOL = "tool"


class TextBlock(BaseModel):
    block_type: Literal["text"] = "text"
    text: str


class ImageBlock(BaseModel):
    block_type: Literal["image"] = "image"
    image: bytes | None = None
    url: AnyUrl | str | None = None


class Message(BaseModel):
    role: Role = Role.USER
    additional_kwargs: dict[str, Any] = Field(default_factory=dict)
    blocks: list[Annotated[TextBlock | ImageBlock, Field(discriminator="block_type")]] = []

    def __init__(self, /, content: Any = None, **data: Any) -> None:
        if isinstance(content, str):
            data["blocks"] = [TextBlock(text=content)]
        super().__init__(**data)

    @field_serializer("additional_kwargs")
    def shorten(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {}


class Component(BaseModel):
    @model_serializer(mode="wrap")
    def with_class_name(self, handler: Any) -> dict[str, Any]:
        return {**handler(self), "class_name": type(self).__name__}


class Node(Component, ABC):
    model_config = ConfigDict(populate_by_name=True)
    id_: str = Field(default_factory=lambda: str(uuid4()))
    metadata: dict[str, Any] = Field(default_factory=dict, alias="extra_info")
    relations: dict[Role, "Node | list[Node]"] = {}

    @abstractmethod
    def get(self) -> str: ...


class TextNode(Node):
    text: str = ""

    def get(self) -> str:
        return self.text


class Scored(Component):
    node: SerializeAsAny[Node]
    score: float | None = None


class Found(Event):
    nodes: list[Scored]
    messages: list[Message]


def test_p6_messages_and_scored_nodes_come_back():
    found = Found(
        nodes=[
            Scored(node=TextNode(text="a", metadata={"page": 1}), score=1),  # type: ignore[call-arg]
            Scored(node=TextNode(relations={Role.USER: [TextNode()], Role.TOOL: TextNode()})),
        ],
        messages=[
            Message("hello", additional_kwargs={"tool_calls": [{"id": "1"}]}),
            Message(role=Role.TOOL, blocks=[ImageBlock(url=AnyUrl("a://b"), image=b"\x89")]),
            Message(blocks=[ImageBlock(url="a.png")]),
        ],
    )
    assert there_and_back(found, [Found, TextNode]) == found


# --- Names in JSON ------------------------------------------------------------------------------


def test_p6_the_key_is_the_alias_under_which_the_model_takes_the_field():
    class Named(BaseModel):
        user_name: str = Field(alias="userName")
        both: int = Field(0, validation_alias=AliasChoices("b", AliasPath("x", 0), "c"))
        deep: int = Field(0, validation_alias=AliasPath("y", 0))
        out: int = Field(0, serialization_alias="OUT")

    named = Named(userName="ada", b=2, y=[3], out=4)
    data = JsonCodec([Named]).dump(named)["value"]
    assert data == {"userName": "ada", "b": 2, "deep": 3, "out": 4}
    assert there_and_back(named) == named


@pytest.mark.parametrize(
    "config",
    [
        {"validate_by_name": True},
        {"populate_by_name": True},
        {"validate_by_alias": False, "validate_by_name": True},
        {"alias_generator": str.upper},
        {"alias_generator": str.upper, "extra": "allow"},
    ],
    ids=str,
)
def test_p6_aliases_work_with_each_configuration(config: Any):
    class Named(BaseModel):
        model_config = ConfigDict(**config)
        name: str = Field(alias="NAME")
        n: int = 0

    named = Named.model_construct(name="ada", n=3)
    assert there_and_back(named).model_dump() == named.model_dump()


def test_p6_an_extra_value_with_the_name_of_a_field_is_no_confusion():
    class Odd(BaseModel):
        model_config = ConfigDict(extra="allow")
        name: str = Field(alias="a")

    odd = Odd(a="1", name="2")
    back = there_and_back(odd)
    assert (back.__dict__, back.model_extra) == ({"name": "1"}, {"name": "2"})

    class Odder(BaseModel):
        model_config = ConfigDict(extra="allow")
        name: str = Field(validation_alias=AliasPath("a", 0))

    assert fault(JsonCodec([Odder]).dump, Odder(a=["1"], name="2")).path == "$.name"


# --- E4: strict reading -----------------------------------------------------------------------------


class Limits(BaseModel):
    model_config = ConfigDict(extra="forbid")
    tokens: int = Field(ge=1)
    names: list[Annotated[str, Field(max_length=3)]] = []

    @model_validator(mode="after")
    def check(self) -> "Limits":
        if self.tokens == 13:
            raise ValueError("not 13")
        return self


class Size(TypedDict):
    width: int


class Loose(BaseModel):
    size: Size | None = None
    limits: Limits | None = None
    known: Optional["Listed[int]"] = None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"tokens": "5"}, "$.tokens: expected int, got '5' (str)"),
        ({"tokens": True}, "$.tokens: expected int, got True (bool)"),
        ({}, "$.tokens: missing, Limits needs it"),
        ({"token": 1}, "$.token: Limits has no such field, did you mean 'tokens'?"),
        (5, "$: expected "),
        (
            {"tokens": 0},
            "$.tokens: Limits does not take this: Input should be greater than or equal to 1",
        ),
        (
            {"tokens": 0, "names": ["abc", "abcd"]},
            "$.tokens: Limits does not take this: Input should be greater than or equal to 1 (and 1 "
            "more)",
        ),
        (
            {"tokens": 1, "names": ["abc", "abcd"]},
            "$.names[1]: Limits does not take this: String should have at most 3 characters",
        ),
        ({"tokens": 13}, "$: Limits does not take this: Value error, not 13"),
    ],
    ids=str,
)
def test_e4_a_model_is_read_strictly(data: Any, message: str):
    assert str(fault(JsonCodec().load, data, Limits)).startswith(message)


def test_e4_the_path_leads_into_nested_models_and_typed_dicts():
    codec = JsonCodec()
    assert fault(codec.load, {"limits": {"tokens": 0}}, Loose).path == "$.limits.tokens"
    assert fault(codec.load, {"known": {"items": ["1"]}}, Loose).path == "$.known.items[0]"
    error = fault(codec.load, {"size": {"width": "5"}}, Loose)
    assert error.path.startswith("$.size")
    assert "valid integer" in error.problem


def test_e4_the_error_of_a_validator_is_short():
    class Loud(BaseModel):
        text: str

        @field_validator("text")
        @classmethod
        def check(cls, text: str) -> str:
            raise ValueError(text)

    assert "xxx...xxx" in str(fault(JsonCodec().load, {"text": "x" * 100_000}, Loud))


def test_e4_only_a_model_that_says_so_ignores_what_it_does_not_know():
    class Ignoring(BaseModel):
        model_config = ConfigDict(extra="ignore")
        n: int = 0

    assert JsonCodec().load({"n": 1, "m": 2}, Ignoring) == Ignoring(n=1)
    assert fault(JsonCodec().load, {"text": "a", "m": 2}, Doc).path == "$.m"


def test_e4_text_is_read_as_urls_and_secrets():
    class Access(BaseModel):
        url: HttpUrl
        key: SecretStr

    access = JsonCodec().load({"url": "https://a.b", "key": "k"}, Access)
    assert access == Access(url=HttpUrl("https://a.b"), key=SecretStr("k"))
    assert fault(JsonCodec().load, {"url": "a b", "key": "k"}, Access).path == "$.url"
    error = fault(JsonCodec([Access]).dump, access)
    assert str(error) == (
        "$.key: SecretStr('**********') cannot be written as JSON: secrets are not written; let a "
        "resource read it again"
    )


class Circle(BaseModel):
    kind: Literal["circle"] = "circle"
    size: int


class Square(BaseModel):
    kind: Literal["square"]
    size: int


class Drawing(BaseModel):
    shape: Annotated[Circle | Square, Field(discriminator="kind")]
    more: list[Circle | Square] = []


def test_e4_a_literal_tells_the_members_of_a_union_apart():
    shape = {"kind": "square", "size": 2}
    drawing = JsonCodec().load({"shape": shape, "more": [shape, {"size": 1}]}, Drawing)
    square = Square(kind="square", size=2)
    assert drawing == Drawing(shape=square, more=[square, Circle(size=1)])
    assert there_and_back(drawing) == drawing
    wrong = {"shape": {"kind": "star", "size": 1}}
    assert fault(JsonCodec().load, wrong, Drawing).path == "$.shape"


# --- P4: known types ----------------------------------------------------------------------------


def test_p4_models_in_annotations_are_known_at_any_depth():
    @attrs.define
    class Outer:
        tree: dict[str, list[Tree]] | None = None

    outer = Outer({"a": [Tree(name="b", doc=Later(n=3))]})
    assert there_and_back(outer) == outer
    codec = JsonCodec([Outer])
    assert codec.load(codec.dump(Later(n=1))) == Later(n=1)


def test_p4_an_unknown_model_is_refused_when_it_is_written():
    message = "Page is not among the known types; name it in types=[...]"
    assert fault(JsonCodec([Everything]).dump, Everything(any=Page())).problem == message


def test_p4_a_tag_names_no_model_that_is_not_known():
    data = {"$": f"{__name__}:Later", "value": {"n": 1}}
    assert fault(JsonCodec([Doc]).load, data).problem.startswith("unknown type")
    url = {"$": "pydantic.NameEmail", "value": "a"}
    assert fault(JsonCodec([Doc]).load, url).problem.startswith("unknown type")
    private = {"$": "pydantic._BaseUrl", "value": "a"}
    assert fault(JsonCodec([Doc]).load, private).problem.startswith("unknown type")


def test_p6_models_of_version_one_are_no_models_here():
    class V1:
        __module__ = "pydantic.v1.main"

    assert "cannot be written" in fault(JsonCodec().dump, V1()).problem


def test_p6_a_dataclass_of_pydantic_comes_back():
    @pydantic_dataclass
    class Data:
        n: int = Field(ge=0)
        tags: list[str] = Field(default_factory=list)
        doc: Doc | None = None

    data = Data(1, ["a"], Page())
    assert there_and_back(data, [Data, Page]) == data
    assert fault(JsonCodec().load, {"n": -1}, Data).path == "$.n"


# --- Models of any shape ----------------------------------------------------------------------------

ATOMS: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(),
    float: st.floats(),
    str: st.text(max_size=5),
    bytes: st.binary(max_size=5),
    date: st.dates(),
    Any: st.one_of(st.none(), st.booleans(), st.tuples(st.integers()), st.binary(max_size=2)),
    Colour: st.sampled_from(Colour),
    Doc: st.builds(Doc, text=st.text(max_size=3)) | st.builds(Page, number=st.integers()),
    Slip: st.builds(Slip, n=st.integers()),
    Words: st.builds(Words, st.lists(st.text(max_size=3), max_size=2)),
}


def containers(typed: tuple[Any, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    annotation, values = typed
    return st.sampled_from(
        [
            (list[annotation], st.lists(values, max_size=3)),
            (dict[str, annotation], st.dictionaries(st.text(max_size=3), values, max_size=3)),
            (tuple[annotation, ...], st.lists(values, max_size=3).map(tuple)),
            (annotation | None if annotation is not Any else Any, st.none() | values),
        ]
    )


TYPED: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(list(ATOMS.items())), lambda inner: inner.flatmap(containers), max_leaves=3
)


@settings(max_examples=60)
@given(st.data())
def test_p6_every_model_comes_back_as_it_was(data: st.DataObject):
    typed = data.draw(st.lists(TYPED, min_size=1, max_size=4))
    fields = {
        f"f{n}": (annotation, data.draw(st.sampled_from([..., None])))
        for n, (annotation, _) in enumerate(typed)
    }
    cls: Any = pydantic.create_model("Made", **fields)
    values = {
        name: data.draw(typed[n][1])
        for n, (name, (_, default)) in enumerate(fields.items())
        if default is ... or data.draw(st.booleans())
    }
    model = cls(**values)
    codec = JsonCodec([cls, Page])
    written = codec.dump(model)
    back = codec.load(json.loads(json.dumps(written)))
    assert type(back) is cls
    assert codec.dump(back) == written  # NaN equals nothing
    assert back.model_fields_set == model.model_fields_set
    assert repr(back) == repr(model)
