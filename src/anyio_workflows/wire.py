"""Events as data for other programs, and back: a response, a web page, a queue, a pydantic model (E7).

    data = to_data(Said(text="hello"))  # {"text": "hello", "tokens": 0}
    Said(text="hello") == from_data(data, Said)

`json_schema()` describes the data, for a form or an API. docs/wire.md shows all three at work.
"""

from __future__ import annotations

import types as builtin_types
import typing
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

import attrs

from ._annotations import strip
from ._json.codec import located
from ._json.fields import Registry, tag_of
from ._json.formats import (
    ANYTHING,
    Encoding,
    check_depth,
    data_error,
    encoding_of,
    is_marked,
)
from ._json.hooks import Hooks
from ._json.lenient import LenientWriter
from ._json.reader import Reader
from ._json.schema import Definition, Definitions
from ._messages import names_of, short_repr
from .errors import ContextSerdeError
from .events import Event

if typing.TYPE_CHECKING:
    from cattrs import BaseConverter

__all__ = ["from_data", "json_schema", "to_data"]

E = TypeVar("E", bound=Event)


def to_data(
    event: Event, *, tagged: bool = False, converter: BaseConverter | None = None
) -> dict[str, Any]:
    """Return the fields of an event as data that `json.dumps(data, allow_nan=False)` takes.

    The notation is that of snapshots: dates, enums, paths and bytes as texts, records as objects of their
    fields. A value whose type its annotation does not tell is tagged, `{"$": tag, "value": ...}`: one
    under `Any`, or of a subclass. Two things are plainer: in a union, a record is tagged only if its fields
    do not tell it from the others; an instance of a subclass of `str`, `int` or `float`, such as
    `numpy.float64`, is written as the plain value, and so is a member of an enum where the annotation is
    `str`, `int` or `float`. From this, `from_data(data, type(event))` makes an equal event, whenever a
    snapshot could hold it.

    Fields with `init=False` are left out, in records inside the event as well: they hold what the program works out
    for itself, such as a cache. `from_data()` refuses them as unknown. The `result` that a stop event with fields of its
    own inherits is left out if it is `None`.

    It never fails because of what is in the event. Instead of a value that has no form in JSON, such as a
    lock in a list, there is `{"$repr": text}`, with at most 200 characters of its `repr()`, and the
    same for what is nested more than 100 levels deep, an object that contains itself included. Records and
    enums of any class are written, and so are values that their annotation does not admit.

    The time it takes, and the size of the data, are bounded by the size of what is in memory: parts that
    several others share are written for each of them, but at most 100 000 of them in all. Texts
    are not shortened, however long. A `repr()` or property of a foreign class is called as it is.

    Args:
        event: The event.
        tagged: Whether to return `{"$": "module:Class", "value": fields}`, which tells `from_data()`
            which of several types it is. An event with an extra keyword `"$"` or `"$repr"` always is.
        converter: A `cattrs.Converter` with hooks for values of other classes that the annotations of
            the event mention (P7). Where a hook fails, there is `{"$repr": text}`.

    Raises:
        TypeError: If it is no event.
        WorkflowConfigurationError: If `converter` is none.
    """
    cls = type(event)
    if not issubclass(cls, Event):
        hint = "; give an event, not its class" if cls is type else ""
        raise TypeError(f"to_data() takes an event, not {short_repr(event)}{hint}")
    reading = _reading_of(cls)
    writer = LenientWriter(reading.registry, _hooks_of(converter))
    return writer.write_event(event, reading.encoding, tagged=tagged)


@typing.overload
def from_data(data: object, types: type[E], *, converter: BaseConverter | None = None) -> E: ...
@typing.overload
def from_data(
    data: object, types: Iterable[type[E]], *, converter: BaseConverter | None = None
) -> E: ...
@typing.overload
def from_data(data: object, types: Any, *, converter: BaseConverter | None = None) -> Any: ...


def from_data(data: object, types: Any, *, converter: BaseConverter | None = None) -> Any:
    """Return the event that data from `to_data()`, or from anywhere, stands for.

    It is as strict as snapshots are (E4). Nothing is converted, and missing and unknown fields are refused; so
    are those with `init=False`, which are not for others to set. The data may name only the classes that are given, and the records and enums in the annotations of their
    fields. It may be hostile: nothing is imported, and reading it takes linear time.

    Args:
        data: What `json.loads()` returned.
        types: What it may be: an event class, several, or a union of them. Of several, tagged data says which
            one it is, and other data has to fit exactly one of them.
        converter: As for `to_data()`. Its hooks get data from outside.

    Raises:
        ContextSerdeError: If it is none of these, or fits several. The text names the path to the fault, and
            has at most 1000 characters. It is a `ValueError`.
        TypeError: If `types` names no event class, or something else.
        WorkflowConfigurationError: If `converter` is none.
    """
    hooks = _hooks_of(converter)
    if isinstance(types, type) and issubclass(types, Event):
        reading = _reading_of(types)
        with located("$"):
            if reading.fault is not None:
                raise data_error(reading.fault)
            check_depth(data)  # before anything recurses
            reader = reading.reader if hooks is None else Reader(reading.registry, hooks=hooks)
            return reader.read(data, reading.encoding)
    readings = [_reading_of(cls) for cls in _event_classes(types)]
    if len(readings) == 1:
        return from_data(data, readings[0].encoding.cls, converter=converter)
    with located("$"):
        check_depth(data)
        return _read_one_of(readings, data, hooks)


