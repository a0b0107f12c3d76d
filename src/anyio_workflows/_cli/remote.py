"""The commands that ask a server."""

from __future__ import annotations

import importlib.util
import math
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio

from .._messages import nearest
from ..errors import (
    RemoteRunError,
    ServerUnreachableError,
    WorkflowConfigurationError,
    WorkflowServerError,
)
from .answers import Person
from .follow import follow, write_json
from .plain import PlainView
from .problems import COMPLETED, EXIT_OF_STATUS, FAILED, NOT_ENDED, CommandError
from .showing import answerer_for, is_terminal_input, print_result, view_for
from .texts import Data, duration, ending_lines, printable, question_text, seconds_between
from .values import Record, read_input

if TYPE_CHECKING:
    from ..client import RemoteRun, WorkflowClient


def ask_server(args: Namespace, options: dict[str, Any] | None) -> int:
    """Carry out a command on a server, and return its exit status."""
    if not any(importlib.util.find_spec(name) for name in ("httpx2", "httpx")):
        raise CommandError(f'{args.command} needs httpx2: pip install "anyio-workflows[client]"')
    from ..client import WorkflowClient

    try:
        client = WorkflowClient(args.url, args.token, give_up_after=0)
    except WorkflowConfigurationError as error:
        raise CommandError(str(error)) from error
    return anyio.run(_ask, args, client, backend=args.backend, backend_options=options)


async def _ask(args: Namespace, client: WorkflowClient) -> int:
    command = _COMMANDS[args.command]
    async with client:
        try:
            return await command(args, client)
        except WorkflowServerError as error:
            hint = ""
            if error.status == 401:
                hint = "; give the right --token, or set ANYIO_WORKFLOWS_TOKEN"
            raise CommandError(f"{args.url}: {error}{hint}", FAILED) from error
        except ServerUnreachableError as error:
            hint = "--url, or ANYIO_WORKFLOWS_URL, says where it is"
            raise CommandError(f"{error}; {hint}", FAILED) from error


# --- How things stand -------------------------------------------------------------------------------


async def _ps(args: Namespace, client: WorkflowClient) -> int:
    rows: list[Data] = []
    before = None
    while len(rows) < args.limit:
        page = await client.runs(
            args.status, args.workflow, limit=min(args.limit - len(rows), 200), before=before
        )
        rows += [dict(run.document) for run in page.runs]
        if (before := page.next) is None:
            break
    if args.json:
        for row in rows:
            write_json(row)
        return COMPLETED
    now = datetime.now(UTC).isoformat()
    cells = [["id", "workflow", "status", "age", "took", "events", "questions"]]
    cells += [
        [
            row["id"],
            row["workflow"],
            row["status"],
            duration(seconds_between(row["created"], now)),
            duration(seconds_between(row["created"], row["ended"] or now)),
            str(row["last_seq"]),
            str(row["questions"] or ""),
        ]
        for row in rows
    ]
    widths = [max(len(one[column]) for one in cells) for column in range(len(cells[0]))]
    for line_of_cells in cells:
        line = (cell.ljust(width) for cell, width in zip(line_of_cells, widths, strict=True))
        print(printable("  ".join(line).rstrip()))
    return COMPLETED


async def _watch(args: Namespace, client: WorkflowClient) -> int:
    from .far import FarRun

    run = client.run(args.run_id)
    far = FarRun(run, dict((await run.info()).document))
    with view_for(args) as view:
        view.begin(far.known, "is followed")
        ended = await follow(far, view, args.after, answerer_for(args, view))
    if not args.json:
        print_result(ended)
    return EXIT_OF_STATUS.get(ended["status"], FAILED)


async def _result(args: Namespace, client: WorkflowClient) -> int:
    run = client.run(args.run_id)
    info = await run.info()
    if args.wait is not None and info.ended is None:
        with suppress(TimeoutError, RemoteRunError):
            await run.result(None if args.wait == math.inf else args.wait)
        info = await run.info()
    document = dict(info.document)
    if args.json:
        write_json(document)
    elif info.status == "completed":
        print_result(document)
    else:
        print(*ending_lines(document), sep="\n", file=sys.stderr)
    if info.status in ("queued", "running", "waiting"):
        return NOT_ENDED
    return EXIT_OF_STATUS.get(info.status, FAILED)


