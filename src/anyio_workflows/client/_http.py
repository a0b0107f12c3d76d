"""Requests of a client: made, repeated where that is safe, and refused with the library's own exceptions."""

from __future__ import annotations

import json
import logging
import random
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from urllib.request import getproxies

import anyio
import attrs

from .._messages import format_seconds, short_repr, shortened, text_of
from ..errors import (
    ServerUnreachableError,
    WorkflowConfigurationError,
    WorkflowError,
    WorkflowRuntimeError,
    WorkflowServerError,
)
from ._sse import EventStreamParser, ServerSentEvent

if TYPE_CHECKING:
    import httpx2 as httpx
else:
    try:
        import httpx2 as httpx
    except ImportError:
        try:
            import httpx
        except ImportError:
            raise ImportError(
                'anyio_workflows.client needs httpx2: pip install "anyio-workflows[client]"'
            ) from None

AsyncClient = httpx.AsyncClient
RequestError = httpx.RequestError

logger = logging.getLogger(__name__)

_random = random.Random()  # the program's own generator, and its seed, are left alone

_FIRST_DELAY = 0.5
"""Seconds before the second attempt; each one after that waits twice as long, up to `longest_delay`."""

_LONGEST_SILENCE = 45.0
"""Seconds: three heartbeats of the server. A stream that is silent for longer has lost its connection."""

_STEADY = 10.0
"""A stream that lives for so many seconds has a good connection, even if nothing happens in the run."""

_TO_CLOSE = 5.0
"""Seconds that connections may take to say goodbye."""

_TEMPORARY = frozenset({502, 503, 504})
"""The status of a server that is away for a moment: a request may be repeated."""

_TEMPORARY_FOR_STREAMS = _TEMPORARY | {429}
"""A server that has too many readers soon forgets those that were cut."""

_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=3.0)
"""A stream takes a connection, and there may be any number. One that is idle is closed before the server does that:
a request that meets the closing may not be repeated in all cases."""

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_HOPELESS = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)


# --- Again ------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Backoff:
    """When to try again after a failure, and for how long: twice as long each time, with some jitter.

    Attributes:
        give_up_after: Seconds after the first failure in a row; `None` for never.
        longest: Seconds between two attempts, at most.
        first: Seconds before the second attempt, at least.
    """

    give_up_after: float | None
    longest: float
    first: float = _FIRST_DELAY
    _failing_since: float | None = None
    _failures: int = 0

    def succeeded(self) -> None:
        """Note that the server is there: the next failure is the first one again."""
        self._failing_since, self._failures = None, 0

    async def wait(self, failure: WorkflowError) -> None:
        """Wait until it is time for the next attempt.

        Raises:
            WorkflowError: The failure, if it is time to give up.
        """
        now = anyio.current_time()
        if self._failing_since is None:
            self._failing_since = now
        failing_for = now - self._failing_since
        left = None if self.give_up_after is None else self.give_up_after - failing_for
        if left is not None and left <= 0:
            if self._failures:
                failure.add_note(
                    f"tried {self._failures + 1} times in {format_seconds(failing_for)}"
                )
            self.succeeded()
            raise failure
        if self._failures == 1:  # once an outage, and not for a connection that was only cut
            logger.warning("%s; trying again", failure)
        delay = min(self.first * 2**self._failures, self.longest)
        delay *= _random.uniform(1, 1.5)
        if isinstance(failure, WorkflowServerError) and failure.retry_after is not None:
            delay = max(delay, min(failure.retry_after, self.longest))
        self._failures = min(self._failures + 1, 30)
        await anyio.sleep(delay if left is None else min(delay, left))


# --- Streams ----------------------------------------------------------------------------------------


