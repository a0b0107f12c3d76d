"""Events under `from __future__ import annotations` (rule E5): every annotation is text."""

from __future__ import annotations

import copy
import enum
import pickle
import sys
import types
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar

import attrs
import pytest

from anyio_workflows.errors import EventValidationError
from anyio_workflows.events import Event, StartEvent, StopEvent

if TYPE_CHECKING:
    from decimal import Decimal

    from no_such_package import Thing

T = TypeVar("T")


class First(Event):
    second: Second
    seconds: list[Second] = []
    limit: ClassVar[int] = 5
    _tok: str | None = None


class Second(Event):
    n: Annotated[int, "count"]
    mode: Literal["a", "b"] = "a"


class Box(Event, Generic[T]):
    content: T
    count: int = 0


class Unseen(Event):
    price: Decimal
    things: list[Thing] = []
    n: int = 0


class Asked(StopEvent):
    second: Second


class Empty(StartEvent):
    kind: ClassVar[str] = "empty"


class Mode(enum.Enum):
    OUTER = "outer"


class Moded(Event):
    class Mode(enum.Enum):
        INNER = "inner"

    mode: Mode


class Child(Moded):
    modes: list[Moded.Mode] = []


def field_at_fault(make: Any) -> str:
    with pytest.raises(EventValidationError) as caught:
        make()
    return caught.value.field


def test_e5_forward_references_to_the_module():
    assert First(second=Second(n=1), seconds=[Second(n=2)]).second.n == 1
    assert field_at_fault(lambda: First(second=1)) == "second"
    assert field_at_fault(lambda: First(second=Second(n=1), seconds=[1])) == "seconds"
    assert field_at_fault(lambda: First(second=Second(n=1), _tok=5)) == "_tok"


def test_e5_postponed_annotations_are_checked():
    assert field_at_fault(lambda: Second(n="1")) == "n"
    assert field_at_fault(lambda: Second(n=1, mode="c")) == "mode"
    assert field_at_fault(lambda: Asked(second=None)) == "second"


def test_e3_the_message_shows_the_annotation_as_it_was_written():
    with pytest.raises(EventValidationError) as caught:
        Second(n="1")
    assert str(caught.value) == "Second.n: expected Annotated[int, 'count'], got '1' (str)"


def test_e5_class_variables_are_no_fields():
    assert First.limit == 5
    assert "limit" not in First(second=Second(n=1))
    assert dict(Empty(topic="tea")) == {"topic": "tea"}


def test_e3_names_that_only_type_checkers_see_are_let_through():
    assert Unseen(price=1.5, things=["x"]).price == 1.5
    assert field_at_fault(lambda: Unseen(price=1, n="x")) == "n"


def test_e5_generics():
    assert Box[int](content=1) == Box(content=1)
    assert field_at_fault(lambda: Box(content=1, count="x")) == "count"


def test_e5_function_local_classes_that_name_each_other():
    class Outer(Event):
        inner: Inner
        outer: Outer | None = None

    class Inner(Event):
        n: int

    assert Outer(inner=Inner(n=1)).inner.n == 1
    assert field_at_fault(lambda: Outer(inner=1)) == "inner"
    assert field_at_fault(lambda: Outer(inner=Inner(n=1), outer=1)) == "outer"


def test_e5_local_classes_are_known_after_their_function_has_returned():
    def make() -> tuple[type[Event], type[Event]]:
        class Inner(Event):
            n: int

        class Outer(Event):
            inner: Inner
            many: list[Inner] = []

        return Outer, Inner

    outer, inner = make()
    assert dict(outer(inner=inner(n=1)))["inner"] == inner(n=1)
    assert field_at_fault(lambda: outer(inner=1)) == "inner"
    assert field_at_fault(lambda: outer(inner=inner(n=1), many=[1])) == "many"


def test_e5_a_local_class_in_a_method_of_a_local_class():
    class Maker:
        def make(self) -> Any:
            class Inner(Event):
                n: int

            class Outer(Event):
                inner: Inner

            return Outer, Inner

    outer, inner = Maker().make()
    outer(inner=inner(n=1))
    assert field_at_fault(lambda: outer(inner=1)) == "inner"


def test_e5_inherited_postponed_annotations_resolve_in_their_own_module():
    module = types.ModuleType("tests.elsewhere")
    source = """
from __future__ import annotations
from anyio_workflows.events import Event
class Second:
    'Not the Second of the other module.'
class Base(Event):
    second: Second
"""
    sys.modules[module.__name__] = module
    try:
        exec(source, module.__dict__)

        class Child(module.Base):
            n: int

        assert Child(second=module.Second(), n=1).n == 1
        assert field_at_fault(lambda: Child(second=Second(n=1), n=1)) == "second"
    finally:
        del sys.modules[module.__name__]


def test_e5_inherited_annotations_of_another_function_resolve_there():
    def make() -> tuple[type[Event], type]:
        class Item:
            pass

        class Base(Event):
            item: Item

        return Base, Item

    base, item = make()

    class Child(base):
        n: int

    assert Child(item=item(), n=1).n == 1
    assert field_at_fault(lambda: Child(item=1, n=1)) == "item"
    assert field_at_fault(lambda: Child(item=item(), n="x")) == "n"


def test_e5_a_module_that_is_not_in_sys_modules():
    namespace: dict[str, Any] = {"__name__": "never_imported"}
    source = "from __future__ import annotations\nfrom anyio_workflows.events import Event\n"
    exec(source + "class Made(Event):\n    n: int\n    m: Made | None = None", namespace)
    made = namespace["Made"]
    assert made(n=1, m=made(n=2)).n == 1
    assert field_at_fault(lambda: made(n="x")) == "n"


def test_e5_a_name_in_the_body_of_the_class_is_meant_first():
    assert Moded(mode=Moded.Mode.INNER).mode is Moded.Mode.INNER
    assert field_at_fault(lambda: Moded(mode=Mode.OUTER)) == "mode"
    assert Child(mode=Moded.Mode.INNER, modes=[Moded.Mode.INNER]).modes == [Moded.Mode.INNER]


def test_e5_a_class_nested_in_a_local_class():
    class Local(Event):
        class Kind(enum.Enum):
            A = "a"

        kind: Kind

    assert Local(kind=Local.Kind.A).kind is Local.Kind.A
    assert field_at_fault(lambda: Local(kind="a")) == "kind"


def test_e5_attrs_fields():
    class Made(Event):
        n: int = attrs.field(default=1, validator=attrs.validators.ge(0))
        tags: list[str] = attrs.field(factory=list)
        size: int = attrs.field(converter=int, default="3")

    assert dict(Made()) == {"n": 1, "tags": [], "size": 3}
    assert field_at_fault(lambda: Made(tags=[1])) == "tags"


def test_e5_copies():
    event = First(second=Second(n=1))
    assert pickle.loads(pickle.dumps(event)) == copy.deepcopy(event) == event.replace() == event
