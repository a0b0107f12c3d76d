"""Which view shows a run, and who answers its questions: as the arguments and the terminal say."""

from __future__ import annotations

import importlib.util
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .answers import Both, GivenAnswers, Person
from .follow import JsonView
from .keys import in_foreground
from .plain import PlainView
from .texts import Data, result_text

AnyView = Any


@contextmanager
def view_for(args: Namespace) -> Iterator[AnyView]:
    """Show a run in the way that was asked for, or that the terminal can."""
    if args.json:
        yield JsonView(args.events)
    elif _can_draw(args):
        from .live import live_view

        with live_view(args.events) as view:
            yield view
    else:
        yield PlainView(args.events, args.quiet)


def _can_draw(args: Namespace) -> bool:
    return (
        not (args.plain or args.quiet)
        and sys.stderr.isatty()
        and os.environ.get("TERM", "dumb") != "dumb"
        and importlib.util.find_spec("rich") is not None
    )


def answerer_for(args: Namespace, view: AnyView) -> Any:
    """Return who answers questions: arguments, a person at the terminal, both, or nobody."""
    given = [words for words in args.answer if words != ["ask"]]
    asks = len(given) < len(args.answer) or (
        sys.stderr.isatty() and not args.json and not args.quiet and is_terminal_input()
    )
    answers = GivenAnswers.of(given) if given else None
    person = Person(view) if asks and hasattr(view, "read_line") else None
    if answers is not None and person is not None:
        return Both(answers, person)
    return answers or person


def is_terminal_input() -> bool:
    """Return whether a person can be asked."""
    try:
        return in_foreground(sys.stdin.fileno())
    except (OSError, ValueError):  # no standard input
        return False


def print_result(run: Data) -> None:
    """Print the result of a run to standard output."""
    if run["status"] == "completed" and (text := result_text(run["result"])) is not None:
        print(text, flush=True)
