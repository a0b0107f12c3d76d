"""Event-driven workflows on AnyIO: the same on asyncio and on trio."""

# General layout, in the order of the data's path (who may import what is in tests/test_layering.py):
#
#   ground      errors, _messages, _arguments, _absent, _annotations, _pydantic, _backend
#               Every exception; how values and hints are written in messages; checks of arguments; names of
#               another library that are not here; annotations resolved, and checked at run time; pydantic models, where
#               a program has them; the few lines that differ between asyncio and trio.
#
#   declare     events (_foreign), collect, resource, steps (decorators), retry_policy -> _signatures
#               -> graph -> _validation
#               Events carry the data; `@step` marks a function; `Collect`, `Opener`, `Resource` a parameter.
#               `_signatures` reads functions into step specs, `_dependencies` their resources; `graph`
#               knows which step takes which event, `_validation` what is wrong with that, and
#               `_code_names` what the code of the steps names.
#
#   decide      _ledger/
#               What is pending, which execution has a slot, which step gets an event: synchronous,
#               without clock and AnyIO.
#
#   act         context (_suspension) -> _engine/ -> handler -> workflow
#               Worker tasks call the steps, which see their `context`, and settle what they did. The
#               `handler` is the caller's side of a run, and `workflow` starts one.
#
#   keep        state, _json/ -> _snapshot -> checkpoint (_snapshot_file), runtime/
#               The state that steps share; pending work as JSON and back; snapshots in a file; and runs
#               with a name and many readers, in memory or in a database.
#
#   speak       _json/ -> wire -> _pydantic_fields
#               Events as data for other programs, and as fields of pydantic models.
#
#   observe     instrument (otel); _drawing/ -> drawing
#               What is told about a run while it happens, to whatever listens, OpenTelemetry for instance;
#               the graph of a workflow, or one run on it, as a picture.
#
#   serve       _documents -> server/, client/
#               What is said about runs, as data; runs over HTTP, with a page in the browser; and those runs from
#               other programs.
#
#   command     __main__ -> _cli/
#               The command line: workflows run, checked, drawn and served, and runs followed, from a terminal.
#
#   try it      testing/, _demo
#               A toolkit for tests of termination, and a demo. They use public modules only.
#
# A folder's `__init__` tells its theory. A name that begins with an underscore is private; every other
# name is for users, and the `__all__` of a public module is its API.

from typing import TYPE_CHECKING

from . import _pydantic_fields  # noqa: F401  # pydantic may ask any event class
from ._absent import absent_names
from .context import Context
from .events import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
)
from .handler import WorkflowHandler
from .steps import catch_error, step
from .workflow import Workflow

__all__ = [
    "Context",
    "Event",
    "HumanResponseEvent",
    "InputRequiredEvent",
    "Runtime",
    "StartEvent",
    "StepFailedEvent",
    "StopEvent",
    "Workflow",
    "WorkflowCancelledEvent",
    "WorkflowFailedEvent",
    "WorkflowHandler",
    "WorkflowTimedOutEvent",
    "catch_error",
    "step",
]

if TYPE_CHECKING:
    from .runtime import Runtime
else:  # imported when it is first asked for: most programs keep no runs
    __getattr__ = absent_names(__name__, {"Runtime": "anyio_workflows.runtime"})

__version__ = "0.1.0"