def _hooks_of(converter: object) -> Hooks | None:
    return None if converter is None else Hooks(converter)


def json_schema(event_class: type[Event]) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of what `from_data(data, event_class)` takes untagged.

    It has the fields with their types, defaults and descriptions: those in the docstring of a class, and
    in `attrs.field(metadata={"description": ...})`, where `title`, `examples`, `deprecated` and `json_schema_extra`, a
    dict that is merged last, are found as well. What the validators of a field check is not in it. Fields with `init=False` are left out. A
    mapping whose keys are no texts may be `{"$": "dict", "value": pairs}`, as it is written. What a field mentions, records, enums and other events, is
    under `$defs`. Where nothing can be said, as for `Any`, there is `{}`.

    Raises:
        TypeError: If it is no event class.
    """
    (cls, *others) = _event_classes(event_class)
    if others:
        raise TypeError(f"json_schema() takes one event class, not {names_of([cls, *others])}")
    definitions = _definitions_of(cls, lambda definition: f"#/$defs/{definition.name}")
    root = definitions.of_class(cls)
    defs = {one.name: one.schema for one in definitions if one is not root or root.used}
    if root.used:
        return {"$ref": f"#/$defs/{root.name}", "$defs": defs}
    return {**root.schema, "$defs": defs} if defs else root.schema


# --- What is kept for each class ------------------------------------------------------------------

_READING = "__anyio_workflows_reading__"


@attrs.frozen
class _Reading:
    """What reads the data of a class of events.

    Attributes:
        registry: The class, and what its annotations mention.
        encoding: That of the class.
        reader: Reads what `registry` knows.
        fault: Why it cannot be read; `None` if it can.
    """

    registry: Registry
    encoding: Encoding
    reader: Reader
    fault: str | None


def _reading_of(cls: type[Event]) -> _Reading:
    # To look at all annotations takes longer than to read an event. The class itself keeps what was found, so that
    # both can be freed together: it refers to the class, and would keep it alive anywhere else.
    reading: _Reading | None = cls.__dict__.get(_READING)
    if reading is None:
        fault = None
        try:
            registry = Registry([cls], on_wire=True)
        except (
            ContextSerdeError
        ) as error:  # two of its types have one name, which is no fault for a writer
            registry, fault = Registry((), [cls], on_wire=True), error.problem
        reading = _Reading(registry, encoding_of(cls), Reader(registry), fault)
        setattr(cls, _READING, reading)
    return reading


def _definitions_of(cls: type[Event], link: Callable[[Definition], str]) -> Definitions:
    """Return what describes a class and all that it mentions; `link` makes the references to it.

    That may be asked for while a module is imported, before all names in the annotations are defined. So it is not kept.
    """
    return Definitions(Registry((), [cls], on_wire=True), link)


def _event_classes(types: Any) -> list[type[Event]]:
    """Return the event classes in the `types` of a caller, in their order.

    Raises:
        TypeError: If there is none, or something else.
    """
    found: dict[type[Event], None] = {}
    ahead = [types]
    if not isinstance(types, type | Event | str) and typing.get_origin(types) is None:
        with suppress(TypeError):  # what is no iterable is refused below
            ahead = list(types)
    while ahead:
        one = strip(ahead.pop(0))
        cls = typing.get_origin(one) or one  # `Box[int]` is read as a `Box`
        if cls in (typing.Union, builtin_types.UnionType):
            ahead = [*typing.get_args(one), *ahead]
        elif isinstance(cls, type) and issubclass(cls, Event):
            found[cls] = None
        else:
            hint = "; give its class" if isinstance(one, Event) else ""
            raise TypeError(f"expected an event class, or several, got {short_repr(one)}{hint}")
    if not found:
        raise TypeError("no event class is given; name those that the data may stand for")
    return list(found)


def _read_one_of(readings: list[_Reading], data: Any, hooks: Hooks | None) -> Any:
    """Read data that is one of several events."""
    classes = [reading.encoding.cls for reading in readings]
    names = " | ".join(cls.__name__ for cls in classes)
    for reading in readings:
        if reading.fault is not None:
            raise data_error(reading.fault)
    reader = Reader(Registry.joined(reading.registry for reading in readings), hooks=hooks)
    if type(data) is not dict:
        raise data_error(f"expected {names}, got {short_repr(data)} ({type(data).__qualname__})")
    if is_marked(data):
        event = reader.read(data, ANYTHING)
        if not isinstance(event, tuple(classes)):
            raise data_error(f"expected {names}, got {short_repr(event)}")
        return event
    fitting = [reading for reading in readings if reader.has_shape(data, reading.encoding)]
    if len(fitting) == 1:
        return reader.read(data, fitting[0].encoding)
    events, faults = [], []
    for reading in fitting or readings:
        try:
            events.append(reader.read(data, reading.encoding))
        except ContextSerdeError as error:
            faults.append(f"{reading.encoding.cls.__name__}: {error}")
    if not events:
        raise data_error(f"this is none of {names}. {'; '.join(faults)}")
    if len(events) > 1:
        these = names_of(map(type, events))
        tag = tag_of(type(events[0]))
        raise data_error(
            f'this may be any of {these}; say which one: {{"$": "{tag}", "value": ...}}, as '
            "to_data(event, tagged=True) writes it"
        )
    return events[0]
