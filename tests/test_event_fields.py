"""The fields of events: defaults, `attrs.field`, inheritance, the generated constructor (rules E3, E5).

This module does without `from __future__ import annotations`; `test_events_postponed` has it.
"""

import abc
import copy
import inspect
import itertools
import pickle
import types
from typing import Any, ClassVar, Literal

import attrs
import pytest

from anyio_workflows.errors import EventValidationError
from anyio_workflows.events import Event, StartEvent, StopEvent

from .event_classes import Box, Found, IntBox, Ranked, fault

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


def test_e3_the_error_of_a_validator_has_its_message_and_no_internals():
    class Made(Event):
        kind: str = attrs.field(validator=attrs.validators.in_(["a", "b"]), alias="of")

    error = fault(lambda: Made(of="c"))
    assert str(error) == "Made.of: 'kind' must be in ['a', 'b'] (got 'c')"
    assert isinstance(error.__cause__, ValueError)


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


@pytest.mark.parametrize("name", ["_values", "_extra", "_open", "_checks", "_local_names"])
def test_e5_a_field_cannot_bear_a_private_name_of_the_librarys(name: str):
    def define() -> type:
        return types.new_class(
            "Probe", (Event,), exec_body=lambda ns: ns.update(__annotations__={name: int})
        )

    with pytest.raises(EventValidationError, match=rf"Probe\.{name}: .* another"):
        define()


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


def test_e8_the_signature_of_an_own_constructor_is_its_own():
    class Child(OwnWay):
        more: int = 1

    assert str(inspect.signature(OwnWay)) == "(number: int) -> None"
    assert str(inspect.signature(Child)) == "(number: int) -> None"


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
