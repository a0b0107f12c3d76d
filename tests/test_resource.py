"""The markers of resources, and what is read of them (P5, V1)."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import functools
import json
import pickle
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, TypedDict

import attrs
import pytest

from anyio_workflows._dependencies import Dependency, read_dependency
from anyio_workflows.errors import WorkflowConfigurationError
from anyio_workflows.resource import Resource, ResourceConfig


def dependency_of(annotation: Any) -> Dependency:
    faults: list[str] = []
    dependency = read_dependency(annotation, faults, faults)
    assert faults == []
    assert dependency is not None
    return dependency


def faults_of(annotation: Any) -> tuple[list[str], list[str]]:
    faults: list[str] = []
    unresolved: list[str] = []
    assert read_dependency(annotation, faults, unresolved) is not None
    return faults, unresolved


def make() -> str:
    return "made"


# --- Markers --------------------------------------------------------------------------------------


def test_p5_a_resource_is_cached_by_default() -> None:
    assert Resource(make) == Resource(make, cache=True) != Resource(make, cache=False)
    assert Resource(make).factory is make


@pytest.mark.parametrize("factory", [None, 3, "make"])
def test_p5_resource_refuses_what_cannot_be_called(factory: Any) -> None:
    with pytest.raises(WorkflowConfigurationError, match=r"Resource\(\) takes a function that"):
        Resource(factory)


@pytest.mark.parametrize("cache", [None, 1, "yes"])
def test_p5_resource_refuses_a_cache_that_is_no_bool(cache: Any) -> None:
    with pytest.raises(WorkflowConfigurationError, match=r"Resource\(cache=\) is a bool, not"):
        Resource(make, cache=cache)


@pytest.mark.parametrize("file", [None, 3, "", "settings", "settings.yaml", b"a.json"])
def test_p5_config_refuses_what_is_no_json_or_toml_file(file: Any) -> None:
    with pytest.raises(WorkflowConfigurationError) as caught:
        ResourceConfig(file)
    assert str(caught.value) == (
        f"ResourceConfig() takes the name of a .json or .toml file, not {file!r}"
    )


@pytest.mark.parametrize("selector", ["", ".", "a.", ".a", "a..b", 3, ["a"]])
def test_p5_config_refuses_empty_keys(selector: Any) -> None:
    with pytest.raises(WorkflowConfigurationError, match="is text like 'server"):
        ResourceConfig("settings.json", path_selector=selector)


def test_p5_config_keeps_what_is_for_people() -> None:
    config = ResourceConfig("a.json", "b", "Limits", description="How much of each")
    assert (config.label, config.description) == ("Limits", "How much of each")
    assert ResourceConfig("a.json").label is None
    with pytest.raises(
        WorkflowConfigurationError, match=r"ResourceConfig\(label=\) is text, not 3"
    ):
        ResourceConfig("a.json", label=3)  # type: ignore[arg-type]


def test_p5_config_takes_paths() -> None:
    assert ResourceConfig(Path("settings.TOML")).config_file == "settings.TOML"


@pytest.mark.parametrize(
    "marker", [Resource(make), ResourceConfig("a.json", "b")], ids=["factory", "file"]
)
def test_markers_are_frozen_and_hashable(marker: Any) -> None:
    assert hash(marker) == hash(attrs.evolve(marker))
    assert pickle.loads(pickle.dumps(marker)) == marker
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        marker.cache = False


# --- Which annotations ask for something ------------------------------------------------------------


@pytest.mark.parametrize("annotation", [None, int, "text", Annotated[int, "note"], list[int], Any])
def test_p5_other_annotations_ask_for_nothing(annotation: Any) -> None:
    faults: list[str] = []
    assert read_dependency(annotation, faults, faults) is None
    assert faults == []


Made = Annotated[str, Resource(make)]


@pytest.mark.parametrize(
    "annotation",
    [Made, Annotated[Made, "note"], Annotated[str, "note", Resource(make)], Made | None],
    ids=["bare", "noted", "second", "optional"],
)
def test_p5_the_marker_is_found(annotation: Any) -> None:
    assert dependency_of(annotation) == dependency_of(Made)


def test_p5_needs_with_the_same_factory_are_the_same() -> None:
    assert dependency_of(Made) == dependency_of(Annotated[object, Resource(make)])
    assert hash(dependency_of(Made)) == hash(dependency_of(Made))
    assert dependency_of(Made) != dependency_of(Annotated[str, Resource(make, cache=False)])
    assert dependency_of(Made) != dependency_of(Annotated[str, Resource(lambda: "made")])


class Pool:
    def __init__(self, size: int = 1) -> None:
        self.size = size

    def connect(self) -> int:
        return self.size

    async def lease(self) -> AsyncIterator[int]:
        yield self.size

    @contextlib.contextmanager
    def lock(self) -> Iterator[int]:
        yield self.size

    def __call__(self) -> int:
        return self.size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pool)

    __hash__ = None  # type: ignore[assignment]


class Stream:
    async def __call__(self) -> AsyncIterator[int]:
        yield 1


def test_p5_bound_methods_are_the_same_if_their_objects_are() -> None:
    one, other = Pool(), Pool()
    assert dependency_of(Annotated[int, Resource(one.connect)]) == dependency_of(
        Annotated[int, Resource(one.connect)]
    )
    assert dependency_of(Annotated[int, Resource(one.connect)]) != dependency_of(
        Annotated[int, Resource(other.connect)]
    )
    assert dependency_of(Annotated[int, Resource(one)]) != dependency_of(
        Annotated[int, Resource(other)]
    )


# --- Kinds of factories -----------------------------------------------------------------------------


async def make_soon() -> str:
    return "made"


def generate(n: int = 0) -> Iterator[int]:
    yield n


async def generate_soon(n: int = 0) -> AsyncIterator[int]:
    yield n


def logged(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@functools.wraps(generate)
def as_list(n: int = 0) -> list[int]:
    return list(generate(n))


CONTEXTS = [
    generate,
    generate_soon,
    contextlib.contextmanager(generate),
    contextlib.asynccontextmanager(generate_soon),
    functools.partial(generate, 3),
    functools.partial(generate_soon, n=3),
    functools.partial(contextlib.asynccontextmanager(generate_soon), 3),
    logged(contextlib.asynccontextmanager(generate_soon)),
    Pool().lease,
    Pool().lock,
    Stream(),
]
PLAIN = [make, make_soon, Pool, functools.partial(Pool, 3), Pool().connect, Pool(), dict, int, len]


@pytest.mark.parametrize("factory", CONTEXTS, ids=range(len(CONTEXTS)))
def test_p5_generators_are_entered(factory: Any) -> None:
    dependency = dependency_of(Annotated[int, Resource(factory)])
    assert dependency.is_context_manager
    assert dependency.needs_closing
    assert {"__enter__", "__aenter__"} & set(dir(type(dependency.make())))


@pytest.mark.parametrize("factory", [*PLAIN[:-1], contextlib.ExitStack])
def test_p5_others_are_called(factory: Any) -> None:
    dependency = dependency_of(Annotated[int, Resource(factory)])
    assert not dependency.is_context_manager
    assert not dependency.needs_closing
    assert dependency.make is factory


@pytest.mark.parametrize(
    ("factory", "name"),
    [
        (make, "make"),
        (Pool, "Pool"),
        (Pool().connect, "Pool.connect"),
        (Pool().lock, "Pool.lock"),
        (Pool(), "Pool.__call__"),
        (functools.partial(Pool, 3), "Pool"),
        (logged(generate), "generate"),
        (lambda: 3, "<lambda>"),
        (dict, "dict"),
    ],
)
def test_p5_needs_have_names(factory: Any, name: str) -> None:
    assert dependency_of(Annotated[int, Resource(factory)]).name == name


# --- What factories ask for -------------------------------------------------------------------------


def connect(made: Made, size: int = 3, *, pool: Annotated[Pool, Resource(Pool)]) -> None: ...


def lease(
    one: Annotated[int, Resource(generate, cache=False)], two: Annotated[None, Resource(connect)]
) -> None: ...


def test_p5_factories_ask_for_resources_themselves() -> None:
    dependency = dependency_of(Annotated[None, Resource(lease)])
    assert {param: below.name for param, below in dependency.dependencies.items()} == {
        "one": "generate",
        "two": "connect",
    }
    assert list(dependency.dependencies["two"].dependencies) == ["made", "pool"]
    assert dependency.dependencies["two"].dependencies["made"] == dependency_of(Made)
    assert not dependency.is_context_manager
    assert dependency.needs_closing, "the generator is closed with what it was made for"


def test_p5_what_has_to_be_there_first() -> None:
    def inner(made: Made) -> None: ...

    def outer(
        inner: Annotated[None, Resource(inner, cache=False)], pool: Annotated[Pool, Resource(Pool)]
    ) -> None: ...

    dependencies = dependency_of(Annotated[None, Resource(outer)]).cached_dependencies()
    assert [dependency.name for dependency in dependencies] == ["make", "Pool"]


def test_p5_shared_needs_are_read_once() -> None:
    factory: Any = make
    for _ in range(40):  # 2**40 paths

        def pair(a: Any, b: Any) -> None: ...

        pair.__annotations__ = dict.fromkeys("ab", Annotated[Any, Resource(factory)])
        factory = pair
    assert dependency_of(Annotated[None, Resource(factory)]).name == "pair"


def keywords(*args: Any, made: Made, **kwargs: Any) -> None: ...


@attrs.define
class Client:
    made: Made
    retries: int = 3


@dataclasses.dataclass
class Session:
    made: Made
    option: Undefined = None  # type: ignore[name-defined]  # noqa: F821


class Special(Client):
    pass


@pytest.mark.parametrize(
    "factory",
    [keywords, Client, Session, Special, functools.partial(keywords, x=3), logged(keywords)],
)
def test_p5_parameters_of_all_kinds_of_callables_are_read(factory: Any) -> None:
    dependency = dependency_of(Annotated[Any, Resource(factory)])
    assert {param: below.name for param, below in dependency.dependencies.items()} == {
        "made": "make"
    }


def test_p5_what_a_partial_gives_is_not_asked_for() -> None:
    dependency = dependency_of(Annotated[Any, Resource(functools.partial(lambda a, b: a, 1, b=2))])
    assert dependency.dependencies == {}


def test_p5_local_names_are_found() -> None:
    class Database: ...

    def make_url() -> str:
        return ""

    def open_database(url: Annotated[str, Resource(make_url)]) -> Database:
        return Database()

    def query(db: Annotated[Database, Resource(open_database)]) -> None: ...

    dependency = dependency_of(Annotated[None, Resource(query)])
    assert dependency.dependencies["db"].dependencies["url"] == dependency_of(
        Annotated[str, Resource(make_url)]
    )


# --- Faults -----------------------------------------------------------------------------------------


def lacks(size: int, made: Made) -> None: ...
def lacks_annotation(size) -> None: ...  # type: ignore[no-untyped-def]
def by_position(made: Made, /) -> None: ...
def deep(lacks: Annotated[None, Resource(lacks)]) -> None: ...
def no_type(size: 1 / 0) -> None: ...  # type: ignore[valid-type]
def no_type_option(size: 1 / 0 = 3) -> None: ...  # type: ignore[valid-type]
def undefined(size: Undefined) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def undefined_option(a: Annotated[int, Resource(nobody)] = 3) -> None: ...  # noqa: F821
def undefined_type(a: Undefined = 3) -> None: ...  # type: ignore[name-defined]  # noqa: F821


LACKS = (
    "resource lacks: parameter 'size' is not a resource and has no default; annotate it, as in "
    "'size: Annotated[T, Resource(make_size)]'"
)


@pytest.mark.parametrize(
    ("factory", "faults"),
    [
        (lacks, [LACKS]),
        (deep, [LACKS]),
        (lacks_annotation, [LACKS.replace("lacks:", "lacks_annotation:")]),
        (
            by_position,
            [
                "resource by_position: parameter 'made' cannot be passed by name; remove the '/'",
            ],
        ),
    ],
)
def test_p5_parameters_that_nobody_gives_are_faults(factory: Any, faults: list[str]) -> None:
    assert faults_of(Annotated[Any, Resource(factory)]) == (faults, [])


@pytest.mark.parametrize(
    ("factory", "unresolved"),
    [
        (
            undefined,
            [
                "resource undefined: parameter 'size' is annotated with 'Undefined', which is not defined"
            ],
        ),
        (
            undefined_option,
            [
                "resource undefined_option: parameter 'a' is annotated with 'nobody', which is not defined"
            ],
        ),
        (undefined_type, []),
    ],
)
def test_p5_undefined_names_are_told_apart(factory: Any, unresolved: list[str]) -> None:
    assert faults_of(Annotated[Any, Resource(factory)]) == ([], unresolved)


def test_p5_annotations_that_are_no_types_are_faults() -> None:
    fault = (
        "resource no_type: parameter 'size' is annotated with '1 / 0': it is not a type: division by "
        "zero"
    )
    assert faults_of(Annotated[Any, Resource(no_type)]) == ([fault], [])
    assert faults_of(Annotated[Any, Resource(no_type_option)]) == ([], [])


def chicken(egg: Annotated[Any, Resource(egg)]) -> None: ...
def egg(chicken: Annotated[Any, Resource(chicken, cache=False)]) -> None: ...
def itself(me: Annotated[Any, Resource(itself)]) -> None: ...
def farm(
    chicken: Annotated[Any, Resource(chicken)], pig: Annotated[Any, Resource(itself)]
) -> None: ...


@pytest.mark.parametrize(
    ("factory", "circles"),
    [
        (itself, ["itself -> itself"]),
        (egg, ["egg -> chicken -> egg"]),
        (farm, ["egg -> chicken -> egg", "itself -> itself"]),
    ],
)
def test_v1_circles_are_faults(factory: Any, circles: list[str]) -> None:
    assert faults_of(Annotated[Any, Resource(factory)]) == (
        [
            f"resources depend on each other: {circle}; remove one of these dependencies"
            for circle in circles
        ],
        [],
    )


# --- Files ------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"


@attrs.define
class Limits:
    size: int
    tags: list[str] = attrs.field(factory=list)


@dataclasses.dataclass
class Settings:
    limits: Limits
    rate: float = 1.0
    colour: Colour | None = None
    day: datetime.date | None = None
    where: Path = Path()
    key: uuid.UUID | None = None
    secret: bytes = b""
    pair: tuple[int, str] | None = None
    many: dict[str, Limits] = dataclasses.field(default_factory=dict)
    names: frozenset[str] = frozenset()
    order: Sequence[int] = ()
    mode: Literal["a", "b"] = "a"
    either: int | str = 0
    rest: Any = None


class Typed(TypedDict):
    size: int


UserId = NewType("UserId", int)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: Any, name: str = "settings.json") -> str:
        path = tmp_path / name
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        return str(path)

    return write


def load(file: str, wanted: Any, selector: str | None = None) -> Any:
    return dependency_of(Annotated[wanted, ResourceConfig(file, selector)]).make()


def test_p5_files_are_structured(write: Any) -> None:
    data = {
        "limits": {"size": 3, "tags": ["a"]},
        "rate": 2,
        "colour": "red",
        "day": "2020-02-03",
        "where": "/tmp",
        "key": "12345678123456781234567812345678",
        "secret": "aGk=",
        "pair": [1, "x"],
        "many": {"k": {"size": 4}},
        "names": ["n"],
        "order": [2, 1],
        "mode": "b",
        "either": "x",
        "rest": {"x": [1]},
    }
    assert load(write(data), Settings) == Settings(
        Limits(3, ["a"]),
        2.0,
        Colour.RED,
        datetime.date(2020, 2, 3),
        Path("/tmp"),
        uuid.UUID("12345678123456781234567812345678"),
        b"hi",
        (1, "x"),
        {"k": Limits(4)},
        frozenset({"n"}),
        [2, 1],
        "b",
        "x",
        {"x": [1]},
    )


def test_p5_toml_is_read_as_well(write: Any) -> None:
    file = write("[server]\nday = 2020-02-03\nlimits = {size = 3}", "settings.toml")
    assert load(file, Settings, "server") == Settings(Limits(3), day=datetime.date(2020, 2, 3))
    assert load(file, dict[str, int], "server.limits") == {"size": 3}


@pytest.mark.parametrize(
    ("wanted", "data"),
    [
        (dict, {"a": [1]}),
        (list, [1, "x"]),
        (list[int], [1]),
        (str, "x"),
        (int, 3),
        (Any, None),
        (int | None, None),
        (Typed, {"size": 3}),
        (UserId, 3),
    ],
)
def test_p5_a_file_may_hold_anything(write: Any, wanted: Any, data: Any) -> None:
    assert load(write(json.dumps(data)), wanted) == data


GOOD = {"limits": {"size": 3}}


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({"limits": {"size": "5"}}, "$.limits.size: expected int, got '5' (str)"),
        ({"limits": {"size": True}}, "$.limits.size: expected int, got True (bool)"),
        ({"limits": {"size": 5.0}}, "$.limits.size: expected int, got 5.0 (float)"),
        ({"limits": {}}, "$.limits.size: missing, Limits needs it"),
        ({"limits": 3}, "$.limits: expected tests.test_resource.Limits, got 3 (int)"),
        ({}, "$.limits: missing, Settings needs it"),
        ([], "$: expected tests.test_resource.Settings, got [] (list)"),
        (
            {"limits": {"size": 3, "tags": "abc"}},
            "$.limits.tags: expected list[str], got 'abc' (str)",
        ),
        ({"limits": {"size": 3, "tags": ["a", 3]}}, "$.limits.tags[1]: expected str, got 3 (int)"),
        ({**GOOD, "rates": 3}, "$.rates: Settings has no such field, did you mean 'rate'?"),
        (
            {"limits": {"size": 3, "x": 3}},
            "$.limits.x: Limits has no such field, known: size, tags",
        ),
        (
            {**GOOD, "many": {"k": {"size": None}}},
            "$.many.k.size: expected int, got None (NoneType)",
        ),
        (
            {**GOOD, "many": []},
            "$.many: expected dict[str, tests.test_resource.Limits], got [] (list)",
        ),
        ({**GOOD, "pair": [1]}, "$.pair: expected tuple[int, str], got [1] (list)"),
        ({**GOOD, "colour": "blue"}, "$.colour: expected one of 'red' (Colour), got 'blue'"),
        ({**GOOD, "day": 3}, "$.day: no date in its usual text form: 3"),
    ],
)
def test_p5_what_does_not_fit_is_named(write: Any, data: Any, fault: str) -> None:
    file = write(data)
    with pytest.raises(WorkflowConfigurationError) as caught:
        load(file, Settings)
    assert str(caught.value) == f"{file}: {fault}"


@pytest.mark.parametrize(
    ("selector", "fault"),
    [
        ("a.x", "a.x: not found; did you mean 'xy'?"),
        ("b", "b: not found; known: a"),
        ("a.xy.z.q", "a.xy.z.q: not found in 3"),
        ("a.xy.z", "a.xy.z: expected str, got 3 (int)"),
        ("a.xy", "a.xy: expected str, got {'z': 3} (dict)"),
    ],
)
def test_p5_the_selector_leads_the_message(write: Any, selector: str, fault: str) -> None:
    file = write({"a": {"xy": {"z": 3}}})
    with pytest.raises(WorkflowConfigurationError) as caught:
        load(file, str, selector)
    assert str(caught.value) == f"{file}: {fault}"


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("a.json", "{", "not valid JSON: Expecting property name enclosed in double quotes"),
        pytest.param("a.json", "[" * 200_000, "not valid JSON: ", id="deep"),
        ("a.toml", "a = ", "not valid TOML: Invalid value"),
    ],
)
def test_p5_broken_files_are_named(write: Any, name: str, text: str, fault: str) -> None:
    file = write(text, name)
    with pytest.raises(WorkflowConfigurationError) as caught:
        load(file, dict)
    assert str(caught.value).startswith(f"{file}: {fault}")


def test_p5_missing_files_are_named() -> None:
    with pytest.raises(WorkflowConfigurationError) as caught:
        load("nowhere.json", dict)
    assert str(caught.value) == "nowhere.json: cannot be read: No such file or directory"
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_p5_config_needs_are_the_same_if_file_selector_and_type_are() -> None:
    mark = ResourceConfig("a.json", "b")
    dependency = dependency_of(Annotated[Limits, mark])
    assert dependency == dependency_of(
        Annotated[Limits, ResourceConfig("a.json", path_selector="b")]
    )
    assert (dependency.cache, dependency.is_context_manager, dependency.dependencies) == (
        True,
        False,
        {},
    )
    assert dependency.name == "a.json: b"
    others = [
        Annotated[dict, mark],
        Annotated[Limits, ResourceConfig("a.json")],
        Annotated[Limits, ResourceConfig("b.json", "b")],
    ]
    for other in others:
        assert dependency != dependency_of(other)
