"""`JsonCodec`: write values as JSON data, and read them."""

from __future__ import annotations

import collections
import inspect
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .._annotations import is_enum, is_record
from .._messages import short_repr, text_of
from .._pydantic import (
    changed_fields,
    extras_of,
    first_problem,
    is_equal_to_default,
    is_model,
    is_root_model,
    is_same,
    is_unset_default,
    make_model,
    may_be_left_out,
)
from ..errors import ContextSerdeError
from ..events import Event
from .fields import NO_TYPE, Registry, is_foreign, tag_of
from .formats import (
    ANYTHING,
    LONG_INT,
    MAX_DEPTH,
    TAGGED_TYPES,
    Encoding,
    check_depth,
    check_hashes,
    data_error,
    encoding_of,
    enum_text,
    is_finite,
    is_marked,
    mismatch,
    path_step,
    prepend_path,
    text_of_type,
)
from .hooks import Hooks, hook_check, no_hooks
from .plain import PlainTexts
from .reader import Reader, RestoredError, builtin_error
from .renamed import Renamed, read_renamed

compact = json.JSONEncoder(separators=(",", ":")).encode
"""Returns the text of JSON data."""


class JsonCodec:
    """Writes values as JSON data, and reads them.

    It knows JSON's own types, the builtin containers, dates, times, durations, `Decimal`, `UUID`,
    paths, bytes, the URLs of pydantic, exceptions, and the types that it is given: event classes,
    attrs classes, dataclasses, pydantic models and enums, with those that the annotations of their
    fields mention.

    Args:
        types: The types that the data may name.
        more_types: More of them; those that have the name of one of `types` are left out.

    Raises:
        ContextSerdeError: If one of `types` is none of these, or two have the same name.
    """

    def __init__(self, types: Iterable[type] = (), more_types: Iterable[type] = ()) -> None:
        self._registry = Registry(types, more_types)
        self._plain = PlainTexts(self._registry)

    @property
    def types(self) -> list[type]:
        """The types that data may name."""
        return list(self._registry.types.values())

    def dump(self, value: Any, path: str = "$", hooks: Hooks | None = None) -> Any:
        """Return data for `json.dumps`, of which `load` makes an equal value.

        Args:
            value: Any value. Fields are written as their annotations say.
            path: The place of the value in something larger, for the messages of errors.
            hooks: The hooks of a converter, if there is one.

        Raises:
            ContextSerdeError: If the value, or one inside it, cannot be written as JSON.
        """
        with located(path):
            self._check_given(hooks)
            data = Writer(self._registry, hooks).write(value, ANYTHING)
            check_depth(data)  # `load` refuses what is deeper, which would be noticed too late
        return data

    def text_of_event(self, event: Event, path: str = "$", hooks: Hooks | None = None) -> str:
        """Return the compact JSON of what `dump` returns for an event.

        Raises:
            ContextSerdeError: If the event, or a value in it, cannot be written as JSON.
        """
        if not self._registry.given_foreign and (text := self._plain.text(event)) is not None:
            return text
        return compact(self.dump(event, path, hooks))

    def load(
        self,
        data: Any,
        as_type: Any = None,
        path: str = "$",
        renamed: Renamed | None = None,
        hooks: Hooks | None = None,
    ) -> Any:
        """Return the value that JSON data stands for.

        Args:
            data: What `json.loads` returned.
            as_type: The annotation that the value was written under; `None` for any type.
            path: The place of the value in something larger, for the messages of errors.
            renamed: What data may call by other names, if it may be from another release of the program.
            hooks: The hooks of a converter, if there is one.

        Raises:
            ContextSerdeError: If the data stands for no value, or for one of another type.
        """
        with located(path):
            self._check_given(hooks)
            check_depth(data)  # before anything recurses
            reader = Reader(self._registry, renamed, hooks)
            return reader.read(data, encoding_of(Any if as_type is None else as_type))

    def _check_given(self, hooks: Hooks | None) -> None:
        for cls in self._registry.given_foreign:
            if hooks is None or hooks.missing(cls):
                raise data_error(f"{cls!r} {NO_TYPE}; {no_hooks(cls, hooks)}")

    def renamed(self, given: object, steps: Collection[str]) -> Renamed:
        """Check the `renamed=` of a caller; see `read_renamed()`."""
        return read_renamed(given, self._registry, steps)