@attrs.define(eq=False)
class OpenStream:
    """An event stream over one connection.

    The generators of httpx that read it are never left half-way, which trio warns of: they are run to their end
    when it is closed.
    """

    request: str
    _response: httpx.Response
    _chunks: AsyncIterator[bytes]
    parser: EventStreamParser = attrs.field(factory=EventStreamParser)
    _opened: float = attrs.field(factory=anyio.current_time)
    _scope: anyio.CancelScope | None = None
    closed: bool = False

    async def read(self) -> list[ServerSentEvent] | None:
        """Return the events that came with the next bytes; `None` if the stream has ended, or was closed.

        Raises:
            httpx.TransportError: If the connection broke, or was silent for too long.
        """
        if self.closed:
            return None
        with anyio.CancelScope() as self._scope:
            try:
                async for chunk in self._chunks:
                    return self.parser.feed(chunk)
            finally:
                self._scope = None
        return None

    @property
    def is_steady(self) -> bool:
        """Whether it has been open for a while."""
        return anyio.current_time() - self._opened >= _STEADY

    async def aclose(self) -> None:
        """Close the connection. A task that reads it is told that the stream has ended."""
        self.closed = True
        if self._scope is not None:
            self._scope.cancel()  # that ends the generators, which close the connection
            return
        with suppress(Exception):
            await self._response.aclose()
            async for _ in self._chunks:  # what is buffered; then it finds the connection closed
                pass


# --- Requests ---------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Http:
    """The requests of one client, and its streams.

    Attributes:
        url: The address of the server, without a slash at its end.
        give_up_after: Seconds for which a request that is safe to repeat is repeated; `None` for ever.
        longest_delay: Seconds between two attempts, at most.
        timeout: Seconds that the server may take to answer, in addition to those for which it is asked to wait.
    """

    url: str
    client: AsyncClient
    headers: Mapping[str, str]
    give_up_after: float | None
    longest_delay: float
    timeout: float
    is_open: bool = True
    _streams: set[OpenStream] = attrs.field(factory=set)
    """Held here, so that one whose iterator was dropped is closed before its generators are collected."""

    _dropped: list[OpenStream] = attrs.field(factory=list)

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
        repeat: bool = True,
        unknown: str | None = None,
        give_up_after: float | None = None,
    ) -> dict[str, Any]:
        """Make a request and return the object that the server answered with; `{}` for an answer without body.

        Args:
            method: The method of HTTP.
            path: The path below the address of the server, with its parts quoted.
            query: Parameters of the query; those that are `None` are left out.
            body: Sent as JSON.
            headers: Headers besides those of the client.
            wait: Seconds for which the server is asked to wait.
            repeat: Whether it does no harm if the server gets the request twice.
            unknown: If it does harm, what is not known when the connection breaks, and how to find out.
            give_up_after: Seconds for which it is repeated, if less than those of the client.

        Raises:
            WorkflowServerError: If the server refuses.
            ServerUnreachableError: If there is no answer.
            WorkflowRuntimeError: If the client is not open.
        """
        content, headers = None, {**self.headers, **(headers or {})}
        if body is not None:
            content, headers["content-type"] = body_of(body), "application/json"
        await self.check_open()
        query = {key: value for key, value in (query or {}).items() if value is not None}
        timeout = httpx.Timeout(self.timeout, read=self.timeout + wait)
        request = self._request(method, path, query, headers, timeout, content)
        response = await self._answer_to(
            f"{method} {path}", request, repeat, unknown, self._backoff(give_up_after)
        )
        return object_in(f"{method} {path}", response)

    def _backoff(self, give_up_after: float | None = None) -> Backoff:
        """Return when to try again, for one request; for less time than usual if that is given."""
        limits = [limit for limit in (self.give_up_after, give_up_after) if limit is not None]
        return Backoff(min(limits, default=None), self.longest_delay)

    async def _answer_to(
        self, name: str, request: httpx.Request, repeat: bool, unknown: str | None, backoff: Backoff
    ) -> httpx.Response:
        """Send a request, as often as it takes and is allowed."""
        maybe_done = False
        while True:
            try:
                response = await self.client.send(request)
            except RequestError as exc:
                failure = self.failure_of(name, exc, None if repeat else unknown)
                if is_hopeless(exc) or not (repeat or isinstance(exc, _NEVER_SENT)):
                    raise failure from exc
                await backoff.wait(failure)
                maybe_done = maybe_done or not isinstance(exc, _NEVER_SENT)
            else:
                if maybe_done and (request.method, response.status_code) == ("DELETE", 404):
                    return httpx.Response(204)  # it was deleted, and the answer was lost
                if not (repeat and response.status_code in _TEMPORARY):
                    return response
                await backoff.wait(refusal_of(name, response))
                maybe_done = True
            await self.check_open()

    async def open_stream(self, path: str, query: Mapping[str, Any]) -> OpenStream | None:
        """Open an event stream; `None` if nothing is left in it.

        Raises:
            WorkflowServerError: If the server refuses.
            httpx.RequestError: If there is no answer.
            WorkflowRuntimeError: If the client is not open.
        """
        await self.check_open()
        headers = {**self.headers, "accept": "text/event-stream"}
        timeout = httpx.Timeout(self.timeout, read=_LONGEST_SILENCE)
        request = self._request("GET", path, query, headers, timeout)
        name = f"GET {path}"
        response = await self.client.send(request, stream=True)
        media = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if response.status_code == HTTPStatus.OK and media == "text/event-stream":
            # No checkpoint between here and the caller: nobody else would close it.
            stream = OpenStream(name, response, response.aiter_bytes())
            self._streams.add(stream)
            return stream
        await response.aread()
        if response.status_code == HTTPStatus.NO_CONTENT:
            return None
        raise refusal_of(name, response)

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        headers: Mapping[str, str],
        timeout: httpx.Timeout,
        content: bytes | None = None,
    ) -> httpx.Request:
        """Return a request.

        Raises:
            WorkflowConfigurationError: If something was given that HTTP has no form for.
        """
        try:
            return self.client.build_request(
                method,
                self.url + path,
                params=query,
                content=content,
                headers=headers,
                timeout=timeout,
            )
        except (httpx.InvalidURL, UnicodeError) as exc:
            raise WorkflowConfigurationError(
                f"{method} {shortened(path, 200)} cannot be sent, as something that was given has characters or a "
                f"length that HTTP has no room for: {shortened(text_of(exc), 200)}"
            ) from None

    def failure_of(
        self, request: str, exc: Exception | None, unknown: str | None = None
    ) -> ServerUnreachableError:
        """Return what to raise if a connection could not be made, or broke; `None` if it was closed."""
        if exc is None:
            problem = "the connection was closed"
        elif isinstance(exc, httpx.ConnectTimeout):
            problem = f"no connection within {format_seconds(self.timeout)}"
        elif isinstance(exc, httpx.TimeoutException):
            problem = "the server does not answer"
        else:
            problem = text_of(exc).rstrip(".") or type(exc).__name__
            if isinstance(exc, httpx.ConnectError):
                problem = (
                    f"cannot connect ({problem}); is the server running, and the address right?"
                )
        return ServerUnreachableError(self.url, request, problem, unknown)

    async def close_streams(self, *streams: OpenStream) -> None:
        """Close streams, even if the caller is being cancelled."""
        with anyio.move_on_after(_TO_CLOSE, shield=True):
            for stream in streams:
                await stream.aclose()
        self._streams.difference_update(streams)

    def drop_stream(self, stream: OpenStream) -> None:
        """Note that nobody will read a stream any more. Called by the garbage collector, at any moment."""
        self._dropped.append(stream)

    async def check_open(self) -> None:
        """Refuse to work outside the block of the client, and close the streams that were dropped."""
        if not self.is_open:
            raise WorkflowRuntimeError(
                "this WorkflowClient is closed: its 'async with' block has been left"
            )
        if self._dropped:
            dropped, self._dropped = self._dropped, []
            await self.close_streams(*dropped)

    async def aclose(self) -> None:
        """Close all streams."""
        self.is_open = False
        await self.close_streams(*self._streams)


