"""`validate` and `draw`: a workflow is looked at, not run."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, get_args

from .._drawing.files import FORMAT_OF_SUFFIX
from ..drawing import DrawingFormat
from ..drawing import draw as picture_of
from ..errors import WorkflowConfigurationError, WorkflowValidationError
from ..workflow import Workflow
from .problems import COMPLETED, FAILED, CommandError
from .targets import Target, load, load_one


def validate(args: Namespace) -> int:
    """Check each of the workflows, and print all faults."""
    status = COMPLETED
    for text in args.targets:
        try:
            targets = load(text)
        except CommandError as error:
            print(error, file=sys.stderr)
            status = max(status, error.status)
            continue
        for target in targets:
            try:
                _checkable(target).validate()
            except (WorkflowValidationError, WorkflowConfigurationError) as error:
                print(f"{target.name}: {error}", file=sys.stderr)
                status = max(status, FAILED)
            else:
                print(f"{target.name}: valid")
    return status


def _checkable(target: Target) -> Workflow[Any]:
    """Return an instance to be checked: the graph is that of the class, whatever arguments it needs."""
    if isinstance(target.thing, Workflow):
        return target.thing
    try:
        return target.thing()
    except TypeError:
        return target.thing.__new__(target.thing)


def draw(args: Namespace) -> int:
    """Draw a workflow, to a file or to standard output."""
    target = load_one(args.target)
    file = None if args.output is None else Path(args.output)
    suffix = "" if file is None else file.suffix.lower()
    chosen: DrawingFormat = args.format or FORMAT_OF_SUFFIX.get(suffix, "text")
    if file is not None and args.format is None and suffix not in FORMAT_OF_SUFFIX:
        raise CommandError(
            f"the suffix of {file} tells no format ({', '.join(FORMAT_OF_SUFFIX)}); give --format "
            f"{'|'.join(get_args(DrawingFormat))}"
        )
    picture = picture_of(target.thing, chosen)
    picture = picture if picture.endswith("\n") else f"{picture}\n"
    if file is None:
        sys.stdout.write(picture)
        return COMPLETED
    try:
        file.write_text(picture, "utf-8")
    except OSError as error:
        raise CommandError(f"{file} cannot be written: {error.strerror}", FAILED) from error
    return COMPLETED
