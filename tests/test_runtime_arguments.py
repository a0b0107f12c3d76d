"""What a runtime is given: every bad value is refused at once, with the culprit and the remedy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from anyio_workflows import Runtime, StartEvent, StopEvent, Workflow, step
from anyio_workflows.errors import (
    EventValidationError,
    TooManyRunsError,
    UnknownRunError,
    WorkflowConfigurationError,
    WorkflowRuntimeError,
    WorkflowValidationError,
)

from .samples import Asks, Done, Item, Job, Loop, Note

pytestmark = pytest.mark.anyio


class ResearchAgent(Loop):
    pass


class HTTPFetch(Loop):
    pass


class Fetch2Pages(Loop):
    pass


class Faulty(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Item:
        return Item()

    @step
    async def end(self, ev: Done) -> StopEvent:
        return StopEvent()


# --- Names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workflow", "name"),
    [
        (Loop(), "loop"),
        (ResearchAgent(), "research_agent"),
        (HTTPFetch(), "http_fetch"),
        (Fetch2Pages(), "fetch2_pages"),
        (Loop(workflow_name="nightly"), "nightly"),
        (Loop(workflow_name="Loop"), "Loop"),
    ],
)
def test_a_workflow_is_registered_under_its_name(workflow: Workflow[Any], name: str) -> None:
    runtime = Runtime(workflows=[workflow])
    assert runtime.workflows == {name: workflow}


def test_a_dict_gives_the_names() -> None:
    first, second = Loop(), Loop(workflow_name="other")
    assert Runtime(workflows={"a": first, "b": second}).workflows == {"a": first, "b": second}


class Uninitialized(Loop):
    def __init__(self) -> None:
        pass


async def test_a_workflow_that_does_not_call_its_base_class_has_the_name_of_its_class() -> None:
    async with Runtime(workflows=[Uninitialized()]) as runtime:
        assert await (await runtime.start("uninitialized")) == "over"


# --- Runtime() ---------------------------------------------------------------------------------------

BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"workflows": []}, "workflows is empty"),
    ({"workflows": {}}, "workflows is empty"),
    ({"workflows": Loop()}, "workflows must be a list of instances"),
    ({"workflows": "loop"}, "workflows must be a list of instances"),
    ({"workflows": None}, "workflows must be a list of instances"),
    ({"workflows": [Loop]}, r"give an instance, Loop\(\)"),
    ({"workflows": [7]}, "7 in workflows is no workflow; give instances"),
    (
        {"workflows": [Loop(), Loop()]},
        "two workflows are named 'loop'; give one of them a workflow_name",
    ),
    ({"workflows": [Loop(), Asks(workflow_name="loop")]}, "two workflows are named 'loop'"),
    ({"workflows": [Loop(workflow_name="my loop")]}, "name of a workflow .* not 'my loop'"),
    ({"workflows": {"a/b": Loop()}}, r"must be 1 to 128 of the characters .* not 'a/b'"),
    ({"workflows": {7: Loop()}}, "name of a workflow .* not 7"),
    ({"workflows": {"": Loop()}}, "name of a workflow .* not ''"),
    ({"workflows": {"x" * 129: Loop()}}, "name of a workflow"),
    ({"log_events": 0}, "log_events must be an int of 1 or more, not 0"),
    ({"log_events": 1.5}, r"log_events must be an int of 1 or more, not 1\.5"),
    ({"log_bytes": True}, "log_bytes must be an int of 1 or more, not True"),
    ({"max_runs": 0}, "max_runs must be an int of 1 or more, not 0"),
    ({"keep_ended": -1}, "keep_ended must be an int of 0 or more, not -1"),
    ({"keep_ended_for": 0}, "keep_ended_for must be a positive number of seconds, or None; not 0"),
    ({"keep_ended_for": "1h"}, "keep_ended_for must be a positive number of seconds"),
    ({"idle_after": -1}, "idle_after must be a positive number of seconds"),
    ({"max_recoveries": "10"}, "max_recoveries must be an int of 0 or more, not '10'"),
    ({"durability": "weak"}, "durability must be 'strict' or 'eventual', not 'weak'"),
    ({"types": Note}, "types must be a list of classes; not <class"),
    ({"types": ["Note"]}, "types must be a list of classes; not 'Note'"),
    ({"renamed": ["a"]}, "renamed must be a dict of old names with new ones"),
    ({"renamed": {"a": 1}}, "renamed must be a dict of old names with new ones"),
    ({"database": 7}, "database must be a URL in a str, not 7"),
    ({"database": "runs.db"}, "database must be a URL, not 'runs.db'; .*'sqlite:///runs.db'"),
    ({"database": Path("/a/b.db")}, "a URL in a str, not .*; .*'sqlite:////a/b.db'"),
    (
        {"database": "sqlite:///runs.db?mode=ro"},
        "has options behind '\\?', and there are none here",
    ),
    ({"database": "mysql://host/db"}, "there is no database 'mysql://' here; .*sqlite:///path"),
    ({"database": "postgresql://host/db"}, "there is no database 'postgresql://' here"),
    ({"database": "sqlite://"}, "names no file; .*sqlite:///path"),
    ({"database": "sqlite:///:memory:"}, "names no file; leave it out for the memory"),
]


@pytest.mark.parametrize(("given", "message"), BAD_ARGUMENTS)
def test_a_bad_argument_of_a_runtime_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkflowConfigurationError, match=message):
        Runtime(**{"workflows": [Loop()], **given})


def test_a_runtime_checks_the_graphs_at_once() -> None:
    with pytest.raises(WorkflowValidationError, match="Item"):
        Runtime(workflows=[Loop(), Faulty()])
    Runtime(workflows=[Faulty(disable_validation=True)])


def test_what_has_no_effect_in_memory_is_accepted() -> None:
    Runtime(
        workflows=[Loop()],
        keep_ended_for=math.inf,
        idle_after=60,
        max_recoveries=0,
        durability="eventual",
        renamed={"old": "new", "app:Page.title": None},
        types=(Note,),
    )


# --- start() and runs() --------------------------------------------------------------------------------

START = [
    (("lop",), {}, WorkflowConfigurationError, "has no workflow 'lop'; did you mean 'loop'?"),
    (("",), {}, WorkflowConfigurationError, "has no workflow ''; known: job, loop, one, two"),
    ((Note,), {}, WorkflowConfigurationError, "given by its name, its class, or its registered"),
    ((None,), {}, WorkflowConfigurationError, "given by its name, its class, or its registered"),
    ((Loop(),), {}, WorkflowConfigurationError, "this instance of Loop is not registered"),
    ((HTTPFetch,), {}, WorkflowConfigurationError, "no instance of HTTPFetch is registered"),
    ((Asks,), {}, WorkflowConfigurationError, "2 workflows .* say which one: one, two"),
    (("loop", "a b"), {}, WorkflowConfigurationError, "run_id must be a str of 1 to 128 .* not 'a b'"),
    (("loop", ""), {}, WorkflowConfigurationError, "run_id must be a str"),
    (("loop", ".."), {}, WorkflowConfigurationError, r"not \. or \.\. alone; not '\.\.'"),
    (("loop", "x" * 129), {}, WorkflowConfigurationError, "run_id must be a str"),
    (("loop", "ü"), {}, WorkflowConfigurationError, "run_id must be a str"),
    (("loop", "a\n"), {}, WorkflowConfigurationError, "run_id must be a str"),
    (("loop", 17), {}, WorkflowConfigurationError, "run_id must be a str .* not 17"),
    (("loop",), {"metadata": [1]}, WorkflowConfigurationError, "metadata must be a dict"),
    (("loop",), {"metadata": {1: 2}}, WorkflowConfigurationError, "keys of metadata must be texts, not 1"),
    (("loop",), {"metadata": {"a": {1}}}, WorkflowConfigurationError, r"metadata\['a'\] cannot be written"),
    (("loop",), {"metadata": {"a": math.nan}}, WorkflowConfigurationError, r"metadata\['a'\] cannot be"),
    (("loop",), {"metadata": {"a": (1,)}}, WorkflowConfigurationError, "because of a tuple or a key"),
    (("loop",), {"metadata": {"a": {1: 2}}}, WorkflowConfigurationError, "because of a tuple or a key"),
    (("loop",), {"start_event": Note()}, WorkflowConfigurationError, "starts with StartEvent, not with Note"),
    (("begin",), {"topc": "tea"}, EventValidationError, "did you mean 'topic'"),
]  # fmt: skip


class Begin(StartEvent):
    topic: str


class Beginning(Workflow):
    @step
    async def begin(self, ev: Begin) -> StopEvent:
        return StopEvent(result=ev.topic)


@pytest.mark.parametrize(("args", "fields", "error", "message"), START)
async def test_a_bad_argument_of_start_is_refused(
    args: Any, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    workflows: dict[str, Workflow[Any]] = {
        "loop": Loop(),
        "job": Job(),
        "one": Asks(),
        "two": Asks(),
    }
    if args[0] == "begin":
        workflows = {"begin": Beginning()}
    async with Runtime(workflows=workflows) as runtime:
        with pytest.raises(error, match=message):
            await runtime.start(*args, **fields)
        assert runtime.statistics().runs == {}


async def test_metadata_that_contain_themselves_are_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    async with Runtime(workflows=[Loop()]) as runtime:
        for value in (circle, deep):
            with pytest.raises(
                WorkflowConfigurationError, match=r"metadata\['a'\] cannot be written"
            ):
                await runtime.start(Loop, metadata={"a": value})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"status": "runing"}, "status must be one of queued, running, .* did you mean 'running'?"),
        ({"status": 7}, "status must be one of .* not 7"),
        ({"workflow": "lop"}, "did you mean 'loop'?"),
        ({"waiting_for": "Answer"}, "waiting_for must be an event class, not 'Answer'"),
        ({"waiting_for": Loop}, "waiting_for must be an event class"),
        ({"limit": 0}, "limit must be an int of 1 or more, not 0"),
        ({"limit": None}, "limit must be an int of 1 or more, not None"),
        ({"before": "tomorrow"}, "before must be the 'next' of an earlier page, not 'tomorrow'"),
        ({"before": 17}, "before must be the 'next' of an earlier page, not 17"),
        ({"before": "nan~x"}, "before must be the 'next' of an earlier page"),
        ({"before": "1.5~"}, "before must be the 'next' of an earlier page"),
    ],
)
async def test_a_bad_argument_of_runs_is_refused(given: dict[str, Any], message: str) -> None:
    async with Runtime(workflows=[Loop()]) as runtime:
        with pytest.raises(WorkflowConfigurationError, match=message):
            await runtime.runs(**given)


@pytest.mark.parametrize("after", [-1, 5, 1.0, None, "1", True])
async def test_a_cursor_is_the_number_of_an_event_of_the_run(after: Any) -> None:
    async with Runtime(workflows=[Loop()]) as runtime:
        run = await runtime.start(Loop)
        await run
        with pytest.raises(WorkflowRuntimeError):
            run.records(after)
        with pytest.raises(WorkflowRuntimeError):
            run.stream_events(after)
        assert [event async for event in run.stream_events(4)] == []


async def test_k2_a_run_is_described_by_its_id() -> None:
    runtime = Runtime(workflows=[Job()])
    assert runtime.state == "new"
    async with runtime:
        run = await runtime.start(Job, "job-1")
        assert await runtime.info("job-1") == run.info
        with pytest.raises(UnknownRunError, match="'job-2'"):
            await runtime.info("job-2")
        with pytest.raises(WorkflowConfigurationError, match=r"give run\.id"):
            await runtime.info(run)  # type: ignore[arg-type]
        assert runtime.state == "open"
        page = await runtime.runs(before=run.info.cursor)
        assert page.runs == []
    assert runtime.state == "left"
    with pytest.raises(WorkflowRuntimeError, match="its block has been left"):
        await runtime.info("job-1")


async def test_max_runs_bounds_the_runs_in_progress() -> None:
    async with Runtime(workflows=[Job(num_concurrent_runs=1)], max_runs=3) as runtime:
        runs = [await runtime.start(Job, f"job-{n}") for n in range(3)]
        with pytest.raises(TooManyRunsError, match=r"3 runs are in progress, .* higher max_runs"):
            await runtime.start(Job)
        assert await runtime.start(Job, "job-0") == runs[0]
        await runs[0].cancel()
        fourth = await runtime.start(Job)
        with pytest.raises(TooManyRunsError, match="3 runs are in progress"):
            await runtime.retry(runs[0].id)
        await fourth.cancel()
        await runtime.retry(runs[0].id)
