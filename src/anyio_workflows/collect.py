"""Markers for the parameters of a join: when it fires, and what opened its batch.

`events: list[Scored]` waits for the whole batch;
`events: Annotated[list[Scored], Collect(Take(3))]` for three events.
`origin: Annotated[Document, Opener()]` beside it is the event whose step returned the list.
"""

from __future__ import annotations

import attrs

from .errors import WorkflowConfigurationError

__all__ = ["All", "Cardinality", "Collect", "Opener", "Take"]


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


@attrs.frozen
class Opener:
    """Ask for the event that opened the batch; goes inside `Annotated`, on a second parameter of a join.

    The event is the one that started the step which returned the list, so the type is what that step
    takes. In nested batches each join gets the one of its own batch, also if that is empty:

        @step
        async def split(self, ev: Document) -> list[Page]: ...

        @step
        async def bind(self, pages: list[Read], origin: Annotated[Document, Opener()]) -> Bound: ...
    """
