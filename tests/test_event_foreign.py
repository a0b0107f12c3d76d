"""What an event class says in the words of other libraries is never swallowed (rule E6).

What pydantic has is tried in `test_event_pydantic`; here, pydantic need not be installed. This module does
without `from __future__ import annotations`, since annotations are the subject.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Any, ClassVar

import attrs
import pytest

from anyio_workflows import Event, StartEvent
from anyio_workflows.errors import EventValidationError

CONFIG = "an event is an attrs class and no pydantic model; leave it out: an event is frozen"


def a_dataclass_field_with_a_factory():
    class Planned(Event):
        tags: list[str] = dataclasses.field(default_factory=list)


def a_dataclass_field_with_a_default():
    class Planned(Event):
        tags: str = dataclasses.field(default="a", metadata={"a": 1})


def a_required_dataclass_field():
    class Planned(StartEvent):
        tags: str = dataclasses.field()


def an_init_var():
    class Planned(Event):
        tags: dataclasses.InitVar[str]


def an_init_var_as_text():
    class Planned(Event):
        tags: "dataclasses.InitVar[str]" = "a"


def an_init_var_of_an_unknown_type():
    class Planned(Event):
        tags: "dataclasses.InitVar[Nowhere]" = "a"  # type: ignore[name-defined]  # noqa: F821


def keyword_only_from_here():
    class Planned(Event):
        n: int
        _: dataclasses.KW_ONLY
        m: int


def a_method_for_dataclasses():
    class Planned(Event):
        n: int

        def __post_init__(self) -> None: ...


def a_method_for_models():
    class Planned(Event):
        n: int

        def model_post_init(self, context: Any) -> None: ...


def settings_of_a_model():
    class Planned(Event):
        model_config = {"arbitrary_types_allowed": True}


def settings_of_a_model_as_class_variable():
    class Planned(Event):
        model_config: ClassVar[dict[str, Any]] = {"extra": "forbid"}


def settings_of_a_model_of_version_one():
    class Planned(Event):
        n: int

        class Config:
            arbitrary_types_allowed = True
            orm_mode = True


def settings_of_a_model_as_keywords():
    class Planned(Event, extra="allow", frozen=True):  # type: ignore[call-arg]
        n: int


def a_field_in_a_base_that_is_no_event():
    class Mixin:
        tags: str = dataclasses.field(default="a")

    class Planned(Mixin, Event):
        n: int


REFUSED: dict[Callable[[], None], str] = {
    a_dataclass_field_with_a_factory: (
        "Planned.tags: dataclasses.field(...) means nothing here, since an event is an attrs class and no "
        "dataclass; write 'tags: ... = attrs.field(factory=list)'"
    ),
    a_dataclass_field_with_a_default: "write 'tags: ... = attrs.field(default='a')'",
    a_required_dataclass_field: "write 'tags: ... = attrs.field()'",
    an_init_var: (
        "Planned.tags: InitVar means nothing here, since an event is an attrs class and no dataclass; declare "
        "a field, or pass the value to a classmethod that makes the event"
    ),
    an_init_var_as_text: "Planned.tags: InitVar means nothing here",
    an_init_var_of_an_unknown_type: "Planned.tags: InitVar means nothing here",
    keyword_only_from_here: (
        "Planned._: KW_ONLY means nothing here, since an event is an attrs class and no dataclass; leave it "
        "out: events take keywords only"
    ),
    a_method_for_dataclasses: (
        "Planned.__post_init__: nothing calls it: name it __attrs_post_init__(self)"
    ),
    a_method_for_models: (
        "Planned.model_post_init: nothing calls it: name it __attrs_post_init__(self)"
    ),
    settings_of_a_model: "Planned.model_config: model_config means nothing here, since " + CONFIG,
    settings_of_a_model_as_class_variable: CONFIG,
    settings_of_a_model_of_version_one: "Planned.Config: class Config means nothing here, since "
    + CONFIG,
    settings_of_a_model_as_keywords: (
        "Planned.extra: the setting of a model means nothing here, since " + CONFIG
    ),
    a_field_in_a_base_that_is_no_event: "Planned.tags: dataclasses.field(...) means nothing here",
}


@pytest.mark.parametrize("define", REFUSED, ids=lambda define: define.__name__)
def test_e6_what_attrs_cannot_mean_is_refused(define: Callable[[], None]):
    with pytest.raises(EventValidationError) as caught:
        define()
    assert REFUSED[define] in str(caught.value)


def test_e6_a_keyword_may_be_meant_for_a_base_that_is_no_event():
    class Plugin:
        def __init_subclass__(cls, title: str) -> None:
            cls.title = title

    class Planned(Event, Plugin, title="a"):
        n: int = 0

    assert Planned.title == "a"


def test_e6_another_unknown_keyword_of_a_class_is_the_error_of_python():
    with pytest.raises(TypeError, match="takes no keyword arguments"):

        class Planned(Event, shape="round"):  # type: ignore[call-arg]
            n: int


def test_e6_names_that_only_look_like_those_of_other_libraries_are_fine():
    @attrs.define
    class Settings:
        extra: str = "a"

    class Planned(Event):
        model_config: dict[str, int] = {}
        fields: list[str] = []
        size: Annotated[int, "in bytes", len] = 1
        model_post_init: bool = False
        later: "InitVariant | None" = None  # type: ignore[name-defined]  # noqa: F821

        class Config:
            limit = 3

    class Configured(Event):
        Config = Settings
        n: int = 0

    planned = Planned(model_config={"a": 1})
    assert dict(planned) == {
        "model_config": {"a": 1},
        "fields": [],
        "size": 1,
        "model_post_init": False,
        "later": None,
    }
    assert Planned.Config.limit == 3
    assert Configured.Config is Settings


def test_e6_the_ways_that_the_errors_name_work():
    def check(event: Event, field: "attrs.Attribute[Any]", value: str) -> None:
        if not value:
            raise ValueError("empty")

    class Planned(Event):
        n: int = attrs.field(default=5, validator=attrs.validators.ge(0))
        text: str = attrs.field(validator=[check, attrs.validators.max_len(3)])
        size: int = attrs.field(converter=int, default=0)
        cache: dict[str, int] = attrs.field(factory=dict, init=False, repr=False, eq=False)

        def __attrs_post_init__(self) -> None:
            if self.size > self.n:
                raise ValueError("too large")

        @cached_property
        def twice(self) -> int:
            return 2 * self.n

    planned = Planned(text="abc", size="5")
    assert (planned.size, planned.twice, planned.cache) == (5, 10, {})
    assert repr(planned) == "Planned(n=5, text='abc', size=5)"
    for wrong in ({"n": -1}, {"text": ""}, {"text": "abcd"}, {"size": "7"}):
        with pytest.raises(ValueError):  # noqa: PT011
            Planned(**{"text": "a", **wrong})
