"""Markers for parameters: when a join fires.

`events: list[Scored]` waits for the whole batch. To fire earlier, say so:
`events: Annotated[list[Scored], Collect(Take(3))]`.
"""

from __future__ import annotations

import attrs

from .errors import WorkflowConfigurationError

__all__ = ["All", "Collect", "Take"]


@attrs.frozen
class All:
    """Fire when every branch of the batch has ended, with what arrived."""


@attrs.frozen
class Take:
    """Fire on the n-th arrival, or when the batch ends, with what arrived until then.

    Args:
        n: How many events to wait for, 1 or more.
        cancel: Also cancel the branches that are still going on.

    Raises:
        WorkflowConfigurationError: If `n` is no positive int.
    """

    n: int
    cancel: bool = attrs.field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if type(self.n) is not int or self.n < 1:
            raise WorkflowConfigurationError(f"Take() takes a positive int, not {self.n!r}")


@attrs.frozen
class Collect:
    """Say, inside `Annotated`, when a join fires.

    Raises:
        WorkflowConfigurationError: If `policy` is neither `All()` nor `Take(n)`.
    """

    policy: All | Take = All()

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.policy, All | Take):
            raise WorkflowConfigurationError(
                f"Collect() takes All() or Take(n), not {self.policy!r}"
            )