# --- Answers ----------------------------------------------------------------------------------------


def is_hopeless(exc: BaseException) -> bool:
    """Return whether another attempt would end in the same way: the certificate is wrong, for example."""
    if isinstance(exc, _HOPELESS) or not isinstance(exc, httpx.TransportError):
        return True
    cause: BaseException | None = exc
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def is_temporary(error: WorkflowServerError) -> bool:
    """Return whether a stream that was refused in this way may be opened a little later."""
    return error.status in _TEMPORARY_FOR_STREAMS


def object_in(request: str, response: httpx.Response) -> dict[str, Any]:
    """Return the object in an answer.

    Raises:
        WorkflowServerError: If the answer is a refusal, or no object.
    """
    if response.is_success:
        if not response.content:
            return {}
        with suppress(ValueError, RecursionError):
            data = json.loads(response.content)
            if isinstance(data, dict):
                return data
    raise refusal_of(request, response)


def refusal_of(request: str, response: httpx.Response) -> WorkflowServerError:
    """Return what to raise for an answer that is none."""
    status, facts = response.status_code, {}
    media = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media in ("application/problem+json", "application/json"):
        with suppress(ValueError, RecursionError):
            facts = json.loads(response.content)
    if not isinstance(facts, dict):
        facts = {}
    title, detail, path = (facts.get(name) for name in ("title", "detail", "path"))
    if not isinstance(detail, str):
        detail = _explanation(response, media)
    if not isinstance(title, str):
        title = response.reason_phrase or "without a reason"
    return WorkflowServerError(
        request,
        status,
        shortened(title, 200),
        detail,
        path if isinstance(path, str) else None,
        _retry_after(response),
    )


