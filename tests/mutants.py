"""Is the net itself tight? Break the engine on purpose, and see that the suite notices.

    python -m tests.mutants            # all of them, or those named; `nox -s mutants` does this

Each mutant is a small change of one function, made in a copy of `src`. The fast part of the suite
runs against that copy. A mutant that no test notices points at a test that is missing.

A mutant finds its place by the name of the function and the syntax of what it changes there. So it
survives another layout of the code, comments, and a move to another module, but not a change of
meaning: then it is stale, and has to be written anew.
"""

from __future__ import annotations

import ast
import faulthandler
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import hypothesis
import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = Path("anyio_workflows")

SUITE = [
    "test_testing_finds.py::test_v2_the_engine_as_it_is_passes",
    "test_cancel_everywhere.py",
    "test_stream.py",
    "test_drain.py",
    "test_outcome.py",
    "test_cleanup.py",
    "test_base_exceptions.py",
    "test_routing.py",
    "test_deadline.py",
    "test_slow_steps.py",
    "test_waiting.py",
    "test_parallel_waits.py",
    "test_stalls.py",
    "test_limits.py",
    "test_retries.py",
    "test_retry_delays.py",
    "test_attempts.py",
    "test_catch_error.py",
    "test_recoveries.py",
    "test_catch_error_graph.py",
    "test_collect.py",
    "test_children.py",
    "test_threads.py",
    "test_bare_runners.py",
    "test_fanin.py",
    "test_take.py",
    "test_event_sets.py",
    "test_random_batches.py",
    "test_opener.py",
    "test_snapshots.py",
    "test_snapshot_waits.py",
    "test_snapshot_fanin.py",
    "test_questions.py",
    "test_open_waits.py",
    "test_retry_failed.py",
    "test_run_resources.py",
    "test_resource_scope.py",
    "test_workflow_block.py",
    "test_workflow_block_end.py",
    "test_resource_lifetimes.py",
    "test_run_state.py",
    "test_state_edits.py",
    "test_handler.py",
    "test_handler_as_future.py",
    "test_displays.py",
    "test_ownership.py",
    "test_ledger.py",
    "test_ledger_fanin.py",
    "test_ledger_waits.py",
    "test_ledger_machine.py",
    "test_resource_manager.py",
    "test_resource_manager_end.py",
    "test_instruments.py",
    "test_instruments_listen.py",
    "test_reporting.py",
    "test_snapshot_file.py",
    "test_checkpoint.py",
    "test_runtime_memory.py",
    "test_runtime_list.py",
    "test_runtime_memory_block.py",
    "test_runtime_readers.py",
    "test_runtime_restored.py",
    "test_runtime_times.py",
    "test_runtime_rows.py",
    "test_kill_everywhere.py",
]
"""What a mutant has to get past, fast ones first."""

SLOW = ["test_snapshots.py::test_p3_a_run_goes_on_from_any_moment"]
"""What is left out of that: it searches for long, and others look at the same."""

SECONDS = 600
"""A suite that takes longer than this hangs, which counts as noticing."""

SECONDS_PER_TEST = 30
"""So does a single test that takes longer than this; none takes more than a few."""


class StaleMutantError(Exception):
    """The code that a mutant changes is not there, or not once."""


