"""The event classes that the tests of events share."""

import enum
from collections.abc import Callable
from typing import Generic, TypeVar

import pytest

from anyio_workflows.errors import EventValidationError
from anyio_workflows.events import Event, StartEvent, StopEvent

T = TypeVar("T")


class Found(Event):
    url: str
    rank: int = 0
    tags: list[str] = []


class Ranked(Found):
    score: float = 0.0


class Plain(StartEvent):
    """Declares nothing, so it is open."""


class Finished(StopEvent):
    total: int


class Box(Event, Generic[T]):
    content: T


class IntBox(Box[int]):
    unit: str = "m"


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


def fault(make: Callable[[], object]) -> EventValidationError:
    with pytest.raises(EventValidationError) as caught:
        make()
    return caught.value
