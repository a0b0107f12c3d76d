"""The questions of a run: listed, and answered."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from .._documents import describe_wait
from .._messages import short_repr
from ._context import ServerContext
from ._events import open_waits
from ._frames import dumps
from ._problems import ProblemError
from ._requests import json_body, path_of, read_event
from ._runs import JSON


async def list_questions(server: ServerContext, request: Request) -> Response:
    """Answer with the open waits of a run, and the JSON Schema of what answers each."""
    run = await server.run_of(request)
    converter = server.encoder_of(run).converter
    waits = [describe_wait(wait, converter) for wait in await open_waits(run)]
    return Response(dumps({"questions": waits}), media_type=JSON)


async def answer_question(server: ServerContext, request: Request) -> Response:
    """Answer exactly one wait. Of two answers, one is too late."""
    run = await server.run_of(request)
    question = request.path_params["question"]
    body = await json_body(request, server.limits.max_body, ("data",))
    wait = next((one for one in await open_waits(run) if one.id == question), None)
    if wait is None:
        raise ProblemError(
            409, f"question {short_repr(question)} is not open: it was never asked, or is over"
        )
    workflow = server.workflows[run.workflow]
    event = read_event(body.get("data", {}), workflow, wait.event_type, "data")
    if (name := wait.unmet(event)) is not None:
        wanted = short_repr(wait.requirements[name])
        raise ProblemError(
            422, f"step {wait.step} requires {name} = {wanted}", path=path_of("data", name)
        )
    with server.conflicts():
        taken_by = await run.send_event(event, wait=wait.id)
    return Response(dumps({"taken_by": taken_by}), media_type=JSON)
