"""The one table of routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
from starlette.requests import Request
from starlette.routing import Route as StarletteRoute

from . import _events, _health, _page, _questions, _runs, _workflows
from ._access import Verb
from ._context import ServerContext
from ._problems import ProblemError

Handler = Callable[[ServerContext, Request], Awaitable[_runs.Answer]]


@attrs.frozen
class Route:
    """What is answered where.

    Attributes:
        method: The method of HTTP.
        path: The path, with its parameters in braces.
        handler: Answers; its docstring is the description.
        verb: What a request has to be allowed to do; `None` if anybody may.
    """

    method: str
    path: str
    handler: Handler
    verb: Verb | None


ROUTES = [
    Route("POST", "/v1/workflows/{name}/runs", _runs.start_run, "start"),
    Route("GET", "/v1/runs", _runs.list_runs, "list"),
    Route("GET", "/v1/runs/{id}", _runs.get_run, "read"),
    Route("GET", "/v1/runs/{id}/events", _events.read_events, "read"),
    Route("POST", "/v1/runs/{id}/events", _events.send_event, "send"),
    Route("GET", "/v1/runs/{id}/questions", _questions.list_questions, "read"),
    Route("POST", "/v1/runs/{id}/questions/{question:path}", _questions.answer_question, "send"),
    Route("POST", "/v1/runs/{id}/cancel", _runs.cancel_run, "cancel"),
    Route("POST", "/v1/runs/{id}/retry", _runs.retry_run, "retry"),
    Route("DELETE", "/v1/runs/{id}", _runs.delete_run, "delete"),
    Route("GET", "/v1/workflows", _workflows.list_workflows, "list"),
    Route("GET", "/v1/workflows/{name}", _workflows.get_workflow, "list"),
    Route("GET", "/v1/workflows/{name}/graph", _workflows.get_graph, "list"),
    Route("GET", "/healthz", _health.get_health, None),
    Route("GET", "/readyz", _health.get_readiness, None),
    Route("GET", "/", _page.get_page, None),
    *(Route("GET", f"/{name}", _page.get_file, None) for name in _page.FILES),
]


def starlette_routes(server: ServerContext) -> list[StarletteRoute]:
    """Return the table for Starlette."""
    return [_starlette_route(server, route) for route in ROUTES]


def _starlette_route(server: ServerContext, route: Route) -> StarletteRoute:
    async def endpoint(request: Request) -> _runs.Answer:
        if route.verb is not None:
            request.state.principal = await server.access.check(request, route.verb)
            if server.streams.stopping:
                raise ProblemError(503, "the server stops; come back later", {"retry-after": "5"})
        return await route.handler(server, request)

    return StarletteRoute(route.path, endpoint, methods=[route.method], name=route.handler.__name__)
