"""The same jobs as an expert writes them with AnyIO alone.

Each function is a complete program for its job, with what a run of a workflow has too: a task
group, a deadline, events that are frozen attrs classes, and nothing left behind at the end. Work
goes through unbounded memory object streams, so `send_nowait` is enough and no sender waits;
streams are closed by `with`. There are no step functions: the workers contain the steps' code.
Anything that a job does not need is left out (no public stream if nobody reads one).

There are two kinds:

- Here: what experts write, and what the targets refer to. Workers and readers use `async for`, which
  is clear, fair to other tasks without further thought, and costs a checkpoint for every item.
- `tuned`: optimised to the last microsecond, for the jobs where that gains anything: `receive_nowait`
  for what is available, and a checkpoint now and then. Without the checkpoint they would be faster
  still, and starve every other task. If a worker is parked when its item comes, or the cost is that
  of a task group, there is nothing to gain, and no such program.
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
