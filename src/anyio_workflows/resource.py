"""Markers for parameters: what a step is given besides its event.

`db: Annotated[Database, Resource(connect)]` injects what `connect` makes, once per run. What makes
it may be a function, sync or async, which may ask for resources itself; a generator function is
entered before the first step that asks, and closed when the run ends.
`settings: Annotated[Settings, ResourceConfig("app.toml")]` injects a file's contents.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import reprlib
import types
import typing
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from ._annotations import Unresolved, resolve
from .errors import ContextSerdeError, WorkflowConfigurationError, nearest

__all__ = ["Need", "Resource", "ResourceConfig", "read_need"]


@attrs.frozen
class Resource:
    """Say, inside `Annotated`, what makes the value of a parameter.

    Args:
        factory: Any callable. Its own parameters may be resources. A generator function, sync or
            async, bare or under `contextlib`'s decorators, is entered and closed; everything else
            is called, awaited if it returns an awaitable, and its result handed over as it is.
            Sync ones are called in the event loop's thread.
        cache: Keep what was made until the run ends. Otherwise each attempt of a step has its own,
            one for all that ask for it there, which is closed when that attempt ends. What a cached
            resource asks for is made for it alone, and closed after it.

    Raises:
        WorkflowConfigurationError: If `factory` cannot be called, or `cache` is no bool.
    """

    factory: Callable[..., Any]
    cache: bool = True

    def __attrs_post_init__(self) -> None:
        if not callable(self.factory):
            raise WorkflowConfigurationError(
                f"Resource() takes a function that makes the resource, not {self.factory!r}"
            )
        if type(self.cache) is not bool:
            raise WorkflowConfigurationError(f"Resource(cache=) is a bool, not {self.cache!r}")


def _path_text(file: object) -> str:
    text = os.fspath(file) if isinstance(file, str | os.PathLike) else None
    if not isinstance(text, str) or Path(text).suffix.lower() not in (".json", ".toml"):
        raise WorkflowConfigurationError(
            f"ResourceConfig() takes the name of a .json or .toml file, not {file!r}"
        )
    return text


@attrs.frozen
class ResourceConfig:
    """Say, inside `Annotated`, which file the value of a parameter is read from, once per run.

    The annotated type is an attrs class, a dataclass or what JSON is made of. Nothing is converted
    on the way, save what JSON has no form for: dates, paths, UUIDs and enums come from text.

    Args:
        config_file: A `.json` or `.toml` file; relative to the working directory of the run.
        path_selector: The dotted keys that lead to the part of the file that is meant.

    Raises:
        WorkflowConfigurationError: If `config_file` is neither, or a key is empty. Also when the
            file is read, if it does not hold what the annotation says.
    """

    config_file: str = attrs.field(converter=_path_text)
    path_selector: str | None = None

    def __attrs_post_init__(self) -> None:
        selector = self.path_selector
        if selector is not None and not (isinstance(selector, str) and all(selector.split("."))):
            raise WorkflowConfigurationError(
                f"ResourceConfig(path_selector=) is text like 'server.limits', not {selector!r}"
            )


@attrs.frozen
class Need:
    """Something that a step or a factory asks for. Equal needs share what is cached.

    Attributes:
        key: What makes it the same: the factory and whether it is cached, or the file, the part of
            it and the type.
        name: Names it in messages.
        make: Takes the values of `needs` as keywords.
        cache: Whether it is made once per run.
        scoped: Whether `make` returns a context manager to enter.
        needs: What the factory asks for itself, by parameter.
    """

    key: Hashable = attrs.field(repr=False)
    name: str = attrs.field(eq=False)
    make: Callable[..., Any] = attrs.field(eq=False, repr=False)
    cache: bool = attrs.field(eq=False)
    scoped: bool = attrs.field(eq=False)
    needs: Mapping[str, Need] = attrs.field(eq=False, repr=False, factory=dict)

    @property
    def lasting(self) -> bool:
        """Whether there is something to close."""
        return self.scoped or any(not need.cache and need.lasting for need in self.needs.values())

    def cached_needs(self) -> Iterator[Need]:
        """Yield the cached needs that have to be there first, in the order of the parameters."""
        for need in self.needs.values():
            if need.cache:
                yield need
            else:
                yield from need.cached_needs()


# --- Reading annotations -------------------------------------------------------------------------


def read_need(annotation: Any, faults: list[str], unresolved: list[str]) -> Need | None:
    """Read the annotation of one parameter, and the signatures of all factories behind it.

    Args:
        annotation: The annotation, resolved.
        faults: Takes a sentence for each fault that is found.
        unresolved: Takes a sentence for each annotation that names something not defined (yet).

    Returns:
        What the parameter asks for, or `None` if its annotation has no marker of this module.
    """
    return _Reader(faults, unresolved).read(annotation)


def _marked(annotation: Any) -> tuple[Resource | ResourceConfig, Any] | None:
    """Return the first marker in an annotation and the type it marks."""
    while hasattr(annotation, "__value__"):  # `type X = ...`, Python 3.12
        annotation = annotation.__value__
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        for mark in args[1:]:
            if isinstance(mark, Resource | ResourceConfig):
                return mark, args[0]
        return _marked(args[0])
    if origin in (typing.Union, types.UnionType):
        return next(filter(None, map(_marked, args)), None)
    return None


@attrs.define(eq=False)
class _Reader:
    faults: list[str]
    unresolved: list[str]
    _known: dict[Hashable, Need] = attrs.field(factory=dict)
    _chain: dict[Hashable, str] = attrs.field(factory=dict)

    def read(self, annotation: Any) -> Need | None:
        marked = _marked(annotation)
        if marked is None:
            return None
        mark, wanted = marked
        if isinstance(mark, Resource):
            return self._read_factory(mark.factory, mark.cache)
        contents = _Contents(mark.config_file, mark.path_selector, wanted)
        return Need(contents.key, contents.name, contents.read, cache=True, scoped=False)

    def _read_factory(self, factory: Callable[..., Any], cache: bool) -> Need:
        key = (_identity(factory), cache)
        name = _name_of(factory)
        if key in self._known:
            return self._known[key]
        make, scoped = _maker(factory)
        if key in self._chain:
            names = [*self._chain.values(), name]
            circle = " -> ".join(names[list(self._chain).index(key) :])
            self.faults.append(
                f"resources depend on each other: {circle}; let one of them do without the next"
            )
            return Need(key, name, make, cache, scoped)
        self._chain[key] = name
        need = Need(key, name, make, cache, scoped, self._read_params(factory, name))
        del self._chain[key]
        self._known[key] = need
        return need

    def _read_params(self, factory: Callable[..., Any], name: str) -> dict[str, Need]:
        try:
            params = inspect.signature(factory).parameters.values()
        except ValueError:  # some builtins have no signature
            return {}
        needs: dict[str, Need] = {}
        for param in params:
            if param.kind in (param.VAR_POSITIONAL, param.VAR_KEYWORD):
                continue
            where = f"resource {name}: parameter {param.name!r}"
            found = len(self.faults) + len(self.unresolved)
            need = self.read(self._hint(factory, param, where))
            if need is not None and param.kind is param.POSITIONAL_ONLY:
                self.faults.append(f"{where} cannot be given by name; take the '/' away")
            elif need is not None:
                needs[param.name] = need
            elif param.default is param.empty and len(self.faults) + len(self.unresolved) == found:
                self.faults.append(
                    f"{where} is no resource and has no default; annotate it, as in "
                    f"'{param.name}: Annotated[T, Resource(make_{param.name})]'"
                )
        return needs

    def _hint(self, factory: Callable[..., Any], param: inspect.Parameter, where: str) -> Any:
        """Resolve an annotation; `None` if there is none, or a fault in it."""
        annotation = param.annotation
        if annotation is param.empty:
            return None
        home = _origin(factory)
        if isinstance(home, type):
            home = next(base for base in home.__mro__ if "__init__" in vars(base))
        resolved = resolve(annotation, home)
        if not isinstance(resolved, Unresolved):
            return resolved
        # Classes of other people annotate options with what only type checkers import.
        if param.default is not param.empty and "Resource" not in str(annotation):
            return None
        if resolved.name is not None:
            fault = f"{where} is annotated with {resolved.name!r}, which is not defined"
            self.unresolved.append(fault)
        else:
            self.faults.append(f"{where} is annotated with {annotation!r}: {resolved.reason}")
        return None


def _identity(factory: Callable[..., Any]) -> Hashable:
    """Return what tells factories apart; each access to a bound method makes another object."""
    if inspect.ismethod(factory):
        return id(factory.__self__), id(factory.__func__)
    return id(factory)


def _bare(factory: Any) -> Any:
    """Return the function or class that is called in the end, as far as Python itself knows."""
    while True:
        if isinstance(factory, functools.partial):
            factory = factory.func
        elif inspect.ismethod(factory):
            factory = factory.__func__
        elif isinstance(factory, type) or inspect.isroutine(factory):
            return factory
        else:
            factory = type(factory).__call__


def _origin(factory: Any) -> Any:
    """Return the function or class that a factory was made of, decorators taken off."""
    factory = _bare(factory)
    while not isinstance(factory, type) and hasattr(factory, "__wrapped__"):
        factory = _bare(factory.__wrapped__)
    return factory


def _name_of(factory: Any) -> str:
    name: str = getattr(_origin(factory), "__qualname__", type(factory).__name__)
    return name.rpartition("<locals>.")[2]


def _maker(factory: Callable[..., Any]) -> tuple[Callable[..., Any], bool]:
    """Return what to call, and whether it may return a context manager that is to be entered."""
    bare, origin = _bare(factory), _origin(factory)
    if inspect.isasyncgenfunction(bare):
        return contextlib.asynccontextmanager(factory), True
    if inspect.isgeneratorfunction(bare):
        return contextlib.contextmanager(factory), True
    return factory, inspect.isasyncgenfunction(origin) or inspect.isgeneratorfunction(origin)


# --- Reading files -------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class _Contents:
    """A part of a file, and the type it is structured into."""

    file: str
    selector: str | None
    wanted: Any

    @property
    def name(self) -> str:
        return self.file if self.selector is None else f"{self.file}: {self.selector}"

    @property
    def key(self) -> Hashable:
        try:
            hash(self.wanted)
        except TypeError:
            return (self.file, self.selector, id(self.wanted))
        return (self.file, self.selector, self.wanted)

    def read(self) -> Any:
        from ._json.codec import JsonCodec  # with cattrs, which takes time to import

        data = self._select(self._load())
        try:
            return JsonCodec().load(data, self.wanted, self.selector or "$")
        except ContextSerdeError as exc:
            raise self._error(str(exc)) from exc

    def _load(self) -> Any:
        import json
        import tomllib  # only those who have such a file pay for the imports

        is_json = self.file.lower().endswith(".json")
        try:
            text = Path(self.file).read_text(encoding="utf-8")
            if is_json:
                return json.loads(text)
            return json.loads(json.dumps(tomllib.loads(text), default=str))  # dates as text
        except OSError as exc:
            raise self._error(f"cannot be read: {exc.strerror}") from exc
        except ValueError as exc:
            raise self._error(f"no valid {'JSON' if is_json else 'TOML'}: {exc}") from exc

    def _select(self, data: Any) -> Any:
        keys = self.selector.split(".") if self.selector is not None else []
        for count, key in enumerate(keys, 1):
            path = ".".join(keys[:count])
            if not isinstance(data, dict):
                raise self._error(f"{path}: not there, since it is in {reprlib.repr(data)}")
            if key not in data:
                raise self._error(f"{path}: not there; {nearest(key, data)}")
            data = data[key]
        return data

    def _error(self, fault: str) -> WorkflowConfigurationError:
        return WorkflowConfigurationError(f"{self.file}: {fault}")