def _explanation(response: httpx.Response, media: str) -> str:
    """Say what an answer is that does not explain itself."""
    if response.is_redirect:
        place = shortened(response.headers.get("location", ""), 200)
        return f"the server sends its clients to {place}: give that address"
    if response.is_success or media == "text/html":
        return (
            f"this is no answer of a workflow server, but {media or 'something without a type'}; is the address "
            "right?"
        )
    return shortened(response.text.strip(), 300) if media == "text/plain" else ""


def _retry_after(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


@contextmanager
def understanding(request: str) -> Iterator[None]:
    """Refuse an answer that has not the form it should have."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as exc:
        raise WorkflowServerError(
            request,
            int(HTTPStatus.OK),
            "Unexpected answer",
            f"it has not the form that this client knows ({type(exc).__name__}: {text_of(exc)}); are the "
            "versions of the server and of the client the same?",
        ) from exc


# --- What is given and sent -------------------------------------------------------------------------


def body_of(data: Mapping[str, Any]) -> bytes:
    """Return data as JSON.

    Raises:
        WorkflowConfigurationError: If it has no form in JSON.
    """
    try:
        return json.dumps(data, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise WorkflowConfigurationError(
            f"what is to be sent cannot be written as JSON: {shortened(text_of(exc), 200)}; give an event, or "
            "values that JSON has"
        ) from None


def new_client(url: str) -> AsyncClient:
    """Return the client to use for a server if none is given."""
    verify: ssl.SSLContext | bool = True
    if url.startswith("http:") and not getproxies():
        # No TLS will be spoken: to load the certificates would hold the event loop for 40 ms. A context without any
        # trusts nobody.
        verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return AsyncClient(limits=_LIMITS, follow_redirects=False, verify=verify)


def check_client(http: object) -> None:
    """Refuse what is no client of the library that is used here."""
    if not isinstance(http, AsyncClient):
        raise WorkflowConfigurationError(
            f"http must be an {httpx.__name__}.AsyncClient, not {short_repr(http)}"
        )


def quoted(part: str) -> str:
    """Return a text as one part of a path."""
    # As they stand, these two would be parts that lead elsewhere.
    # Half a character has no form there, and is in no id or name: "?" stands for it.
    return part.replace(".", "%2E") if part in (".", "..") else quote(part, "", errors="replace")


def base_url(url: object) -> str:
    """Return the address of a server without a slash at its end.

    Raises:
        WorkflowConfigurationError: If it is no address of a server.
    """
    if not isinstance(url, str):
        raise WorkflowConfigurationError(
            f"url must be the address of a server, such as 'http://127.0.0.1:8000'; not {short_repr(url)}"
        )
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError) as exc:
        raise WorkflowConfigurationError(f"url {short_repr(url)} is invalid: {exc}") from None
    if parsed.port is not None and parsed.port > 65535:
        raise WorkflowConfigurationError(f"url {short_repr(url)} is invalid: ports end with 65535")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        rest = shortened(url.rpartition("://")[2], 100) or "127.0.0.1:8000"
        raise WorkflowConfigurationError(
            f"url must begin with http:// or https://, and name a host: 'http://{rest}', for example; not "
            f"{short_repr(url)}"
        )
    if parsed.userinfo:
        raise WorkflowConfigurationError(
            "url must not have a name or a password in it; give token=, or an http= client with auth"
        )
    if parsed.query or parsed.fragment:
        raise WorkflowConfigurationError(
            "url must end with its path, without '?' and '#'; what follows '#token=' is given as token="
        )
    return str(parsed).rstrip("/")