@attrs.frozen
class Mutant:
    """A change that breaks the engine.

    Attributes:
        name: What is broken.
        place: The function or class where that is done, with as many of the names around it as tell
            it from others: `method`, `Class.method` or `module.Class.method`.
        old: An expression, or consecutive statements, to be found there once.
        new: The code instead, which may be none.
        why: The rules that it breaks, and what goes wrong then.
    """

    name: str
    place: str
    old: str
    new: str
    why: str

    def apply(self, src: Path) -> Path:
        """Change a copy of the sources; returns the path of the file that is another one now.

        Raises:
            StaleMutantError: If the code is not there once.
        """
        old, new = _parse(self.old, self.new)
        places, spots = [], []
        for path in sorted((src / PACKAGE).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if re.search(rf"\b(def|class) {self.place.rpartition('.')[2]}\b", text):
                tree = ast.parse(text)
                module = ".".join(path.relative_to(src).with_suffix("").parts)
                for name, definition in _definitions(tree, module):
                    if name.endswith(f".{self.place}"):
                        places.append(name)
                        spots += [(path, tree, spot) for spot in _spots(definition, old)]
        if len(spots) != 1:
            found = f"its code occurs {len(spots)} times in {', '.join(places)}, not once"
            if not places:
                found = f"there is no function or class {self.place}"
            raise StaleMutantError(
                f"mutant {self.name!r}: {found}; write it anew so that it still means: {self.why}\n"
                f"{self.old}"
            )
        [(path, tree, spot)] = spots
        spot.fill(new)
        path.write_text(ast.unparse(tree), encoding="utf-8")
        return path


@attrs.frozen
class Spot:
    """Where consecutive nodes stand: in a field of their parent, which is a list or one node."""

    parent: ast.AST
    field: str
    begin: int
    end: int

    def fill(self, nodes: Sequence[ast.AST]) -> None:
        """Put others there instead."""
        content = getattr(self.parent, self.field)
        if isinstance(content, list):
            content[self.begin : self.end] = nodes
            if not content:
                content.append(ast.Pass())
        else:
            setattr(self.parent, self.field, *nodes)


def _parse(old: str, new: str) -> tuple[Sequence[ast.AST], Sequence[ast.AST]]:
    """Parse both as expressions if they are, else as statements."""
    before, after = (ast.parse(textwrap.dedent(code)).body for code in (old, new))
    match before, after:
        case [ast.Expr(old_value)], [ast.Expr(new_value)]:
            return [old_value], [new_value]
    return before, after


def _definitions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
    """Yield each function and class with its dotted name."""
    for node in ast.iter_child_nodes(tree):
        name = prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name += f".{node.name}"
            yield name, node
        yield from _definitions(node, name)


def _spots(tree: ast.AST, code: Sequence[ast.AST]) -> Iterator[Spot]:
    """Yield each spot in a tree where this code stands."""
    wanted = [ast.dump(node) for node in code]
    for parent in ast.walk(tree):
        for field, content in ast.iter_fields(parent):
            nodes = content if isinstance(content, list) else [content]
            found = [isinstance(node, ast.AST) and ast.dump(node) for node in nodes]
            for begin in range(len(found) - len(wanted) + 1):
                if found[begin : (end := begin + len(wanted))] == wanted:
                    yield Spot(parent, field, begin, end)


MUTANTS = [
    Mutant(
        "drop the wake-up of the reader",
        "EventStream.write",
        "if self._wakeup is not None: self._wakeup.set()",
        "",
        "S1: a reader that waits never learns of an event",
    ),
    Mutant(
        "lose an event on a cancelled read",
        "EventIterator.__anext__",
        """
            while (event := self._stream.take()) is None:
                await self._stream.wait()
        """,
        """
            while (event := self._stream.take()) is None:
                await self._stream.wait()
            await checkpoint()
        """,
        "S3: the event is taken, then the read is cancelled",
    ),
    Mutant(
        "let two readers wait",
        "EventStream.take",
        "self._refuse_second_reader()",
        "pass",
        "S3: the second reader takes the wake-up of the first",
    ),
    Mutant(
        "let two readers wait that begin at once",
        "EventStream.wait",
        "self._refuse_second_reader()",
        "pass",
        "S3: one of them is never woken",
    ),
    Mutant(
        "close the stream early",
        "Decision.decide",
        "self._settle(self._earlier_cause() or outcome)",
        """
            self._settle(self._earlier_cause() or outcome)
            self.run.stream.close(self.outcome.event)
        """,
        "T6, T7: what steps write while they clean up is lost",
    ),
    Mutant(
        "publish before the tasks have ended",
        "Run._host",
        """
            await self._wait_until_quiet(group)
            if resources is not None:
                await self._close_resources(resources)
            self.close()
        """,
        """
            pool, self._pool.size = self._pool, self._pool.size + 1
            self.close()
            pool.size -= 1
            await self._wait_until_quiet(group)
            if resources is not None:
                await self._close_resources(resources)
        """,
        "T6: steps go on after the terminal event",
    ),
    Mutant(
        "publish before the resources are closed",
        "Run._host",
        "await self._close_resources(resources)",
        """
            self.close()
            await self._close_resources(resources)
        """,
        "T6, P5: a resource is still open when the terminal event is readable",
    ),
    Mutant(
        "do not cancel the steps",
        "Run._wait_until_quiet",
        "group.cancel_scope.cancel()",
        "",
        "T6: the run waits for its steps instead of cancelling them",
    ),
    Mutant(
        "be patient without a limit",
        "Run._wait_until_quiet",
        "anyio.move_on_after(self._settings.cleanup_timeout, shield=True)",
        "anyio.move_on_after(None, shield=True)",
        "T6: a step that shields itself keeps the run from ending",
    ),
    Mutant(
        "let the last cause win",
        "Decision.decide",
        "self.outcome is None",
        "not self.ended",
        "T4: a second stop event replaces the first",
    ),
    Mutant(
        "forget that the deadline may have passed unnoticed",
        "Decision._earlier_cause",
        "(now := loop.current_time()) >= self.deadline",
        "False",
        "T4: a step that hogs the processor past the deadline still succeeds",
    ),
    Mutant(
        "forget the deadline",
        "Decision.start_clock",
        "group.cancel_scope.deadline = self.deadline",
        "",
        "T2: a run does not time out",
    ),
    Mutant(
        "wake nobody at the end",
        "Run.close",
        "if self._done is not None: self._done.set()",
        "",
        "T1: `await handler` never returns",
    ),
    Mutant(
        "do not wake the host",
        "Decision._settle",
        "self.wake_host()",
        "",
        "T1: the run is decided, and waits for ever",
    ),
    Mutant(
        "start no worker for what a callback of the loop has sent",
        "Run._host",
        "if self.outcome is None: self._pool.ensure_workers()",
        "",
        "R3: an event that is sent where there is no current task waits for ever",
    ),
    Mutant(
        "accept writes after the end",
        "Run.write",
        'raise self._refusal(f"{type(event).__name__} cannot be written to the stream")',
        "return",
        "T7: a late write vanishes without a word",
    ),
    Mutant(
        "keep sending while the run is ending",
        "Run.send",
        "not self.is_running",
        "False",
        "T7: an event that is sent during cleanup is routed",
    ),
    Mutant(
        "take no notice of idleness",
        "Dispatch._finish",
        "if self._ledger.queues.first_granted is None: self.check_idle()",
        "",
        "T9: a run that can never end waits for its deadline",
    ),
    Mutant(
        "do not wait for child runs",
        "Run._wait_until_quiet",
        "await next(iter(self._children)).wait_until_ended()",
        "break",
        "O5: a child outlives its parent",
    ),
    Mutant(
        "swallow a stray cancellation",
        "WorkerPool._settle_exception",
        "dispatch.settle_error(work, stray_cancellation(work, exc), now)",
        'dispatch._finish(work, "returned")',
        "T8: a step that leaks a cancellation ends without a word",
    ),
    Mutant(
        "raise a failure in a group",
        "WorkerPool._settle_exception",
        "name_stop_iteration(exc)",
        'BaseExceptionGroup("unhandled", [exc])',
        "T5: `await handler` raises another object than the step did",
    ),
    Mutant(
        "start no worker when another one ends",
        "WorkerPool._run_task",
        "self.spawn_worker()",
        "",
        "O7, T8: work is left behind by a worker that had to end",
    ),
    Mutant(
        "start one worker only",
        "WorkerPool._execute_steps",
        "self.spawn_worker()",
        "pass",
        "R2: executions come one after the other",
    ),
    Mutant(
        "count a worker that never began",
        "WorkerPool.wait_until_gone",
        "self.size -= 1",
        "",
        "T6, O2: the run waits for a worker that does not exist",
    ),
    Mutant(
        "go on after the deadline",
        "WorkerPool._execute_steps",
        "now >= decision.deadline",
        "False",
        "T4: a step begins after the deadline has passed",
    ),
    Mutant(
        "let context variables leak",
        "WorkerPool._execute_steps",
        "var.get(_UNSET) is not value",
        "False",
        "O7: a step sees what another one has set",
    ),
    Mutant(
        "grant a place too many",
        "StepQueues._grant",
        "queue.granted + queue.running >= queue.limit",
        "queue.granted + queue.running > queue.limit",
        "R2: one execution more than `num_workers`",
    ),
    Mutant(
        "give no worker back",
        "StepQueues.release_slot",
        "queue.running -= 1",
        "",
        "R2: places are used up",
    ),
    Mutant(
        "keep the place while waiting",
        "StepQueues.suspend",
        "work.queue.running -= 1",
        "",
        "R2: a step that waits for an event holds its worker",
    ),
    Mutant(
        "go on without a place",
        "Waits.end",
        "self._queues.request_slot(work)",
        "self._queues.resume(work)",
        "R2: an answered execution goes on over the limit",
    ),
    Mutant(
        "keep waits open that nobody will come back to",
        "Ledger.finish",
        "self.waits.forget(work)",
        "",
        "W2, W3: an event is taken for the answer of an execution that has ended",
    ),
    Mutant(
        "close the waits of an attempt that failed",
        "Ledger.delay",
        "self.waits.keep_open(work)",
        "",
        "W3: an answer that comes during a retry delay is lost",
    ),
    Mutant(
        "do not give answers again",
        "History.start_over",
        "[wait for wait in waits if not wait.timed_out]",
        "[]",
        "W3: a retry asks again what has been answered",
    ),
    Mutant(
        "keep the place during a retry delay",
        "StepQueues.delay",
        "self.release_slot(work.queue)",
        "",
        "R2: a step in a retry delay holds its worker",
    ),
    Mutant(
        "forget a retry delay",
        "WorkerPool._settle_exception",
        "self.watch_delays()",
        "pass",
        "X1: the next attempt never comes",
    ),
    Mutant(
        "oversleep a retry that is due earlier",
        "WorkerPool.watch_delays",
        "self._delays_changed.set()",
        "pass",
        "X1: a delay that begins later waits for the end of the ones before",
    ),
    Mutant(
        "retry after the end",
        "Dispatch.settle_error",
        "self.run.is_running",
        "True",
        "X2: a policy is asked about what happens while the run is ending",
    ),
    Mutant(
        "never spend a recovery",
        "Dispatch._recover_or_fail",
        "work.recoveries.get(error_handler.name, 0) + 1",
        "work.recoveries.get(error_handler.name, 0)",
        "X4: a step that fails each time is recovered for ever",
    ),
    Mutant(
        "forget running steps in a snapshot",
        "take",
        "not work.dropped",
        "not work.dropped and work.started is None",
        "P3: a run that goes on from a snapshot does not repeat what was going on",
    ),
    Mutant(
        "take a question that was written for one that was read",
        "_restore_wait",
        "record.asked and record.question_number <= events_read",
        "record.asked",
        "W4: a run that was killed in between waits for an answer, and nobody is asked",
    ),
    Mutant(
        "keep returned questions out of snapshots",
        "Dispatch._ask",
        "self._ledger.ask(question, self.run.ask(question), self.run.events_read)",
        "self.run.ask(question)",
        "W4: the same, when a step returned the question",
    ),
    Mutant(
        "count what is read after the end as unread",
        "SavedState._up_to_date",
        "attrs.evolve(record, events_read=self.run.events_read)",
        "record",
        "W4: a reader who takes his time is asked again",
    ),
    Mutant(
        "forget the answers of this attempt in a snapshot",
        "_take_work",
        "past.waits + past.earlier_waits",
        "past.earlier_waits",
        "W4: a run that goes on from a snapshot asks again what has been answered",
    ),
    Mutant(
        "drop the pending work after a timeout",
        "SavedState.keep",
        "self.pending = record",
        "pass",
        "P3: a run that timed out or was cancelled cannot go on",
    ),
    Mutant(
        "answer all waits of that type",
        "Ledger.answer",
        "self.waits.give(wait, event)",
        "self.waits.answer(event, None)",
        "W5: an answer for one person's question goes to the others too",
    ),
    Mutant(
        "repeat a failed execution with the attempts it had",
        "WorkRecord.begun_anew",
        "1",
        "self.attempt",
        "X7: what was tried for the last time is not tried again",
    ),
    Mutant(
        "repeat what timed out as timed out",
        "WorkRecord.begun_anew",
        "[wait for wait in self.waits if not wait.timed_out]",
        "self.waits",
        "X7: a step that failed because nobody answered fails again at once",
    ),
    Mutant(
        "repeat a failure twice",
        "SavedState.retry_failed",
        "self.pending, self.failed = self.failed, None",
        "self.pending = self.failed",
        "X7: `retry_failed()` drops nothing, and says twice that it will repeat",
    ),
    Mutant(
        "forget in a snapshot what arrived at a join",
        "_take_batch",
        "list(events)",
        "[]",
        "P3: a join gets those events only that came after the snapshot",
    ),
    Mutant(
        "forget in a snapshot that a join has fired",
        "_take_batch",
        "None if events is None else list(events)",
        "list(events or ())",
        "F4: a join that has fired fires again after a restore",
    ),
    Mutant(
        "keep for each batch what opened it",
        "Ledger.open_batch",
        "any(join.opener_param is not None for join in joins)",
        "joins",
        "F8: events that no join asks for stay in memory as long as their batch",
    ),
    Mutant(
        "give a join the opener of the batch around its own",
        "Ledger._start_join",
        "batch.opener",
        "(batch if batch.outer is None else batch.outer.batch).opener",
        "F8: an inner join takes its pages for those of another document",
    ),
    Mutant(
        "forget in a snapshot what opened a batch",
        "_restore_batch",
        "record.opener",
        "None",
        "F8: a join that fires after a restore gets None",
    ),
    Mutant(
        "forget in a snapshot the opener that a join was given",
        "_restore_work",
        "record.opener",
        "None",
        "F8: a join that was queued, running or waiting at a snapshot gets None",
    ),
    Mutant(
        "fire a join early",
        "Batch.ended",
        "self.branches or self.opening",
        "self.branches",
        "F1, F2: a batch ends while its elements are still being added",
    ),
    Mutant(
        "give a collected list the recoveries of its first event",
        "Ledger.collect",
        "_merged(found)",
        "found[0].recoveries",
        "X4: a loop through a collected list recovers for ever",
    ),
    Mutant(
        "leave the wait of an earlier attempt open",
        "Waits.begin",
        "self.open.discard(earlier)",
        "",
        "W3: a second answer goes to an attempt that is over",
    ),
    Mutant(
        "go on beside a task that waits anew",
        "Waits.begin",
        "self._queues.withdraw_request(work)",
        "",
        "R2: an execution takes its place back while a task of it waits",
    ),
    Mutant(
        "forget who wants to go on",
        "StepQueues.busy",
        "len(q.resuming or ())",
        "0",
        "R3: `UnhandledEvent.idle` is true although an answered step only waits for its worker",
    ),
    Mutant(
        "tell nothing of what goes on at the end",
        "Instruments.end_executions",
        "self._ledger.pending.values()",
        "()",
        "I3: what is queued at the end is counted for ever",
    ),
    Mutant(
        "tell nothing of what is withdrawn",
        "StepQueues.withdraw",
        "self.on_change(work, OVER)",
        "pass",
        "I3: what is dropped with its batch is counted for ever",
    ),
    Mutant(
        "tell the end of an execution twice",
        "Instruments.execution_ended",
        "self._executions.pop(work.id, None)",
        "self._executions.get(work.id)",
        "I1: a step that was given up is told to end with its run, and again when it ends",
    ),
    Mutant(
        "tell no end of what was cancelled",
        "Dispatch.settle_cancellation",
        'self.instruments.execution_ended(work, "cancelled", None, now)',
        "pass",
        "I1: an attempt that is cancelled with its batch never ends for instruments",
    ),
    Mutant(
        "tell no terminal event",
        "Instruments.end_run",
        "self.event_written(outcome.event)",
        "pass",
        "I1: a log of the public stream lacks its last event",
    ),
    Mutant(
        "tell the end of a failure after its handler is queued",
        "Dispatch._recover_or_fail",
        """
        if self.instruments.active:
            self.instruments.execution_ended(work, "recovered", error, now)
        self.emit(failure, target=error_handler, branch=work.branch, recoveries=recoveries)
        """,
        """
        self.emit(failure, target=error_handler, branch=work.branch, recoveries=recoveries)
        if self.instruments.active:
            self.instruments.execution_ended(work, "recovered", error, now)
        """,
        "I1: the effect is told before its cause",
    ),
    Mutant(
        "tell the end of a left-behind wait after its execution",
        "Instruments.execution_ended",
        "for wait in work.waits:\n    self._end_wait(wait, now)",
        "pass",
        "I1: a wait that has started never ends",
    ),
    Mutant(
        "let what was dropped in the queue be a source",
        "Instruments._state_changed",
        "self._ledger.source = source",
        "pass",
        "I1: a join is said to come from a step that never began",
    ),
    Mutant(
        "let instruments act while they are told",
        "Run.check_not_telling",
        "self._instruments.telling",
        "False",
        "I2: an answer that is sent while another one is told is lost",
    ),
    Mutant(
        "go on telling what has raised",
        "Instruments._take_off",
        "self._find_hooks()",
        "pass",
        "I2: a broken instrument is logged with every event",
    ),
    Mutant(
        "forget where the events of a join came from",
        "Ledger._start_join",
        "batch.sources.pop(queue.spec, ())",
        "()",
        "I1: a trace has no links from a join to its branches",
    ),
    Mutant(
        "tell nothing of what was going on before",
        "Instruments.join",
        "self._ledger.pending.values()",
        "()",
        "I3: who listens to a restored run counts below zero",
    ),
    Mutant(
        "take an execution for busy that waits while it ends",
        "Ledger.is_quiet",
        "besides is None or besides.suspended",
        "besides is None",
        "R3: `UnhandledEvent.idle` is false in a run that does nothing",
    ),
    Mutant(
        "raise the traceback that grew",
        "Outcome.raise_failure",
        "self.error.with_traceback(self.traceback)",
        "self.error",
        "T5: each `await handler` makes the traceback longer",
    ),
    Mutant(
        "count a failure that is shown as retrieved",
        "WorkflowHandler._facts",
        "run.outcome.event if run.ended and run.outcome is not None else None",
        "self.get_stop_event()",
        "O6: a failure that a notebook shows in a picture is never logged",
    ),
    Mutant(
        "leave the block without waiting",
        "WorkflowHandler.__aexit__",
        """
            with anyio.CancelScope(shield=True):
                await run.wait_until_ended()
        """,
        "pass",
        "O3: the block is left while its run cleans up",
    ),
    Mutant(
        "let a writer wait that has caught up",
        "EventStream.take",
        "if unread <= self._drain_limit: self._end_drains()",
        "",
        "S6: a step in `ctx.drain()` waits although everything has been read",
    ),
    Mutant(
        "let a writer wait for a reader that is gone",
        "EventStream.end_reading",
        "self._loop.call_soon(self._end_drains)",
        "pass",
        "S6: `ctx.drain()` waits for a reader that was left or dropped",
    ),
    Mutant(
        "close the resource first that was opened first",
        "ResourceManager._keep",
        "self._open.pop()",
        "self._open.pop(0)",
        "P5: a resource is closed before the one that uses it",
    ),
    Mutant(
        "remember that a resource could not be built",
        "ResourceManager._fail",
        "del self._entries[entry.dependency]",
        "",
        "P5: who asks again gets the error of the build before",
    ),
    Mutant(
        "build an uncached resource each time it is asked for",
        "ResourceScope._value_of",
        "dependency not in self._values",
        "True",
        "P5: a step and a resource that it uses get two of it in one attempt",
    ),
    Mutant(
        "make a shared resource in each run that asks",
        "SharedValues.get",
        "build is None or build.over.is_set()",
        "True",
        "P5: runs that ask for a resource of the workflow at once all load it",
    ),
    Mutant(
        "cancel the runs that wait for a build with the one that builds",
        "SharedValues._make",
        "Exception",
        "BaseException",
        "P5: a run that is cancelled takes others with it",
    ),
    Mutant(
        "wait for a build that was given up",
        "SharedValues.give_up",
        "build.over.set()",
        "pass",
        "P5: the other runs wait for a factory that cannot be stopped",
    ),
    Mutant(
        "build in a run what the block has to close",
        "ResourceManager._is_elsewhere",
        "self._above is not None",
        "False",
        "P5: a run closes a resource that other runs still use",
    ),
    Mutant(
        "own no run that is started in the block",
        "Run.start",
        "self._block.runs[self] = None",
        "pass",
        "P5, O3: resources are closed while runs use them",
    ),
    Mutant(
        "leave the block of a workflow without waiting for its runs",
        "WorkflowBlock.leave",
        "self.runs and not raised",
        "False",
        "O3: runs are cancelled although nothing went wrong",
    ),
    Mutant(
        "close what runs that are cleaning up still use",
        "WorkflowBlock._host",
        """
            while self.runs:
                with anyio.CancelScope(shield=True), suppress(anyio.get_cancelled_exc_class()):
                    await next(iter(self.runs)).wait_until_ended()
        """,
        "",
        "P5: a step that cleans up uses a resource that is closed",
    ),
    Mutant(
        "be interrupted while a block closes its resources",
        "WorkflowBlock._wait_until_over",
        "interruption = exc",
        "raise",
        "P5: a second native cancellation leaves the block before its resources are closed",
    ),
    Mutant(
        "keep the lock of a writer that is gone",
        "_WriteLock.drop_dead",
        "self.release(self.holder)",
        "pass",
        "T6, P1: a step that was given up in an edit locks the state for ever",
    ),
    Mutant(
        "let the last one who waits write first",
        "_WriteLock.release",
        "self._waiting.popleft()",
        "self._waiting.pop()",
        "P1: a writer never gets its turn while others come",
    ),
    Mutant(
        "let an earlier snapshot replace a later one",
        "SnapshotFile.write",
        "number > self._written and not self._closed",
        "not self._closed",
        "C1: a write that was given up comes late, and what was done since then is done again",
    ),
    Mutant(
        "save nothing at the end",
        "_Saver.serve",
        "(self._save, self._release)",
        "(self._release,)",
        "C2: what a run has left to do when its block is left is not in its file",
    ),
    Mutant(
        "let no others run",
        "WorkerPool._execute_steps",
        "await checkpoint()",
        "pass",
        "R6: steps that never wait starve everything else",
    ),
    Mutant(
        "take waiting for holding the loop",
        "LoopHolds.look",
        "max(self.since, work.started)",
        "work.started",
        "I4: a step that waits for long is accused of blocking the event loop",
    ),
    Mutant(
        "watch no step that suspends",
        "_Watched.send",
        "holds.look(now, self._bound)",
        "pass",
        "I4: a step that holds the event loop before it waits is not named",
    ),
    Mutant(
        "watch no step at its end",
        "WorkerPool._settle_result",
        "look_at(self._run.loop, now, self._slow_step_warning)",
        "",
        "I4: a step that holds the event loop and returns is not named",
    ),
    Mutant(
        "accuse steps of what they do not explain",
        "LoopHolds.reasons",
        "2 * sum(part for part in explained if part > 0) >= now - deadline",
        "True",
        "I4: a late timeout names a step that held the event loop for a moment only",
    ),
    Mutant(
        "let the last run that waits begin first",
        "_Queue.grant",
        "self.waiting.popleft()",
        "self.waiting.pop()",
        "R7: a run never gets its turn while others come",
    ),
    Mutant(
        "count the time of an attempt while it waits",
        "AttemptClock.suspended",
        "self.scope.deadline = math.inf",
        "",
        "R8: a step that waits for a person times out",
    ),
    Mutant(
        "log a failure that exception() has returned",
        "WorkflowHandler.exception",
        "self._run.observed = True",
        "pass",
        "O6: the log has a failure that was looked at",
    ),
    Mutant(
        "take a run for cancelled whose step awaited a cancelled one",
        "WorkflowHandler.cancelled",
        "isinstance(outcome.event, WorkflowCancelledEvent)",
        "isinstance(outcome.error, WorkflowCancelledByUser)",
        "T2: a run that failed is called cancelled",
    ),
    Mutant(
        "cancel a batch without what is inside",
        "Batch.cancel",
        "batches.extend(branch.batches or ())",
        "pass",
        "F4: nested batches of a batch that `Take(cancel=True)` ends go on",
    ),
    # --- The runtime, in memory -----------------------------------------------------------------
    Mutant(
        "let a retry come to the end of the try before",
        "KeptRun.begin_again",
        "self.ending = Ending()",
        "self.ending.outcome = None",
        "K5: tasks that wait for a failed try miss its end if the run is retried at once",
    ),
    Mutant(
        "keep one ended run too many",
        "KeptRuns.remove_old",
        "len(ended) <= self.keep_ended",
        "len(ended) <= self.keep_ended + 1",
        "K4: more than `keep_ended` ended runs are kept",
    ),
    Mutant(
        "order runs by the wall clock",
        "KeptRuns.next_created",
        "max(utc_now(), self._last_created + _TICK)",
        "utc_now()",
        "K2: the order of the list jumps with the wall clock",
    ),
    Mutant(
        "say that a run waits while it closes its resources",
        "LoggedRun.status",
        "self.ledger.is_quiet() and self.outcome is None",
        "self.ledger.is_quiet()",
        "K2: a run whose outcome is decided seems to wait for an answer",
    ),
    Mutant(
        "let a run of the runtime be a child of the step that started it",
        "LoggedRun",
        "self.parent: RunPort | None = None",
        "self.parent = self.parent",
        "K1: a run that a step starts under a runtime ends with the step",
    ),
    Mutant(
        "hold the engine's run of what can be retried",
        "_what_is_left",
        """{"run": None, "pending": pending, "failed": failed}""",
        """{"pending": pending, "failed": failed}""",
        "O6: a run that could be retried pins its context and its ledger",
    ),
    # --- The runtime, with a store --------------------------------------------------------------
    Mutant(
        "begin what is not on the disk",
        "DurableQueues.add",
        "work.id > self.newest and self.journal.strict",
        "False",
        "D1: a step begins before the group that owes it is committed",
    ),
    Mutant(
        "give an answer that is not on the disk",
        "DurableWaits.give",
        "not journal.strict or not journal.open",
        "True",
        "D2: a step continues with an answer that a crash can still lose",
    ),
    Mutant(
        "keep work that is over",
        "DurableLedger.finish",
        "self.journal.forget_work(work)",
        "pass",
        "D1: a step whose end is on the disk runs again",
    ),
    Mutant(
        "show events before they are on the disk",
        "Committer._commit_next",
        "refused = await self.store.commit(changes)",
        """
for live, group in groups:
    for record, size in group.events:
        live.kept.log.append(record, size)
    group.events = ()
refused = await self.store.commit(changes)
""",
        "D3: a reader sees an event that a crash can still lose",
    ),
    Mutant(
        "keep no decision",
        "DurableDecision._settle",
        "self.journal.decide(decision_row(outcome, self.journal))",
        "pass",
        "D4: a run whose end was decided, and not written, goes on after a crash",
    ),
    Mutant(
        "wait as long again after a restart",
        "DurableLedger.set_dues",
        "wait.due = now + dues.get(wait.id, math.inf)",
        "pass",
        "D7: a wait takes longer than was asked for",
    ),
    Mutant(
        "leave the old rows of what is in buffers",
        "Journal.restore",
        "self._rows[key] = None",
        "pass",
        "D1: an event that was collected is collected again after a restart",
    ),
]


def pytest_sessionstart() -> None:
    """Try the same examples each time, and shrink nothing: it is enough that something fails.

    Pytest calls this in the runs against mutants, where this module is a plugin.
    """
    profile = hypothesis.settings(
        hypothesis.settings.get_profile("suite"),
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        derandomize=True,
        database=None,
    )
    hypothesis.settings.register_profile("mutants", profile)
    hypothesis.settings.load_profile("mutants")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that cite a rule which the mutant breaks: one of them is likely to fail."""
    rules = os.environ["BROKEN_RULES"].split()
    items.sort(key=lambda item: not any(f"_{rule}_" in item.name for rule in rules))


def pytest_runtest_logstart() -> None:
    """Do not wait for a test that hangs: its name is the last thing that pytest says."""
    faulthandler.dump_traceback_later(SECONDS_PER_TEST, exit=True)


def pytest_sessionfinish() -> None:
    """All tests are over."""
    faulthandler.cancel_dump_traceback_later()


def run_suite(src: Path, scratch: Path, why: str) -> tuple[bool, str]:
    """Run the tests against a copy of the sources; returns whether they pass, and their last line."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(src),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": str(scratch / "hypothesis"),
        "BROKEN_RULES": " ".join(re.findall(r"\b[A-Z]\d+\b", why)).lower(),
    }
    check = "import anyio_workflows, sys; sys.exit(not anyio_workflows.__file__.startswith(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", check, str(src)], env=environment, check=True)
    plugins = ["-p", "no:cacheprovider", "-p", "tests.mutants"]
    options = ["-x", "-v", "--no-header", "--tb=no", *plugins]
    tests = [str(ROOT / "tests" / name) for name in SUITE]
    left_out = [f"--deselect=tests/{name}" for name in SLOW]
    command = [sys.executable, "-m", "pytest", *options, *left_out, *tests]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"hangs for {SECONDS} s"
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    last = (lines or done.stdout.splitlines() or done.stderr.splitlines() or ["?"])[-1]
    last = last.strip("= ")
    if done.returncode and not lines:
        last = f"pytest ended with {done.returncode}, or was ended, at: {last}"
    return done.returncode == 0, last


def try_mutant(mutant: Mutant | None) -> tuple[bool, str]:
    """Run the tests against a mutant, or against the sources as they are."""
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        shutil.copytree(ROOT / "src", scratch / "src", ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            mutant.apply(scratch / "src")
        return run_suite(scratch / "src", scratch, "" if mutant is None else mutant.why)


def main(names: list[str]) -> int:
    """Try the mutants with these names, or all; returns how many were missed."""
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    if unknown := set(names) - {mutant.name for mutant in MUTANTS}:
        sys.exit(f"no such mutants: {', '.join(sorted(unknown))}")
    passes, last = try_mutant(None)
    if not passes:
        sys.exit(f"the suite fails without any mutant: {last}")
    missed = 0
    for mutant in chosen:
        begun = time.monotonic()
        passes, last = try_mutant(mutant)
        missed += passes
        verdict = "NOT CAUGHT" if passes else "caught"
        seconds = time.monotonic() - begun
        print(f"{verdict:10}  {mutant.name}  ({seconds:.0f} s)\n            {last}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} mutants caught")
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) > 0)
