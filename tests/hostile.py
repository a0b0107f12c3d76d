"""What the tests of hostile data share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from anyio_workflows.errors import ContextSerdeError

LONG = "a" * 3_000_000
HUGE = 16**6000


def refused(act: Callable[..., object], *args: Any) -> ContextSerdeError:
    with pytest.raises(ContextSerdeError) as caught:
        act(*args)
    error = caught.value
    assert len(str(error)) <= 1000
    assert len(repr(error)) <= 1100
    return error


def deep(depth: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value
