"""`JsonCodec`: write values as JSON data, and read them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from .._messages import text_of
from ..events import Event
from .fields import Field, Registry, enum_text, is_enum, is_record, tag_of
from .formats import (
    MAX_DEPTH,
    TEXTS,
    check_depth,
    check_hashes,
    fault,
    inside,
    is_finite,
    part_of,
    plan_of,
    unexpected,
)
from .reader import TAGGED_TEXTS, TAGGED_TYPES, Reader, RestoredError, builtin_error

_LONG_INT = 2048
"""In bits. Python refuses to read very long integers in decimal, which JSON has."""

_TEXTS = {**TEXTS, int: TAGGED_TEXTS["int"], float: TAGGED_TEXTS["float"]}


class JsonCodec:
    """Writes values as JSON data, and reads them.

    It knows JSON's own types, the builtin containers, dates, times, durations, `Decimal`, `UUID`,
    paths, bytes, exceptions, and the types that it is given: event classes, attrs classes,
    dataclasses and enums, with those that the annotations of their fields mention.

    Args:
        types: The types that the data may name.
        in_sight: More of them, of which those are left out that bear the name of another one.

    Raises:
        ContextSerdeError: If one of `types` is of no such kind, or two have the same name.
    """

    def __init__(self, types: Iterable[type] = (), in_sight: Iterable[type] = ()) -> None:
        registry = Registry(types, in_sight)
        self._writer = _Writer(registry)
        self._reader = Reader(registry)

    def dump(self, value: Any, path: str = "$") -> Any:
        """Return what `json.dumps` takes and `load` makes an equal value of.

        Args:
            value: Any value; its fields and items are written as their annotations say.
            path: Where it stands, for the message of an error.

        Raises:
            ContextSerdeError: If it or something in it cannot be written as JSON.
        """
        data = inside(path, _bounded, self._writer.write, value, Any)
        inside(path, check_depth, data)  # what is too deep could not be read
        return data

    def load(self, data: Any, as_type: Any = None, path: str = "$") -> Any:
        """Return the value that JSON data stands for.

        Args:
            data: What `json.loads` gave.
            as_type: The annotation that it was written for; `None`: any type.
            path: Where it stands, for the message of an error.

        Raises:
            ContextSerdeError: If it does not stand for a value, or for one of another type.
        """
        inside(path, check_depth, data)
        return inside(path, _bounded, self._reader.read, data, Any if as_type is None else as_type)


def _bounded(act: Callable[..., Any], *args: Any) -> Any:
    try:
        return act(*args)
    except RecursionError:
        raise fault("nested too deeply, or it contains itself") from None


class _Writer:
    """Writes values whose types are in `registry`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._plan_of = functools.cache(plan_of)
        self._in_error = False

    def write(self, value: Any, annotation: Any) -> Any:
        """Return what stands for a value under an annotation."""
        cls, plan = type(value), self._plan_of(annotation)
        if cls in plan.raw:
            if cls is list:
                return self._write_items(value, plan.item)
            if cls is not dict:
                if is_finite(value) and not (cls is int and value.bit_length() > _LONG_INT):
                    return value
            elif "$" not in value and all(type(key) is str for key in value):
                return {k: inside(part_of(k), self.write, v, plan.item) for k, v in value.items()}
        if cls is plan.bare:
            _, data = self._write_tagged(value, plan.item)
            if not (isinstance(data, dict) and "$" in data):
                return data
        tag, data = self._write_tagged(value, Any)
        return {"$": tag, "value": data}

    def _write_tagged(self, value: Any, item: Any) -> tuple[str, Any]:
        """Return a tag and what stands for the value with it."""
        cls = type(value)
        if cls in (list, tuple):
            return cls.__name__, self._write_items(value, item)
        if cls in (set, frozenset):
            items = self._write_items(value, item)
            check_hashes(list(value), items)
            return cls.__name__, sorted(items, key=repr)
        if cls is dict:
            keys = [self.write(key, Any) for key in value]
            check_hashes(list(value), keys)
            values = [inside(part_of(key), self.write, each, Any) for key, each in value.items()]
            return "dict", [list(pair) for pair in zip(keys, values, strict=True)]
        if text := _TEXTS.get(cls):
            try:
                return text.tag, text.write(value)
            except ValueError as error:
                raise fault(f"{value!r} cannot be written as JSON: {error}") from None
        if cls.__name__ in TAGGED_TYPES and TAGGED_TYPES[cls.__name__] is cls:
            return cls.__name__, value
        if issubclass(cls, type) and value in self._registry:
            return "type", tag_of(value)
        if cls in self._registry:
            written = enum_text(value) if is_enum(cls) else self._write_record(value)
            return tag_of(cls), written
        if isinstance(value, BaseException):
            return "exception", self._write_error(value)
        unknown = value if issubclass(cls, type) else cls
        if is_record(unknown) or is_enum(unknown):
            raise fault(
                f"{unknown.__qualname__} is not among the known types; name it in types=[...]"
            )
        raise fault(
            f"a value of type {cls.__qualname__} cannot be written as JSON; keep it out of what is "
            "saved, or put plain data in its place"
        )

    def _write_items(self, items: Iterable[Any], annotation: Any) -> list[Any]:
        return [
            inside(f"[{index}]", self.write, item, annotation) for index, item in enumerate(items)
        ]

    def _write_record(self, record: Any) -> dict[str, Any]:
        data = {
            field.key: inside(part_of(field.key), self._write_field, record, field)
            for field in self._registry.fields(type(record))
            if hasattr(record, field.name)
        }
        if isinstance(record, Event):
            for name, value in record._extra.items():
                data[name] = inside(part_of(name), self.write, value, Any)
        return data

    def _write_field(self, record: Any, field: Field) -> Any:
        value = getattr(record, field.name)
        if not isinstance(value, field.kind):
            raise unexpected(field.annotation, value)
        data = self.write(value, field.annotation)
        if isinstance(value, BaseException) and not isinstance(
            _comes_back(value, data), field.kind
        ):
            wanted = inspect.formatannotation(field.annotation)
            raise fault(
                f"a value of type {type(value).__qualname__} would come back as no {wanted}"
            )
        return data

    def _write_error(self, error: BaseException) -> dict[str, Any]:
        cls = type(error)
        data: dict[str, Any] = {"type": cls.__name__, "text": text_of(error)}
        if isinstance(error, RestoredError):
            data.update(type=error.type_name, text=error.text)
        elif builtin_error(cls.__name__) is not cls:
            data["type"] = f"{cls.__module__}.{cls.__qualname__}"
        else:
            args = self._write_args(error)
            if args is not None:  # or else it comes back as a restored one
                data["args"] = args
        notes = getattr(error, "__notes__", ())
        if notes:
            data["notes"] = [note for note in notes if type(note) is str]
        return data

    def _write_args(self, error: BaseException) -> list[Any] | None:
        """Return what stands for the arguments of an exception; `None` if that cannot be read."""
        args: Any = error.__reduce__()[1]
        outermost, self._in_error = not self._in_error, True
        try:
            if type(type(error)(*args)) is not type(error):
                return None
            written = self._write_items(args, Any)
            check_depth(written, MAX_DEPTH // 2)
        except RecursionError:
            if outermost:
                return None
            raise  # exceptions that hold each other would be tried again on each level
        except Exception:
            return None
        finally:
            self._in_error = not outermost
        return written


def _comes_back(error: BaseException, data: Any) -> BaseException:
    """Return something of the type that `error` is read back as."""
    foreign = data.get("$") == "exception" and "args" not in data["value"]
    return RestoredError("", "") if foreign else error
