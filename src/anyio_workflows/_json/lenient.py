"""`LenientWriter`: writes any event, and says in place what cannot be written (E7)."""

from __future__ import annotations

import functools
import itertools
import reprlib
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any

from .._annotations import is_enum, is_record
from .._messages import shortened, text_of
from .._pydantic import extras_of, is_equal_to_default, is_excluded, is_model, is_root_model
from ..events import Event
from .codec import Writer, stands_for_itself
from .fields import Field, Registry, fields_of, tag_of
from .formats import (
    ANYTHING,
    ATOMS,
    MAX_DEPTH,
    Encoding,
    data_error,
    enum_text,
    is_marked,
    text_of_type,
)
from .hooks import Hooks
from .reader import Reader

MOST_REPEATED = 100_000
"""How many parts are written again, because several others hold them: `x = [x, x]`, 60 times, has 2**60."""

LONGEST_REPR = 200
"""In characters."""

_LONG = 1000
"""In characters. Shorter texts count for nothing when they are written again."""

_FEW = 20
"""In parts. The text of an exception with no more arguments counts for nothing."""

_CONTAINERS = frozenset({list, tuple, dict, set, frozenset})


class LenientWriter(Writer):
    """Writes a single event, whatever is in it.

    Instead of what a `Writer` refuses, `{"$repr": text}` is written, for the innermost value at fault. Records
    and enums need not be known, and a value of another type than its annotation says is written as what it is.

    Time and size are bounded by the size of the value in memory: parts that several others hold are written for
    each of them, but no more than `MOST_REPEATED` in all.
    """

    def __init__(self, registry: Registry, hooks: Hooks | None = None) -> None:
        super().__init__(registry, hooks)
        self._level = self._deepest = 0
        self._left = self._left_for_texts = MOST_REPEATED
        self._seen: set[int] = set()  # identities: whatever is in the event lives as long as this

    @functools.cached_property
    def _others(self) -> Registry:
        """The classes that the registry does not know, and so must not keep alive."""
        return Registry(on_wire=True)

    @functools.cached_property
    def _reader(self) -> Reader:
        return Reader(self._registry, hooks=self._hooks)

    def write_event(self, event: Event, encoding: Encoding, *, tagged: bool) -> dict[str, Any]:
        """Return what stands for an event; tagged also if it would be taken for something else."""
        data: dict[str, Any] = self.write(event, encoding)
        if tagged and not is_marked(data):
            data = {"$": tag_of(type(event)), "value": data}
        # A value takes up to three levels of JSON: object, list of pairs, pair.
        return _cut(data) if self._deepest > MAX_DEPTH // 4 else data

    def write(self, value: Any, encoding: Encoding) -> Any:
        """Return what stands for a value under an annotation."""
        cls = type(value)
        # Most values are these, and need no care: a third off the time of a small event.
        common = cls is str or cls is int or cls is NoneType or cls is bool or cls is float
        common = common and (encoding.foreign is None or self._hooks is None)
        long = cls is str and len(value) > _LONG
        if common and not long and cls in encoding.raw and stands_for_itself(value):
            return value
        self._level += 1
        try:
            if self._level > self._deepest:
                self._deepest = self._level
                if self._level > MAX_DEPTH + 1:
                    raise _TooMuch("nested too deeply")
            if cls in _CONTAINERS:
                self._count(value, len(value) + 1)
                value = self._with_atoms(value, encoding)
            elif cls in ATOMS:
                if cls is str and len(value) > _LONG:
                    self._count(value, len(value) // 100)
                if cls not in encoding.raw and _is_misplaced(value, encoding):
                    encoding = ANYTHING
            elif issubclass(cls, _ATOM_BASES):
                value = self._as_atom(value, encoding)
            data = super().write(value, encoding)
            return data["value"] if self._is_told(cls, data, encoding) else data
        except Exception as error:  # foreign code raises anything
            if self._in_error:
                raise  # an exception comes back with all of its arguments, or with none
            return {"$repr": _shown(value, error)}
        finally:
            self._level -= 1

    def _is_told(self, cls: type, data: Any, encoding: Encoding) -> bool:
        """Return whether the fields of a record tell which member of a union it is, so that a tag is not needed."""
        if encoding.form != "union" or cls not in self._registry or not is_record(cls):
            return False
        fields = data["value"] if type(data) is dict and "$" in data else None
        if type(fields) is not dict or is_marked(fields):
            return False
        members = [part for part in encoding.parts if self._reader.has_shape(fields, part)]
        return len(members) == 1 and members[0].bare is cls

    def _count(self, value: Any, parts: int) -> None:
        """Count the parts of a value, if it is written again."""
        if id(value) not in self._seen:
            self._seen.add(id(value))
        elif parts > self._left:
            raise _TooMuch("repeated too often")
        else:
            self._left -= parts

    def _as_atom(self, value: Any, encoding: Encoding) -> Any:
        """Return the plain text or number of an instance of a subclass, if that can be read in its place.

        Of an enum only where the annotation wants no member, as with `str`: elsewhere, it comes back as one.
        """
        cls = type(value)
        if not issubclass(cls, _ATOM_BASES) or _is_atom(value) or self._in_error or is_record(cls):
            return value
        if self._known_foreign(cls) is not None:  # a converter knows more of it
            return value
        base = next(base for base in _ATOM_BASES if issubclass(cls, base))
        atom = _PLAIN[base](value)
        if is_enum(cls):
            is_readable = _takes_atom(encoding, value, base)
        else:
            is_readable = isinstance(atom, encoding.check)
        if is_readable and base is str and len(atom) > _LONG:
            self._count(value, len(atom) // 100)
        return atom if is_readable else value

    def _with_atoms(self, container: Any, encoding: Encoding) -> Any:
        """Make atoms plain where a `Writer` no longer knows the annotation: keys, and parts of what is tagged."""
        if encoding.form == "union" and len(encoding.parts) == 1:
            (encoding,) = encoding.parts
        cls = type(container)
        if cls is dict:
            is_told = encoding.form == "mapping"
            key_encoding, value_encoding = encoding.parts if is_told else (ANYTHING, ANYTHING)
            if dict in encoding.raw and all(type(key) is str for key in container):
                return container
            keys = [self._as_atom(key, key_encoding) for key in container]
            values = [*container.values()]
            if is_told and dict not in encoding.raw:
                values = [self._as_atom(value, value_encoding) for value in values]
            if all(map(_is_atom, keys)):  # others may have any `__hash__()`
                plain = dict(zip(keys, values, strict=True))
                return plain if len(plain) == len(container) else container
        is_pair = cls is tuple and encoding.form == "fixed tuple"
        if is_pair and len(container) == len(encoding.parts):
            return tuple(map(self._as_atom, container, encoding.parts))
        return container

    def _write_tagged(self, value: Any, item: Encoding) -> tuple[str, Any]:
        cls = type(value)
        if is_enum(cls) and not (self._in_error and cls not in self._registry):
            return tag_of(cls), self.write(enum_text(value), ANYTHING)
        tag, data = super()._write_tagged(value, item)
        if type(data) is str and len(data) > _LONG:
            self._count(value, len(data) // 100)
        return tag, data

    def _write_unknown(self, value: Any) -> tuple[str, Any]:
        cls = type(value)
        if self._in_error:  # with this argument, the exception could not be read
            return super()._write_unknown(value)
        if is_record(cls):
            return tag_of(cls), self._write_record(value)
        for base in cls.__mro__[1:]:
            if base in _PLAIN:
                self._count(value, 1)
                return tag_of(cls), self.write(_PLAIN[base](value), ANYTHING)
            if text := text_of_type(base):
                return tag_of(cls), text.write(value)
        return super()._write_unknown(value)

    def _check_hashes(self, items: list[Any], data: list[Any]) -> None:
        """Write it all the same; what reads it will refuse it."""

    def _write_record(self, record: Any) -> Any:
        cls = type(record)
        fields = self._fields(cls)
        self._count(record, len(fields) + 1)
        data: dict[str, Any] = {}
        is_of_model = is_model(cls)
        for key, field in fields.items():
            try:
                if not is_of_model:
                    value = getattr(record, field.name)
                elif _is_left_out(record, field):
                    continue
                else:
                    value = vars(record)[field.name]
            except (AttributeError, KeyError):  # it was never set
                continue
            except Exception as error:
                if self._in_error:
                    raise
                data[key] = {"$repr": f"<not readable: {_name_of(type(error))}>"}
            else:
                if value is not None or not field.undeclared:
                    data[key] = self.write(value, field.encoding)
        for key, value in _extras_of(record).items():
            data[key if type(key) is str else _repr_of(key)] = self.write(value, ANYTHING)
        return data["root"] if is_root_model(cls) else data

    def _write_error(self, error: BaseException) -> dict[str, Any]:
        self._count(error, _FEW)  # to write one takes longer than to write other values
        data = super()._write_error(error)
        if not type(data["type"]) is type(data["text"]) is str:
            raise data_error("its text has been replaced")
        return data

    def _text_of(self, error: BaseException) -> str:
        try:
            # It has the `repr()` of its arguments.
            if self._is_small(error.args):
                return str.__str__(text_of(error))
        except Exception:
            return "(it has no text)"
        return "(it has too many arguments)"

    def _is_small(self, value: Any) -> bool:
        """Return whether the `repr()` of a value is bounded, as far as what it consists of can tell."""
        ahead = [value]
        for visited in itertools.count():
            if not ahead:
                return True
            if visited > _FEW:
                if not self._left_for_texts:
                    break
                self._left_for_texts -= 1
            part = ahead.pop()
            cls = type(part)
            if issubclass(cls, BaseException):
                ahead.append(part.args)
            elif issubclass(cls, dict):
                ahead += [*dict.keys(part), *dict.values(part)]
            elif is_record(cls):
                ahead += [getattr(part, name, None) for name in self._names_of(cls)]
                ahead += _extras_of(part).values()
            else:
                iterates = (
                    base.__iter__ for base in (list, tuple, set, frozenset) if issubclass(cls, base)
                )
                for iterate in iterates:
                    ahead += iterate(part)
        return False

    def _fields(self, cls: type) -> Mapping[str, Field]:
        return (self._registry if cls in self._registry else self._others).fields(cls)

    @functools.cached_property
    def _names_of(self) -> Callable[[type], list[str]]:
        """Return the names of all fields of a record: also of those that are not written."""
        return functools.cache(lambda cls: [field.name for field in fields_of(cls)])


class _TooMuch(RecursionError):
    """A bound is exceeded. For exceptions that hold themselves, this has to be a `RecursionError`."""


# How to get what an instance of a subclass of these consists of, whatever methods it has of its own.
_PLAIN: Mapping[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    list: list.copy,
    dict: dict.copy,
    tuple: lambda value: list(tuple.__iter__(value)),
    set: lambda value: list(set.__iter__(value)),
    frozenset: lambda value: list(frozenset.__iter__(value)),
}


_ATOM_BASES = (str, int, float)


def _is_atom(value: Any) -> bool:
    cls = type(value)  # its metaclass may have no hash
    return cls is str or cls is int or cls is float or cls is bool or cls is NoneType


def _takes_atom(encoding: Encoding, value: Any, base: type) -> bool:
    """Return whether an annotation admits a value only because it is an instance of one of JSON's own types."""
    if encoding.form == "union":
        members = [member for member in encoding.parts if isinstance(value, member.check)]
        return bool(members) and all(_takes_atom(member, value, base) for member in members)
    return encoding.form == "atom" and base in encoding.raw


def _is_left_out(model: Any, field: Field) -> bool:
    """Return whether a field of a model is not for others, or its default would be refused if it was read."""
    if is_excluded(type(model), field.name):
        return True
    fits = isinstance(vars(model)[field.name], field.encoding.check)
    return not fits and is_equal_to_default(model, field.name)  # `x: str = None`


def _extras_of(record: Any) -> Mapping[Any, Any]:
    """Return the values that an event or a model has beside its fields."""
    cls = type(record)
    if issubclass(cls, Event):
        extras: Mapping[Any, Any] = record._extra
        return extras
    return extras_of(record) if is_model(cls) else {}


def _is_misplaced(value: Any, encoding: Encoding) -> bool:
    """Return whether one of JSON's own values, of a wrong type, may stand for itself all the same.

    Not where it could be read as something else, as a text where a date is expected.
    """
    guessed = encoding.form in ("text", "enum", "union")
    return not guessed and not isinstance(value, encoding.check)


def _cut(data: Any, depth: int = 0) -> Any:
    """Replace what is nested too deeply in data to be read again."""
    if not data or type(data) not in (dict, list):
        return data
    if depth == MAX_DEPTH:
        return data if "$repr" in data else {"$repr": "<nested too deeply>"}
    if type(data) is dict:
        return {key: _cut(part, depth + 1) for key, part in data.items()}
    return [_cut(part, depth + 1) for part in data]


def _shown(value: object, error: Exception) -> str:
    """Return the text for a value that could not be written because of an error."""
    cls = type(value)
    try:
        # The `repr()` of what holds parts is not bounded.
        holds_parts = cls in _CONTAINERS or is_record(cls) or issubclass(cls, BaseException)
        if not holds_parts and not isinstance(error, RecursionError):
            return _repr_of(value)
        why = _name_of(type(error))
        if isinstance(error, RecursionError):  # if not ours, the caller has left little stack
            why = str(error) if isinstance(error, _TooMuch) else "nested too deeply"
    except Exception:
        why = "unreadable"
    return f"<{_name_of(cls)}: {why}>"


def _repr_of(value: object) -> str:
    try:
        return str.__str__(shortened(_reprs.repr(value), LONGEST_REPR))
    except Exception as error:
        return f"<{_name_of(type(value))}: repr() raised {_name_of(type(error))}>"


_reprs = reprlib.Repr()
_reprs.maxother = LONGEST_REPR


def _name_of(cls: type) -> str:
    try:
        return shortened(str.__str__(cls.__name__), 100)
    except Exception:  # of a metaclass
        return "?"