@contextmanager
def located(path: str) -> Iterator[None]:
    """Complete the path of an error, and turn a lack of stack into one."""
    try:
        yield
    except ContextSerdeError as error:
        prepend_path(error, path)
        raise
    except RecursionError:
        problem = "nested too deeply, or it contains itself"
        raise ContextSerdeError(path, problem) from None


class Writer:
    """Writes a single value, whose types are in `registry`; `hooks` are those of a converter, if there is one."""

    def __init__(self, registry: Registry, hooks: Hooks | None = None) -> None:
        self._registry, self._hooks = registry, hooks
        self._has_hooks = hook_check(hooks)
        self._in_error = False  # whether the arguments of an exception are being written

    def write(self, value: Any, encoding: Encoding) -> Any:
        """Return what stands for a value under an annotation."""
        cls = type(value)
        if (
            cls in encoding.raw
            and stands_for_itself(value)
            and (encoding.foreign is None or not self._is_for_hooks(value, encoding))
        ):
            if cls is list:
                return self._write_items(value, encoding.item)
            if cls is dict:
                return self._write_values(value, encoding.item)
            return value
        is_bare = cls is encoding.bare
        tag, data = self._write_tagged(value, encoding.item if is_bare else ANYTHING)
        # An event with a keyword "$" would be read as a tagged value, and a model whose root is `None` as `None`.
        # The same data is used for both: to write it again, on each level, would take exponential time.
        if is_bare and data is not None and not (type(data) is dict and is_marked(data)):
            return data
        return {"$": tag, "value": data}

    def _write_tagged(self, value: Any, item: Encoding) -> tuple[str, Any]:
        """Return the tag of a value, and the data that stands for it."""
        cls = type(value)
        if cls in (list, tuple):
            return cls.__name__, self._write_items(value, item)
        if cls in (set, frozenset):
            items = self._write_items(value, item)
            self._check_hashes(list(value), items)
            return cls.__name__, sorted(items, key=repr)
        if cls is dict:
            keys = [self.write(key, ANYTHING) for key in value]
            self._check_hashes(list(value), keys)
            values = self._write_parts(value, value.values(), ANYTHING)
            return "dict", [list(pair) for pair in zip(keys, values, strict=True)]
        if text := text_of_type(cls):
            try:
                return text.tag, text.write(value)
            except ValueError as error:
                raise data_error(f"{value!r} cannot be written as JSON: {error}") from None
        if cls.__name__ in TAGGED_TYPES and TAGGED_TYPES[cls.__name__].cls is cls:
            return cls.__name__, value
        if issubclass(cls, type) and value in self._registry:
            return "type", tag_of(value)
        if (known := self._known_foreign(cls)) is not None:
            return tag_of(known), self._write_foreign(value, known)
        if cls in self._registry and cls not in self._registry.foreign:
            written = enum_text(value) if is_enum(cls) else self._write_record(value)
            return tag_of(cls), written
        if isinstance(value, BaseException):
            return "exception", self._write_error(value)
        return self._write_unknown(value)

    def _write_unknown(self, value: Any) -> tuple[str, Any]:
        """Write a value of a type that is not known: refuse it, as nothing could read it."""
        cls = type(value)
        unknown = value if issubclass(cls, type) else cls
        if is_record(unknown) or is_enum(unknown):
            raise data_error(
                f"{unknown.__qualname__} is not among the known types; name it in types=[...]"
            )
        problem = f"a value of type {cls.__qualname__} cannot be written as JSON"
        atom = next((atom for atom in (str, int, float) if issubclass(cls, atom)), None)
        if atom is not None and self._hooks is None:
            remedy = f"put {atom.__name__}(value) in its place, or keep it out of what is saved"
        elif not is_foreign(cls):
            remedy = "keep it out of what is saved, or put plain data in its place"
        elif self._has_hooks(cls):
            remedy = "it is not among the known types; name it in types=[...]"
        else:
            remedy = no_hooks(cls, self._hooks)
            if atom is not None:
                remedy += f"; or put {atom.__name__}(value) in its place"
        raise data_error(f"{problem}; {remedy}")

    # --- Values that only the hooks of a converter know how to write (P7) ---

    def _is_for_hooks(self, value: Any, encoding: Encoding) -> bool:
        """Return whether a hook will be asked for what stands under an annotation, whatever it is."""
        return not (value is None and encoding.optional) and self._has_hooks(encoding.foreign)

    def _known_foreign(self, cls: type) -> type | None:
        """Return the known class whose hooks are for values of `cls`: this class, or a base of it."""
        if self._hooks is None or is_record(cls) or not self._has_hooks(cls):
            return None
        return next((base for base in cls.__mro__ if base in self._registry.foreign), None)

    def _write_foreign(self, value: Any, known: type) -> Any:
        """Return what stands for a value that comes back by the hooks of `known`."""
        assert self._hooks is not None
        cls = type(value)
        data = self._hooks.unstructure(value)
        # The hooks may know nothing of what a subclass adds. Those that cattrs has itself for collections make data
        # of what these hold, too, but nothing of the data, since only an annotation would say what.
        holds_parts = issubclass(cls, dict | collections.deque)
        if cls is not known or holds_parts:
            back = self._hooks.structure(data, known)
            if type(back) is not cls:
                raise data_error(
                    f"a {cls.__qualname__} would come back as {type(back).__qualname__}; register hooks for it, "
                    "and name it in types=[...]"
                )
            if holds_parts and not is_same(value, back):
                raise data_error(
                    f"{short_repr(value)} would come back as {short_repr(back)}; register hooks for "
                    f"{cls.__qualname__} that keep what it holds"
                )
        try:
            return self.write(data, ANYTHING)
        except ContextSerdeError as error:
            problem = f"in what the unstructure hook for {cls.__name__} returned: {error.problem}"
            raise ContextSerdeError(error.path, problem) from error

    # --- Parts of containers ---

    def _check_hashes(self, items: list[Any], data: list[Any]) -> None:
        check_hashes(items, data)

    def _write_items(self, items: Iterable[Any], encoding: Encoding) -> list[Any]:
        return self._write_parts(itertools.count(), items, encoding)

    def _write_values(self, values: Mapping[Any, Any], encoding: Encoding) -> dict[Any, Any]:
        return dict(zip(values, self._write_parts(values, values.values(), encoding), strict=True))

    def _write_parts(
        self, keys: Iterable[Any], parts: Iterable[Any], encoding: Encoding
    ) -> list[Any]:
        """Write the parts of a container; the path of an error says in which of them it is."""
        written = []
        for key, part in zip(keys, parts, strict=False):
            try:
                written.append(self.write(part, encoding))
            except ContextSerdeError as error:
                prepend_path(error, path_step(key))
                raise
        return written

    def _write_record(self, record: Any) -> Any:
        if is_model(type(record)):
            return self._write_model(record)
        data: dict[str, Any] = {}
        for key, field in self._registry.fields(type(record)).items():
            if hasattr(record, field.name):
                try:
                    data[key] = self._write_field(getattr(record, field.name), field.encoding)
                except ContextSerdeError as error:
                    prepend_path(error, path_step(key))
                    raise
        if isinstance(record, Event):
            data |= self._write_values(record._extra, ANYTHING)
        return data

    def _write_model(self, model: Any) -> Any:
        cls = type(model)
        held = vars(model)  # `getattr()` warns of deprecated fields
        values, data, left_out = {}, {}, set()
        for key, field in self._registry.fields(cls).items():
            # What is left out comes back as the default: what nobody set, and defaults that do not fit
            # their annotation (`x: str = None`), which pydantic does not check.
            name = field.name
            if name not in held or (is_unset_default(model, name) and not is_root_model(cls)):
                continue
            values[key] = held[name]
            try:
                data[key] = self._write_field(held[name], field.encoding)
            except ContextSerdeError as error:
                is_default = error.path == "" and is_equal_to_default(model, name)
                if is_default or may_be_left_out(cls, name):
                    del values[key]
                    left_out.add(name)
                    continue
                if not isinstance(held[name], field.encoding.check):
                    way = (
                        f"; assign what fits, or annotate {cls.__name__}.{name} with what it holds"
                    )
                    raise ContextSerdeError(path_step(key), error.problem + way) from None
                prepend_path(error, path_step(key))
                raise
        extras = extras_of(model)
        for key in extras.keys() & data.keys():
            problem = f"{cls.__name__} has a field and an extra value of this name"
            raise ContextSerdeError(path_step(key), problem)
        data |= self._write_values(extras, ANYTHING)
        _check_comes_back(model, values | extras, left_out)
        return data["root"] if is_root_model(cls) else data

    def _write_field(self, value: Any, encoding: Encoding) -> Any:
        if not isinstance(value, encoding.check):
            raise mismatch(encoding, value)
        data = self.write(value, encoding)
        if isinstance(value, BaseException) and not isinstance(
            _comes_back(value, data), encoding.check
        ):
            wanted = inspect.formatannotation(encoding.annotation)
            raise data_error(
                f"a value of type {type(value).__qualname__} would come back as no {wanted}"
            )
        return data

    def _write_error(self, error: BaseException) -> dict[str, Any]:
        cls = type(error)
        data: dict[str, Any] = {"type": cls.__name__, "text": self._text_of(error)}
        if isinstance(error, RestoredError):
            data.update(type=error.type_name, text=error.text)
        elif builtin_error(cls.__name__) is not cls:
            data["type"] = f"{cls.__module__}.{cls.__qualname__}"
        else:
            args = self._write_args(error)
            if args is not None:  # without them, it comes back as a `RestoredError`
                data["args"] = args
        notes = getattr(error, "__notes__", ())
        if notes and type(notes) is list:
            data["notes"] = [note for note in notes if type(note) is str]
        return data

    def _text_of(self, error: BaseException) -> str:
        return text_of(error)

    def _write_args(self, error: BaseException) -> list[Any] | None:
        """Return the data of the arguments of an exception; `None` if it could not be made of them again."""
        args: Any = error.__reduce__()[1]
        outermost, self._in_error = not self._in_error, True
        try:
            if type(type(error)(*args)) is not type(error):
                return None
            written = self._write_items(args, ANYTHING)
            check_depth(written, MAX_DEPTH // 2)  # the rest is for what holds the exception
        except RecursionError:
            if outermost:
                return None
            # Exceptions may hold themselves, several times. If each level that fails tried its other arguments,
            # the time would grow exponentially.
            raise
        except Exception:
            return None
        finally:
            self._in_error = not outermost
        return written


def stands_for_itself(value: Any) -> bool:
    """Return whether JSON has this value, given that it has values of its type."""
    cls = type(value)
    if cls is dict:
        return all(type(key) is str for key in value) and not is_marked(value)
    if cls is int:
        return int(value).bit_length() <= LONG_INT
    return is_finite(value)


def _check_comes_back(model: Any, values: Mapping[str, Any], left_out: set[str]) -> None:
    """Refuse a model that is not made of its values again: because of its validators, say."""
    cls = type(model)
    try:
        other = make_model(cls, values)
    except Exception as error:  # validators raise anything
        where, problem = first_problem(error, cls)
        path = "".join(map(path_step, where))
        problem = f"{cls.__name__} does not take back what it holds: {problem}"
        raise ContextSerdeError(path, problem) from error
    name = next((name for name in changed_fields(model, other) if name not in left_out), None)
    if name is not None:
        old, new = (short_repr(vars(one).get(name)) for one in (model, other))
        raise ContextSerdeError(
            path_step(name),
            f"{cls.__name__} makes {new} of {old} when it is made of its values again; let its validators "
            "return valid values unchanged",
        )


def _comes_back(error: BaseException, data: Any) -> BaseException:
    """Return an exception of the type that `error` will be read as."""
    foreign = data.get("$") == "exception" and "args" not in data["value"]
    return RestoredError("", "") if foreign else error
