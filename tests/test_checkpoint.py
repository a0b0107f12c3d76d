"""Checkpoints: saving while a run goes on, and going on from what was saved."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
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
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    step,
)
from anyio_workflows.checkpoint import (
    checkpointed,
    load_checkpoint,
    run_with_checkpoints,
    save_checkpoint,
)
from anyio_workflows.errors import (
    CheckpointInUseError,
    ContextSerdeError,
    EventValidationError,
    WorkflowCancelledByUser,
    WorkflowConfigurationError,
    WorkflowTimeoutError,
)
from anyio_workflows.events import StepStateChanged

from .running import read, texts
from .samples import Done, Item, Note

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_threads")]


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
        ("", r"\$: .*job\.json does not hold JSON"),
        ('{"version": 1', "does not hold JSON"),
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


# --- C2: a run with checkpoints has a handler -----------------------------------------------------


class Approval(HumanResponseEvent):
    ok: bool


class Approve(Workflow):
    """Asks a person after the expensive work."""

    def __init__(self, did: list[str] | None = None) -> None:
        super().__init__(timeout=None)
        self.did = [] if did is None else did

    @step
    async def write(self, ev: StartEvent) -> Item:
        self.did.append("write")
        return Item(n=1)

    @step
    async def ask(self, ctx: Context, ev: Item) -> StopEvent:
        question = InputRequiredEvent(text="ok?")
        answer = await ctx.wait_for_event(Approval, question, timeout=None)
        self.did.append("answered")
        await anyio.sleep(1000)
        return StopEvent(result=answer.ok)


def saved_in(file: Path) -> Any:
    return json.loads(file.read_text("utf-8"))


def names_beside(file: Path) -> list[str]:
    return sorted(path.name for path in file.parent.iterdir())


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times of all saves, each of which puts a new file in the place of the old one."""
    times: list[float] = []
    real = Path.replace

    def replace(path: Path, target: Path) -> Path:
        times.append(anyio.current_time())
        return real(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    return times


async def test_c2_a_block_gives_the_handler_and_the_next_one_goes_on(file: Path) -> None:
    did: list[str] = []
    async with checkpointed(Approve(did), file) as handler:
        async for event in handler.stream_events():
            if isinstance(event, InputRequiredEvent):
                break
        await handler.cancel_run()
    assert names_beside(file) == ["job.json"]
    async with checkpointed(Approve(did), file) as handler:
        await anyio.sleep(5)
        assert await handler.send_event(Approval(ok=True)) == ("ask",)
        assert await handler is True
        assert type((await read(handler))[-1]) is StopEvent
    assert did == ["write", "answered"]
    assert saved_in(file)["work"] is None


async def test_c2_a_run_is_saved_while_something_happens_in_it_and_not_while_it_waits(
    file: Path, written: list[float]
) -> None:
    start = anyio.current_time()
    async with checkpointed(Approve(), file, every=2) as handler:
        await anyio.sleep(500)
        assert len(written) <= 3
        assert written[-1] <= start + 5
        [work] = saved_in(file)["work"]["work"]
        assert work["waits"][0]["answer"] is None
        count = len(written)
        await anext(handler.stream_events())  # which makes the question one that was read
        await anyio.sleep(5)
        assert len(written) == count + 1
        await handler.send_event(Approval(ok=True))
        await anyio.sleep(5)
        [work] = saved_in(file)["work"]["work"]
        assert work["waits"][0]["answer"] is not None
        count = len(written)
        await anyio.sleep(400)
        assert len(written) == count
        await handler.cancel_run()


async def test_c2_the_block_saves_at_the_end_whatever_happened_last(file: Path) -> None:
    async with checkpointed(Batch(), file, every=1000, items=3) as handler:
        assert await handler == [0, 1, 2]
        await handler.ctx.store.set("late", 5)
    assert saved_in(file)["state"] == {"last": 2, "late": 5}


async def test_c2_leaving_the_block_by_an_exception_cancels_the_run_and_saves_it(
    file: Path,
) -> None:
    problem = LookupError("in the block")
    with pytest.raises(LookupError) as caught:  # noqa: PT012
        async with checkpointed(Batch(), file, every=1000, items=4) as handler:
            await anyio.sleep(1.5)
            raise problem
    assert caught.value is problem
    assert type(handler.get_stop_event()) is WorkflowCancelledEvent
    did: list[int] = []
    assert await run_with_checkpoints(Batch(did), file) == [0, 1, 2, 3]
    assert did == [1, 2, 3]


async def test_c2_leaving_it_normally_waits_for_the_run_and_raises_its_failure(file: Path) -> None:
    async with checkpointed(Batch(), file, items=2) as handler:
        pass
    assert handler.is_done()
    with pytest.raises(WorkflowTimeoutError):
        async with checkpointed(Batch(timeout=1.5), file, items=2):
            pass
    async with checkpointed(Batch(), file) as handler:
        assert await handler == [0, 1]


async def test_c2_the_block_may_be_in_an_async_generator(file: Path) -> None:
    """It holds no cancel scope open, as a server that streams needs it."""

    async def progress() -> AsyncIterator[Event]:
        async with checkpointed(Batch(), file, items=3) as handler:
            async for event in handler.stream_events():
                yield event

    seen: list[Event] = []
    async with aclosing(progress()) as events:
        async for event in events:
            seen.append(event)
            if len(seen) == 2:
                break
    assert texts(seen) == [0, 1]
    assert names_beside(file) == ["job.json"]
    assert await run_with_checkpoints(Batch(), file) == [0, 1, 2]


async def test_c2_a_second_run_on_the_file_is_refused_at_once(file: Path) -> None:
    link = file.with_name("link.json")
    link.symlink_to(file)
    did: list[int] = []
    async with checkpointed(Batch(did), file, items=2) as handler:
        for path in (file, link, str(file)):
            with pytest.raises(CheckpointInUseError, match="a run in this process") as caught:
                async with checkpointed(Batch(did), path, items=2):
                    pytest.fail("it began")
            assert (caught.value.path, caught.value.pid) == (str(file), os.getpid())
        assert await handler == [0, 1]
    assert did == [0, 1]
    assert await run_with_checkpoints(Batch(), link, items=1) == [0]
    assert link.is_symlink()


async def test_c2_a_save_that_fails_cancels_the_run_and_raises_its_error(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True
    real = os.fsync

    def fsync(fd: int) -> None:
        if full and anyio.current_time() > start + 2.5:
            raise OSError(28, "disk full")
        real(fd)

    start = anyio.current_time()
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="disk full") as caught:  # noqa: PT012
        async with checkpointed(Batch(), file, items=9) as handler:
            events = await read(handler)
            assert type(events[-1]) is WorkflowCancelledEvent
            with pytest.raises(WorkflowCancelledByUser, match="could not be saved"):
                await handler
            full = False
    assert caught.value.errno == 28
    assert handler.ctx.has_work_left
    assert names_beside(file) == ["job.json"]
    # The last attempt, when the run had ended, lost nothing.
    did: list[int] = []
    assert await run_with_checkpoints(Batch(did), file) == [*range(9)]
    assert did[0] == await handler.ctx.store.get("last") + 1


async def test_c2_a_last_save_that_fails_raises_its_error_and_leaves_the_one_before(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError(28, "disk full")

    with pytest.raises(OSError, match="disk full"):  # noqa: PT012
        async with checkpointed(Batch(), file, items=2) as handler:
            assert await handler == [0, 1]
            before = file.read_text("utf-8")  # noqa: ASYNC240
            monkeypatch.setattr(os, "fsync", fail)
    assert file.read_text("utf-8") == before  # noqa: ASYNC240
    monkeypatch.undo()
    assert names_beside(file) == ["job.json"]


class Opaque(Event):
    client: object


class BrokenAndFailing(Workflow):
    """Fails in a step that was started by something that is no plain data."""

    @step
    async def begin(self, ev: StartEvent) -> Opaque:
        return Opaque(client=object())

    @step
    async def work(self, ev: Opaque) -> StopEvent:
        raise LookupError("the step's own")


def unsaved(error: BaseException) -> list[str]:
    """Return the notes that tell that a snapshot could not be saved."""
    return [note for note in getattr(error, "__notes__", ()) if "could not be saved" in note]


@pytest.mark.parametrize("short_form", [True, False])
async def test_c2_the_failure_of_a_run_is_not_hidden_by_the_last_save(
    file: Path, short_form: bool
) -> None:
    with pytest.raises(LookupError, match="the step's own") as caught:  # noqa: PT012
        if short_form:
            await run_with_checkpoints(BrokenAndFailing(), file)
        else:
            async with checkpointed(BrokenAndFailing(), file):
                pass
    (note,) = unsaved(caught.value)
    assert "ContextSerdeError: $.failed.work[0].events[0].client" in note
    assert caught.value.__context__ is None
    assert names_beside(file) == []


async def test_c2_nor_is_what_the_block_makes_of_that_failure(file: Path) -> None:
    with pytest.raises(RuntimeError, match="wrapped") as caught:  # noqa: PT012
        async with checkpointed(BrokenAndFailing(), file) as handler:
            try:
                await handler
            except LookupError as error:
                raise RuntimeError("wrapped") from error
    assert len(unsaved(caught.value)) == 1


async def test_c2_a_save_that_fails_is_raised_when_nothing_else_is(file: Path) -> None:
    with pytest.raises(ContextSerdeError, match="client"):  # noqa: PT012
        async with checkpointed(BrokenAndFailing(), file) as handler:
            with pytest.raises(LookupError):
                await handler


async def test_c2_a_save_that_fails_is_raised_when_the_block_is_left_for_another_reason(
    file: Path,
) -> None:
    with pytest.raises(ContextSerdeError, match="client"):  # noqa: PT012
        async with checkpointed(Broken(), file):
            await anyio.sleep(0.5)
            raise LookupError("while the run is fine")


async def test_c1_a_file_system_that_does_not_answer_holds_up_no_end(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = anyio.to_thread.run_sync

    async def hang(func: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if anyio.current_time() > start + 1:
            await anyio.sleep_forever()
        return await real(func, *args, **options)

    start = anyio.current_time()
    monkeypatch.setattr(anyio.to_thread, "run_sync", hang)
    with pytest.raises(TimeoutError, match="did not answer within 60 s"):
        await run_with_checkpoints(Batch(), file, items=100)
    assert anyio.current_time() - start < 300


async def test_c2_a_file_that_cannot_be_read_is_released(file: Path) -> None:
    file.write_text("no JSON")  # noqa: ASYNC240
    for _ in range(2):
        with pytest.raises(ContextSerdeError):
            await run_with_checkpoints(Batch(), file, items=1)
    assert names_beside(file) == ["job.json"]
    file.unlink()  # noqa: ASYNC240
    with pytest.raises(EventValidationError):
        await run_with_checkpoints(Batch(), file, itmes=1)
    assert names_beside(file) == []


async def test_c2_an_answer_to_one_wait_is_saved_at_once(file: Path, written: list[float]) -> None:
    async with checkpointed(Approve(), file, every=0) as handler:
        await anyio.sleep(5)
        [wait] = handler.open_waits()
        count = len(written)
        await handler.send_event(Approval(ok=True), wait=wait.id)
        await anyio.sleep(1)
        assert len(written) > count
        [work] = saved_in(file)["work"]["work"]
        assert work["waits"][0]["answer"] is not None
        await handler.cancel_run()


async def test_w4_a_question_that_on_event_has_seen_is_one_that_was_read_after_a_kill(
    file: Path,
) -> None:
    asked: list[Event] = []
    copies: list[str] = []

    async def watch() -> None:
        await anyio.sleep(50)  # nothing has happened for a long time
        copies.append(file.read_text("utf-8"))  # noqa: ASYNC240
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await run_with_checkpoints(Approve(), file, on_event=asked.append)
    assert len(asked) == 1
    file.write_text(copies[0], "utf-8")  # noqa: ASYNC240
    with anyio.move_on_after(50):
        await run_with_checkpoints(Approve(), file, on_event=asked.append)
    assert len(asked) == 1
