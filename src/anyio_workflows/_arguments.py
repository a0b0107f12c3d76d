"""Checks of what is given to public constructors: numbers, durations and tokens."""

from __future__ import annotations

import re

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


def check_seconds(
    name: str, value: object, none: str | None = None, or_zero: bool = False
) -> float:
    """Return a positive number of seconds.

    Args:
        name: What it is given as.
        value: What was given.
        none: What `None` means, to the person who is told; `None` itself is refused without it.
        or_zero: Whether 0 is right, too.

    Raises:
        WorkflowConfigurationError: If it is none.
    """
    if not (is_positive_number(value, or_zero=or_zero) or (value is None and none is not None)):
        least = "" if or_zero else "positive "
        also = "" if none is None else f", or None{none and f' {none}'}"
        raise WorkflowConfigurationError(
            f"{name} must be a {least}number of seconds{also}; not {short_repr(value)}"
        )
    return value  # type: ignore[return-value]


def check_seconds_or_none(name: str, value: object) -> float | None:
    """Return a positive number of seconds, or `None`.

    Raises:
        WorkflowConfigurationError: If it is neither.
    """
    return check_seconds(name, value, none="")


def check_token(token: object) -> str:
    """Return a token, which is sent in a header.

    Raises:
        WorkflowConfigurationError: If it cannot be one; without its value, which may be a secret with a line
            break behind it.
    """
    if not (isinstance(token, str) and re.fullmatch(r"[\x21-\x7e]+", token)):
        raise WorkflowConfigurationError(
            "token must be a str of visible ASCII characters, without spaces; leave it out for none"
        )
    return token


def check_bool(name: str, value: object) -> bool:
    """Return a bool.

    Raises:
        WorkflowConfigurationError: If it is none.
    """
    if not isinstance(value, bool):
        raise WorkflowConfigurationError(f"{name} must be True or False, not {short_repr(value)}")
    return value
