"""Pydantic models, without importing pydantic (P6): a program that has models has imported it."""

# All that the library knows of pydantic (2.11 or later) as a kind of record is here. What event classes take
# from it (E6) is in `_foreign`.

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import date, datetime
from typing import Any

import attrs

from ._messages import shortened, text_of
from .errors import EventValidationError


def _from_pydantic(module: str, name: str) -> Any:
    """Return what a module of pydantic defines; `None` if that is not imported, or not yet."""
    return getattr(sys.modules.get(module), name, None)


# --- Models ---------------------------------------------------------------------------------------


def is_model(cls: object) -> bool:
    """Return whether `cls` is a pydantic model. The models of `pydantic.v1` are none."""
    base = _from_pydantic("pydantic.main", "BaseModel")
    # Not `issubclass()`: models are ABCs, which ask all their subclasses.
    return base is not None and isinstance(cls, type) and base in cls.__mro__


def is_root_model(cls: Any) -> bool:
    """Return whether `cls` is a model that stands for a single value, its `root`."""
    return is_model(cls) and bool(cls.__pydantic_root_model__)


def takes_extras(cls: Any) -> bool:
    """Return whether `cls` is a model that keeps or ignores unknown keys because it says so."""
    return is_model(cls) and cls.model_config.get("extra") in ("allow", "ignore")


def keeps_extras(cls: Any) -> bool:
    """Return whether `cls` is a model with `extra="allow"`."""
    return is_model(cls) and cls.model_config.get("extra") == "allow"


def holds_enum_values(cls: Any) -> bool:
    """Return whether a model has values of enums where its annotations have members."""
    return bool(cls.model_config.get("use_enum_values"))


def is_frozen_model(cls: Any) -> bool:
    """Return whether `cls` is a model whose instances refuse assignments."""
    return is_model(cls) and bool(cls.model_config.get("frozen"))


def model_fields(cls: Any) -> Mapping[str, Any]:
    """Return the `FieldInfo` of each field of a model."""
    if not cls.__pydantic_complete__:  # its annotations name what was not defined yet
        with suppress(Exception):
            cls.model_rebuild(raise_errors=False)
    fields: Mapping[str, Any] = cls.model_fields
    return fields


def key_of(cls: Any, name: str) -> str:
    """Return the key under which a model takes the value of a field: its alias, if that is a text."""
    info = cls.model_fields[name]
    if not cls.model_config.get("validate_by_alias", True):
        return name
    # An `AliasChoices` has several aliases.
    choices = getattr(info.validation_alias, "choices", [info.validation_alias])
    return next((alias for alias in choices if isinstance(alias, str)), name)


def is_unset_default(model: Any, name: str) -> bool:
    """Return whether a field was not set, so that leaving it out gives the same value again."""
    if name in model.model_fields_set:
        return False
    value, default = vars(model)[name], type(model).model_fields[name].default
    # Pydantic copies `[]`; of other defaults that can be changed, it would be a guess whether they were.
    is_empty = type(value) in (list, dict, set) and not value
    return value is default or (is_empty and type(default) is type(value) and not default)


def is_equal_to_default(model: Any, name: str) -> bool:
    """Return whether a field has the value that its declaration gives."""
    return is_same(vars(model)[name], type(model).model_fields[name].default)


def is_excluded(cls: Any, name: str) -> bool:
    """Return whether pydantic leaves a field out of its data (`exclude=True`)."""
    return bool(cls.model_fields[name].exclude)


def may_be_left_out(cls: Any, name: str) -> bool:
    """Return whether pydantic, too, would leave a field out of its data, and give it a default again."""
    return is_excluded(cls, name) and not cls.model_fields[name].is_required()


def make_model(cls: Any, values: Mapping[str, Any]) -> Any:
    """Make a model of the values of its fields, by key, strictly: constraints and validators hold.

    Raises:
        Exception: Whatever pydantic, the validators and `__init__` of the class raise.
    """
    # A strict model does not take the value of an enum, though it may hold it.
    strict = not holds_enum_values(cls)
    if is_root_model(cls):
        return cls.model_validate(values["root"], strict=strict)
    # An `AliasPath` leads into nested data, which cannot be made of the value: its field goes by the name.
    fields = cls.model_fields.items()
    named = (key_of(cls, name) == name for name, info in fields if info.validation_alias)
    return cls.model_validate(dict(values), strict=strict, by_name=any(named) or None)


