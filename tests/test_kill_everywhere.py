"""Runs whose process is killed at each of its commits come to the same end (rules D1 to D9), and what finds that out."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from anyio_workflows import Context, StartEvent, StopEvent, Workflow, step
from anyio_workflows._ledger.work import Wait, Work
from anyio_workflows.errors import WorkflowConfigurationError
from anyio_workflows.instrument import EventRecord, RunRecord
from anyio_workflows.runtime._books import DurableQueues
from anyio_workflows.runtime._committer import Committer
from anyio_workflows.runtime._durable import DurableLive
from anyio_workflows.runtime._journal import Group, Journal
from anyio_workflows.runtime._rows import RowWriter
from anyio_workflows.testing import DurabilityViolation, Kill, kill_at, kill_everywhere

from .conftest import BACKENDS
from .samples import Answer, Asks, FanOut, Item, Loop, Next, Note, Numbers, OneStep, Other
from .survivors import SHAPES, Nested, Recovers, TimesOut, reply


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_d1_to_d9_each_shape_comes_to_the_same_end(shape: str, backend: str) -> None:
    make, start = SHAPES[shape]
    kill_everywhere(make, start=start, answer=reply, backends=[backend], pairs=4)


@pytest.mark.parametrize("shape", SHAPES)
def test_d1_to_d9_a_consistent_prefix_of_each_shape_survives(shape: str) -> None:
    make, start = SHAPES[shape]
    kill_everywhere(
        make,
        start=start,
        answer=reply,
        backends=BACKENDS[-1:],
        ends=["kill"],
        pairs=4,
        durability="eventual",
    )


@pytest.mark.parametrize("shape", ["asks", "asks by returning", "interview", "retries"])
def test_d1_to_d9_runs_that_sleep_in_between_come_to_the_same_end(shape: str) -> None:
    make, start = SHAPES[shape]
    kill_everywhere(make, start=start, answer=reply, backends=BACKENDS[:1], idle_after=0.5)


# --- Faults that prototypes had -----------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_d4_the_end_of_the_work_and_the_decision_are_in_one_group(backend: str) -> None:
    """A run that owes nothing, and of which no end is known, would hang for ever."""
    trace = kill_at(TimesOut, backend=backend)
    lines = [line for line in trace if re.search(r" commit \d+ +.*(\+d|-d)", line)]
    decided, written = lines[0], lines[-1]  # on trio the end may be in the same group
    assert "+d" in decided or len(lines) == 1
    assert "timed_out" in written
    number = int(re.findall(r"commit (\d+)", decided)[0])
    trace = kill_at(TimesOut, Kill(number), backend=backend)
    assert not [line for line in trace if line.startswith("2") and "begins" in line]
    assert sum("WorkflowTimedOutEvent" in line for line in trace) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_d1_parts_of_a_batch_survive_two_processes(backend: str) -> None:
    """Their rows have to be there after the first recovery as well, for the second one."""
    for commit in range(1, 12):
        kills = Kill(commit), Kill(2), Kill(2, "before")
        kill_at(Nested, *kills, start=Numbers(items=[0, 2, 3]), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_d2_mail_is_given_to_a_run_once(backend: str) -> None:
    """It leaves the inbox in the group of what it caused."""

    class Posted(Workflow):
        """Sleeps until it is sent two answers."""

        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Other:
            await ctx.wait_for_event(Next)
            return Other()

        @step
        async def take(self, ctx: Context, ev: Answer) -> Next | None:
            return Next() if ctx.collect_events(ev, [Answer, Answer]) else None

        @step
        async def end(self, ev: Other | Next) -> StopEvent | None:
            return StopEvent(result="over") if isinstance(ev, Other) else None

    outside = [Answer(n=1), Answer(n=2)]
    kill_everywhere(Posted, outside=outside, backends=[backend], ends=["kill"], idle_after=1)
    for commit in range(2, 12):
        kills = Kill(commit, "before"), Kill(4)
        trace = kill_at(Posted, *kills, outside=outside, backend=backend, idle_after=1)
        mails = [line for line in trace if re.search(r" mail \d+$", line)]
        taken = {line.split()[3] for line in trace if re.search(r" take \d+ +begins", line)}
        assert mails
        assert len(taken) == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_d8_a_run_that_falls_asleep_while_it_is_answered_is_answered(backend: str) -> None:
    class Slow(Workflow):
        """Falls asleep at the very moment of the answer, one second after its question."""

        @step
        async def work(self, ctx: Context, ev: StartEvent | Next) -> Next | StopEvent:
            n = ev.n if isinstance(ev, Next) else 0
            with suppress(TimeoutError):
                await ctx.wait_for_event(Item, timeout=1, waiter_id=f"w{n}")
            return StopEvent(result=n) if n == 3 else Next(n=n + 1)

    kill_everywhere(Slow, backends=[backend], idle_after=1)


# --- What breaks a rule is found -------------------------------------------------------------------------


def no_gate(queues: DurableQueues, work: Work) -> None:
    queues.newest = max(queues.newest, work.id)
    super(DurableQueues, queues).add(work)


def forgets_no_end(journal: Journal, work: Work) -> None:
    pass


async def waits_for_nothing(committer: Committer, journal: Journal) -> None:
    await anyio.lowlevel.checkpoint()


def asks_again(writer: RowWriter, wait: Wait, *args: Any) -> str:
    asked, wait.asked = wait.asked, False
    try:
        return WRITE_WAIT(writer, wait, *args)
    finally:
        wait.asked = asked


WRITE_WAIT = RowWriter.wait


def shows_too_soon(live: DurableLive, run: RunRecord, record: EventRecord) -> None:
    live.journal.add_event(record)
    live.kept.log.append(record)


def shows_nothing_more(live: DurableLive, group: Group) -> None:
    PROCEED(live, attrs.evolve(group, events=()))


PROCEED = DurableLive.proceed


def writes_another(journal: Journal, record: EventRecord) -> None:
    ADD_EVENT(journal, record)
    if isinstance(record.event, Note):
        another = journal.writer.event(Note(text="another"))
        journal._stored_events[-1] = journal._stored_events[-1]._replace(text=another)


ADD_EVENT = Journal.add_event


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("cls", "name", "broken", "workflow", "found"),
    [
        (DurableQueues, "add", no_gate, Recovers, "D1: execution .* before it was on the disk"),
        (Journal, "forget_work", forgets_no_end, Loop, "D1: .* though its end was on the disk"),
        (Committer, "wait", waits_for_nothing, Asks, "D2: .*Answer"),
        (RowWriter, "wait", asks_again, Asks, "D2: wait 1:1:Answer of step ask asked again"),
        (
            Journal,
            "add_event",
            writes_another,
            Loop,
            r"D3: event \d was Note.*, and is now Note",
        ),
    ],
)
def test_v2_a_runtime_that_breaks_a_rule_is_found(
    monkeypatch: pytest.MonkeyPatch,
    cls: type,
    name: str,
    broken: Callable[..., Any],
    workflow: type[Workflow],
    found: str,
    backend: str,
) -> None:
    monkeypatch.setattr(cls, name, broken)
    with pytest.raises(DurabilityViolation, match=found) as caught:
        kill_everywhere(workflow, answer=reply, backends=[backend])
    assert caught.value.backend == backend


@pytest.mark.parametrize("backend", BACKENDS)
def test_v2_an_event_that_is_shown_before_its_commit_is_found(
    monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr(DurableLive, "event_written", shows_too_soon)
    monkeypatch.setattr(DurableLive, "proceed", shows_nothing_more)  # its turn is over then
    with pytest.raises(DurabilityViolation, match="D3: event 1 was shown when 0 were on the disk"):
        kill_everywhere(Asks, answer=reply, backends=[backend])


def test_v2_a_workflow_that_depends_on_the_process_is_found() -> None:
    calls: list[int] = []

    async def act(ctx: Context) -> int:
        calls.append(1)
        await anyio.sleep(1)
        return len(calls)

    with pytest.raises(
        DurabilityViolation, match=r"(?s)^done: the run ended with .*Kill\("
    ) as caught:
        kill_everywhere(lambda: OneStep(act))
    [violation] = caught.value.violations
    assert violation.rule == "done"
    assert caught.value.kills
    assert any("is killed" in line for line in caught.value.trace)


def test_v2_a_run_that_hangs_is_found() -> None:
    lives: list[int] = []

    async def act(ctx: Context) -> None:
        lives.append(1)
        if len(lives) > 1:
            await anyio.sleep_forever()

    with pytest.raises(DurabilityViolation, match="T1: the run did not end within 1e"):
        kill_everywhere(lambda: OneStep(act))


def test_v2_the_report_says_how_to_run_it_again() -> None:
    assert Kill(3, how="leave") == eval("Kill(3, how='leave')")
    violation = DurabilityViolation([], "trio", [Kill(3), Kill(1, "before")], ["a line"])
    text = str(violation)
    assert "kill_at(make_workflow, Kill(3), Kill(1, at='before'), backend='trio', ...)" in text
    assert text.endswith("    a line")


@pytest.mark.parametrize("backend", BACKENDS)
def test_v2_the_trace_names_commits_and_what_follows_from_them(backend: str) -> None:
    trace = kill_at(FanOut, Kill(3), start=Numbers(items=[1]), backend=backend)
    lines = [line.split(maxsplit=2)[2] for line in trace]
    assert lines[:11] == [
        "commit 1  +w1, running",
        "split 1   begins: Numbers",
        "split 1   returned: [Item(n=1)]",
        "commit 2  +w2 +b1 +r2 -w1",
        "work 2    begins: Item",
        "work 2    returned: Done(n=1)",
        "commit 3  +w3 -r2 -b1 -w2",
        "process   is killed",
        "commit 1  takes over the run",
        "join 3    begins: Done",
        "join 3    returned: StopEvent(result=[1])",
    ]
    assert lines[-2:] == ["event 2   StopEvent(result=[1])", "await     is over"]


def test_v2_bad_arguments_are_refused() -> None:
    with pytest.raises(WorkflowConfigurationError, match="make_workflow makes a new workflow"):
        kill_everywhere(Loop())  # type: ignore[arg-type]
    with pytest.raises(WorkflowConfigurationError, match=r"Kill\.at must be one of"):
        Kill(1, "during")  # type: ignore[arg-type]
    with pytest.raises(WorkflowConfigurationError, match=r"Kill\.how must be one of"):
        Kill(1, how="stop")  # type: ignore[arg-type]


# --- The page ------------------------------------------------------------------------------------------


def test_v2_what_the_page_shows_works(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs" / "testing.md").read_text("utf-8")
    section = page.partition("## Killing processes\n")[2].partition("\n## ")[0]
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(code, vars(module))
    tests = [test for name, test in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()
