"""Is the net itself tight? Break the engine on purpose, and see that the suite notices.

    python -m tests.mutants            # all of them, or those named; `nox -s mutants` does this

Each mutant is a small change of one file, made in a copy of `src`. The fast part of the suite runs
against that copy. A mutant that no test notices points at a test that is missing.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import attrs
import hypothesis

ROOT = Path(__file__).parent.parent
PACKAGE = Path("anyio_workflows")

SUITE = [
    "test_testing_finds.py::test_v2_the_engine_as_it_is_passes",
    "test_cancel_everywhere.py",
    "test_stream.py",
    "test_engine.py",
    "test_deadline.py",
    "test_waiting.py",
    "test_stalls.py",
    "test_limits.py",
    "test_retries.py",
    "test_catch_error.py",
    "test_collect.py",
    "test_children.py",
    "test_threads.py",
    "test_bare_runners.py",
    "test_fanin.py",
    "test_snapshots.py",
    "test_questions.py",
    "test_open_waits.py",
    "test_retry_failed.py",
    "test_run_resources.py",
    "test_handler.py",
    "test_ledger.py",
    "test_narrator.py",
]
"""What a mutant has to get past, fast ones first."""

SLOW = ["test_snapshots.py::test_p3_a_run_goes_on_from_any_moment"]
"""What is left out of that: it searches for long, and others look at the same."""

SECONDS = 240
"""A suite that takes longer than this hangs, which counts as noticing."""

SECONDS_PER_TEST = 30
"""So does a single test that takes longer than this; none takes more than a few."""


class StaleMutantError(Exception):
    """The text that a mutant changes is not there, or not once."""


@attrs.frozen
class Mutant:
    """A change that breaks the engine.

    Attributes:
        name: What is broken.
        file: The module, below the package.
        old: Its text, which occurs once.
        new: The text instead.
        why: What goes wrong then.
    """

    name: str
    file: str
    old: str
    new: str
    why: str

    def apply(self, src: Path) -> None:
        """Change a copy of the sources.

        Raises:
            StaleMutantError: If the text is not there once; write the mutant anew.
        """
        path = src / PACKAGE / self.file
        source = path.read_text()
        if (count := source.count(self.old)) != 1:
            raise StaleMutantError(
                f"mutant {self.name!r}: its text occurs {count} times in {self.file}, not once; "
                f"write it anew so that it still means: {self.why}\n{self.old}"
            )
        path.write_text(source.replace(self.old, self.new))


MUTANTS = [
    Mutant(
        "drop the wake-up of the reader",
        "_engine/stream.py",
        "        self.unread += 1\n        if self._wakeup is not None:\n            self._wakeup.set()\n",
        "        self.unread += 1\n",
        "S1: a reader that waits never learns of an event",
    ),
    Mutant(
        "lose an event on a cancelled read",
        "_engine/stream.py",
        "                if self._expose_internal or",
        "                await checkpoint()\n                if self._expose_internal or",
        "S3: the event is taken, then the read is cancelled",
    ),
    Mutant(
        "let two readers wait",
        "_engine/stream.py",
        "            self._refuse_second_reader()\n        unread = self.unread",
        "            pass\n        unread = self.unread",
        "S3: the second reader takes the wake-up of the first",
    ),
    Mutant(
        "let two readers wait that begin at once",
        "_engine/stream.py",
        "            self._refuse_second_reader()\n        if self.unread",
        "            pass\n        if self.unread",
        "S3: one of them is never woken",
    ),
    Mutant(
        "close the stream early",
        "_engine/run.py",
        "        self._settle(self._earlier_cause() or outcome)\n        if self.outcome is not outcome",
        "        self._settle(self._earlier_cause() or outcome)\n"
        "            self.stream.close(self.outcome.event)\n        if self.outcome is not outcome",
        "T6, T7: what steps write while they clean up is lost",
    ),
    Mutant(
        "publish before the tasks have ended",
        "_engine/run.py",
        "                    await self._wait_until_quiet(group)\n"
        "                    if self.keeper is not None:\n"
        "                        await self._close_resources(self.keeper)\n"
        "                    self.close()\n",
        "                    crew, keeper, self._crew.size = self._crew, self.keeper, self._crew.size + 1\n"
        "                    self.close()\n"
        "                    crew.size -= 1\n"
        "                    await self._wait_until_quiet(group)\n"
        "                    if keeper is not None:\n"
        "                        await self._close_resources(keeper)\n",
        "T6: steps go on after the terminal event",
    ),
    Mutant(
        "publish before the resources are closed",
        "_engine/run.py",
        "                        await self._close_resources(self.keeper)\n                    self.close()\n",
        "                        keeper = self.keeper\n"
        "                        self.close()\n"
        "                        await self._close_resources(keeper)\n"
        "                    self.close()\n",
        "T6, P5: a resource is still open when the terminal event is readable",
    ),
    Mutant(
        "do not cancel the steps",
        "_engine/run.py",
        "            group.cancel_scope.cancel()\n            with anyio.move_on_after",
        "            with anyio.move_on_after",
        "T6: the run waits for its steps instead of cancelling them",
    ),
    Mutant(
        "be patient without a limit",
        "_engine/run.py",
        "anyio.move_on_after(self._settings.cleanup_timeout, shield=True)",
        "anyio.move_on_after(None, shield=True)",
        "T6: a step that shields itself keeps the run from ending",
    ),
    Mutant(
        "let the last cause win",
        "_engine/run.py",
        "        if self.outcome is None:\n            self._settle(self._earlier_cause() or outcome)\n",
        "        if not self.ended:\n            self._settle(self._earlier_cause() or outcome)\n",
        "T4: a second stop event replaces the first",
    ),
    Mutant(
        "forget that the deadline may have passed unnoticed",
        "_engine/run.py",
        "        if (now := self.home.current_time()) >= self.deadline:\n            assert",
        "        if False:\n            assert",
        "T4: a step that hogs the processor past the deadline still succeeds",
    ),
    Mutant(
        "forget the deadline",
        "_engine/run.py",
        "            group.cancel_scope.deadline = self.deadline\n",
        "",
        "T2: a run does not time out",
    ),
    Mutant(
        "wake nobody at the end",
        "_engine/run.py",
        "        if self._done is not None:\n            self._done.set()\n        self.narrator.say(",
        "        self.narrator.say(",
        "T1: `await handler` never returns",
    ),
    Mutant(
        "do not wake the host",
        "_engine/run.py",
        "            self._queueing.cancel()\n        self.wake_host()\n",
        "            self._queueing.cancel()\n",
        "T1: the run is decided, and waits for ever",
    ),
    Mutant(
        "start no worker for what a callback of the loop has sent",
        "_engine/run.py",
        "            if self.outcome is None:\n                self._crew.staff()\n",
        "",
        "R3: an event that is sent where there is no current task waits for ever",
    ),
    Mutant(
        "accept writes after the end",
        "_engine/run.py",
        '            raise self._refusal(f"{type(event).__name__} cannot be written to the stream")\n',
        "            return\n",
        "T7: a late write vanishes without a word",
    ),
    Mutant(
        "keep sending while the run is ending",
        "_engine/run.py",
        '        if not self.is_running:\n            logger.info("%s: %s was sent too late',
        '        if False:\n            logger.info("%s: %s was sent too late',
        "T7: an event that is sent during cleanup is routed",
    ),
    Mutant(
        "take no notice of idleness",
        "_engine/workers.py",
        "        if not self._ledger.posts.calls:\n            self.note_if_idle()\n",
        "",
        "T9: a run that can never end waits for its deadline",
    ),
    Mutant(
        "do not wait for child runs",
        "_engine/run.py",
        "        while self._children:  # each ends within its own cleanup timeout\n",
        "        while False:\n",
        "O5: a child outlives its parent",
    ),
    Mutant(
        "swallow a stray cancellation",
        "_engine/workers.py",
        "            desk.take_error(work, _stray_cancellation(work, exc), now)\n",
        "            desk._end(work, None)\n",
        "T8: a step that leaks a cancellation ends without a word",
    ),
    Mutant(
        "raise a failure in a group",
        "_engine/workers.py",
        "            desk.take_error(work, _name_stop_iteration(exc), now)\n",
        "            desk.take_error(work, BaseExceptionGroup('unhandled', [exc]), now)\n",
        "T5: `await handler` raises another object than the step did",
    ),
    Mutant(
        "hire nobody when a worker ends",
        "_engine/workers.py",
        "                self._gone.set()\n            self.hire()\n",
        "                self._gone.set()\n",
        "R6: work is left behind by a worker that had to end",
    ),
    Mutant(
        "start one worker only",
        "_engine/workers.py",
        "            if posts.calls and not self._recruits:\n                self.hire()\n",
        "",
        "R2: executions come one after the other",
    ),
    Mutant(
        "forget a recruit that never began",
        "_engine/workers.py",
        "            recruit.close()\n            self.size -= 1\n",
        "            recruit.close()\n",
        "T6: the run waits for a worker that does not exist",
    ),
    Mutant(
        "go on after the deadline",
        "_engine/workers.py",
        "            if now >= run.deadline:\n                run.take_cancellation()\n                return\n",
        "",
        "T4: a step begins after the deadline has passed",
    ),
    Mutant(
        "let context variables leak",
        "_engine/workers.py",
        "                if var.get(_UNSET) is not value:\n                    return\n",
        "                pass\n",
        "O7: a step sees what another one has set",
    ),
    Mutant(
        "grant a place too many",
        "_ledger/work.py",
        "        if post.calls + post.running >= post.limit:\n",
        "        if post.calls + post.running > post.limit:\n",
        "R2: one execution more than `num_workers`",
    ),
    Mutant(
        "give no worker back",
        "_ledger/work.py",
        "        post.running -= 1\n        if post.queued",
        "        if post.queued",
        "R2: places are used up",
    ),
    Mutant(
        "keep the place while waiting",
        "_ledger/work.py",
        "        work.post.running -= 1\n        work.post.waiting += 1\n",
        "        work.post.waiting += 1\n",
        "R2: a step that waits for an event holds its worker",
    ),
    Mutant(
        "go on without a place",
        "_ledger/waits.py",
        "        work.answered = (wait,)\n        self._posts.want_back(work)\n",
        "        work.answered = (wait,)\n        self._posts.go_on(work)\n",
        "R2: an answered execution goes on over the limit",
    ),
    Mutant(
        "keep waits open that nobody will come back to",
        "_ledger/ledger.py",
        "            self.waits.leave(work)\n            self.waits.forget(work)\n",
        "            self.waits.leave(work)\n",
        "W2: an event is taken for the answer of an execution that has ended",
    ),
    Mutant(
        "close the waits of an attempt that failed",
        "_ledger/ledger.py",
        "        work.past.start_over()\n        self.waits.keep_open(work)\n",
        "        work.past.start_over()\n",
        "W3: an answer that comes during a retry delay is lost",
    ),
    Mutant(
        "do not give answers again",
        "_ledger/work.py",
        "        self.earlier_waits = [wait for wait in waits if not wait.timed_out]\n",
        "        self.earlier_waits = []\n",
        "W3: a retry asks again what has been answered",
    ),
    Mutant(
        "keep the place during a retry delay",
        "_ledger/work.py",
        "        self.hold(work, due)\n        self.leave(work.post)\n",
        "        self.hold(work, due)\n",
        "R2: a step in a retry delay holds its worker",
    ),
    Mutant(
        "forget a retry delay",
        "_engine/workers.py",
        "        self._ledger.delay(work, now + delay)\n        self.crew.tend_delays()\n",
        "        self._ledger.delay(work, now + delay)\n",
        "X1: the next attempt never comes",
    ),
    Mutant(
        "oversleep a retry that is due earlier",
        "_engine/workers.py",
        "            self._clock_changed.set()\n        elif",
        "            pass\n        elif",
        "X1: a delay that begins later waits for the end of the ones before",
    ),
    Mutant(
        "retry after the end",
        "_engine/workers.py",
        "        if isinstance(error, Exception) and not work.dropped and self.run.is_running:\n",
        "        if isinstance(error, Exception) and not work.dropped:\n",
        "X2: a policy is asked about what happens while the run is ending",
    ),
    Mutant(
        "never spend a recovery",
        "_engine/workers.py",
        "work.recoveries.get(catcher.name, 0) + 1}",
        "work.recoveries.get(catcher.name, 0)}",
        "X4: a step that fails each time is recovered for ever",
    ),
    Mutant(
        "forget running steps in a snapshot",
        "_ledger/pending.py",
        "if not work.dropped]\n",
        "if not work.dropped and work.started is None]\n",
        "P3: a run that goes on from a snapshot does not repeat what was going on",
    ),
    Mutant(
        "take a question that was written for one that was read",
        "_ledger/pending.py",
        "asked=record.asked and record.question_number <= events_read,",
        "asked=record.asked,",
        "W4: a run that was killed in between waits for an answer, and nobody is asked",
    ),
    Mutant(
        "keep returned questions out of snapshots",
        "_engine/workers.py",
        "self._ledger.ask(question, stream.written, stream.delivered)",
        "self._ledger.input_asked = True",
        "W4: the same, when a step returned the question",
    ),
    Mutant(
        "count what is read after the end as unread",
        "_ledger/pending.py",
        "        return attrs.evolve(record, events_read=self.run.events_read)\n",
        "        return record\n",
        "W4: a reader who takes his time is asked again",
    ),
    Mutant(
        "answer all waits of that type",
        "_ledger/ledger.py",
        "        self.waits.give(wait, event)\n        return waiting\n",
        "        self.waits.answer(event, None)\n        return waiting\n",
        "W5: an answer for one person's question goes to the others too",
    ),
    Mutant(
        "repeat a failed execution with the attempts it had",
        "_ledger/pending.py",
        "            attempt=1,\n            elapsed=None,\n",
        "            elapsed=None,\n",
        "X7: what was tried for the last time is not tried again",
    ),
    Mutant(
        "repeat what timed out as timed out",
        "_ledger/pending.py",
        "            waits=[wait for wait in self.waits if not wait.timed_out],\n",
        "",
        "X7: a step that failed because nobody answered fails again at once",
    ),
    Mutant(
        "forget in a snapshot what arrived at a join",
        "_ledger/pending.py",
        "arrived={join.name: list(events) for join, events in batch.arrived.items()}",
        "arrived={join.name: [] for join, events in batch.arrived.items()}",
        "P3: a join gets those events only that came after the snapshot",
    ),
    Mutant(
        "fire a join early",
        "_ledger/fanin.py",
        "        return not (self.branches or self.opening)\n",
        "        return not self.branches\n",
        "F2: a batch ends while its elements are still being added",
    ),
    Mutant(
        "give a collected list the recoveries of its first event",
        "_ledger/ledger.py",
        "                work.recoveries = _merged(found)\n",
        "                work.recoveries = found[0].recoveries\n",
        "X4: a loop through a collected list recovers for ever",
    ),
    Mutant(
        "leave the wait of an earlier attempt open",
        "_ledger/waits.py",
        "            self.open.discard(earlier)\n            wait.take_over",
        "            wait.take_over",
        "W3: a second answer goes to an attempt that is over",
    ),
    Mutant(
        "go on beside a task that waits anew",
        "_ledger/waits.py",
        "            self._posts.want_no_more(work)\n            wake(work)\n",
        "            wake(work)\n",
        "R2: an execution takes its place back while a task of it waits",
    ),
    Mutant(
        "forget who wants to go on",
        "_ledger/work.py",
        " + len(p.returning or ())",
        "",
        "T9: a run in which an answered step waits for its worker is told to be idle",
    ),
    Mutant(
        "tell nothing of what goes on at the end",
        "_engine/reporting.py",
        "            for work, _ in self._going_on():\n",
        "            for work, _ in ():\n",
        "I3: what is queued at the end is counted for ever",
    ),
    Mutant(
        "tell nothing of what is withdrawn",
        "_ledger/work.py",
        "            self.tell(work, StepState.NOT_RUNNING)\n",
        "            pass\n",
        "I3: what is dropped with its batch is counted for ever",
    ),
    Mutant(
        "tell nothing of what was going on before",
        "_engine/reporting.py",
        "        for work, state in self._going_on():\n",
        "        for work, state in ():\n",
        "I3: who listens to a restored run counts below zero",
    ),
    Mutant(
        "take an execution for busy that waits while it ends",
        "_ledger/ledger.py",
        "(0 if besides is None or besides.suspended else 1)",
        "(0 if besides is None else 1)",
        "R3: `UnhandledEvent.idle` is false in a run that does nothing",
    ),
    Mutant(
        "raise the traceback that grew",
        "handler.py",
        "                raise outcome.error.with_traceback(outcome.traceback)\n",
        "                raise outcome.error\n",
        "T5: each `await handler` makes the traceback longer",
    ),
    Mutant(
        "leave the block without waiting",
        "handler.py",
        "                with anyio.CancelScope(shield=True):\n                    await run.wait_until_ended()\n",
        "                pass\n",
        "O3: the block is left while its run cleans up",
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


def pytest_runtest_logstart() -> None:
    """Do not wait for a test that hangs: its name is the last thing that pytest says."""
    faulthandler.dump_traceback_later(SECONDS_PER_TEST, exit=True)


def pytest_sessionfinish() -> None:
    """All tests are over."""
    faulthandler.cancel_dump_traceback_later()


def run_suite(src: Path, scratch: Path) -> tuple[bool, str]:
    """Run the tests against a copy of the sources; returns whether they pass, and their last line."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(src),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": str(scratch / "hypothesis"),
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
        return run_suite(scratch / "src", scratch)


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
