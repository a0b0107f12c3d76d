"""The same jobs as an expert writes them with AnyIO alone.

Each function is a complete program for its job, with what a run of a workflow has too: a task
group, a deadline, events that are frozen attrs classes, and nothing left behind at the end. Work
travels through memory object streams without a limit, so `send_nowait` does and nobody waits to
send; streams are closed by `with`. There are no step functions: the workers contain the steps'
code, and what a job does not need is not there (no public stream where nobody reads one).

They come in two kinds:

- Here: what experts write, and what the targets are measured against. Workers and readers say
  `async for`; it is clear, fair to other tasks with no thought given, and costs a checkpoint for
  every item.
- `tuned`: for whoever counts microseconds, where there is something to gain: `receive_nowait` for
  what is there already, and a checkpoint now and then. Without the checkpoint they would be faster
  still, and starve every other task. Where a worker is parked when its item comes, or a task group
  is the cost, there is nothing to gain, and no such program.
"""

from .fans import fan_out, nested_fan_out, shared_fan_out, sleepy_fan_out
from .loops import loop, ping_pong, queue
from .questions import questions
from .runs import WaitingRuns, concurrent_runs, trivial
from .streams import live_stream, stream

__all__ = [
    "WaitingRuns",
    "concurrent_runs",
    "fan_out",
    "live_stream",
    "loop",
    "nested_fan_out",
    "ping_pong",
    "questions",
    "queue",
    "shared_fan_out",
    "sleepy_fan_out",
    "stream",
    "trivial",
]
