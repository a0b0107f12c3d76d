"""The resources that a step depends on, read from the markers in its annotations.

A `Dependency` says how one resource is made and what it depends on itself. All faults are found here,
when the workflow class is defined; `_engine.resources` then makes and closes what a run needs.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import reprlib
import types
import typing
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from ._annotations import Unresolved, resolve
from ._messages import nearest
from .errors import ContextSerdeError, WorkflowConfigurationError
from .resource import Resource, ResourceConfig

Scope = Literal["run", "workflow"]


@attrs.frozen
class Dependency:
    """A resource that a step or a factory asks for. Equal ones share what is cached.

    Attributes:
        key: What makes two of them equal: the factory, whether it is cached and its scope, or the file,
            the part of it and the type.
        name: Names it in messages.
        make: Takes the values of `dependencies` as keywords.
        cache: Whether it is made once in its scope.
        is_context_manager: Whether `make` may return a context manager, which is then entered.
        scope: `"workflow"` if all runs of an instance share it, or it is made for one that they share.
            Then so are its dependencies.
        dependencies: What the factory asks for itself, by parameter. It has no cycles: those are faults.
        is_file: Whether `make` only reads a file.
    """

    key: Hashable = attrs.field(repr=False)
    name: str = attrs.field(eq=False)
    make: Callable[..., Any] = attrs.field(eq=False, repr=False)
    cache: bool = attrs.field(eq=False)
    is_context_manager: bool = attrs.field(eq=False)
    scope: Scope = attrs.field(eq=False, default="run")
    dependencies: Mapping[str, Dependency] = attrs.field(eq=False, repr=False, factory=dict)
    is_file: bool = attrs.field(eq=False, repr=False, default=False)
    closes_with_block: bool = attrs.field(
        eq=False,
        repr=False,
        init=False,
        default=attrs.Factory(lambda self: self._closes_with_block(), takes_self=True),
    )
    """Whether it is of the workflow and has to be closed, or is made of something that has."""

    def _closes_with_block(self) -> bool:
        below = (dep.closes_with_block for dep in self.dependencies.values())
        return self.scope == "workflow" and (self.is_context_manager or any(below))

    @property
    def needs_closing(self) -> bool:
        """Whether there is something to close: it, or what is made for it alone."""
        below = self.dependencies.values()
        return self.is_context_manager or any(dep.needs_closing for dep in below if not dep.cache)

    def cached_dependencies(self) -> Iterator[Dependency]:
        """Yield the cached resources that have to exist first, in the order of the parameters."""
        for dependency in self.dependencies.values():
            if dependency.cache:
                yield dependency
            else:
                yield from dependency.cached_dependencies()

    def file_faults(self) -> Iterator[str]:
        """Read the files that it is made of, and yield a sentence for each that has a fault."""
        if self.is_file:
            try:
                self.make()
            except WorkflowConfigurationError as exc:
                yield str(exc)
        for dependency in self.dependencies.values():
            yield from dependency.file_faults()


def read_dependency(annotation: Any, faults: list[str], unresolved: list[str]) -> Dependency | None:
    """Read the annotation of one parameter, and the signatures of all factories behind it.

    Args:
        annotation: The annotation, resolved.
        faults: Gets a sentence for each fault that is found.
        unresolved: Gets a sentence for each annotation with a name that is not defined, or not yet.

    Returns:
        What the parameter asks for; `None` if its annotation has no marker of a resource.
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


_Key = tuple[Hashable, bool, Scope]
"""The identity of a factory, whether it is cached, and its scope."""


