"""Read values from JSON data, strictly: nothing is converted ("5" to 5, "abc" to a list)."""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import attrs

from .._annotations import is_enum
from .._messages import closest, nearest, short_repr, shortened, text_of
from .._pydantic import first_problem, is_model, is_root_model, make_model
from ..errors import ContextSerdeError
from .fields import Registry, is_open, takes_key
from .formats import (
    ANYTHING,
    ATOMS,
    TAGGED_TYPES,
    Encoding,
    Form,
    Text,
    check_hashes,
    data_error,
    encoding_of,
    enum_member,
    enum_text,
    is_finite,
    is_marked,
    mismatch,
    path_step,
    prepend_path,
    text_for,
    text_tagged,
)
from .hooks import Hooks, hook_check, no_hooks
from .renamed import Renamed, is_ours, unknown_field, unknown_type

_LIST = encoding_of(list)
_OBJECT = encoding_of(dict)
_PAIRS = encoding_of(list[list[Any]])


class RestoredError(Exception):
    """Stands for an exception whose type is not built in.

    Attributes:
        type_name: Module and name of its type.
        text: Its text, as it was; `str()` returns at most 1000 characters of it.
    """

    def __init__(self, type_name: str, text: str) -> None:
        self.type_name = type_name
        self.text = text
        super().__init__(type_name, text)

    def __str__(self) -> str:
        return shortened(self.text, 1000)

    def __repr__(self) -> str:
        return f"<{shortened(self.type_name, 200)}: {self}>"


@attrs.frozen
class _ErrorData:
    """What stands for an exception."""

    type: str
    text: str
    args: list[Any] | None = None
    notes: list[str] = attrs.field(factory=list)


def builtin_error(name: str) -> Any:
    """Return the builtin exception type of that name, or `None`."""
    cls = vars(builtins).get(name)
    return cls if isinstance(cls, type) and issubclass(cls, BaseException) else None


