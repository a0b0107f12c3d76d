"""Names that have changed since data was written: `renamed={...}` (P8)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import attrs

from .._annotations import is_record
from .._messages import closest_of, nearest, short_repr, shortened
from ..errors import ContextSerdeError, WorkflowConfigurationError
from .fields import Registry, is_open, tag_of
from .formats import path_step

_OURS = __name__.removesuffix("_json.renamed")
_LONGEST_NAME = 200


@attrs.frozen
class Renamed:
    """What older data calls by other names.

    An old name is never one that is in use, or data that was written since then would be misread.

    Attributes:
        types: Old tag -> type.
        steps: Old name -> name.
        fields: Type -> old field -> next name of the field; `None` if its values are dropped. It holds for
            the subclasses of the type, too.
    """

    types: Mapping[str, type] = attrs.field(factory=dict)
    steps: Mapping[str, str] = attrs.field(factory=dict)
    fields: Mapping[type, Mapping[str, str | None]] = attrs.field(factory=dict)

    def by_new_names(
        self, data: dict[Any, Any], cls: type, known: Collection[str]
    ) -> dict[Any, Any]:
        """Return the fields of a record by the names that they have now.

        Args:
            data: The fields as they were written.
            cls: The type of the record.
            known: The names of its fields.
        """
        changes = {
            old: new
            for base in reversed(cls.__mro__)
            for old, new in self.fields.get(base, {}).items()
            if old not in known  # a subclass may have a field of that name itself
        }
        if changes.keys().isdisjoint(data):
            return data
        found: dict[Any, Any] = {}
        for old, value in data.items():
            new = _last_name(old, changes)
            if new in found:
                raise ContextSerdeError(
                    path_step(new), "it is there by two names, of which one is old"
                )
            if new is not None:
                found[new] = value
        return found

    def new_step(self, old: str, taken: dict[str, str]) -> str:
        """Return the name that a step has now.

        Args:
            old: Its name in a snapshot.
            taken: New name -> old name, of those that the snapshot has used so far.
        """
        new = self.steps.get(old, old)
        if taken.setdefault(new, old) != old:
            both = " and ".join(map(short_repr, sorted([taken[new], old])))
            problem = f"it has both steps, {both}, and renamed makes them one"
            raise ContextSerdeError("$", problem)
        return new


# --- What a caller gives ----------------------------------------------------------------------------


def read_renamed(given: object, registry: Registry, steps: Collection[str]) -> Renamed:
    """Check the `renamed=` of a caller.

    A new name may be the old one of another entry, so that entries can be added as time passes.

    Args:
        given: Old names with their new ones: tags of types (`"app:Page"`), fields (`"app:Page.title"`, whose
            new name is without the type, or `None`), and names of steps.
        registry: The types that the data may name.
        steps: The names of the steps.

    Raises:
        WorkflowConfigurationError: If it is no such mapping; it names the entry.
    """
    if given is None:
        return Renamed()
    if not isinstance(given, Mapping):
        problem = f"renamed must be a mapping of old names to new ones, not {short_repr(given)}"
        raise WorkflowConfigurationError(problem)
    types: dict[str, str | None] = {}
    fields: dict[str, str | None] = {}
    names: dict[str, str | None] = {}
    for old, new in given.items():
        if not isinstance(old, str) or not isinstance(new, str | None):
            raise _fault(old, new, "names are texts")
        is_tag, to_tag = ":" in old, new is not None and ":" in new
        if is_tag and not to_tag and "." in old.partition(":")[2]:
            fields[old] = new
        elif new is None:
            raise _fault(old, new, "only a field can be dropped, as in {'app:Page.title': None}")
        elif is_tag and not to_tag:
            raise _fault(old, new, "the new tag of a type looks like 'module:QualName'")
        elif to_tag and not is_tag:
            raise _fault(old, new, "the name of a step has no colon, and the tag of a type has one")
        else:
            (types if is_tag else names)[old] = new
    new_tags = _checked(types, registry.types, lambda tag: _no_type(tag, registry.types))
    return Renamed(
        types={old: registry.types[tag] for old, tag in new_tags.items()},
        steps=_checked(names, steps, lambda step: f"there is no step {_named(step, steps)}"),
        fields=_fields_by_type(fields, new_tags, registry),
    )


def _checked(
    names: Mapping[str, str | None], known: Collection[str], problem: Callable[[str], str]
) -> dict[str, str]:
    """Return old names with those of today; `problem` says that a name is not known."""
    for old, new in names.items():
        if old in known:
            raise _fault(old, new, "the old name is still in use")
    found: dict[str, str] = {}
    for old, new in names.items():
        last = _last_name(old, names)
        if last not in known:
            raise _fault(old, new, problem(last))
        found[old] = last
    return found


def _fields_by_type(
    fields: Mapping[str, str | None], new_tags: Mapping[str, str], registry: Registry
) -> dict[type, dict[str, str | None]]:
    found: dict[type, dict[str, str | None]] = {}
    bases = (base for cls in registry.types.values() for base in cls.__mro__ if is_record(base))
    known_types = {tag_of(base): base for base in bases} | registry.types if fields else {}
    for old, new in fields.items():
        tag, _, name = old.rpartition(".")
        cls = known_types.get(new_tags.get(tag, tag))
        if cls is None:
            more = _entry(tag, _closest_type(tag, registry.types))
            problem = f"{_no_type(tag, registry.types)}; if it has a new name, add {more}"
            raise _fault(old, new, problem)
        if not is_record(cls):
            raise _fault(old, new, f"{cls.__name__} has no fields")
        found.setdefault(cls, {})[name] = new
    for old, new in fields.items():
        tag, _, name = old.rpartition(".")
        cls = known_types[new_tags.get(tag, tag)]
        known = registry.fields(cls)
        last = _last_name(name, found[cls])
        if name in known:
            raise _fault(old, new, "the old name is still in use")
        if last in found[cls] or (last is not None and last not in known and not is_open(cls)):
            raise _fault(old, new, f"{cls.__name__} has no field {_named(last, known)}")
    return found


def _no_type(tag: str, types: Mapping[str, type]) -> str:
    owner, _, field = tag.rpartition(".")
    if owner in types and is_record(types[owner]):
        return f"there is no such type; the new name of a field is without its type: {short_repr(field)}"
    close = _closest_type(tag, types)
    hint = "" if close is ... else f", did you mean {close!r}?"
    return f"there is no known type {short_repr(tag)}{hint}; types=[...] names more"


def _named(name: str, known: Iterable[str]) -> str:
    return f"{short_repr(name)}, {nearest(name, known)}"


def _last_name(name: Any, names: Mapping[Any, Any]) -> Any:
    """Follow the entries from one name to the next; return one of them if they lead in a circle."""
    seen = set()
    while name in names and name not in seen:
        seen.add(name)
        name = names[name]
    return name


def _fault(old: object, new: object, problem: str) -> WorkflowConfigurationError:
    return WorkflowConfigurationError(shortened(f"renamed={{{_entry(old, new)}}}: {problem}", 1000))


# --- What the errors of older data suggest ----------------------------------------------------------


def is_ours(cls: type) -> bool:
    """Return whether a type is part of this library."""
    return cls.__module__.startswith(_OURS)


def unknown_type(tag: str, types: Mapping[str, type]) -> str:
    """Return what an error says about a tag that a snapshot names."""
    renamed = _entry(tag, _closest_type(tag, types))
    return (
        f"unknown type {short_repr(tag)}; if it was moved or renamed: renamed={{{renamed}}}; if it is "
        "only not known here: types=[...]"
    )


def unknown_field(name: str, data: Mapping[Any, Any], cls: type, known: Collection[str]) -> str:
    """Return what an error says about a field of a record that its type does not have."""
    missing = [field for field in known if field not in data]
    field = f"{tag_of(cls)}.{name}"
    close = missing[0] if len(missing) == 1 else closest_of(name, missing)
    renamed = f"if it was renamed: renamed={{{_entry(field, close or ...)}}}"
    renamed = f"{renamed}, {nearest(name, missing)}; " if missing and not close else f"{renamed}; "
    if not missing:
        renamed = ""
    dropped = f"if it was removed: renamed={{{_entry(field, None)}}}"
    return f"{cls.__name__} has no such field; {renamed}{dropped}"


def unknown_step(step: str, steps: Collection[str], fitting: Collection[str]) -> str:
    """Return what to do about the name of a step that a workflow does not have.

    Args:
        step: The name.
        steps: The names of the steps.
        fitting: Those that can be meant, judging by the events.
    """
    close = next(iter(fitting)) if len(fitting) == 1 else closest_of(step, steps)
    return f"if it was renamed: renamed={{{_entry(step, close or ...)}}}; {nearest(step, steps)}"


def _entry(old: object, new: object) -> str:
    """Return an entry of `renamed={...}`, to be pasted if it is not too long."""
    return f"{_as_code(old)}: {_as_code(new)}"


def _as_code(name: object) -> str:
    if name is ...:
        return "..."
    is_name = isinstance(name, str) and len(name) <= _LONGEST_NAME
    return repr(name) if is_name else short_repr(name)


def _closest_type(tag: str, types: Mapping[str, type]) -> object:
    """Return the tag of the type that an unknown tag may mean; `...` if no name is close to its own."""
    # Without the modules, which may be long and the same for all.
    tags = {cls.__qualname__: one for one, cls in types.items() if not is_ours(cls)}
    return tags.get(closest_of(tag.partition(":")[2], tags) or "", ...)
