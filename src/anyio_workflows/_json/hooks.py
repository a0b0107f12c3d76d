"""The hooks of a cattrs converter, for classes that the codec does not know itself (P7)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._messages import short_repr, text_of
from ..errors import WorkflowConfigurationError
from .formats import data_error

if TYPE_CHECKING:
    from cattrs import BaseConverter


class _Unheard:
    """A class that no converter has a hook for."""


class Hooks:
    """The hooks of a converter, as it dispatches them: for a class, its subclasses, or by a predicate.

    Args:
        converter: A `cattrs.Converter`. More hooks may be registered later.

    Raises:
        WorkflowConfigurationError: If it is none.
    """

    def __init__(self, converter: object) -> None:
        import cattrs  # only those who have a converter wait for it

        if not isinstance(converter, cattrs.BaseConverter):
            raise WorkflowConfigurationError(
                f"converter must be a cattrs.Converter, not {short_repr(converter)}"
            )
        self._converter = converter

    @property
    def converter(self) -> BaseConverter:
        """The converter."""
        return self._converter

    def missing(self, cls: type) -> str:
        """Return the calls with which to register the hooks that a class lacks; empty if it has both."""
        found = (
            _hook(self._converter.get_unstructure_hook, cls),
            _hook(self._converter.get_structure_hook, cls),
        )
        names = ("register_unstructure_hook", "register_structure_hook")
        calls = [
            f"{name}({cls.__name__}, ...)"
            for name, hook, default in zip(names, found, _defaults(), strict=True)
            if hook is None or hook == default
        ]
        return " and ".join(calls)

    def unstructure(self, value: Any) -> Any:
        """Return what the hook makes of a value.

        Raises:
            ContextSerdeError: If it raises, or returns a value of the same class.
        """
        cls = type(value)
        try:
            data = self._converter.unstructure(value)
        except RecursionError:
            raise
        except Exception as error:  # hooks raise anything
            raise _failure("unstructure", cls, error) from error
        if type(data) is cls:
            raise data_error(
                f"the unstructure hook for {cls.__name__} returned one, and no plain data"
            )
        return data

    def structure(self, data: Any, cls: type) -> Any:
        """Return the value of a class that the hook makes of data.

        Raises:
            ContextSerdeError: If it raises, or returns something else.
        """
        try:
            value: Any = self._converter.structure(data, cls)
        except RecursionError:
            raise
        except Exception as error:
            raise _failure("structure", cls, error) from error
        if not isinstance(value, cls):
            got = f"{short_repr(value)} ({type(value).__qualname__})"
            raise data_error(f"the structure hook for {cls.__name__} returned {got}")
        return value


@functools.cache
def _defaults() -> tuple[Any, Any]:
    """Return the hooks that cattrs has for any class.

    They leave a value as it is, and refuse data; `None` for the latter if cattrs refuses to return it.
    """
    import cattrs

    bare = cattrs.Converter()
    return _hook(bare.get_unstructure_hook, _Unheard), _hook(bare.get_structure_hook, _Unheard)


def hook_check(hooks: Hooks | None) -> Callable[[Any], bool]:
    """Return a function that tells whether a class has both hooks, and asks the converter once for each.

    To ask takes longer than to write a number, and more hooks may be registered between two snapshots.
    """
    return _has_none if hooks is None else functools.cache(lambda cls: not hooks.missing(cls))


def _has_none(cls: Any) -> bool:
    return False


def _hook(find: Callable[[Any], Any], cls: type) -> Any:
    """Return a hook; `None` if there is none."""
    try:
        return find(cls)
    except Exception:  # `StructureHandlerNotFoundError`, and what fallbacks for some classes raise
        return None


def _failure(kind: str, cls: type, error: Exception) -> Exception:
    problem = f"the {kind} hook for {cls.__name__} raised {type(error).__name__}: {text_of(error)}"
    return data_error(problem)


def no_hooks(cls: type, hooks: Hooks | None) -> str:
    """Return what an error says about a class that no hooks are for."""
    if hooks is None:
        remedy = "give Workflow(converter=...) hooks for it, or keep it out of what is saved"
    else:
        remedy = f"the converter has no {hooks.missing(cls)}"
    return f"{remedy}; see docs/snapshots.md"
