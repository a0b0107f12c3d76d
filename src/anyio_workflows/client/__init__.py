"""Runs on a server, used from another program: start, follow, answer and cancel them, on asyncio and trio."""

# A connection may break at any byte, and the server may go away and come back. What protects a program from
# that is not in the connection: each event has a number, so a reader comes back with the number of the last
# one that it has yielded; each start has a key, so it can be repeated. Where a repetition would do
# harm, there is none, and the exception says what is not known.
#
# In the order of a call:
#
#   _client     the public `WorkflowClient`: starts runs, finds and lists them
#   _run        the public `RemoteRun`
#   _events     the iterator over the events of a run
#   _http       requests and streams over HTTP, when they are repeated, and the exceptions for refusals
#   _sse        the parser of event streams
#   _records    what the server says, as records
#
# There is no task in the background. The iterator reads its connection in the task that waits for an event, so a
# program that does not read slows the server's sending down, as TCP does; and nothing outlives the client.

from ..errors import RemoteRunError, ServerUnreachableError, WorkflowServerError
from ..runtime import Gap
from ._client import WorkflowClient
from ._events import RemoteEvents
from ._records import (
    RemoteEvent,
    RemoteQuestion,
    RemoteRecord,
    RemoteRunInfo,
    RemoteRunPage,
    RemoteWorkflow,
)
from ._run import RemoteRun

__all__ = [
    "Gap",
    "RemoteEvent",
    "RemoteEvents",
    "RemoteQuestion",
    "RemoteRecord",
    "RemoteRun",
    "RemoteRunError",
    "RemoteRunInfo",
    "RemoteRunPage",
    "RemoteWorkflow",
    "ServerUnreachableError",
    "WorkflowClient",
    "WorkflowServerError",
]
