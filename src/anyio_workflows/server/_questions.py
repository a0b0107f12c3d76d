"""The questions of a run: listed, and answered."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from .._documents import describe_wait
from .._messages import short_repr
from ..errors import WorkflowRuntimeError
from ._context import ServerContext
from ._events import read_event
from ._frames import dumps
from ._problems import ProblemError
from ._requests import check_keys, json_body
from ._runs import JSON


async def list_questions(server: ServerContext, request: Request) -> Response:
    """Answer with the open waits of a run."""
    run = await server.run_of(request)
    waits = [describe_wait(wait) for wait in await run.open_waits()]
    return Response(dumps({"questions": waits}), media_type=JSON)


async def answer_question(server: ServerContext, request: Request) -> Response:
    """Answer exactly one wait. Of two answers, one is too late."""
    run = await server.run_of(request)
    question = request.path_params["question"]
    body = await json_body(request, server.limits.max_body)
    check_keys(body, ("data",))
    wait = next((one for one in await run.open_waits() if one.id == question), None)
    if wait is None:
        raise ProblemError(
            409, f"question {short_repr(question)} is not open: it has been answered, or has ended"
        )
    event = read_event(body.get("data", {}), wait.event_type)
    try:
        taken_by = await run.send_event(event, wait=wait.id)
    except WorkflowRuntimeError as error:
        still = any(one.id == question for one in await run.open_waits())
        raise ProblemError(422 if still else 409, str(error)) from None
    return Response(dumps({"taken_by": taken_by}), media_type=JSON)
