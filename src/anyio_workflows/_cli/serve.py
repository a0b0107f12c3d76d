"""`serve`: a server with the workflows that were named, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import importlib.util
import os
import sys
import webbrowser
from argparse import Namespace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import anyio

from ..errors import WorkflowConfigurationError
from ..runtime import Runtime
from ..workflow import Workflow
from .problems import COMPLETED, CommandError
from .targets import Target, load

if TYPE_CHECKING:
    from ..server import WorkflowServer


def serve(args: Namespace, options: dict[str, Any] | None) -> int:
    """Serve until a signal comes."""
    needed = {"asyncio": ("starlette", "uvicorn"), "trio": ("starlette", "hypercorn")}[args.backend]
    missing = [name for name in (*needed, "orjson") if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(
            f'serve needs {", ".join(missing)}: pip install "anyio-workflows[server]"'
        )
    from ..server import WorkflowServer

    runtime = _runtime_of(args)
    token = args.token or os.environ.get("ANYIO_WORKFLOWS_TOKEN") or None
    try:
        server = WorkflowServer(
            runtime,
            token=token,
            allow_origins=args.allow_origin,
            hosts=args.allow_host,
            page=not args.no_page,
        )
    except WorkflowConfigurationError as error:
        raise CommandError(str(error)) from error
    return anyio.run(
        _serve,
        args,
        server,
        list(runtime.workflows),
        token,
        backend=args.backend,
        backend_options=options,
    )


def _runtime_of(args: Namespace) -> Runtime:
    """Return a runtime with all the workflows; two of one name are told apart before anything starts."""
    named: dict[str, Workflow[Any]] = {}
    sources: dict[str, str] = {}
    for text in args.targets:
        given, equals, place = text.partition("=")
        targets = load(place if equals else text)
        if equals and len(targets) > 1:
            raise CommandError(
                f"{place} defines {len(targets)} workflows, and {given!r} can name one only"
            )
        for target in targets:
            name, workflow = _named(target, given if equals else None)
            if name in named:
                raise CommandError(
                    f"two workflows are named {name!r}: {sources[name]} and {target.name}; give one of them another "
                    f"name, as in other_name={target.name}"
                )
            named[name], sources[name] = workflow, target.name
    try:
        return Runtime(args.db, workflows=named)
    except WorkflowConfigurationError as error:
        raise CommandError(str(error)) from error


def _named(target: Target, name: str | None) -> tuple[str, Workflow[Any]]:
    workflow = target.instance()
    if name is not None:
        return name, workflow
    try:
        [name] = Runtime(workflows=[workflow]).workflows
    except WorkflowConfigurationError as error:
        raise CommandError(f"{target.name}: {error}") from error
    return name, workflow


async def _serve(
    args: Namespace, server: WorkflowServer, names: list[str], token: str | None
) -> int:
    async with anyio.create_task_group() as group:

        async def announce(*, task_status: Any = anyio.TASK_STATUS_IGNORED) -> None:
            try:
                await server.serve(
                    args.host, args.port, insecure=args.insecure, task_status=task_status
                )
            except WorkflowConfigurationError as error:
                remedy = "; here: --token TOKEN, or --insecure" if "insecure" in str(error) else ""
                raise CommandError(f"{error}{remedy}") from error

        url = await group.start(announce)
        address = f"{url}#token={quote(token, safe='')}" if token and not args.no_page else url
        print(f"serving {', '.join(names)} at {address}", flush=True)
        kept = f"in {args.db}" if args.db else "in memory, and end with the server"
        print(f"runs are kept {kept}; Ctrl-C ends it", file=sys.stderr, flush=True)
        if args.host in ("0.0.0.0", "::"):
            token_too = "" if token else ", and need no token"
            print(
                f"other machines reach it by the addresses of this one{token_too}; by a name with --allow-host NAME",
                file=sys.stderr,
                flush=True,
            )
        if args.open:
            await anyio.to_thread.run_sync(webbrowser.open, address)
    return COMPLETED
