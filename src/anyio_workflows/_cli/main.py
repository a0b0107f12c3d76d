"""Chooses the command, and turns its problems into messages and exit statuses."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from ..errors import WorkflowError
from .parser import parse
from .problems import BROKEN_PIPE, CANCELLED, FAILED, USAGE, CommandError


def main(
    argv: Sequence[str] | None = None,
    backend_options: dict[str, Any] | None = None,
    *,
    prog: str = "anyio-workflows",
) -> int:
    """Run the command and return the exit status.

    Args:
        argv: The arguments; `None` for those of the process.
        backend_options: Passed to `anyio.run()`, so that a command can run on another clock.
        prog: How the program is called, for help.
    """
    args = parse(argv, prog)
    if args is None:
        return 0
    backend = getattr(args, "backend", "asyncio")
    if backend == "trio" and importlib.util.find_spec("trio") is None:
        remedy = 'pip install "anyio-workflows[trio]"'
        return _complain(f"the trio backend needs trio, which is not installed: {remedy}", USAGE)
    for file in (sys.stdout, sys.stderr):
        if isinstance(file, io.TextIOWrapper):
            file.reconfigure(errors="backslashreplace")  # results may have any characters
    try:
        return _execute(args, backend_options)
    except BaseException as raised:
        error = _alone(raised)
        if isinstance(error, KeyboardInterrupt):
            print(file=sys.stderr)  # ends the line that the shell shows as ^C
            return CANCELLED
        if isinstance(error, CommandError):
            return _complain(str(error), error.status)
        if isinstance(error, WorkflowError):
            return _complain(str(error), FAILED)
        if isinstance(error, BrokenPipeError):
            # What reads the output has enough. The interpreter flushes it at exit, which would fail as well.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        raise


def _execute(args: Namespace, options: dict[str, Any] | None) -> int:
    """Carry out a command: what it needs is imported only now."""
    match args.command:
        case "demo":
            from .._demo import run_demo

            return run_demo(args.backend, args.end, args.timeout, options)
        case "run":
            from .run import run

            return run(args, options)
        case "validate":
            from .look import validate

            return validate(args)
        case "draw":
            from .look import draw

            return draw(args)
        case "serve":
            from .serve import serve

            return serve(args, options)
        case _:
            from .remote import ask_server

            return ask_server(args, options)


def _alone(error: BaseException) -> BaseException:
    """Return the exception that a task group wrapped, if it is the only one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        [error] = error.exceptions
    return error


def _complain(text: str, status: int) -> int:
    print(text, file=sys.stderr)
    return status