def changed_fields(model: Any, other: Any) -> Iterator[str]:
    """Yield the names of the fields and extra values in which two models of one class differ."""
    mine, others = _values_of(model), _values_of(other)
    for name in mine | others:
        if name not in mine or name not in others or not is_same(mine[name], others[name]):
            yield name


def _values_of(model: Any) -> dict[str, Any]:
    held = vars(model)
    values = {name: held[name] for name in type(model).model_fields if name in held}
    return {**values, **extras_of(model)}


def is_same(one: Any, other: Any) -> bool:
    """Return whether two values are equal, as far as that can be told."""
    if one is other:  # also if it is NaN
        return True
    try:
        return bool(one == other)
    except Exception:  # an array, say, has no single truth
        return False


def extras_of(model: Any) -> dict[str, Any]:
    """Return the values that a model with `extra="allow"` has beside its fields."""
    return model.model_extra or {}


def first_problem(error: BaseException, cls: type) -> tuple[tuple[int | str, ...], str]:
    """Return where a validator of a class found the first problem, and what it is, in few words.

    Returns:
        The keys and indexes that lead there, and the problem; `()` and its message for another error.
    """
    if isinstance(error, EventValidationError) and error.event == cls.__name__ and error.field:
        return (error.field,), shortened(error.problem, 400)
    if not isinstance(error, _from_pydantic("pydantic_core", "ValidationError") or ()):
        return _first_problem_of_attrs(error, cls)
    invalid: Any = error
    problems = invalid.errors(include_url=False, include_context=False, include_input=False)
    first = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return first["loc"], shortened(first["msg"], 400) + more


def _first_problem_of_attrs(error: BaseException, cls: type) -> tuple[tuple[str, ...], str]:
    args: tuple[Any, ...] = BaseException.args.__get__(error)  # type: ignore[attr-defined]
    match args:
        # What the validators of attrs raise has more arguments, of which `str()` shows the internals.
        case [str() as message, attrs.Attribute() as attribute, *_]:
            own = attrs.has(cls) and any(field is attribute for field in attrs.fields(cls))
            return (attribute.alias or attribute.name,) * own, shortened(message, 400)
    return (), text_of(error)


# --- Types of pydantic that are no models -----------------------------------------------------------

_VALUE_TYPES: Mapping[str, Any] = {
    "EmailStr": str,
    "PastDate": date,
    "FutureDate": date,
    "AwareDatetime": datetime,
    "NaiveDatetime": datetime,
    "PastDatetime": datetime,
    "FutureDatetime": datetime,
    "IPvAnyAddress": Any,
    "IPvAnyInterface": Any,
    "IPvAnyNetwork": Any,
    "ImportString": Any,
    "Json": Any,
    "JsonValue": Any,
}
"""Class that pydantic has for annotations only -> what the values are."""


def value_type(annotation: Any) -> Any:
    """Return the type of the values, if an annotation is a class that says how pydantic checks them."""
    name = getattr(annotation, "__name__", None)
    module = getattr(annotation, "__module__", None)
    if module not in ("pydantic.types", "pydantic.networks") or type(name) is not str:
        return None
    return _VALUE_TYPES.get(name)


def text_form(cls: Any) -> tuple[Callable[[Any], str], Callable[[str], Any]] | None:
    """Return how a URL or a secret of pydantic is written as text, and read."""
    if not cls.__module__.startswith("pydantic."):
        return None
    if cls.__module__ == "pydantic.networks" and cls is url_type(cls.__name__):
        return str, cls
    if cls is _from_pydantic("pydantic.types", "SecretStr"):
        return _refuse_secret, cls
    return None


def url_type(name: str) -> Any:
    """Return the class of pydantic that stands for a kind of URL, if that is one; nothing is imported."""
    is_url = name[:1] != "_" and name.endswith(("Url", "Dsn"))
    return _from_pydantic("pydantic.networks", name) if is_url else None


def _refuse_secret(secret: object) -> str:
    raise ValueError("secrets are not written; let a resource read it again")
