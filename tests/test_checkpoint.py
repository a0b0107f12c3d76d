"""Checkpoints: saving while a run goes on, and going on from what was saved."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from anyio_workflows import (
    Context,
    Event,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    step,
)
from anyio_workflows.checkpoint import load_checkpoint, run_with_checkpoints, save_checkpoint
from anyio_workflows.errors import (
    ContextSerdeError,
    WorkflowConfigurationError,
    WorkflowTimeoutError,
)
from anyio_workflows.events import StepStateChanged

from .running import Note, texts

pytestmark = pytest.mark.anyio


class Item(Event):
    n: int


class Done(Event):
    n: int


class Job(StartEvent):
    items: int


class Batch(Workflow):
    """Does its items one after the other, a second each."""

    def __init__(self, did: list[int] | None = None, **kwargs: Any) -> None:
        super().__init__(**{"timeout": None, **kwargs})
        self.did = [] if did is None else did

    @step
    async def begin(self, ev: Job) -> list[Item]:
        return [Item(n=n) for n in range(ev.items)]

    @step(num_workers=1)
    async def work(self, ctx: Context, ev: Item) -> Done:
        await anyio.sleep(1)
        self.did.append(ev.n)
        ctx.write_event_to_stream(Note(text=ev.n))
        await ctx.store.set("last", ev.n)
        return Done(n=ev.n)

    @step
    async def end(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=[done.n for done in evs])


class Broken(Workflow):
    """Holds something that is no plain data."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.store.set("client", object())
        await anyio.sleep(100)
        return StopEvent()


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write where the loop runs: virtual time does not wait for a thread."""

    async def run_here(func: Callable[..., Any], *args: Any, **options: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        return func(*args)

    monkeypatch.setattr(anyio.to_thread, "run_sync", run_here)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "job.json"


async def test_a_run_gives_its_result_and_its_events(file: Path) -> None:
    seen: list[Event] = []
    result = await run_with_checkpoints(Batch(), file, on_event=seen.append, items=3)
    assert result == [0, 1, 2]
    assert texts(seen) == [0, 1, 2]
    assert type(seen[-1]) is StopEvent
    assert not any(isinstance(event, StepStateChanged) for event in seen)


async def test_what_was_saved_when_the_process_died_is_gone_on_with(file: Path) -> None:
    did: list[int] = []
    saved = ""
    with anyio.move_on_after(3.5):
        async with anyio.create_task_group() as group:
            group.start_soon(partial(run_with_checkpoints, Batch(did), file, items=5))
            await anyio.sleep(2.9)
            saved = file.read_text()  # noqa: ASYNC240
    assert did == [0, 1, 2]
    file.write_text(saved)  # noqa: ASYNC240
    # What follows is another process, as far as the file can tell.
    did.clear()
    assert await run_with_checkpoints(Batch(did), file, items=5) == [0, 1, 2, 3, 4]
    [batch] = json.loads(saved)["work"]["batches"]
    done = [event["value"]["n"] for event in batch["arrived"]["end"]]
    assert done
    assert did == [n for n in range(5) if n not in done]


async def test_cancelling_the_call_cancels_the_run_and_saves_what_is_left(file: Path) -> None:
    seen: list[Event] = []
    with anyio.move_on_after(2.5) as scope:
        await run_with_checkpoints(Batch(), file, every=100, on_event=seen.append, items=4)
    assert scope.cancelled_caught
    ctx = await load_checkpoint(Batch(), file)
    assert ctx.has_work_left
    assert await ctx.store.get("last") == 1
    did: list[int] = []
    assert await run_with_checkpoints(Batch(did), file) == [0, 1, 2, 3]
    assert did == [2, 3]


async def test_a_timeout_leaves_its_work_to_the_next_call(file: Path) -> None:
    seen: list[Event] = []
    with pytest.raises(WorkflowTimeoutError):
        await run_with_checkpoints(Batch(timeout=1.5), file, on_event=seen.append, items=3)
    assert await run_with_checkpoints(Batch(), file, items=3) == [0, 1, 2]


async def test_after_the_end_the_file_holds_the_state_alone_and_a_run_starts_anew(
    file: Path,
) -> None:
    await run_with_checkpoints(Batch(), file, items=1)
    data = json.loads(file.read_text())  # noqa: ASYNC240
    assert (data["state"], data["work"]) == ({"last": 0}, None)
    assert await run_with_checkpoints(Batch(), file, start_event=Job(items=2)) == [0, 1]


async def test_a_failure_is_raised_as_it_is(file: Path) -> None:
    class Fails(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            raise error

    error = ValueError("no")
    with pytest.raises(ValueError, match="no") as caught:
        await run_with_checkpoints(Fails(), file)
    assert caught.value is error
    assert json.loads(file.read_text())["work"] is None  # noqa: ASYNC240


async def test_it_saves_at_most_every_n_seconds_and_only_when_something_happened(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves: list[float] = []

    def note(ctx: Context) -> Any:
        saves.append(anyio.current_time() - start)
        return real(ctx)

    real = Context.to_dict
    monkeypatch.setattr(Context, "to_dict", lambda ctx, types=(): note(ctx))
    start = anyio.current_time()
    await run_with_checkpoints(Batch(), file, every=2.5, items=6)
    gaps = [later - earlier for earlier, later in itertools.pairwise(saves[:-1])]
    assert len(saves) == 4
    assert min(gaps) >= 2.5


async def test_a_value_that_cannot_be_saved_is_named_and_the_run_does_not_go_on(
    file: Path,
) -> None:
    start = anyio.current_time()
    with pytest.raises(ContextSerdeError, match=r"\$\.state\.client: a value of type object"):
        await run_with_checkpoints(Broken(), file)
    assert anyio.current_time() - start < 10
    saved = await load_checkpoint(Broken(), file)  # at most what was there before the step began
    assert await saved.store.get("client", None) is None


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", r"\$: .*job\.json holds no JSON"),
        ('{"version": 1', "holds no JSON"),
        ("[]", r"\$: a snapshot is a mapping"),
        ('{"version": 7}', r"\$\.version: it was written by a newer release"),
    ],
)
async def test_a_file_that_is_no_snapshot_is_refused_and_left_as_it_is(
    file: Path, content: str, problem: str
) -> None:
    file.write_text(content)  # noqa: ASYNC240
    with pytest.raises(ContextSerdeError, match=problem):
        await run_with_checkpoints(Batch(), file, items=1)
    assert file.read_text() == content  # noqa: ASYNC240


async def test_bad_arguments_start_no_run(file: Path) -> None:
    with pytest.raises(
        WorkflowConfigurationError, match="every must be a number of seconds, not -1"
    ):
        await run_with_checkpoints(Batch(), file, every=-1, items=1)
    with pytest.raises(OSError, match="missing"):
        await run_with_checkpoints(Batch(), file.parent / "missing" / "job.json", items=1)


async def test_a_snapshot_that_cannot_be_written_leaves_the_last_one(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError("disk full")

    ctx = Context(Batch())
    await ctx.store.set("n", 1)
    await save_checkpoint(ctx, file)
    before = file.read_text()  # noqa: ASYNC240
    await ctx.store.set("n", 2)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        await save_checkpoint(ctx, file)
    assert file.read_text() == before  # noqa: ASYNC240
    assert [path.name for path in file.parent.iterdir()] == ["job.json"]


async def test_the_way_by_hand(file: Path) -> None:
    """A snapshot with each `StepStateChanged`, as users of the reference write it."""
    snapshots: list[dict[str, Any]] = []
    handler = Batch().run(items=3)
    async for event in handler.stream_events(expose_internal=True):
        if isinstance(event, StepStateChanged):
            snapshots.append(json.loads(json.dumps(handler.ctx.to_dict())))
    assert await handler == [0, 1, 2]
    assert len(snapshots) > 6
    for data in snapshots:
        workflow = Batch()
        ctx = Context.from_dict(workflow, data)
        if ctx.has_work_left:
            resumed = workflow.run(ctx=ctx)
            assert sorted(await resumed) == [0, 1, 2]
            assert type(resumed.get_stop_event()) is not WorkflowCancelledEvent
