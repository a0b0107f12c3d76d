"""What an event class says in the words of pydantic is translated or refused, never swallowed (rule E6).

This module does without `from __future__ import annotations`, since annotations are the subject.
"""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Generic, NewType, TypeVar

import attrs
import pytest

from anyio_workflows import Event, StartEvent, StopEvent, Workflow, step
from anyio_workflows._json.codec import JsonCodec
from anyio_workflows.errors import EventValidationError

pytest.importorskip("pydantic", reason="pydantic is not installed")

import annotated_types
from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    EmailStr,
    Field,
    FilePath,
    InstanceOf,
    Json,
    JsonValue,
    PastDate,
    PlainSerializer,
    PositiveInt,
    PrivateAttr,
    SecretStr,
    SerializeAsAny,
    SkipValidation,
    Strict,
    StringConstraints,
    WithJsonSchema,
    computed_field,
    conlist,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import core_schema
from typing_extensions import TypeAliasType


class Upper:
    """Has pydantic change values, as any object in an annotation can."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return core_schema.no_info_after_validator_function(str.upper, handler(source))


T = TypeVar("T")
Positive = TypeAliasType("Positive", Annotated[int, Field(gt=0)])
Positives = NewType("Positives", list[Positive])
Described = TypeAliasType("Described", Annotated[str, Field(description="a text")])

WAY = (
    "'attrs.field(validator=check)' checks a value, where check(event, field, value) raises, and "
    "'attrs.field(converter=...)' converts it"
)


class Doc(BaseModel):
    tags: list[str] = []


def metadata_of(cls: Any, name: str) -> dict[str, Any]:
    return dict(attrs.fields_dict(cls)[name].metadata)


def refusal(bases: tuple[Any, ...] = (Event,), annotations: Any = None, **body: Any) -> str:
    """Return why a class cannot be defined."""
    with pytest.raises(EventValidationError) as caught:
        type(
            "Planned", bases, {"__annotations__": annotations or {}, "__module__": __name__, **body}
        )
    return str(caught.value)


# --- E6: translated ---------------------------------------------------------------------------


class Asked(Event):
    topic: str = Field(description="what it is about", title="Topic", examples=["tea"])
    n: int = Field(default=5, json_schema_extra={"a": 1}, deprecated="use m")
    tags: list[str] = Field(default_factory=list)
    notes: list[str] = Field([])
    doc: Doc = Field(default=Doc())
    hidden: str = Field("", repr=False)
    user_name: str = Field("", alias="userName")
    anything: int = Field(default=0, strict=True, frozen=True, validate_default=True, kw_only=True)
    required: int = Field(...)


def test_e6_the_field_of_pydantic_becomes_the_attrs_field_that_means_the_same():
    asked = Asked(topic="tea", required=1)
    assert repr(asked) == (
        "Asked(topic='tea', n=5, tags=[], notes=[], doc=Doc(tags=[]), user_name='', anything=0, "
        "required=1)"
    )
    with pytest.raises(EventValidationError, match=r"Asked.topic: missing"):
        Asked(required=1)
    with pytest.raises(EventValidationError, match=r"Asked.required: missing"):
        Asked(topic="a")


def test_e6_defaults_are_made_for_each_instance():
    one, two = Asked(topic="", required=1), Asked(topic="", required=1)
    assert one.tags is not two.tags
    assert one.notes is not two.notes
    assert one.doc is not two.doc
    one.doc.tags.append("a")
    assert Asked(topic="", required=1).doc == Doc()


def test_e6_what_describes_a_field_is_in_its_metadata():
    assert metadata_of(Asked, "topic") == {
        "description": "what it is about",
        "title": "Topic",
        "examples": ["tea"],
    }
    assert metadata_of(Asked, "n") == {"json_schema_extra": {"a": 1}, "deprecated": "use m"}
    assert metadata_of(Asked, "tags") == {}


def test_e6_an_alias_is_the_keyword_and_the_key_in_json():
    asked = Asked(topic="a", required=1, userName="ada")
    assert asked.user_name == "ada"
    codec = JsonCodec([Asked])
    assert codec.dump(asked)["value"]["userName"] == "ada"
    assert codec.load(codec.dump(asked)) == asked
    with pytest.raises(EventValidationError, match=r"Asked.user_name: no such field"):
        Asked(topic="a", required=1, user_name="ada")


def test_e6_the_signature_shows_the_translated_fields():
    assert str(inspect.signature(Asked)) == (
        "(*, topic: str, n: int = 5, tags: list[str] = <factory>, notes: list[str] = [], "
        f"doc: {__name__}.Doc = Doc(tags=[]), hidden: str = '', userName: str = '', "
        "anything: int = 0, required: int)"
    )


def test_e6_values_and_defaults_are_checked_as_everywhere():
    with pytest.raises(EventValidationError, match=r"Asked.n: expected int, got '5'"):
        Asked(topic="a", required=1, n="5")  # type: ignore[arg-type]

    class Wrong(Event):
        n: int = Field(default="5")

    with pytest.raises(EventValidationError, match=r"Wrong.n: expected int, got the default '5'"):
        Wrong()


def test_e6_annotated_fields_are_translated_too():
    class Annotates(Event):
        plain: Annotated[str, Field(description="a text")]
        with_default: Annotated[int, Field(description="a number")] = 3
        aliased: Described = ""
        inside: Annotated[int, Field(default=4)]
        made: Annotated[list[int], Field(default_factory=list)]
        both: Annotated[int, Field(description="hidden", title="shown")] = Field(
            1, description="told"
        )
        own: Annotated[int, Field(description="hidden")] = attrs.field(
            default=2, metadata={"description": "mine"}
        )

    assert dict(Annotates(plain="a")) == {
        "plain": "a",
        "with_default": 3,
        "aliased": "",
        "inside": 4,
        "made": [],
        "both": 1,
        "own": 2,
    }
    assert metadata_of(Annotates, "plain") == {"description": "a text"}
    assert metadata_of(Annotates, "aliased") == {"description": "a text"}
    assert metadata_of(Annotates, "with_default") == {"description": "a number"}
    assert metadata_of(Annotates, "both") == {"description": "told", "title": "shown"}
    assert metadata_of(Annotates, "own") == {"description": "mine"}


def test_e6_the_types_of_pydantic_are_types_like_any_other():
    class Typed(Event):
        secret: SecretStr = SecretStr("a")
        doc: InstanceOf[Doc] | None = None
        docs: list[SerializeAsAny[Doc]] = []
        strict: Annotated[int, Strict()] = 1
        stricter: Annotated[int, Strict] = 1
        sized: Annotated[str, annotated_types.doc("a text"), annotated_types.Len(0)] = ""

    assert Typed(secret=SecretStr("b")).secret.get_secret_value() == "b"
    assert Typed().secret == SecretStr("a")
    with pytest.raises(EventValidationError, match=r"expected .*SecretStr, got 'b'"):
        Typed(secret="b")  # type: ignore[arg-type]


def test_e6_postponed_annotations_are_translated():
    class Local(BaseModel):
        n: int = 0

    class Postponed(Event):
        local: "Local" = Field(default_factory=lambda: Local())
        text: "Annotated[str, Field(description='d')]"
        unknown: "Nowhere" = Field(default=None)  # type: ignore[name-defined]  # noqa: F821

    assert Postponed(text="a").local == Local()
    assert Postponed(text="a").unknown is None
    assert metadata_of(Postponed, "text") == {"description": "d"}
    assert "ge=0" in refusal(annotations={"n": "Annotated[int, Field(ge=0)]"})


Late: Any


def test_e6_a_name_that_is_defined_later_is_checked_with_the_first_instance():
    class Waiting(Event):
        n: "Late"

    global Late
    Late = Annotated[int, Field(ge=0)]
    try:
        with pytest.raises(
            EventValidationError, match=r"Waiting.n: ge=0 .* 'n: int = attrs.field\("
        ):
            Waiting(n=-1)
    finally:
        del Late


def test_e6_inheritance_and_generics_keep_what_was_translated():
    class Base(Event, Generic[T]):
        content: T = Field(description="what is in it")
        n: int = Field(default=1)

    class Derived(Base[int]):
        m: int = Field(default=2)
        n: int = Field(default=3, description="again")

    class Last(Derived):
        pass

    assert dict(Last(content=7)) == {"content": 7, "m": 2, "n": 3}
    assert metadata_of(Last, "content") == {"description": "what is in it"}
    assert metadata_of(Last, "n") == {"description": "again"}
    assert dict(Base(content="a")) == {"content": "a", "n": 1}


@pytest.mark.anyio
async def test_e6_translated_fields_are_the_keywords_of_run():
    class Begin(StartEvent):
        topic: str = Field(description="what it is about")
        n: int = Field(default=2, ge=None)

    class Flow(Workflow):
        @step
        async def work(self, ev: Begin) -> StopEvent:
            return StopEvent(result=ev.topic * ev.n)

    assert await Flow().run(topic="a") == "aa"


# --- E6: refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "default", "problem", "way"),
    [
        (
            int,
            Field(default=5, ge=0),
            "ge=0",
            "write 'n: int = attrs.field(default=5, validator=attrs.validators.ge(0))'",
        ),
        (
            str,
            Field(max_length=3, pattern="a+"),
            "max_length=3, pattern='a+'",
            "write 'n: str = attrs.field(validator=[attrs.validators.max_len(3), "
            "attrs.validators.matches_re('a+', func=re.search)])'",
        ),
        (
            Annotated[int, Field(gt=1, lt=9)],
            3,
            "gt=1, lt=9",
            "write 'n: int = attrs.field(default=3, validator=[attrs.validators.gt(1), "
            "attrs.validators.lt(9)])'",
        ),
        (
            list[str],
            Field(default_factory=list, min_length=1),
            "min_length=1",
            "write 'n: list[str] = attrs.field(factory=list, validator=attrs.validators.min_len(1))'",
        ),
        (
            PositiveInt,
            ...,
            "gt=0",
            "write 'n: int = attrs.field(validator=attrs.validators.gt(0))'",
        ),
        (
            Annotated[str, StringConstraints(max_length=3)],
            "",
            "max_length=3",
            "write 'n: str = attrs.field(default='', validator=attrs.validators.max_len(3))'",
        ),
        (
            Annotated[int, annotated_types.Interval(ge=1)],
            2,
            "ge=1",
            "write 'n: int = attrs.field(default=2, validator=attrs.validators.ge(1))'",
        ),
        (conlist(int, min_length=2), [], "min_length=2", "write 'n: list[int] = attrs.field("),
        (list[Annotated[int, Field(gt=0)]], [], "gt=0", WAY),
        (dict[str, Annotated[int, Field(gt=0)] | None], {}, "gt=0", WAY),
        (Positives, [], "gt=0", WAY),
        (int, Field(multiple_of=2), "multiple_of=2", WAY),
        (float, Field(allow_inf_nan=False), "allow_inf_nan=False", WAY),
        (int, Field(strict=False), "strict=False", WAY),
        (Annotated[str, BeforeValidator(str.strip)], "", "BeforeValidator", WAY),
        (Annotated[str, Upper], "", "Upper", WAY),
        (list[Annotated[str, Upper()]], [], "Upper", WAY),
        (Annotated[str, PlainSerializer(str)], "", "PlainSerializer", "for another text form"),
        (Annotated[int, annotated_types.Predicate(bool)], 1, "Predicate", WAY),
        (SkipValidation[int], 1, "SkipValidation", "leave it out, or write Any"),
        (Annotated[int | str, Discriminator("a")], 1, "Discriminator", "leave it out: in a union"),
        (Annotated[int, WithJsonSchema({})], 1, "WithJsonSchema", "leave it out"),
        (dict[str, JsonValue], {}, "JsonValue", f"write Any instead; {WAY}"),
        (Json[list[int]], [], "Json", WAY),
        (FilePath, "", "PathType", WAY),
        (EmailStr, "", "EmailStr", f"write str instead; {WAY}"),
        (list[EmailStr] | None, None, "EmailStr", f"write str instead; {WAY}"),
        (PastDate, "", "PastDate", f"write datetime.date instead; {WAY}"),
        (int, Field(exclude=True), "Field(exclude=True)", "leave it out"),
        (int, Field(frozen=False), "Field(frozen=False)", "leave it out"),
        (Annotated[int, Field(discriminator="a")], 1, "Field(discriminator='a')", "leave it out"),
        (int, Field(alias="no name"), "Field(alias='no name')", "attrs.field(alias=...) takes one"),
        (int, Field(validation_alias="a"), "Field(validation_alias='a')", "attrs.field(alias=...)"),
        (
            int,
            Field(alias="a", serialization_alias="b"),
            "Field(serialization_alias='b')",
            "attrs.field(alias=...)",
        ),
        (
            int,
            Field(validation_alias=AliasChoices("a")),
            "Field(validation_alias=AliasChoices(choices=['a']))",
            "attrs.field(alias=...)",
        ),
        (
            int,
            Field(default_factory=lambda data: data["m"]),
            "a default_factory that takes the other values",
            "make the value in a functools.cached_property",
        ),
        (
            dict[str, int],
            PrivateAttr(default_factory=dict),
            "PrivateAttr(...)",
            "attrs.field(factory=dict, init=False, repr=False, eq=False) makes a field that is no keyword",
        ),
    ],
)
def test_e6_what_attrs_cannot_mean_is_refused(
    annotation: Any, default: Any, problem: str, way: str
):
    text = refusal(annotations={"n": annotation}, n=default)
    assert text.startswith(
        f"Planned.n: {problem} means nothing here, since an event is an attrs class and no pydantic "
        f"model; {way}"
    )


def test_e6_a_field_of_a_library_on_top_of_pydantic_is_refused():
    class TableField(FieldInfo):  # type: ignore[misc]
        pass

    way = "write 'n: ... = attrs.field(factory=list)'"
    assert way in refusal(annotations={"n": list[int]}, n=TableField(default_factory=list))
    annotation = list[Annotated[int, TableField(default=3)]]
    assert "write 'n: ... = attrs.field(default=3)'" in refusal(annotations={"n": annotation})
    v1 = pytest.importorskip("pydantic.v1", reason="this Python has no pydantic.v1")
    text = refusal(annotations={"n": int}, n=v1.Field(3, ge=2))
    assert "Planned.n: Field(...) of pydantic.v1 means nothing here" in text
    assert "write 'n: ... = attrs.field(default=3)'" in text
    assert "PrivateAttr" in refusal(_n=v1.PrivateAttr(3))
    text = refusal(annotations={"n": Annotated[int, v1.Field(ge=2)]})
    assert "Planned.n: Field(...) of pydantic.v1 means nothing here" in text


def test_e6_a_field_without_an_annotation_is_refused():
    assert "Planned.n: Field(...) without an annotation means nothing" in refusal(n=Field(3))
    assert "Planned._n: PrivateAttr(...) means nothing here" in refusal(_n=PrivateAttr(3))


@pytest.mark.parametrize(
    ("member", "problem", "way"),
    [
        (field_validator("n")(classmethod(lambda cls, n: n)), "@field_validator", WAY),
        (
            model_validator(mode="after")(lambda self: self),
            "@model_validator",
            "__attrs_post_init__",
        ),
        (computed_field(property(lambda self: 1)), "@computed_field", "functools.cached_property"),
        (field_serializer("n")(lambda self, n: n), "@field_serializer", "Workflow(converter=...)"),
        (model_serializer(lambda self: {}), "@model_serializer", "Workflow(converter=...)"),
    ],
    ids=["field validator", "model validator", "computed", "field serializer", "model serializer"],
)
def test_e6_decorated_methods_are_refused(member: Any, problem: str, way: str):
    for bases in ((Event,), (StartEvent,)):
        text = refusal(bases, annotations={"n": int}, check=member)
        assert text.startswith(
            f"Planned.check: {problem} means nothing here, since an event is an attrs class"
        )
        assert way in text
    mixin = type("Mixin", (), {"check": member})
    assert problem in refusal((mixin, Event), annotations={"n": int})


def old_style(decorate: Callable[[], Any]) -> Any:
    with pytest.warns(DeprecationWarning, match="V1"):
        return decorate()


def test_e6_validators_of_version_one_are_refused():
    from pydantic import root_validator, validator

    check = old_style(lambda: validator("n")(lambda cls, n: n))
    assert "@validator means nothing" in refusal(annotations={"n": int}, check=check)
    check = old_style(lambda: root_validator(skip_on_failure=True)(lambda cls, n: n))
    assert "@root_validator means nothing" in refusal(annotations={"n": int}, check=check)
    v1 = pytest.importorskip("pydantic.v1", reason="this Python has no pydantic.v1")
    check = v1.validator("n", allow_reuse=True)(lambda cls, n: n)
    assert "@validator means nothing" in refusal(annotations={"n": int}, check=check)
    check = v1.root_validator(allow_reuse=True)(lambda cls, n: n)
    assert "@root_validator means nothing" in refusal(annotations={"n": int}, check=check)


@pytest.mark.parametrize(
    "annotation", [None, ClassVar[ConfigDict], ConfigDict, "ConfigDict"], ids=str
)
def test_e6_settings_are_refused(annotation: Any):
    annotations = {} if annotation is None else {"model_config": annotation}
    text = refusal(annotations=annotations, model_config=ConfigDict(extra="forbid"))
    assert text.startswith("Planned.model_config: model_config means nothing here")


@pytest.mark.parametrize("bases", [(Event, BaseModel), (BaseModel, Event), (Event, Doc)], ids=str)
def test_e6_a_class_is_not_an_event_and_a_model(bases: Any):
    model = "Doc" if Doc in bases else "BaseModel"
    with pytest.raises(EventValidationError) as caught:
        type(BaseModel)("Planned", bases, {"__annotations__": {"n": int}, "__module__": __name__})
    assert str(caught.value) == (
        f"Planned: the base {model} means nothing here, since an event is an attrs class and no pydantic "
        "model; leave it out, or let the event have a field for a model"
    )
