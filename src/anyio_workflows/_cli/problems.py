"""What a command cannot do, and its exit status."""

from __future__ import annotations

COMPLETED = 0
FAILED = 1
USAGE = 2
NOT_ENDED = 75
"""A result was asked for, and is not there yet."""

TIMED_OUT = 124
CANCELLED = 130
LET_GO = 143
"""SIGTERM ended the command, and its run continues elsewhere, or with the next start."""

BROKEN_PIPE = 141

EXIT_OF_STATUS = {"completed": COMPLETED, "timed_out": TIMED_OUT, "cancelled": CANCELLED}
"""The exit status for the status of a run; `FAILED` for all others."""


class CommandError(Exception):
    """Says why a command cannot be carried out.

    Attributes:
        status: The exit status.
    """

    def __init__(self, text: str, status: int = USAGE) -> None:
        super().__init__(text)
        self.status = status