@attrs.define(eq=False)
class _Reader:
    """Reads a tree of factories.

    Attributes:
        _known: The dependencies that were read, by key: each factory is read once.
        _chain: The names of the factories that are being read, outermost first, by key. A key that is
            in it already closes a circle.
        _scope: The scope of the innermost one of these; `"run"` for the step.
    """

    faults: list[str]
    unresolved: list[str]
    _known: dict[_Key, Dependency] = attrs.field(factory=dict)
    _chain: dict[_Key, str] = attrs.field(factory=dict)
    _scope: Scope = "run"

    def read(self, annotation: Any) -> Dependency | None:
        marked = _marked(annotation)
        if marked is None:
            return None
        mark, wanted = marked
        if isinstance(mark, Resource):
            # What is not cached belongs to the one that asks, and lives as long.
            scope = mark.scope if mark.cache else self._scope
            return self._read_factory(mark.factory, mark.cache, scope)
        contents = _Contents(mark.config_file, mark.path_selector, wanted)
        return Dependency(
            contents.key,
            contents.name,
            contents.read,
            cache=self._scope == "run",
            is_context_manager=False,
            scope=self._scope,
            is_file=True,
        )

    def _read_factory(self, factory: Callable[..., Any], cache: bool, scope: Scope) -> Dependency:
        key = (_identity(factory), cache, scope)
        name = _name_of(factory)
        if self._scope == "workflow" and scope == "run":
            self.faults.append(self._scope_fault(name))
        if key in self._known:
            return self._known[key]
        make, is_context_manager = _maker(factory)
        if key in self._chain:
            names = [*self._chain.values(), name]
            circle = " -> ".join(names[list(self._chain).index(key) :])
            self.faults.append(
                f"resources depend on each other: {circle}; remove one of these dependencies"
            )
            return Dependency(key, name, make, cache, is_context_manager, scope)
        self._chain[key], outer = name, self._scope
        self._scope = scope
        dependencies = self._read_params(factory, name)
        self._scope = outer
        del self._chain[key]
        dependency = Dependency(key, name, make, cache, is_context_manager, scope, dependencies)
        self._known[key] = dependency
        return dependency

    def _scope_fault(self, name: str) -> str:
        """Say that a resource of the workflow asks for one of a run."""
        names = [above for (_, _, scope), above in self._chain.items() if scope == "workflow"]
        return (
            f"resource {names[0]} is shared by all runs and cannot depend on {name}, of which each run "
            f"has its own: {' -> '.join([*names, name])}; give {name} scope='workflow' too, or "
            f"cache=False if {names[-1]} is to have one to itself"
        )

    def _read_params(self, factory: Callable[..., Any], name: str) -> dict[str, Dependency]:
        try:
            params = inspect.signature(factory).parameters.values()
        except ValueError:  # some builtins have no signature
            return {}
        dependencies: dict[str, Dependency] = {}
        for param in params:
            if param.kind in (param.VAR_POSITIONAL, param.VAR_KEYWORD):
                continue
            where = f"resource {name}: parameter {param.name!r}"
            found = len(self.faults) + len(self.unresolved)
            dependency = self.read(self._hint(factory, param, where))
            if dependency is not None and param.kind is param.POSITIONAL_ONLY:
                self.faults.append(f"{where} cannot be passed by name; remove the '/'")
            elif dependency is not None:
                dependencies[param.name] = dependency
            elif param.default is param.empty and len(self.faults) + len(self.unresolved) == found:
                self.faults.append(
                    f"{where} is not a resource and has no default; annotate it, as in "
                    f"'{param.name}: Annotated[T, Resource(make_{param.name})]'"
                )
        return dependencies

    def _hint(self, factory: Callable[..., Any], param: inspect.Parameter, where: str) -> Any:
        """Resolve the annotation of a parameter; `None` if it has none, or a fault."""
        annotation = param.annotation
        if annotation is param.empty:
            return None
        home = _origin(factory)
        if isinstance(home, type):
            home = next(base for base in home.__mro__ if "__init__" in vars(base))
        resolved = resolve(annotation, home)
        if not isinstance(resolved, Unresolved):
            return resolved
        # Third-party classes annotate options with names that only type checkers import.
        if param.default is not param.empty and "Resource" not in str(annotation):
            return None
        if resolved.name is not None:
            fault = f"{where} is annotated with {resolved.name!r}, which is not defined"
            self.unresolved.append(fault)
        else:
            self.faults.append(f"{where} is annotated with {annotation!r}: {resolved.reason}")
        return None


def _identity(factory: Callable[..., Any]) -> Hashable:
    """Return the identity of a factory; a bound method is a new object at each access."""
    if inspect.ismethod(factory):
        return id(factory.__self__), id(factory.__func__)
    return id(factory)


def _bare(factory: Any) -> Any:
    """Return the function or class behind partials, bound methods and callable objects."""
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
    """Return the function or class that a factory was made of, without its decorators."""
    factory = _bare(factory)
    while not isinstance(factory, type) and hasattr(factory, "__wrapped__"):
        factory = _bare(factory.__wrapped__)
    return factory


def _name_of(factory: Any) -> str:
    name: str = getattr(_origin(factory), "__qualname__", type(factory).__name__)
    return name.rpartition("<locals>.")[2]


def _maker(factory: Callable[..., Any]) -> tuple[Callable[..., Any], bool]:
    """Return what to call, and whether it may return a context manager, to be entered."""
    bare, origin = _bare(factory), _origin(factory)
    if inspect.isasyncgenfunction(bare):
        return contextlib.asynccontextmanager(factory), True
    if inspect.isgeneratorfunction(bare):
        return contextlib.contextmanager(factory), True
    return factory, inspect.isasyncgenfunction(origin) or inspect.isgeneratorfunction(origin)


# --- Reading files -------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class _Contents:
    """A part of a file, and the type that it is read as."""

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
        from ._json.codec import JsonCodec  # only users of files pay for the import

        data = self._select(self._load())
        try:
            return JsonCodec().load(data, self.wanted, self.selector or "$")
        except ContextSerdeError as exc:
            raise self._error(str(exc)) from exc

    def _load(self) -> Any:
        import json
        import tomllib  # imported here: few workflows read files

        is_json = self.file.lower().endswith(".json")
        try:
            text = Path(self.file).read_text(encoding="utf-8")
            if is_json:
                return json.loads(text)
            return json.loads(json.dumps(tomllib.loads(text), default=str))  # dates as text
        except OSError as exc:
            raise self._error(f"cannot be read: {exc.strerror}") from exc
        except (ValueError, RecursionError) as exc:  # the latter from many thousand levels
            raise self._error(f"not valid {'JSON' if is_json else 'TOML'}: {exc}") from exc

    def _select(self, data: Any) -> Any:
        keys = self.selector.split(".") if self.selector is not None else []
        for count, key in enumerate(keys, 1):
            path = ".".join(keys[:count])
            if not isinstance(data, dict):
                raise self._error(f"{path}: not found in {reprlib.repr(data)}")
            if key not in data:
                raise self._error(f"{path}: not found; {nearest(key, data)}")
            data = data[key]
        return data

    def _error(self, fault: str) -> WorkflowConfigurationError:
        return WorkflowConfigurationError(f"{self.file}: {fault}")
