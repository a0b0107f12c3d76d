"""Names of another library (E8): what their import, and their keywords, are answered with."""

from __future__ import annotations

import importlib
import inspect
import pydoc
from typing import Any

import pytest

import anyio_workflows
from anyio_workflows import Context, StartEvent, StopEvent, Workflow, context, step
from anyio_workflows._absent import ARGUMENTS, NAMES
from anyio_workflows.errors import ContextSerdeError, EventValidationError


def load(module: str) -> Any:
    return importlib.import_module(f"anyio_workflows.{module}".rstrip("."))


TEXT = (
    "anyio_workflows.context has no 'JsonSerializer'; snapshots have one form, and need no serializer: "
    "json.dumps(ctx.to_dict()) writes one, and Context.from_dict(workflow, json.loads(text)) reads it; "
    "Workflow(converter=...) is for values of classes that JSON has no form for"
)


class Plain(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent: ...


def test_e8_an_import_is_refused_with_what_to_use() -> None:
    with pytest.raises(ImportError) as caught:
        from anyio_workflows.context import Context, JsonSerializer  # type: ignore[attr-defined]  # noqa: F401
    assert str(caught.value) == TEXT
    assert caught.value.name == "anyio_workflows.context"
    with pytest.raises(ImportError) as caught:
        exec("from anyio_workflows.context import JsonSerializer as Json")
    assert str(caught.value) == TEXT


def test_e8_an_attribute_is_refused_as_attributes_are() -> None:
    with pytest.raises(AttributeError) as caught:
        context.JsonSerializer  # type: ignore[attr-defined]  # noqa: B018
    assert str(caught.value) == TEXT
    assert (caught.value.name, caught.value.obj) == ("JsonSerializer", context)
    assert not hasattr(context, "JsonSerializer")
    assert getattr(context, "JsonSerializer", None) is None
    assert "JsonSerializer" not in dir(context)


def test_e8_an_import_may_be_tried() -> None:
    try:
        from anyio_workflows.context import PickleSerializer  # type: ignore[attr-defined]
    except ImportError:
        PickleSerializer = None  # noqa: N806
    assert PickleSerializer is None


@pytest.mark.parametrize("module", NAMES)
def test_e8_other_names_are_unknown_as_everywhere(module: str) -> None:
    ours = load(module)
    for name in ("Nonsense", "__wrapped__", "_private"):
        with pytest.raises(AttributeError) as caught:
            getattr(ours, name)
        assert str(caught.value) == f"module {ours.__name__!r} has no attribute {name!r}"
    with pytest.raises(ImportError, match=f"cannot import name 'Nonsense' from {ours.__name__!r}"):
        exec(f"from {ours.__name__} import Nonsense")
    assert [name for name in NAMES[module] if name in ours.__all__ or name[0] == "_"] == []
    assert module in pydoc.render_doc(ours)


def test_e8_every_module_of_the_table_has_its_names() -> None:
    """A module without the hook would answer with Python's text."""
    for module, names in NAMES.items():
        ours = load(module)
        for name, instead in names.items():
            with pytest.raises(AttributeError) as caught:
                getattr(ours, name)
            assert str(caught.value) == f"{ours.__name__} has no {name!r}; {instead}"


CALLS: dict[str, Any] = {
    "Context()": lambda **given: Context(Plain(), **given),
    "Context.from_dict()": lambda **given: Context.from_dict(
        Plain(), Context(Plain()).to_dict(), **given
    ),
    "Context.to_dict()": lambda **given: Context(Plain()).to_dict(**given),
    "Workflow()": Plain,
}


@pytest.mark.parametrize(
    ("function", "keyword"),
    [(function, name) for function in ARGUMENTS for name in ARGUMENTS[function]],
)
def test_e8_a_keyword_is_refused_with_what_to_do(function: str, keyword: str) -> None:
    with pytest.raises(TypeError) as caught:
        CALLS[function](**{keyword: object()})
    assert str(caught.value) == (
        f"{function} got an unexpected keyword argument {keyword!r}; {ARGUMENTS[function][keyword]}"
    )
    CALLS[function](**{keyword: None})


def test_e8_other_keywords_are_unknown_as_everywhere() -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'nonsense'$"):
        CALLS["Workflow()"](nonsense=1)


def test_e8_signatures_show_only_what_is_taken() -> None:
    for function in (Workflow, Context.from_dict, Context.to_dict):
        assert not inspect.signature(function).parameters.keys() & {"serializer", "args", "kwargs"}


@pytest.mark.parametrize("types", [object(), "Draft"], ids=["object", "text"])
def test_e8_types_are_no_serializer(types: Any) -> None:
    for call in CALLS["Context.to_dict()"], CALLS["Context.from_dict()"]:
        with pytest.raises(TypeError, match=r"types= is a list of classes, not .*; snapshots have"):
            call(types=types)


@pytest.mark.parametrize("name", NAMES[""])
def test_e8_the_package_is_asked_for_what_an_older_one_had(name: str) -> None:
    with pytest.raises(ImportError) as caught:
        exec(f"from anyio_workflows import Workflow, {name}")
    assert str(caught.value) == f"anyio_workflows has no {name!r}; {NAMES[''][name]}"


def test_e6_a_result_of_ones_own_is_not_ignored() -> None:
    with pytest.raises(EventValidationError) as caught:

        class Drawn(StopEvent):
            image: str

            def _get_result(self) -> str: ...

    assert str(caught.value) == (
        "Drawn._get_result: nothing calls it: 'await handler' returns the event itself, to read its "
        "fields; for another result return StopEvent(result=...)"
    )


@pytest.mark.parametrize("text", ["{}", b"{}"])
def test_p4_a_snapshot_is_not_its_json(text: Any) -> None:
    with pytest.raises(
        ContextSerdeError, match=r"not (str|bytes); json.loads\(\) makes one of JSON"
    ):
        Context.from_dict(Plain(), text)


def test_decorators_are_those_of_the_package() -> None:
    from anyio_workflows import decorators

    assert decorators.step is anyio_workflows.step
    assert decorators.catch_error is anyio_workflows.catch_error
