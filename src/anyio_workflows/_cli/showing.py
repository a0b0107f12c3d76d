"""Which view shows a run, and who answers its questions: as the arguments and the terminal say."""

from __future__ import annotations

import importlib.util
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .answers import Both, GivenAnswers, Person
from .follow import Answerer, JsonView
from .keys import in_foreground
from .plain import PlainView
from .problems import CommandError
from .texts import Data, result_text

if TYPE_CHECKING:
    from .live import LiveView

ASK = ["ask"]
"""Instead of an answer: answers are read from standard input."""


@contextmanager
def view_for(args: Namespace) -> Iterator[JsonView | PlainView | LiveView]:
    """Show a run in the way that was asked for, or that the terminal can.

    Raises:
        CommandError: If answers are to be read where only JSON is written.
    """
    if args.json and ASK in args.answer:
        raise CommandError("--answer ask needs a person to be asked, which --json leaves out")
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


def answerer_for(args: Namespace, view: JsonView | PlainView | LiveView) -> Answerer | None:
    """Return who answers questions: arguments, a person at the terminal, both, or nobody."""
    given = [words for words in args.answer if words != ASK]
    answers = GivenAnswers.of(given) if given else None
    if isinstance(view, JsonView):
        return answers
    is_there = sys.stderr.isatty() and not args.quiet and is_terminal_input()
    if not is_there and ASK not in args.answer:
        return answers
    person = Person(view)
    return person if answers is None else Both(answers, person)


def is_terminal_input() -> bool:
    """Return whether a person can be asked."""
    try:
        return in_foreground(sys.stdin.fileno())
    except (OSError, ValueError, AttributeError):  # no standard input, or none that is a file
        return False


def print_result(run: Data) -> None:
    """Print the result of a run to standard output."""
    if run["status"] == "completed" and (text := result_text(run["result"])) is not None:
        print(text, flush=True)
