"""The arguments of the commands."""

from __future__ import annotations

import argparse
import math
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
    run.add_argument(
        "fields",
        nargs="*",
        default=[],
        metavar="field=value",
        help="a field of the start event: a text as it is, or JSON, as the field is annotated",
    )
    run.add_argument(
        "--input", metavar="FILE", help="a JSON object with the fields; - for standard input"
    )
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
    run.add_argument(
        "--answer",
        action="append",
        nargs="+",
        default=[],
        metavar=("[TYPE]", "field=value"),
        help="answer a question of this type, or of any type; 'ask' to read answers from standard input; "
        "repeat it for further questions",
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
