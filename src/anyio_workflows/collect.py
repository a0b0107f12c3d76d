"""Markers for parameters: when a join fires.

`events: list[Scored]` waits for the whole batch;
`events: Annotated[list[Scored], Collect(Take(3))]` for three events.
"""

from __future__ import annotations

import attrs

from .errors import WorkflowConfigurationError

__all__ = ["All", "Cardinality", "Collect", "Take"]


@attrs.frozen
class All:
    """Fire when every branch of the batch has ended, with the events that arrived."""


@attrs.frozen
class Take:
    """Fire at the n-th event, or when the batch ends, with the events that arrived until then.

    Args:
        n: How many events to wait for, 1 or more.
        cancel: Whether to cancel the remaining branches then.

    Raises:
        WorkflowConfigurationError: If `n` is not a positive int.
    """

    n: int
    cancel: bool = attrs.field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if type(self.n) is not int or self.n < 1:
            raise WorkflowConfigurationError(f"Take() takes a positive int, not {self.n!r}")


Cardinality = All | Take
"""What `Collect()` takes."""


@attrs.frozen
class Collect:
    """Say when a join fires; goes inside `Annotated`.

    Args:
        cardinality: When, and with which events: `All()` or `Take(n)`.

    Raises:
        WorkflowConfigurationError: If `cardinality` is neither.
    """

    cardinality: All | Take = All()

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.cardinality, All | Take):
            raise WorkflowConfigurationError(
                f"Collect() takes All() or Take(n), not {self.cardinality!r}"
            )
