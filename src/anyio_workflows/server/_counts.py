"""How many requests were answered, by route and status."""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_METHODS = {"GET", "HEAD", "POST", "DELETE", "OPTIONS"}


@attrs.define(eq=False)
class RequestCounts:
    """How many requests were answered.

    Attributes:
        counts: By method, route and status. What has no route here counts for the route `other`.
        routes: The path of each route, by what Starlette calls its endpoint.
    """

    counts: Counter[tuple[str, str, int]] = attrs.field(factory=Counter)
    routes: dict[Any, str] = attrs.field(factory=dict)

    def note(self, scope: Scope, status: int) -> None:
        """Count a request that is being answered."""
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = self.routes.get(scope.get("endpoint"), "other")
        self.counts[method, route, status] += 1


class CountRequests:
    """Counts the requests that an application answers."""

    def __init__(self, app: ASGIApp, requests: RequestCounts) -> None:
        self._app, self._requests = app, requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count it when its answer begins."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_answered = False

        async def counting(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start":
                is_answered = True
                self._requests.note(scope, message["status"])
            await send(message)

        try:
            await self._app(scope, receive, counting)
        except Exception:
            if not is_answered:  # Starlette answers then, further out
                self._requests.note(scope, 500)
            raise
