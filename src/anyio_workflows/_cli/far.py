"""Runs on a server, for `follow()`."""

from __future__ import annotations

from contextlib import suppress
from typing import Self

import anyio
import attrs

from ..client import Gap, RemoteEvents, RemoteRun
from ..errors import ServerUnreachableError, WorkflowServerError
from .follow import AnswerRefused, QuestionClosed
from .texts import Data

PATIENCE = 300.0
"""Seconds for which a server that is away is waited for."""

_BETWEEN = 0.5


@attrs.define
class FarRun:
    """A run on a server, which may be away for a while.

    Attributes:
        run: The run.
        known: What the server said last about it.
    """

    run: RemoteRun
    known: Data
    pause: float = 0.5
    _questions: list[Data] = attrs.field(factory=list)
    _ended: bool = False

    def items(self, after: int) -> _Items:
        """Return the events from a cursor to the end."""
        return _Items(self, self.run.events(after, internal=True, give_up_after=PATIENCE))

    async def whole(self) -> Data:
        """Return the run with its result and counts: at the end as it ended, before that as it was known last."""
        with anyio.move_on_after(PATIENCE):
            while True:
                try:
                    self.known = dict((await self.run.info()).document)
                except ServerUnreachableError:
                    if self._ended:
                        await anyio.sleep(_BETWEEN)
                        continue
                break
        return self.known

    async def questions(self) -> list[Data]:
        """Return the open questions."""
        with suppress(ServerUnreachableError):
            self._questions = [dict(one.document) for one in await self.run.questions()]
        return self._questions

    async def answer(self, question_id: str, data: Data) -> None:
        """Answer a question."""
        try:
            await self.run.answer(question_id, data)
        except WorkflowServerError as error:
            if error.status == 422:
                raise AnswerRefused(f"the answer does not fit: {error.detail}") from error
            raise QuestionClosed(error.detail or str(error)) from error
        except ServerUnreachableError as error:
            raise AnswerRefused(str(error)) from error

    async def cancel(self) -> None:
        """Cancel the run, and wait a little for its end."""
        await self.run.cancel()


@attrs.define
class _Items:
    """The events of a run, as the wire has them."""

    _run: FarRun
    _events: RemoteEvents

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Data:
        try:
            item = await anext(self._events)
        except StopAsyncIteration:
            self._run._ended = True
            raise
        return {"gap": attrs.asdict(item)} if isinstance(item, Gap) else dict(item.document)
