"""Runs in a `Runtime` of this process, for `follow()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import attrs

from .._documents import describe_gap, describe_record, describe_wait, describe_whole_run
from .._messages import text_of
from ..errors import ContextSerdeError, UnknownRunError, WorkflowError, WorkflowRuntimeError
from ..runtime import Gap, LogReader, RunHandle
from ..runtime._store import PARKED
from ..wire import from_data
from .follow import AnswerRefused, QuestionClosed
from .texts import Data

if TYPE_CHECKING:
    from cattrs import BaseConverter


@attrs.define
class LocalRun:
    """A run that `Runtime` keeps here.

    Attributes:
        handle: Its handle.
        converter: Reads and writes the values of foreign classes (P7).
        pause: As `FollowedRun` says.
        is_being_cancelled: Whether `cancel()` was called.
    """

    handle: RunHandle[Any]
    converter: BaseConverter | None = None
    pause: float = 0.1
    is_being_cancelled: bool = False

    def items(self, after: int) -> _Items:
        """Return the events from a cursor to the end."""
        return _Items(self, self.handle.records(after, internal=True))

    async def whole(self) -> Data:
        """Return the run with its result and counts."""
        return await describe_whole_run(self.handle, self.converter)

    async def questions(self) -> list[Data]:
        """Return the open questions."""
        return [describe_wait(wait, self.converter) for wait in await self.handle.open_waits()]

    async def answer(self, question_id: str, data: Data) -> None:
        """Answer a question."""
        waits = {wait.id: wait for wait in await self.handle.open_waits()}
        if question_id not in waits:
            raise QuestionClosed("the question has been answered already")
        try:
            event_type = waits[question_id].event_type
            event = from_data(data, event_type, converter=self.converter)
        except ContextSerdeError as error:
            raise AnswerRefused(f"the answer does not fit: {error}") from error
        try:
            await self.handle.send_event(event, wait=question_id)
        except WorkflowRuntimeError as error:
            raise QuestionClosed(text_of(error)) from error

    async def cancel(self) -> None:
        """Cancel the run, and wait for its end."""
        self.is_being_cancelled = True
        await self.handle.cancel()


@attrs.define
class _Items:
    """The events of a run, as the wire has them."""

    _run: LocalRun
    _reader: LogReader

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Data:
        try:
            item = await anext(self._reader)
        except UnknownRunError:
            raise
        except WorkflowError:
            if self._run.handle.info.status in PARKED:  # which the end of the run says
                raise StopAsyncIteration from None
            raise
        if isinstance(item, Gap):
            return {"gap": describe_gap(item)}
        return describe_record(item, self._run.converter)
