"""A run on a server: read, answer, cancel, retry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import anyio
import attrs

from .._arguments import check_seconds
from .._messages import short_repr
from ..errors import RemoteRunError, WorkflowConfigurationError
from ..events import Event
from ..runtime._store import ACTIVE
from ..wire import to_data
from ._events import RemoteEvents
from ._http import Backoff, Http, quoted, understanding
from ._records import (
    KnownTypes,
    RemoteQuestion,
    RemoteRunInfo,
    read_question,
    read_run,
)

_LONGEST_WAIT = 60.0
"""Seconds that a server waits in one request, at most."""

_NOT_SENT = (
    "whether the event was sent is not known; the log of the run, and run.questions(), may tell"
)
_NOT_ANSWERED = (
    "whether the answer was taken is not known; run.questions() tells whether the question is open"
)
_NOT_RETRIED = "whether the run continues is not known; run.info() tells"


@attrs.define(eq=False, repr=False)
class RemoteRun:
    """A run on a server. `WorkflowClient.start()` and `WorkflowClient.run()` return one.

    It holds no connection: a run continues when it is dropped.

    Attributes:
        id: Identifies the run on the server.
        known: What the server said last about the run; `None` if this object has not asked yet.
    """

    id: str
    _http: Http
    _types: KnownTypes
    known: RemoteRunInfo | None = None

    async def info(self) -> RemoteRunInfo:
        """Return the run as it stands now.

        Raises:
            WorkflowServerError: With status 404 if there is no such run.
            ServerUnreachableError: If there is no answer.
        """
        return await self._ask("GET", "")

    def events(
        self,
        after: int = 0,
        internal: bool = False,
        types: Iterable[str | type[Event]] | None = None,
        give_up_after: float | None = None,
    ) -> RemoteEvents:
        """Return an async iterator over the events, from a cursor on; it ends after the last one.

        Args:
            after: The number of the last event that was seen; 0 for all events.
            internal: Also return the events about the run itself. Those of a run in progress begin with how its steps
                stand now; after a connection was cut, some may come again.
            types: Only events of these types, given by name or as classes, and of types derived from them.
            give_up_after: Seconds without a connection after which it raises; by default those of the client.

        Raises:
            WorkflowConfigurationError: If an argument has an invalid value.
        """
        if type(after) is not int or after < 0:
            raise WorkflowConfigurationError(
                "after must be the number of the last event that was seen, or 0 for all events; not "
                f"{short_repr(after)}"
            )
        check_seconds("give_up_after", give_up_after, "for that of the client", or_zero=True)
        query: dict[str, Any] = {"internal": 1} if internal else {}
        if types is not None:
            query["types"] = ",".join(_names_of(types))
        http = self._http
        backoff = Backoff(
            http.give_up_after if give_up_after is None else give_up_after, http.longest_delay
        )
        return RemoteEvents(http, f"{self._path}/events", self._types, query, backoff, after)

    async def result(self, timeout: float | None = None) -> Any:
        """Wait for the end of the run and return its result, as data; of a subclass of `StopEvent`, its fields.

        Args:
            timeout: Seconds to wait at most; `None` for no limit. With 0, the server is asked once.

        Raises:
            RemoteRunError: If the run failed, timed out or was cancelled; or is parked, with the reason.
            TimeoutError: If it has not ended in time. It continues.
            WorkflowServerError: With status 404 if there is no such run.
            ServerUnreachableError: If there is no answer.
        """
        check_seconds("timeout", timeout, "for no limit", or_zero=True)
        deadline = None if timeout is None else anyio.current_time() + timeout
        info = self.known
        while info is None or info.status != "completed":
            left = None if deadline is None else max(0.0, deadline - anyio.current_time())
            wait = _LONGEST_WAIT if left is None else min(left, _LONGEST_WAIT)
            info = await self._ask("GET", "", {"wait": wait}, give_up_after=left)
            if info.status not in ACTIVE | {"completed"}:
                raise _error_of(info)
            if left == 0 and info.status != "completed":
                raise TimeoutError(
                    f"run {self.id!r} has not ended within {timeout:g} s; it is {info.status}"
                )
        return info.result

    async def questions(self) -> list[RemoteQuestion]:
        """Return the questions that can be answered now, in the order in which they were asked.

        Raises:
            WorkflowServerError: With status 404 if there is no such run.
            ServerUnreachableError: If there is no answer.
        """
        path = f"{self._path}/questions"
        found = await self._http.call("GET", path)
        with understanding(f"GET {path}"):
            return [read_question(one, self._types) for one in found["questions"]]

    async def answer(
        self,
        question: RemoteQuestion | str,
        answer: Event | Mapping[str, Any] | None = None,
        /,
        **data: Any,
    ) -> tuple[str, ...]:
        """Answer one question; of two answers, one is too late.

            [question] = await run.questions()
            await run.answer(question, approved=True)

        Args:
            question: The question, or its id.
            answer: The event that answers it, or its fields as data. It may be left out if they are given as
                keywords.
            **data: Its fields, as data.

        Returns:
            The name of the step that took it.

        Raises:
            WorkflowServerError: With status 409 if the question has been answered or has ended, 422 if the answer does
                not fit (`path` says where): the question is still open then.
            ServerUnreachableError: If there is no answer. It is only repeated if it was not sent, since the
                server may have got it: `unknown` says so.
            WorkflowConfigurationError: If the answer is of another type than the question asks for.
        """
        given = _data_of("answer()", answer, data)
        if isinstance(question, RemoteQuestion):
            if isinstance(answer, Event) and type(answer).__name__ != question.answer_type:
                raise WorkflowConfigurationError(
                    f"the question of step {question.step} is answered by a {question.answer_type}, not by a "
                    f"{type(answer).__name__}"
                )
            question = question.id
        path = f"{self._path}/questions/{quoted(question)}"
        return await self._post(path, {"data": given}, _NOT_ANSWERED)

    async def send(
        self,
        event: Event | str,
        given: Mapping[str, Any] | None = None,
        /,
        step: str | None = None,
        **data: Any,
    ) -> tuple[str, ...]:
        """Send an event to every step that accepts it, or only to `step`.

            await run.send(Approval(approved=True))
            await run.send("Approval", approved=True)

        Args:
            event: The event, or the name of its class. It is one that the workflow declares, or that a
                step waits for.
            given: The fields of the event, as data, if only the name is given. They may be given as
                keywords instead, but for one that is called `step`.
            step: The only step to send it to.
            **data: The fields of the event, as data.

        Returns:
            The names of the steps that took it.

        Raises:
            WorkflowServerError: With status 409 if the run has ended, 422 if the run takes no such event, no step
                takes it now, or the data does not fit.
            ServerUnreachableError: If there is no answer. It is only repeated if it was not sent, since the
                server may have got it: `unknown` says so.
            WorkflowConfigurationError: If an argument has an invalid value.
        """
        if not isinstance(event, Event | str):
            raise WorkflowConfigurationError(
                f"send() takes an event, or the name of its class; not {short_repr(event)}"
            )
        fields = _data_of("send()", given, data)
        name = event
        if isinstance(event, Event):
            name, fields = type(event).__name__, _data_of("send()", event, fields)
        body = {"type": name, "data": fields} | ({} if step is None else {"step": step})
        return await self._post(f"{self._path}/events", body, _NOT_SENT)

    async def cancel(self, wait: float = 10.0) -> RemoteRunInfo:
        """Cancel the run, and return how it stands. One that has ended stays as it is.

        Args:
            wait: Seconds to wait for its end, at most 60. It ends in any case.

        Raises:
            WorkflowServerError: With status 404 if there is no such run.
            ServerUnreachableError: If there is no answer.
        """
        check_seconds("wait", wait, or_zero=True)
        wait = min(wait, _LONGEST_WAIT)
        return await self._ask("POST", "/cancel", {"wait": wait})

    async def retry(self) -> RemoteRunInfo:
        """Continue a run that failed with the failed step, or one that timed out or was cancelled (X7).

        Its events continue behind the terminal event of the last try: `events(after=info.last_seq)`.

        Raises:
            WorkflowServerError: With status 409 if it is in progress, was completed or has nothing to repeat.
            ServerUnreachableError: If there is no answer. It is only repeated if it was not sent, since the
                server may have got it: `unknown` says so.
        """
        return await self._ask("POST", "/retry", repeat=False, unknown=_NOT_RETRIED)

    async def delete(self) -> None:
        """Remove the run, which has ended, with its log.

        Raises:
            WorkflowServerError: With status 409 if it is in progress, 404 if there is no such run.
            ServerUnreachableError: If there is no answer.
        """
        await self._http.call("DELETE", self._path)
        self.known = None

    # --- Inside -------------------------------------------------------------------------------------

    @property
    def _path(self) -> str:
        return f"/v1/runs/{quoted(self.id)}"

    async def _ask(
        self, method: str, place: str, query: Mapping[str, Any] | None = None, **options: Any
    ) -> RemoteRunInfo:
        """Make a request that is answered with the run."""
        path = f"{self._path}{place}"
        wait = (query or {}).get("wait", 0.0)
        found = await self._http.call(method, path, query=query, wait=wait, **options)
        with understanding(f"{method} {path}"):
            self.known = read_run(found)
        return self.known

    async def _post(self, path: str, body: Mapping[str, Any], unknown: str) -> tuple[str, ...]:
        """Send what the server must not get twice."""
        found = await self._http.call("POST", path, body=body, repeat=False, unknown=unknown)
        with understanding(f"POST {path}"):
            return tuple(found["taken_by"])

    def __repr__(self) -> str:
        known = "" if self.known is None else f": {self.known.workflow}, {self.known.status}"
        return f"<RemoteRun {self.id!r} of {self._http.url}{known}>"


def _error_of(info: RemoteRunInfo) -> RemoteRunError:
    """Return what to raise for a run that has no result."""
    error = info.error
    if error is None:
        return RemoteRunError(info.id, info.status, "WorkflowError", "the server did not say why")
    return RemoteRunError(
        info.id, info.status, error.type, error.message, error.step, error.attempts, error.notes
    )


def _names_of(types: Iterable[str | type[Event]]) -> list[str]:
    """Return the names of types of events, given by name or as classes."""
    if isinstance(types, str) or not isinstance(types, Iterable):
        raise WorkflowConfigurationError(
            f"types must be a list of event classes or of their names, not {short_repr(types)}"
        )
    return [one if isinstance(one, str) else one.__name__ for one in types]


def _data_of(
    function: str, given: Event | Mapping[str, Any] | None, fields: dict[str, Any]
) -> dict[str, Any]:
    """Return the fields of an event as data: given as the event, as a mapping, or as keywords."""
    if given is None:
        return fields
    if fields:
        raise WorkflowConfigurationError(
            f"{function} takes an event or its fields, not both; the fields given besides: {', '.join(fields)}"
        )
    if isinstance(given, Event):
        return to_data(given)
    if isinstance(given, Mapping):
        return dict(given)
    raise WorkflowConfigurationError(
        f"{function} takes an event, or its fields as data; not {short_repr(given)}"
    )
