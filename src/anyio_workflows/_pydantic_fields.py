"""Event classes as fields of pydantic models, and so as parameters and responses of FastAPI (E7)."""

# Pydantic asks a class how its values are checked and written, when a model is defined that has a field of it.
# `wire` knows; it is built on the event classes, and imported when it is asked, as pydantic is.

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

import attrs

from .errors import ContextSerdeError
from .events import Event

if TYPE_CHECKING:
    from ._json.schema import Definition


def _core_schema(cls: type[Event], source: Any, handler: Any) -> Any:
    """Describe values of the class to pydantic: read by `from_data()`, written by `to_data()`."""
    from pydantic_core import (
        PydanticCustomError,
        PydanticSerializationUnexpectedValue,
        core_schema,
    )

    from .wire import from_data, to_data

    def read(value: Any) -> Any:
        if isinstance(value, cls):
            return value
        try:
            return from_data(value, cls)
        except ContextSerdeError as error:
            raise PydanticCustomError("event_data", cast(Any, str(error))) from None

    def write(value: Any) -> Any:
        if not isinstance(value, cls):  # another member of a union takes it
            raise PydanticSerializationUnexpectedValue(f"expected {cls.__name__}")
        return to_data(value, tagged=type(value) is not cls)

    read.__name__ = read.__qualname__ = cls.__name__  # what pydantic calls it in errors

    return core_schema.no_info_plain_validator_function(
        read,
        ref=_name_of(cls),
        serialization=core_schema.plain_serializer_function_ser_schema(write),
    )


def _json_schema(cls: type[Event], schema: Any, handler: Any) -> Any:
    """Describe the data of the class, and let pydantic know what its description refers to."""
    from pydantic import TypeAdapter
    from pydantic_core import core_schema

    from .wire import _definitions_of

    def link(definition: Definition) -> str:
        name = _name_of(definition.of)
        reference: str = handler(core_schema.definition_reference_schema(name))["$ref"]
        return reference

    definitions = _definitions_of(cls, link)
    root = definitions.of_class(cls)
    # Pydantic keeps the description of whatever it meets that has a `ref`.
    others = [
        {
            **TypeAdapter(Annotated[Any, _Described(other.schema)]).core_schema,
            "ref": _name_of(other.of),
        }
        for other in definitions
        if other is not root
    ]
    handler(core_schema.tuple_positional_schema(others))  # type: ignore[arg-type]
    return root.schema


@attrs.frozen
class _Described:
    """Says that a value looks as a schema says."""

    schema: dict[str, Any]

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        return self.schema


def _name_of(of: Any) -> str:
    """Return the name under which pydantic knows a class or an alias."""
    name = getattr(of, "__qualname__", getattr(of, "__name__", type(of).__name__))
    return f"{of.__module__}.{name}:{id(of)}"


# The class cannot define them itself, since what they use is built on it.
Event.__get_pydantic_core_schema__ = classmethod(_core_schema)  # type: ignore[attr-defined]
Event.__get_pydantic_json_schema__ = classmethod(_json_schema)  # type: ignore[attr-defined]
