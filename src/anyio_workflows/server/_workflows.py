"""The workflows that are served: their names, schemas and graphs."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from .._documents import describe_whole_workflow, describe_workflow
from .._messages import nearest, short_repr
from ..drawing import draw
from ._context import ServerContext
from ._frames import dumps
from ._problems import ProblemError
from ._runs import JSON

DRAWINGS = {
    "svg": "image/svg+xml",
    "mermaid": "text/plain; charset=utf-8",
    "dot": "text/vnd.graphviz; charset=utf-8",
}


_DRAWING_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
}
"""A browser that opens a drawing runs nothing that may be in it."""


async def list_workflows(server: ServerContext, request: Request) -> Response:
    """Answer with the names of the workflows, and what they are for."""
    found = [describe_workflow(name, one) for name, one in server.workflows.items()]
    return Response(dumps({"workflows": found}), media_type=JSON)


async def get_workflow(server: ServerContext, request: Request) -> Response:
    """Answer with a workflow, and the JSON Schemas of its events."""
    name, workflow = server.workflow_of(request)
    return Response(dumps(describe_whole_workflow(name, workflow)), media_type=JSON)


async def get_graph(server: ServerContext, request: Request) -> Response:
    """Answer with the graph of a workflow: its steps as data, or a drawing."""
    name, workflow = server.workflow_of(request)
    format_ = request.query_params.get("format", "json")
    if format_ == "json":
        steps = describe_whole_workflow(name, workflow)["steps"]
        return Response(dumps({"name": name, "steps": steps}), media_type=JSON)
    media = DRAWINGS.get(format_)
    if media is None:
        raise ProblemError(
            400,
            f"there is no format={short_repr(format_)}; {nearest(format_, ['json', *DRAWINGS])}",
        )
    drawn = draw(workflow, format_)  # type: ignore[arg-type]
    return Response(drawn, headers=_DRAWING_HEADERS, media_type=media)
