"""Turn annotations into types, also those written as text or naming classes local to a function."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from typing import Any

__all__ = ["local_names", "resolve", "strip"]


def local_names(annotation: object, module: str, qualname: str) -> dict[str, Any]:
    """Return the names in `annotation` that are local to a function enclosing `qualname`.

    Only functions that are being executed can be looked into, so this is called where the class or
    step is defined. Nothing but the values of those names is kept.
    """
    found: dict[str, Any] = {}
    if not isinstance(annotation, str) or ".<locals>." not in qualname:
        return found
    try:
        wanted = set(compile(annotation, "<annotation>", "eval").co_names)
    except SyntaxError:
        return found
    outer = qualname
    while ".<locals>." in outer:
        outer = outer.rpartition(".<locals>.")[0]
        frame = inspect.currentframe()
        while frame is not None and (frame.f_code.co_qualname, frame.f_globals["__name__"]) != (
            outer,
            module,
        ):
            frame = frame.f_back
        if frame is not None:
            names = frame.f_locals
            found = {name: names[name] for name in wanted if name in names} | found
    return found


def resolve(annotation: object, module: str, names: dict[str, Any]) -> Any:
    """Evaluate `annotation` in `module`, with `names` on top.

    Raises:
        NameError: If it names something that is not (or not yet) there.
    """
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    globalns = vars(sys.modules[module]) if module in sys.modules else {}
    return typing.get_type_hints(holder, globalns, names, include_extras=True)["it"]


def strip(annotation: Any) -> Any:
    """Take `Annotated`, `Final`, `NewType` and type aliases off an annotation."""
    while True:
        if typing.get_origin(annotation) in (typing.Annotated, typing.Final):
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif hasattr(annotation, "__value__"):  # `type X = ...`, Python 3.12
            annotation = annotation.__value__
        else:
            return annotation
