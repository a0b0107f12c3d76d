"""Event-driven workflows on AnyIO: the same on asyncio and on trio."""

# General layout, in the order of the data's path:
#
#   errors      every exception; each takes facts and writes its own sentence
#
#   declare     events -> retry_policy, steps, collect, resource -> _signatures -> graph -> workflow
#               An event is what travels; `@step` marks a function, `Collect` and `Resource` a
#               parameter; `_signatures` reads them into `_specs`, `graph` connects these and finds
#               the faults; `workflow` is the door: it starts a run.
#
#   run         _fanin, _posts -> _ledger -> context -> _crew -> _dispatch -> _engine
#               The ledger decides, synchronously, who is owed what, `_posts` who has a place, and
#               `_fanin` what waits for company. The crew executes the steps, and a step sees its
#               `context`. What steps return or raise is dispatched to the ledger again. The engine
#               is the one task group, from the start of the run to the decision how it ends, which
#               is an `_outcome`.
#
#   observe     _stream -> _narrator -> handler
#               The public stream with its reader, what is told about the run itself, and the
#               caller's grip on it.
#
#   persist     state -> _records -> _continuation -> snapshot -> checkpoint
#               What outlives a run: the state and, as plain records, what the ledger owes. `_json`
#               turns it into data and back. The `_keeper` opens and closes resources meanwhile.
#
#   try it      __main__ -> _demo
#
# `_annotations` turns annotations into types, `_backend` holds what differs between asyncio
# and trio. Underscore: engine room. No underscore: yours to import.

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

__version__ = "0.1.0"
