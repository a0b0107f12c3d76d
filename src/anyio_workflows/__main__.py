"""The command line: `python -m anyio_workflows demo`."""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections.abc import Sequence
from typing import Any

from ._demo import ENDINGS, run_demo


def main(argv: Sequence[str] | None = None, backend_options: dict[str, Any] | None = None) -> int:
    """Run the command and return the exit status.

    Args:
        argv: The arguments; `None` for those of the process.
        backend_options: Passed to `anyio.run()`, so that the demo can run on another clock.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    if args.backend == "trio" and importlib.util.find_spec("trio") is None:
        remedy = 'pip install "anyio-workflows[trio]"'
        print(f"the trio backend needs trio, which is not installed: {remedy}", file=sys.stderr)
        return 2
    try:
        return run_demo(args.backend, args.end, args.timeout, backend_options)
    except KeyboardInterrupt:
        print(file=sys.stderr)  # ends the line that the shell shows as ^C
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anyio_workflows",
        description="Event-driven workflows on AnyIO: the same on asyncio and on trio.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="stream a text through a workflow of three steps",
        description="Stream a text through a workflow of three steps and show how its run ends.",
    )
    demo.add_argument(
        "--backend",
        choices=["asyncio", "trio"],
        default="asyncio",
        help="the event loop to run on (default: %(default)s)",
    )
    demo.add_argument(
        "--end", choices=list(ENDINGS), default="stop", help="how the run ends (default: stop)"
    )
    demo.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="the timeout of the run (default: enough, or too short for --end timeout)",
    )
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"not a positive number of seconds: {text!r}")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
