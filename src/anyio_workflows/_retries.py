"""What a retry policy is, and what a step can learn about its retries."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

import attrs

__all__ = ["RetryInfo", "RetryPolicy"]


class RetryPolicy(Protocol):
    """Anything that can say whether, and when, a step that failed is tried again."""

    def next(self, elapsed_time: float, attempts: int, error: Exception, /) -> float | None:
        """Decide about the next attempt.

        Asked once per failed attempt; never about a cancellation or after the end of the run.

        Args:
            elapsed_time: Seconds from the first start of the step to this failure.
            attempts: How many attempts there have been, from 1.
            error: What the last one raised.

        Returns:
            Seconds to wait before the next attempt; `None` to give up.
        """
        ...


@attrs.frozen
class RetryInfo:
    """The attempts that an execution has behind it.

    Attributes:
        retry_number: 0 in the first attempt, 1 in the first retry, and so on.
        elapsed_seconds: Seconds from the first start of the step to the start of this attempt.
        last_exception: What the attempt before raised; `None` in the first one.
        last_failed_at: When that was, in UTC. For information only: delays run on another clock.
    """

    retry_number: int = 0
    elapsed_seconds: float = 0.0
    last_exception: Exception | None = None
    last_failed_at: datetime | None = None
