"""The one table of routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute

from ..errors import WorkflowRuntimeError
from ..runtime import RunStatus
from . import _events, _health, _metrics, _page, _questions, _runs, _workflows
from ._context import ServerContext
from ._frames import dumps
from ._openapi import describe_api
from ._problems import RETRY_LATER, ProblemError
from ._requests import check_media, check_query
from ._route import Content, Endpoint, Parameter, Route
from ._runs import JSON, Answer

# --- Parameters ---------------------------------------------------------------------------------------

_SECONDS = {"type": "number", "minimum": 0}
_FLAG = {"enum": ["0", "1", "false", "true"], "default": "0"}

WAIT = Parameter("wait", _SECONDS, "Wait for the end of the run, for so many seconds at most.")
INTERNAL = Parameter("internal", _FLAG, "Also send the events about the run itself, from now on.")
LIMIT = Parameter("limit", {"type": "integer", "minimum": 1, "default": 50}, "How many, at most.")


def _json(description: str, schema: str, **headers: str) -> Content:
    return Content(description, {"application/json": schema}, headers)


_STREAM = {
    "type": "string",
    "description": "Frames `id: N` and `data: {event}`, then `event: end`; docs/server.md describes them.",
}
_LOCATION = "The path of the run."


# --- The table ----------------------------------------------------------------------------------------


async def get_api(server: ServerContext, request: Request) -> Response:
    """Answer with the description of this server, as OpenAPI 3.1."""
    root, has_token = request.scope.get("root_path", ""), server.access.token is not None
    return Response(dumps(describe_api(ROUTES, server.workflows, has_token, root)), media_type=JSON)


ROUTES: Sequence[Route] = [
    Route(
        "POST",
        "/v1/workflows/{name}/runs",
        _runs.start_run,
        "start",
        {
            201: Content(
                "The run, which has been started. With `Accept: text/event-stream`, its events.",
                {"application/json": "Run", "text/event-stream": _STREAM},
                {"location": _LOCATION},
            ),
            200: _json("The run that was started by the same request before.", "Run"),
        },
        (404, 409, 422, 429),
        (
            WAIT,
            INTERNAL,
            Parameter(
                "on_disconnect",
                {"enum": ["continue", "cancel"], "default": "continue"},
                "What becomes of the run when the reader of its stream leaves.",
            ),
            Parameter(
                "idempotency-key",
                {"type": "string"},
                "A request with the same key finds the same run.",
                "header",
            ),
        ),
        "StartRun",
    ),
    Route(
        "GET",
        "/v1/runs",
        _runs.list_runs,
        "list",
        {200: _json("A page of the list.", "RunPage")},
        (),
        (
            Parameter("status", {"enum": list(get_args(RunStatus))}, "Only runs that stand so."),
            Parameter("workflow", {"type": "string"}, "Only runs of this workflow."),
            LIMIT,
            Parameter("before", {"type": "string"}, "The `next` of the page before."),
        ),
    ),
    Route(
        "GET",
        "/v1/runs/{id}",
        _runs.get_run,
        "read",
        {200: _json("The run, whatever its outcome.", "Run")},
        (404,),
        (WAIT,),
    ),
    Route(
        "GET",
        "/v1/runs/{id}/events",
        _events.read_events,
        "read",
        {
            200: Content(
                "The events, as the `Accept` header asks for them: a stream by default.",
                {
                    "text/event-stream": _STREAM,
                    "application/x-ndjson": {
                        "type": "string",
                        "description": 'An event per line; then `{"end": {...}}`.',
                    },
                    "application/json": "EventPage",
                },
            ),
            204: Content("The run has ended, and there is nothing behind the cursor."),
        },
        (404, 409, 429),
        (
            Parameter(
                "after",
                {"type": "integer", "minimum": 0, "default": 0},
                "The number of the last event that was seen.",
            ),
            INTERNAL,
            Parameter(
                "types", {"type": "string"}, "Only events of these types, separated by commas."
            ),
            Parameter("wait", _SECONDS, "Wait for an event, for so many seconds at most (JSON)."),
            Parameter(
                "limit",
                {"type": "integer", "minimum": 1, "default": 100},
                "How many events, at most (JSON).",
            ),
            Parameter(
                "last-event-id",
                {"type": "string"},
                "What an EventSource sends; it wins over `after`.",
                "header",
            ),
        ),
    ),
    Route(
        "POST",
        "/v1/runs/{id}/events",
        _events.send_event,
        "send",
        {202: _json("The steps that took it.", "Taken")},
        (404, 409, 422),
        (),
        "SendEvent",
    ),
    Route(
        "GET",
        "/v1/runs/{id}/questions",
        _questions.list_questions,
        "read",
        {200: _json("The open waits.", "Questions")},
        (404, 409),
    ),
    Route(
        "POST",
        "/v1/runs/{id}/questions/{question:path}",
        _questions.answer_question,
        "send",
        {200: _json("The step that took it.", "Taken")},
        (404, 409, 422),
        (),
        "Answer",
    ),
    Route(
        "POST",
        "/v1/runs/{id}/cancel",
        _runs.cancel_run,
        "cancel",
        {200: _json("The run.", "Run")},
        (404, 409),
        (WAIT,),
    ),
    Route(
        "POST",
        "/v1/runs/{id}/retry",
        _runs.retry_run,
        "retry",
        {200: _json("The run, in progress again.", "Run")},
        (404, 409, 429),
    ),
    Route(
        "DELETE",
        "/v1/runs/{id}",
        _runs.delete_run,
        "delete",
        {204: Content("It has been removed.")},
        (404, 409),
    ),
    Route(
        "GET",
        "/v1/workflows",
        _workflows.list_workflows,
        "list",
        {200: _json("The workflows.", "Workflows")},
    ),
    Route(
        "GET",
        "/v1/workflows/{name}",
        _workflows.get_workflow,
        "list",
        {200: _json("The workflow, with its schemas.", "Workflow")},
        (404,),
    ),
    Route(
        "GET",
        "/v1/workflows/{name}/graph",
        _workflows.get_graph,
        "list",
        {
            200: Content(
                "The graph.",
                {
                    "application/json": "Graph",
                    **{media: {"type": "string"} for media in _workflows.DRAWINGS.values()},
                },
            )
        },
        (404,),
        (
            Parameter(
                "format", {"enum": ["json", *_workflows.DRAWINGS], "default": "json"}, "The format."
            ),
        ),
    ),
    Route("GET", "/v1/openapi.json", get_api, "list", {200: _json("This document.", "Anything")}),
    Route(
        "GET",
        "/metrics",
        _metrics.get_metrics,
        "metrics",
        {200: Content("The counts.", {_metrics.MEDIA_TYPE: {"type": "string"}})},
    ),
    Route("GET", "/healthz", _health.get_health, None, {200: _json("It works.", "Health")}),
    Route(
        "GET",
        "/readyz",
        _health.get_readiness,
        None,
        {200: _json("Requests are taken.", "Health")},
    ),
    Route("GET", "/", _page.get_page, None, {200: Content("The page.")}, is_page=True),
    *(
        Route("GET", f"/{name}", _page.get_file, None, {200: Content("A file.")}, is_page=True)
        for name in _page.FILES
    ),
]


# --- For Starlette ------------------------------------------------------------------------------------


def starlette_routes(server: ServerContext) -> list[StarletteRoute]:
    """Return the table for Starlette: one route for each path, so that it knows all methods there."""
    by_path: dict[str, dict[str, Route]] = {}
    for route in ROUTES:
        by_path.setdefault(route.path, {})[route.method] = route
    found = [
        StarletteRoute(path, _endpoint(server, routes), methods=list(routes))
        for path, routes in by_path.items()
    ]
    templates = {route.path: route.template for route in ROUTES}
    server.requests.routes.update((route.endpoint, templates[route.path]) for route in found)
    return found


def _endpoint(server: ServerContext, routes: dict[str, Route]) -> Endpoint:
    async def endpoint(request: Request) -> Answer:
        route = routes["GET" if request.method == "HEAD" else request.method]
        if route.verb is None:
            return await route.handler(server, request)
        runtime = server.runtime
        request.state.principal = await server.access.check(request, route.verb)
        if route.method == "POST":
            check_media(request)
        check_query(request, route.query)
        try:
            return await route.handler(server, request)
        except WorkflowRuntimeError as error:
            if runtime.state == "open":
                raise
            raise ProblemError(503, str(error), RETRY_LATER) from None  # it was left meanwhile

    return endpoint