# --- What is to be done -----------------------------------------------------------------------------


async def _start(args: Namespace, client: WorkflowClient) -> int:
    known = [workflow.name for workflow in await client.workflows()]
    if args.workflow not in known:
        hint = nearest(args.workflow, known)
        raise CommandError(f"{args.url} has no workflow {args.workflow!r}; {hint}")
    workflow = await client.workflow(args.workflow)
    record = Record.of(dict(workflow.input or {}))
    data = {**read_input(args.input), **record.read(args.fields)}
    run = await _fitting(client.start(args.workflow, data, run_id=args.run_id), "input", record)
    assert run.known is not None
    if args.json:
        write_json(dict(run.known.document))
    else:
        print(run.id)
    return COMPLETED


async def _answer(args: Namespace, client: WorkflowClient) -> int:
    run = client.run(args.run_id)
    question = await _chosen_question(args, run)
    record = Record.of(question["schema"])
    data = {**read_input(args.input), **record.read(args.fields)}
    if not data and record.fields and is_terminal_input():
        answer = await Person(PlainView()).answer_to(question)
        if answer is None:
            raise CommandError("no answer was given", FAILED)
        data = answer
    taken = await _fitting(run.answer(question["id"], data), "answer", record)
    print(f"taken by {', '.join(taken)}", file=sys.stderr)
    return COMPLETED


async def _chosen_question(args: Namespace, run: RemoteRun) -> Data:
    """Return the question that is to be answered."""
    questions = [dict(one.document) for one in await run.questions()]
    chosen = [
        one
        for one in questions
        if args.question is None or args.question in (one["id"], one["step"])
    ]
    if len(chosen) == 1:
        return chosen[0]
    if not questions:
        status = (await run.info()).status
        raise CommandError(f"run {args.run_id} has no open question, it is {status}", FAILED)
    what = f"{len(chosen)} open questions" if chosen else f"no open question {args.question!r}"
    listed = "".join(
        f"\n  {one['id']}  {one['step']} asks: {question_text(one)}" for one in questions
    )
    raise CommandError(f"run {args.run_id} has {what}; choose one with --question:{listed}")


async def _send(args: Namespace, client: WorkflowClient) -> int:
    run = client.run(args.run_id)
    workflow = await client.workflow((await run.info()).workflow)
    schema = (workflow.events or {}).get(args.type)
    # A step may wait for an event that the graph does not name; the server knows.
    record = Record.of({} if schema is None else dict(schema))
    data = {**read_input(args.input), **record.read(args.fields)}
    taken = await _fitting(
        run.send(args.type, data, step=args.step), "event", record if schema else None
    )
    print(f"taken by {', '.join(taken)}", file=sys.stderr)
    return COMPLETED


async def _cancel(args: Namespace, client: WorkflowClient) -> int:
    return _say_how_it_stands(args, (await client.run(args.run_id).cancel(60)).document)


async def _retry(args: Namespace, client: WorkflowClient) -> int:
    return _say_how_it_stands(args, (await client.run(args.run_id).retry()).document)


def _say_how_it_stands(args: Namespace, document: Mapping[str, Any]) -> int:
    if args.json:
        write_json(dict(document))
    else:
        print(f"run {args.run_id} is {str(document['status']).replace('_', ' ')}", file=sys.stderr)
    return COMPLETED


async def _fitting(request: Awaitable[Any], what: str, record: Record | None) -> Any:
    """Make a request, and say what there is to be given if the server says that the data does not fit."""
    try:
        return await request
    except WorkflowServerError as error:
        if error.status != 422:
            raise
        if error.path == "$.run_id":
            raise CommandError(f"--run-id: {error.detail}") from error
        usage = "" if record is None else f"; {record.usage}"
        raise CommandError(f"the {what} does not fit: {error.detail}{usage}") from error


_COMMANDS: Mapping[str, Callable[[Namespace, WorkflowClient], Awaitable[int]]] = {
    "ps": _ps,
    "watch": _watch,
    "result": _result,
    "start": _start,
    "answer": _answer,
    "send": _send,
    "cancel": _cancel,
    "retry": _retry,
}