class Reader:
    """Reads values whose types are in `registry`.

    Args:
        registry: The types.
        renamed: What the data may call by other names; `None` if it is not a snapshot.
        hooks: The hooks of a converter, if there is one.
    """

    def __init__(
        self, registry: Registry, renamed: Renamed | None = None, hooks: Hooks | None = None
    ) -> None:
        self._registry, self._renamed, self._hooks = registry, renamed, hooks
        self._has_hooks = hook_check(hooks)

    def read(self, data: Any, encoding: Encoding) -> Any:
        """Return the value that stands under an annotation."""
        if type(data) is not dict or not is_marked(data):
            return _READ_FORM[encoding.form](self, data, encoding)
        value = self._read_tagged(data)
        # The tag may name any known type, which has to be one that the annotation wants.
        if not isinstance(value, encoding.check):
            raise mismatch(encoding, value)
        return value

    def _read_tagged(self, data: dict[Any, Any]) -> Any:
        if "$" not in data:
            shown = short_repr(data["$repr"])
            raise data_error(f"this value could not be written, only its repr() was: {shown}")
        tag = data["$"]
        if data.keys() != {"$", "value"} or type(tag) is not str:
            got = short_repr(data)
            raise data_error(f'a tagged value looks like {{"$": "tag", "value": ...}}, got {got}')
        inner = data["value"]
        if tag in TAGGED_TYPES:
            encoding = TAGGED_TYPES[tag]
            return _READ_FORM[encoding.form](self, inner, encoding)
        if text := text_tagged(tag):
            return _from_text(inner, text)
        if tag == "type" and type(inner) is str:
            return self._type_called(inner)
        if tag == "dict":
            return self._read_pairs(inner)
        if tag == "exception":
            return self._read_error(inner)
        cls = self._type_called(tag)
        if cls in self._registry.foreign:
            return self._structured(inner, cls)
        return _member_of(cls, inner) if is_enum(cls) else self._read_fields(inner, cls)

    def _type_called(self, tag: str) -> type:
        known, renamed = self._registry.types, self._renamed
        if tag in known:
            return known[tag]
        if renamed is not None and tag in renamed.types:
            return renamed.types[tag]
        if renamed is not None:
            raise data_error(unknown_type(tag, known))
        hint = closest(tag, known)
        raise data_error(
            f"unknown type {short_repr(tag)}{hint and f', {hint}'}; types=[...] names more"
        )

    # --- One method per form ---

    def _read_anything(self, data: Any, encoding: Encoding) -> Any:
        cls = type(data)
        if cls is list:
            value: Any = self._read_list(data, _LIST)
        elif cls is dict:
            value = self._read_mapping(data, _OBJECT)
        elif cls in ATOMS and is_finite(data):
            value = data
        else:
            raise data_error(f"no JSON value: {short_repr(data)} ({cls.__qualname__})")
        if encoding is not ANYTHING and not isinstance(value, encoding.check):
            raise mismatch(encoding, value)
        return value

    def _read_atom(self, data: Any, encoding: Encoding) -> Any:
        if type(data) in encoding.raw and is_finite(data):
            return data
        raise mismatch(encoding, data)

    def _read_text(self, data: Any, encoding: Encoding) -> Any:
        if type(data) in encoding.raw and is_finite(data):
            return data
        text = text_for(encoding.cls)
        assert text is not None
        return _from_text(data, text)

    def _read_enum(self, data: Any, encoding: Encoding) -> Any:
        return _member_of(encoding.cls, data)

    def _read_record(self, data: Any, encoding: Encoding) -> Any:
        if type(data) is not dict and not is_root_model(encoding.cls):
            raise mismatch(encoding, data)
        return self._read_fields(data, encoding.cls)

    def _read_list(self, data: Any, encoding: Encoding) -> list[Any]:
        if type(data) is not list:
            raise mismatch(encoding, data)
        return self._read_parts(itertools.count(), data, itertools.repeat(encoding.item))

    def _read_set(self, data: Any, encoding: Encoding) -> Any:
        items = self._read_list(data, encoding)
        try:
            check_hashes(items, data)
            return encoding.bare(items)
        except TypeError as error:
            raise data_error(f"no item of a set: {error}") from None

    def _read_tuple(self, data: Any, encoding: Encoding) -> tuple[Any, ...]:
        return tuple(self._read_list(data, encoding))

    def _read_fixed_tuple(self, data: Any, encoding: Encoding) -> tuple[Any, ...]:
        if type(data) is not list or len(data) != len(encoding.parts):
            raise mismatch(encoding, data)
        return tuple(self._read_parts(itertools.count(), data, encoding.parts))

    def _read_mapping(self, data: Any, encoding: Encoding) -> dict[Any, Any]:
        if type(data) is not dict:
            raise mismatch(encoding, data)
        for key in data:
            if type(key) is not str:
                raise ContextSerdeError(path_step(key), "the keys of a JSON object are texts")
        key_encoding, value_encoding = encoding.parts
        keys = self._read_parts(data, data, itertools.repeat(key_encoding))
        values = self._read_parts(data, data.values(), itertools.repeat(value_encoding))
        try:
            if (
                dict not in encoding.raw
            ):  # the hashes of texts are random, those of other keys are not
                check_hashes(keys, list(data))
            return dict(zip(keys, values, strict=True))
        except TypeError as error:  # `Decimal("sNaN")`, say
            raise data_error(f"no key of a dict: {error}") from None

    def _read_pairs(self, data: Any) -> dict[Any, Any]:
        try:
            pairs = self._read_list(data, _PAIRS)
            check_hashes([key for key, _ in pairs], [key for key, _ in data])
            return dict(pairs)
        except ContextSerdeError:
            raise
        except (TypeError, ValueError) as error:
            raise data_error(f"no pairs of keys and values: {error}") from None

    def _read_literal(self, data: Any, encoding: Encoding) -> Any:
        if not isinstance(data, encoding.check):
            raise mismatch(encoding, data)
        return data

    def _read_union(self, data: Any, encoding: Encoding) -> Any:
        if data is None and encoding.optional:
            return None
        members = list(encoding.parts)
        if len(members) > 1:
            foreign = [member for member in members if self._is_for_hooks(member)]
            members = [member for member in members if self.has_shape(data, member)] or foreign
            members.sort(key=lambda member: not isinstance(data, member.check))
        if len(members) == 1 or (members and type(data) in (list, dict)):
            # A list or an object is read by one member only. If several tried, each of them would try
            # several for what is nested in it, and the time would double with each level.
            return self.read(data, members[0])
        for member in members:
            with suppress(ContextSerdeError):
                return self.read(data, member)
        raise mismatch(encoding, data)

    def has_shape(self, data: Any, encoding: Encoding) -> bool:
        """Return whether untagged data may be of a member of a union, judged by its outermost level only."""
        if self._is_for_hooks(encoding):
            return False  # no hook is asked for data that another member can read
        if is_root_model(encoding.cls):
            return self.has_shape(data, self._registry.fields(encoding.cls)["root"].encoding)
        if type(data) is list:
            return list in encoding.raw or encoding.bare in (set, frozenset, tuple)
        if type(data) is dict and encoding.form == "record":
            fields = self._registry.fields(encoding.cls)
            required = {field.key for field in fields.values() if field.required}
            data = self._by_new_names(data, encoding.cls)
            known = data.keys() if is_open(encoding.cls) else fields.keys()
            # A `Literal` tells the members of a union apart: `kind: Literal["circle"]`.
            told = (fields[key] for key in data if key in fields)
            literals = (field for field in told if field.encoding.form == "literal")
            return required <= data.keys() <= known and all(
                isinstance(data[field.key], field.encoding.check) for field in literals
            )
        if type(data) is dict:
            return dict in encoding.raw or encoding.form == "mapping"
        return type(data) in encoding.raw or encoding.form in ("atom", "text", "enum")

    def _read_foreign(self, data: Any, encoding: Encoding) -> Any:
        if self._is_for_hooks(encoding):
            return self._structured(data, encoding.cls)
        value = self._read_anything(data, ANYTHING)
        if isinstance(value, encoding.check):  # that of a protocol, for instance
            return value
        problem = mismatch(encoding, data).problem
        raise data_error(f"{problem}{self._hint_at_hooks(encoding.cls)}")

    def _is_for_hooks(self, encoding: Encoding) -> bool:
        """Return whether the values of an annotation are made by the hooks of a converter."""
        return encoding.form == "foreign" and self._has_hooks(encoding.cls)

    def _structured(self, data: Any, cls: type) -> Any:
        if self._hooks is None or not self._has_hooks(cls):
            hint = self._hint_at_hooks(cls)
            raise data_error(f"{cls.__qualname__} needs the hooks of a converter{hint}")
        return self._hooks.structure(self.read(data, ANYTHING), cls)

    def _hint_at_hooks(self, cls: type) -> str:
        in_snapshot = (
            self._renamed is not None
        )  # elsewhere, no workflow has a converter for the data
        return f"; {no_hooks(cls, self._hooks)}" if in_snapshot or self._hooks is not None else ""

    # --- Parts of containers ---

    def _read_parts(
        self, keys: Iterable[Any], parts: Iterable[Any], encodings: Iterable[Encoding]
    ) -> list[Any]:
        """Read the parts of a container; the path of an error says in which of them it is."""
        values = []
        for key, part, encoding in zip(keys, parts, encodings, strict=False):
            try:
                values.append(self.read(part, encoding))
            except ContextSerdeError as error:
                prepend_path(error, path_step(key))
                raise
        return values

    def _read_fields(self, data: Any, cls: type) -> Any:
        """Make a record of the values of its fields."""
        fields = self._registry.fields(cls)
        if "root" in fields and is_root_model(cls):
            return self._made(cls, {"root": self.read(data, fields["root"].encoding)}, {})
        if type(data) is not dict:
            raise mismatch(encoding_of(cls), data)
        data = self._by_new_names(data, cls)
        for key in data:
            if key not in fields and not takes_key(cls, key):
                raise ContextSerdeError(path_step(key), self._unknown_field(key, data, cls))
        encodings = [fields[key].encoding if key in fields else ANYTHING for key in data]
        values = dict(zip(data, self._read_parts(data, data.values(), encodings), strict=True))
        late = {}
        for key, field in fields.items():
            if key not in values:
                if field.required:
                    problem = f"missing, {cls.__name__} needs it"
                    if self._may_be_older(cls):
                        problem += "; give the field a default, which older snapshots then get"
                    raise ContextSerdeError(path_step(key), problem)
            elif not field.init:
                late[field.name] = values.pop(key)
        return self._made(cls, values, late)

    def _made(self, cls: Any, values: dict[Any, Any], late: dict[str, Any]) -> Any:
        """Make a record of the values for its constructor, and those that are set afterwards."""
        try:
            if is_model(cls):
                return make_model(cls, values)
            record = cls(**values)
            for name, value in late.items():
                object.__setattr__(record, name, value)
        except Exception as error:  # validators and converters raise anything
            where, problem = first_problem(error, cls)
            path = "".join(map(path_step, where))
            problem = f"{cls.__name__} does not take this: {problem}"
            raise ContextSerdeError(path, problem) from error
        return record

    # --- Names from an older release (P8) ---

    def _by_new_names(self, data: dict[Any, Any], cls: type) -> dict[Any, Any]:
        if self._renamed is None or not self._renamed.fields:
            return data
        return self._renamed.by_new_names(data, cls, self._registry.fields(cls).keys())

    def _unknown_field(self, key: object, data: dict[Any, Any], cls: type) -> str:
        name, fields = key if type(key) is str else "", self._registry.fields(cls)
        if self._may_be_older(cls):
            return unknown_field(name, data, cls, fields)
        return f"{cls.__name__} has no such field, {nearest(name, fields)}"

    def _may_be_older(self, cls: type) -> bool:
        """Return whether data of a type may be from before its fields were changed."""
        return self._renamed is not None and not is_ours(cls)

    def _read_error(self, data: Any) -> BaseException:
        plain: _ErrorData = self._read_fields(data, _ErrorData)
        cls = builtin_error(plain.type)
        if cls is None or plain.args is None:
            error: BaseException = RestoredError(plain.type, plain.text)
        else:
            try:
                error = cls(*plain.args)
            except Exception as problem:
                raise data_error(
                    f"{plain.type} does not take these arguments: {text_of(problem)}"
                ) from None
        for note in plain.notes:
            error.add_note(note)
        return error


_READ_FORM: Mapping[Form, Callable[[Reader, Any, Encoding], Any]] = {
    "anything": Reader._read_anything,
    "atom": Reader._read_atom,
    "text": Reader._read_text,
    "enum": Reader._read_enum,
    "record": Reader._read_record,
    "list": Reader._read_list,
    "set": Reader._read_set,
    "tuple": Reader._read_tuple,
    "fixed tuple": Reader._read_fixed_tuple,
    "mapping": Reader._read_mapping,
    "literal": Reader._read_literal,
    "union": Reader._read_union,
    "foreign": Reader._read_foreign,
}


def _from_text(data: Any, text: Text) -> Any:
    if type(data) is str and (text.longest is None or len(data) <= text.longest):
        with suppress(Exception):  # each type has exceptions of its own for a malformed text
            return text.read(data)
    raise data_error(f"no {text.tag} in its usual text form: {short_repr(data)}")


def _member_of(cls: Any, data: Any) -> Any:
    member = enum_member(cls, data)
    if member is None:
        known = ", ".join(repr(enum_text(member)) for member in cls)
        raise data_error(f"expected one of {known} ({cls.__name__}), got {short_repr(data)}")
    return member
