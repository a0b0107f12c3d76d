"""The arguments of the commands."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from typing import TypeAlias

from .. import __version__

TARGET = "package.module:Workflow, or path/to/file.py:Workflow; a class or an instance"
ENDINGS = ("stop", "timeout", "cancel", "fail")


def parse(argv: Sequence[str] | None, prog: str) -> argparse.Namespace | None:
    """Return the arguments; `None` if help was asked for, and printed.

    `key=value` arguments may stand before and behind options.

    Raises:
        SystemExit: If they do not fit, with the status 2; or after `--help` and `--version`.
    """
    parser = _parser(prog)
    args, others = parser.parse_known_args(argv)
    if args.command is None and not others:
        parser.print_help()
        return None
    if wrong := [one for one in others if one.startswith("-") or not hasattr(args, "fields")]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if others:
        args.fields = [*args.fields, *others]
    return args


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Event-driven workflows on AnyIO: run, draw and serve them, on asyncio and on trio.",
    )
    parser.add_argument("--version", action="version", version=f"anyio-workflows {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_run(commands)
    _add_looking(commands)
    _add_serve(commands)
    _add_asking(commands)
    _add_telling(commands)
    _add_demo(commands)
    return parser


_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _command(commands: _Commands, name: str, what: str, more: str = "") -> argparse.ArgumentParser:
    description = f"{what[0].upper()}{what[1:]}.{' ' + more if more else ''}"
    made: argparse.ArgumentParser = commands.add_parser(name, help=what, description=description)
    return made


def _add_run(commands: _Commands) -> None:
    run = _command(
        commands,
        "run",
        "run a workflow, here, and print its result",
        "The exit status is 0 if it was completed, 1 if it failed, 124 if it timed out, 130 if it was cancelled; 2 if it "
        "could not be started.",
    )
    run.add_argument("target", metavar="module:Workflow", help=TARGET)
    _add_fields(run, "the start event")
    _add_backend(run)
    run.add_argument("--db", metavar="URL", help="keep the run in a database: sqlite:///runs.db")
    run.add_argument(
        "--run-id", metavar="ID", help="the id of the run; with --db, one that exists is continued"
    )
    run.add_argument(
        "--timeout", type=seconds, metavar="SECONDS", help="cancel the run after this time"
    )
    run.add_argument(
        "--traceback", action="store_true", help="print the whole traceback of what failed"
    )
    _add_showing(run)


def _add_fields(command: argparse.ArgumentParser, event: str) -> None:
    command.add_argument(
        "fields",
        nargs="*",
        default=[],
        metavar="field=value",
        help=f"a field of {event}: a text as it is, or JSON, as the field is annotated",
    )
    command.add_argument(
        "--input", metavar="FILE", help="a JSON object with the fields; - for standard input"
    )


def _add_showing(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--json",
        action="store_true",
        help="print events, and then the run, as JSON, one object per line",
    )
    command.add_argument("--events", action="store_true", help="show each change of each step, too")
    command.add_argument(
        "--plain", action="store_true", help="write lines, also where a terminal could do more"
    )
    command.add_argument("-q", "--quiet", action="store_true", help="show the result only")
    command.add_argument(
        "--answer",
        action="append",
        nargs="+",
        default=[],
        metavar=("[TYPE]", "field=value"),
        help="answer a question of this type, or of any type; 'ask' to read answers from standard input; "
        "repeat it for further questions",
    )


def _add_looking(commands: _Commands) -> None:
    validate = _command(
        commands, "validate", "check workflows without running them, and print every fault"
    )
    validate.add_argument(
        "targets",
        nargs="+",
        metavar="module[:Workflow]",
        help=f"{TARGET}; or a module, for all that it defines",
    )
    draw = _command(commands, "draw", "draw a workflow")
    draw.add_argument("target", metavar="module:Workflow", help=TARGET)
    draw.add_argument(
        "--format",
        choices=["svg", "mermaid", "dot", "text"],
        help="default: as the name of the file says, or else text",
    )
    draw.add_argument("-o", "--output", metavar="FILE", help="where to write it")


def _add_serve(commands: _Commands) -> None:
    serve = _command(
        commands,
        "serve",
        "serve workflows over HTTP, with a page in the browser",
        "It ends with Ctrl-C or SIGTERM. Runs in memory end with it; those in a database continue with the next start.",
    )
    serve.add_argument(
        "targets",
        nargs="+",
        metavar="module[:Workflow]",
        help=f"{TARGET}; or a module, for all that it defines; name=module:Workflow gives it a name",
    )
    serve.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    serve.add_argument(
        "--port", type=_port, default=8000, help="0 for any that is free (default: %(default)s)"
    )
    serve.add_argument("--db", metavar="URL", help="keep the runs in a database: sqlite:///runs.db")
    serve.add_argument(
        "--token",
        help="what clients have to show (default: ANYIO_WORKFLOWS_TOKEN, if that is set)",
    )
    serve.add_argument("--open", action="store_true", help="open the page in the browser")
    serve.add_argument("--no-page", action="store_true", help="serve the API only")
    serve.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of this origin use the server; repeat it for others",
    )
    serve.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name under which the server is asked, behind a proxy for example; repeat it for others",
    )
    serve.add_argument(
        "--insecure", action="store_true", help="serve other machines without a token"
    )
    _add_backend(serve)


_URL = "http://127.0.0.1:8000"


def _add_server(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--url",
        default=os.environ.get("ANYIO_WORKFLOWS_URL") or _URL,
        help=f"the server (default: ANYIO_WORKFLOWS_URL, or {_URL})",
    )
    command.add_argument(
        "--token",
        default=os.environ.get("ANYIO_WORKFLOWS_TOKEN") or None,
        help="what the server asks for (default: ANYIO_WORKFLOWS_TOKEN)",
    )
    _add_backend(command)


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--json", action="store_true", help="print what the server says, one object per line"
    )


def _add_asking(commands: _Commands) -> None:
    """Add the commands that ask a server how things stand."""
    ps = _command(commands, "ps", "list the runs of a server, newest first")
    ps.add_argument("--status", help="only those that stand so: running, waiting, failed, ...")
    ps.add_argument("--workflow", metavar="NAME", help="only those of this workflow")
    ps.add_argument(
        "-n", "--limit", type=_number, default=20, help="how many, at most (default: %(default)s)"
    )
    _add_json(ps)
    _add_server(ps)
    watch = _command(
        commands,
        "watch",
        "follow a run of a server to its end, and print its result",
        "Ctrl-C ends the command, not the run. The exit status is that of 'run'.",
    )
    _add_run_id(watch)
    watch.add_argument(
        "--after", type=_cursor, default=0, metavar="N", help="leave out events up to this number"
    )
    _add_showing(watch)
    _add_server(watch)
    result = _command(
        commands,
        "result",
        "print the result of a run of a server",
        "The exit status is that of 'run', or 75 if the run has not ended.",
    )
    _add_run_id(result)
    result.add_argument(
        "--wait",
        type=seconds,
        nargs="?",
        const=math.inf,
        metavar="SECONDS",
        help="wait for the end of the run, for so long or without limit",
    )
    _add_json(result)
    _add_server(result)


def _add_telling(commands: _Commands) -> None:
    """Add the commands that have a server do something."""
    start = _command(commands, "start", "start a run on a server, and print its id")
    start.add_argument("workflow", metavar="NAME", help="the name of the workflow there")
    _add_fields(start, "the start event")
    start.add_argument("--run-id", metavar="ID", help="the id of the run; made up if not given")
    _add_json(start)
    _add_server(start)
    answer = _command(commands, "answer", "answer a question of a run on a server")
    _add_run_id(answer)
    _add_fields(answer, "the answer")
    answer.add_argument(
        "--question",
        metavar="STEP|ID",
        help="which one, if there are several: its step, or its id",
    )
    _add_server(answer)
    send = _command(commands, "send", "send an event to a run on a server")
    _add_run_id(send)
    send.add_argument("type", metavar="TYPE", help="the name of the class of the event")
    _add_fields(send, "the event")
    send.add_argument("--step", help="the only step to send it to")
    _add_server(send)
    cancel = _command(commands, "cancel", "cancel a run of a server, and wait for its end")
    _add_run_id(cancel)
    _add_json(cancel)
    _add_server(cancel)
    retry = _command(
        commands, "retry", "continue a run of a server that failed, timed out or was cancelled"
    )
    _add_run_id(retry)
    _add_json(retry)
    _add_server(retry)


def _add_run_id(command: argparse.ArgumentParser) -> None:
    command.add_argument("run_id", metavar="ID", help="the id of the run")


def _number(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"not a positive number: {text!r}")


def _cursor(text: str) -> int:
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"not the number of an event: {text!r}")


def _add_demo(commands: _Commands) -> None:
    demo = commands.add_parser(
        "demo",
        help="stream a text through a workflow of three steps",
        description="Stream a text through a workflow of three steps and show how its run ends.",
    )
    _add_backend(demo)
    demo.add_argument(
        "--end", choices=ENDINGS, default="stop", help="how the run ends (default: stop)"
    )
    demo.add_argument(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help="the timeout of the run (default: enough, or too short for --end timeout)",
    )


def _add_backend(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--backend",
        choices=["asyncio", "trio"],
        default="asyncio",
        help="the event loop to run on (default: %(default)s)",
    )


def seconds(text: str) -> float:
    """Read a positive number of seconds."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"not a positive number of seconds: {text!r}")
    return number


def _port(text: str) -> int:
    if text.isdecimal() and int(text) < 65_536:
        return int(text)
    raise argparse.ArgumentTypeError(f"not the number of a port: {text!r}")
