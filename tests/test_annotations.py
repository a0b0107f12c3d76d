"""Annotations are resolved in one way, whoever asks (E5, V1)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from anyio_workflows import Event
from anyio_workflows._annotations import Unresolved, resolve, resolve_field

if TYPE_CHECKING:
    from decimal import Decimal


class Shape: ...


class Outer:
    class Shape: ...

    shape: Shape

    def method(self) -> None: ...


class Inheriting(Outer):
    class Shape: ...

    size: Decimal


def function() -> None: ...


@pytest.mark.parametrize(
    ("annotation", "owner", "found"),
    [
        ("Shape", function, Shape),
        ("Shape", Outer, Outer.Shape),
        ("Shape", Inheriting, Inheriting.Shape),
        ("Shape | None", function, Shape | None),
        ("list['Shape']", function, list[Shape]),
        (Shape, Outer, Shape),
        (None, function, type(None)),
    ],
)
def test_e5_names_mean_what_they_do_where_they_are_written(
    annotation: object, owner: Any, found: Any
):
    assert resolve(annotation, owner) == found


def test_e5_given_names_come_first():
    assert resolve("Shape", Outer, {"Shape": int}) is int


def test_e5_a_field_is_resolved_in_the_class_that_declares_it():
    assert resolve_field(Inheriting, "shape", "Shape") is Outer.Shape
    assert resolve_field(Inheriting, "undeclared", "Shape") is Inheriting.Shape


def test_e5_names_of_enclosing_functions_are_found_while_these_run():
    class Local: ...

    class Plain:
        def method(self) -> None: ...

    def make() -> tuple[Any, Any]:
        class Hidden: ...

        class Kept(Event):
            hidden: Hidden

        @attrs.define
        class Lost:
            hidden: Hidden

        return Kept, Lost

    assert resolve("Local", Plain.method) is Local
    kept, lost = make()
    assert resolve_field(kept, "hidden", "Hidden").__name__ == "Hidden"
    assert isinstance(resolve_field(lost, "hidden", "Hidden"), Unresolved)


@pytest.mark.parametrize(
    ("annotation", "name", "reason"),
    [
        ("Decimal", "Decimal", "name 'Decimal' is not defined"),
        ("list[Decimal]", "Decimal", "name 'Decimal' is not defined"),
        ("1 / 0", None, "it is not a type: division by zero"),
    ],
)
def test_v1_what_is_not_resolved_says_why(annotation: str, name: str | None, reason: str):
    found = resolve(annotation, function)
    assert found == Unresolved(annotation, name, reason)
    assert repr(found) == f"{annotation!r} (unchecked: {reason})"


def test_e5_an_owner_without_a_module_has_the_builtins():
    assert resolve("int", str.upper) is int


def test_e5_a_module_that_is_not_loaded_has_no_names(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, __name__)
    assert isinstance(resolve("Shape", function), Unresolved)
