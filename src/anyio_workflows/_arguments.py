"""Checks of what is given to public constructors: numbers and durations."""

from __future__ import annotations

from ._annotations import is_positive_number
from ._messages import short_repr
from .errors import WorkflowConfigurationError


def check_whole(name: str, value: object, least: int) -> int:
    """Return a whole number of at least `least`.

    Raises:
        WorkflowConfigurationError: If it is none.
    """
    if type(value) is not int or value < least:
        raise WorkflowConfigurationError(
            f"{name} must be an int of {least} or more, not {short_repr(value)}"
        )
    return value


def check_seconds(name: str, value: object) -> float:
    """Return a positive number of seconds.

    Raises:
        WorkflowConfigurationError: If it is none.
    """
    if not is_positive_number(value):
        raise WorkflowConfigurationError(
            f"{name} must be a positive number of seconds, not {short_repr(value)}"
        )
    return value  # type: ignore[return-value]


def check_seconds_or_none(name: str, value: object) -> float | None:
    """Return a positive number of seconds, or `None`.

    Raises:
        WorkflowConfigurationError: If it is neither.
    """
    if value is not None and not is_positive_number(value):
        raise WorkflowConfigurationError(
            f"{name} must be a positive number of seconds, or None; not {short_repr(value)}"
        )
    return value  # type: ignore[return-value]


def check_bool(name: str, value: object) -> bool:
    """Return a bool.

    Raises:
        WorkflowConfigurationError: If it is none.
    """
    if not isinstance(value, bool):
        raise WorkflowConfigurationError(f"{name} must be True or False, not {short_repr(value)}")
    return value
