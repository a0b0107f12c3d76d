"""The events of a run, read over connections that break: each comes once, and in order."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("httpx2")

import httpx2

from anyio_workflows import Event, StopEvent, WorkflowFailedEvent
from anyio_workflows.client import (
    Gap,
    RemoteEvent,
    RemoteEvents,
    RemoteRecord,
    ServerUnreachableError,
    WorkflowClient,
    WorkflowServerError,
)
from anyio_workflows.errors import WorkflowConfigurationError, WorkflowRuntimeError
from anyio_workflows.events import WorkflowIdleEvent
from anyio_workflows.wire import to_data

from .bare import BARE_RUNNERS, run_bare
from .remote import (
    URL,
    Streamed,
    answer,
    cut,
    end,
    event_document,
    frame,
    frames,
    problem,
    refused,
    scripted,
    streamed,
)
from .running import on_each_backend, run_script, run_virtually

pytestmark = pytest.mark.anyio

NOTHING_LEFT = httpx2.Response(204)
PATH = "GET /flows/v1/runs/run-1/events"


class Note(Event):
    n: int


class Loud(Note):
    pass


def shown(items: list[RemoteRecord | Gap]) -> list[Any]:
    """Return the numbers of events, and `(first, last)` for gaps."""
    return [(one.first, one.last) if isinstance(one, Gap) else one.seq for one in items]


async def read(*answers: Any, after: int = 0, **options: Any) -> tuple[list[Any], list[str]]:
    """Return what is read of a run from a cursor on, and what was asked."""
    client, server = scripted(*answers, **options)
    async with client:
        found = shown([one async for one in client.run("run-1").events(after)])
    return found, server.asked


# --- Connections ----------------------------------------------------------------------------------------


async def test_each_event_comes_once_with_its_number():
    client, server = scripted(streamed(b"retry: 700\n\n", frames(1, 2), frame(3, n=3), end(3)))
    async with client:
        events = client.run("run-1").events()
        assert (events.cursor, events.status) == (0, None)
        assert shown([one async for one in events]) == [1, 2, 3]
        assert (events.cursor, events.status) == (3, "completed")
        assert [one async for one in events] == []
    assert server.asked == [f"{PATH}?after=0"]
    [request] = server.requests
    assert request.headers["accept"] == "text/event-stream"
    assert request.extensions["timeout"]["read"] == 45  # three heartbeats


@pytest.mark.parametrize(
    "breaking",
    [
        (),  # the server ends the response, without saying that the run has ended
        (httpx2.ReadError("cut"),),
        (httpx2.RemoteProtocolError("incomplete"),),
        (httpx2.ReadTimeout("silent"),),
        (b"id: 3\ndata: {", httpx2.ReadError("cut")),
        (b"id: 3\ndata: {}\n",),  # no end of an event: it is none
        (b":\n\n" * 5, httpx2.ReadError("cut")),
    ],
)
async def test_a_stream_that_breaks_continues_with_the_cursor(breaking: Any):
    found, asked = await read(streamed(frames(1, 2), *breaking), streamed(frames(3, 5), end(5)))
    assert found == [1, 2, 3, 4, 5]
    assert asked == [f"{PATH}?after=0", f"{PATH}?after=2"]


async def test_a_cursor_that_was_given_is_asked_for():
    assert await read(streamed(frame(8), end(8)), after=7) == ([8], [f"{PATH}?after=7"])


async def test_nothing_left_is_the_end():
    client, server = scripted(NOTHING_LEFT)
    async with client:
        events = client.run("run-1").events(after=4)
        assert [one async for one in events] == []
        assert (events.cursor, events.status) == (4, None)
        assert [one async for one in events] == []
    assert len(server.requests) == 1


async def test_the_end_may_be_lost_with_the_connection():
    found, asked = await read(streamed(frames(1, 3), cut()), NOTHING_LEFT)
    assert found == [1, 2, 3]
    assert asked[-1] == f"{PATH}?after=3"


async def test_what_comes_again_is_not_yielded_again():
    found, _ = await read(streamed(frames(1, 3), cut()), streamed(frames(2, 5), end(5)))
    assert found == [1, 2, 3, 4, 5]


async def test_nothing_follows_the_end():
    found, asked = await read(streamed(frame(1) + end(1) + frame(2)))
    assert (found, len(asked)) == ([1], 1)


async def test_a_gap_is_yielded_in_the_place_of_what_is_gone():
    gap = b'event: gap\ndata: {"first": 1, "last": 40, "reason": "trimmed"}\n\n'
    client, server = scripted(streamed(gap, cut()), streamed(frame(41), end(41)))
    async with client:
        found = [one async for one in client.run("run-1").events()]
    assert found[0] == Gap(1, 40, "trimmed")
    assert shown(found) == [(1, 40), 41]
    assert server.asked[1] == f"{PATH}?after=40"


async def test_frames_of_another_version_are_passed_over():
    found, _ = await read(streamed(b"event: news\ndata: {}\n\n", frame(1), end(1)))
    assert found == [1]


@pytest.mark.parametrize("text", [b"{}", b"[" * 100_000], ids=["empty", "deep"])
async def test_a_frame_that_has_no_form_is_an_error(text: bytes):
    client, _ = scripted(streamed(b"data: %b\n\n" % text))
    async with client:
        with pytest.raises(WorkflowServerError, match="it has not the form that this client knows"):
            await anext(client.run("run-1").events())


@given(st.data())
@on_each_backend
def test_any_cuts_of_any_stream_lose_and_repeat_nothing(backend: str, data: st.DataObject):
    """A stand-in for a server: it answers from the cursor on, in pieces, and is cut at any byte."""
    last = data.draw(st.integers(0, 8))
    most = data.draw(st.lists(st.integers(0, 400), max_size=8))
    piece = data.draw(st.integers(1, 100))

    def serve(request: httpx2.Request) -> httpx2.Response:
        after = int(request.url.params["after"])
        assert after <= last
        body = b"retry: 1\n\n" + frames(after + 1, last) + end(last)
        whole = not most
        body = body if whole else body[: most.pop()]
        pieces = [body[start : start + piece] for start in range(0, len(body), piece)]
        return streamed(*pieces, *([] if whole else [cut()]))

    async def main() -> None:
        found, _ = await read(serve, give_up_after=None)
        assert found == list(range(1, last + 1))

    run_virtually(backend, main)


# --- Again, and no more ---------------------------------------------------------------------------------


async def test_the_first_delay_is_the_one_that_the_server_asks_for():
    client, server = scripted(streamed(b"retry: 3000\n\n", frame(1), cut()), streamed(end(1)))
    async with client:
        assert shown([one async for one in client.run("run-1").events()]) == [1]
    [delay] = server.delays
    assert 3 <= delay <= 4.5


async def test_the_delay_has_a_bound():
    client, server = scripted(
        streamed(b"retry: 999999999\n\n", cut()), streamed(end(0)), longest_delay=2
    )
    async with client:
        await read_all(client)
    assert server.delays[0] <= 3


async def read_all(client: WorkflowClient, **options: Any) -> list[Any]:
    return shown([one async for one in client.run("run-1").events(**options)])


async def test_it_gives_up_when_there_is_no_connection_for_a_while():
    client, server = scripted(streamed(frames(1, 2), cut()), refused(), give_up_after=30)
    async with client:
        events = client.run("run-1").events()
        assert [(await anext(events)).seq for _ in range(2)] == [1, 2]
        start = anyio.current_time()
        with pytest.raises(ServerUnreachableError, match="cannot connect") as caught:
            await anext(events)
        assert anyio.current_time() - start == pytest.approx(30)
        assert "tried" in caught.value.__notes__[0]
        assert events.cursor == 2
        with pytest.raises(ServerUnreachableError):
            await anext(events)  # it tries again, for as long
        assert anyio.current_time() - start == pytest.approx(60)
        server.answers = [streamed(frame(3), end(3))]
        assert shown([one async for one in events]) == [3]  # it may be continued


async def test_a_connection_that_never_says_anything_counts_as_none():
    client, _ = scripted(lambda _: streamed(b"retry: 500\n\n", cut()), give_up_after=30)
    async with client:
        with pytest.raises(ServerUnreachableError):
            await read_all(client)


async def test_the_time_until_it_gives_up_begins_again_with_each_good_connection():
    """Quiet streams that are cut now and then, by a proxy for example, are read for ever."""
    quiet = [streamed(b"retry: 500\n\n", 50, b":\n\n", cut()) for _ in range(20)]
    assert await read(*quiet, streamed(frame(1), end(1)), give_up_after=30) == (
        [1],
        [f"{PATH}?after=0"] * 21,
    )


async def test_a_connection_that_is_cut_whenever_nothing_happens_is_a_good_one():
    """A proxy that has less patience than the server has heartbeats."""
    quiet = [streamed(b"retry: 500\n\n", 12, cut()) for _ in range(20)]
    assert await read(*quiet, streamed(frame(1), end(1)), give_up_after=30) == (
        [1],
        [f"{PATH}?after=0"] * 21,
    )


async def test_one_iteration_may_have_a_time_of_its_own():
    client, server = scripted(refused(), give_up_after=None)
    async with client:
        with pytest.raises(ServerUnreachableError):
            await read_all(client, give_up_after=0)
        assert len(server.requests) == 1
        with pytest.raises(WorkflowConfigurationError, match="or None for that of the client"):
            client.run("run-1").events(give_up_after=-1)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_server_that_is_full_or_away_is_asked_again(status: int):
    away = answer({"title": "Away", "detail": "come back"}, status, retry_after="7")
    client, server = scripted(streamed(frame(1), cut()), away, streamed(frame(2), end(2)))
    async with client:
        assert await read_all(client) == [1, 2]
    assert server.delays[1] == pytest.approx(7)


@pytest.mark.parametrize("status", [429, 503])
async def test_a_server_that_stays_away_is_named(status: int):
    client, _ = scripted(problem(status, "come back later"), give_up_after=10)
    async with client:
        with pytest.raises(WorkflowServerError, match=f"{status} No: come back later"):
            await read_all(client)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
async def test_a_refusal_is_raised_at_once(status: int):
    refusal = problem(status, "there is no run 'run-1' here", "Not Found")
    client, server = scripted(streamed(frame(1), cut()), refusal)
    async with client:
        events = client.run("run-1").events()
        assert (await anext(events)).seq == 1
        with pytest.raises(WorkflowServerError, match="no run 'run-1' here") as caught:
            await anext(events)
    assert caught.value.request == "GET /v1/runs/run-1/events"
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "response", [httpx2.Response(200, html="<p>"), httpx2.Response(200, json={"events": []})]
)
async def test_what_is_no_event_stream_is_refused(response: Any):
    client, _ = scripted(response)
    async with client:
        with pytest.raises(WorkflowServerError, match="no answer of a workflow server"):
            await read_all(client)


async def test_a_connection_that_is_cut_once_is_not_worth_a_warning(
    caplog: pytest.LogCaptureFixture,
):
    with caplog.at_level(logging.WARNING, "anyio_workflows.client"):
        await read(streamed(frame(1), cut()), streamed(frame(2), end(2)))
        assert caplog.messages == []
        await read(streamed(frame(1), cut()), refused(), refused(), streamed(end(1)))
    assert len(caplog.messages) == 1


# --- Events ---------------------------------------------------------------------------------------------


def as_frame(document: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(document)}\n\n".encode()


async def events_of(*documents: dict[str, Any], types: Any = (), **options: Any) -> list[Any]:
    client, _ = scripted(streamed(*map(as_frame, documents), end(99)), types=types)
    async with client:
        return [one async for one in client.run("run-1").events(**options)]


async def test_an_event_of_a_known_class_is_an_instance_of_it():
    document = event_document(1, n=5)
    [record] = await events_of(document, types=[Note])
    assert record == RemoteRecord(1, 1795820220.5, Note(n=5))
    assert (record.type, record.internal, record.document) == ("Note", False, document)


async def test_an_event_of_another_class_is_a_record_of_its_data():
    [record] = await events_of(event_document(1, "Loud", ["Note"], n=5), types=[Note])
    assert record.event == RemoteEvent("Loud", ("Note",), {"n": 5})
    assert record.type == "Loud"


@pytest.mark.parametrize("data", [{"n": "5"}, {}, {"n": 5, "m": 6}, {"$too_large": 300_000}])
async def test_data_that_does_not_fit_the_class_is_not_lost(data: dict[str, Any]):
    document = event_document(1) | {"data": data}
    [record] = await events_of(document, types=[Note])
    assert record.event == RemoteEvent("Note", (), data)


async def test_data_that_was_too_large_is_no_field():
    document = event_document(1, "StopEvent") | {"data": {"$too_large": 300_000}}
    [record] = await events_of(document)
    assert record.event == RemoteEvent("StopEvent", (), {"$too_large": 300_000})


async def test_the_classes_of_the_library_are_known():
    failed = WorkflowFailedEvent(
        step_name="buy", exception=ValueError("sold out"), attempts=2, elapsed_seconds=1.0
    )
    documents = [
        event_document(1, "StopEvent") | {"data": to_data(StopEvent(result=[1, {"a": None}]))},
        event_document(2, "WorkflowFailedEvent") | {"data": to_data(failed)},
    ]
    stop, failure = await events_of(*documents)
    assert stop.event == StopEvent(result=[1, {"a": None}])
    assert isinstance(failure.event, WorkflowFailedEvent)
    assert (failure.event.step_name, str(failure.event.exception)) == ("buy", "sold out")


async def test_internal_events_have_the_number_of_the_event_before():
    internal = event_document(1, "WorkflowIdleEvent") | {"internal": True}
    client, server = scripted(
        streamed(frame(1), as_frame(internal), as_frame(internal), cut()),
        streamed(as_frame(internal), frame(2), end(2)),
    )
    async with client:
        events = client.run("run-1").events(internal=True)
        found = [one async for one in events]
        assert events.cursor == 2
    assert shown(found) == [1, 1, 1, 1, 2]
    assert [one.internal for one in found] == [False, True, True, True, False]
    assert found[1].event == WorkflowIdleEvent()
    assert server.asked == [f"{PATH}?internal=1&after=0", f"{PATH}?internal=1&after=1"]


async def test_types_are_asked_for_by_their_names():
    client, server = scripted(streamed(frame(2, "Loud"), frame(9, "Note"), end(12)))
    async with client:
        assert await read_all(client, types=[Loud, "Note"]) == [2, 9]
        for wrong in ("Note", Note, 5):
            with pytest.raises(WorkflowConfigurationError, match="a list of event classes or of"):
                client.run("run-1").events(types=wrong)  # type: ignore[arg-type]
    assert server.requests[0].url.params["types"] == "Loud,Note"


@pytest.mark.parametrize("after", [-1, "3", 1.0, True, None])
async def test_a_cursor_is_a_number(after: Any):
    client, _ = scripted(NOTHING_LEFT)
    async with client:
        with pytest.raises(
            WorkflowConfigurationError, match="after must be the number of the last"
        ):
            client.run("run-1").events(after)


# --- Leaving, and coming back -----------------------------------------------------------------------------


@asynccontextmanager
async def reading(first: Any) -> AsyncIterator[tuple[RemoteEvents, Streamed]]:
    """Give an iterator whose first event was read, and the body of the answer."""
    body, (client, _) = first.stream, scripted(first)
    async with client:
        events = client.run("run-1").events()
        assert (await anext(events)).seq == 1
        yield events, body


async def test_an_iteration_that_was_left_continues_over_the_same_connection():
    client, server = scripted(streamed(frames(1, 2), frames(3, 4), end(4)))
    async with client:
        events = client.run("run-1").events()
        async for record in events:
            if record.seq == 3:
                break
        assert shown([one async for one in events]) == [4]
    assert len(server.requests) == 1


async def test_a_connection_that_was_left_is_closed_with_the_client():
    async with reading(streamed(frame(1), frame(2), frame(3))) as (_, body):
        assert not body.closed
    assert body.closed


async def test_a_connection_is_closed_even_if_its_client_is_cancelled():
    with anyio.CancelScope() as scope:
        async with reading(streamed(frame(1), frame(2), frame(3))) as (_, body):
            scope.cancel()
    assert body.finished


async def test_a_connection_whose_iterator_was_dropped_is_closed_by_the_next_request():
    first = streamed(frame(1), frame(2), frame(3))
    body, (client, _) = first.stream, scripted(first, answer({"workflows": []}))
    async with client:
        async for _ in client.run("run-1").events():
            break
        gc.collect()
        await client.workflows()
        assert body.closed


async def test_an_iteration_may_be_closed():
    async with reading(streamed(frame(1), frame(2), frame(3))) as (events, body):
        await events.aclose()
        assert body.closed
        assert [one async for one in events] == []
        await events.aclose()


async def test_closing_it_ends_a_task_that_waits():
    async with reading(streamed(frame(1), 10_000, frame(2))) as (events, _):
        found: list[Any] = []

        async def wait() -> None:
            found.extend([one async for one in events])

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.sleep(1)
            with pytest.raises(
                WorkflowRuntimeError, match="another task waits for an event of this"
            ):
                await anext(events)
            await events.aclose()
        assert found == []
        assert anyio.current_time() < 9000


async def test_leaving_the_client_ends_a_task_that_waits():
    client, _ = scripted(streamed(frame(1), 10_000, frame(2)))

    async def wait(events: RemoteEvents) -> None:
        with pytest.raises(WorkflowRuntimeError, match="its 'async with' block has been left"):
            await read_on(events)

    async def read_on(events: RemoteEvents) -> None:
        async for _ in events:
            pass

    async with anyio.create_task_group() as group, client:
        start = anyio.current_time()
        group.start_soon(wait, client.run("run-1").events())
        await anyio.sleep(1)
    assert anyio.current_time() - start == pytest.approx(1)


async def test_a_wait_that_is_cancelled_closes_the_connection_and_the_next_one_makes_another():
    first = streamed(frame(1), 10_000)
    body = first.stream
    client, server = scripted(first, streamed(5, frame(2), end(2)))
    async with client:
        events = client.run("run-1").events()
        assert (await anext(events)).seq == 1
        with anyio.move_on_after(10) as scope:
            await anext(events)
        assert scope.cancelled_caught
        assert body.closed
        assert shown([one async for one in events]) == [2]
    assert server.asked[1] == f"{PATH}?after=1"
    assert server.delays == pytest.approx([10])  # it was no failure, so there is no delay


@on_each_backend
@pytest.mark.parametrize("turns", range(40))
def test_wherever_a_wait_is_cancelled_nothing_is_lost_or_repeated(backend: str, turns: int):
    """A reader is cancelled after so many turns of the event loop, again and again."""

    def serve(request: httpx2.Request) -> httpx2.Response:
        after = int(request.url.params["after"])
        pieces = [frames(after + 1, min(after + 2, 6)), frames(min(after + 3, 7), 6), end(6)]
        return streamed(b"retry: 1\n\n", *pieces)

    async def main() -> None:
        client, _ = scripted(serve)
        found: list[Any] = []
        ended = False

        async def read_on(events: RemoteEvents) -> None:
            nonlocal ended
            async for one in events:
                found.append(one)
            ended = True

        async with client:
            events = client.run("run-1").events()
            for more in range(100):
                async with anyio.create_task_group() as group:
                    group.start_soon(read_on, events)
                    for _ in range(turns + more):
                        await anyio.lowlevel.checkpoint()
                    group.cancel_scope.cancel()
                if ended:
                    break
        assert ended
        assert shown(found) == [1, 2, 3, 4, 5, 6]

    run_virtually(backend, main)


async def test_a_reader_that_always_finds_an_event_lets_others_run():
    client, _ = scripted(streamed(frames(1, 1000), end(1000)))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with client, anyio.create_task_group() as group:
        group.start_soon(count)
        assert len(await read_all(client)) == 1000
        assert turns >= 10
        group.cancel_scope.cancel()


async def test_what_an_iterator_is_can_be_seen():
    async with reading(streamed(frame(1), frame(2), end(2))) as (events, _):
        assert repr(events) == f"<RemoteEvents of {URL}/v1/runs/run-1/events: after event 1, open>"
        async for _ in events:
            pass
        assert repr(events).endswith(": after event 2, ended>")


@pytest.mark.parametrize("runner", BARE_RUNNERS)
def test_any_event_loop_will_do(runner: Any):
    async def main() -> None:
        cuts = [streamed(b"retry: 1\n\n", frames(1, 2), cut()), refused()]
        found, _ = await read(*cuts, streamed(frame(3), end(3)), longest_delay=0.01)
        assert found == [1, 2, 3]
        client, _ = scripted(streamed(frame(1), 10_000))
        async with client:
            events = client.run("run-1").events()
            await anext(events)
            with anyio.move_on_after(0.01) as scope:
                await anext(events)
            assert scope.cancelled_caught

    run_bare(runner, main)


LEAVES_LOOPS = """
    import gc, warnings, anyio, sys
    if {fallback}:
        sys.modules["httpx2"] = None
    from anyio_workflows import Context, Event, StartEvent, StopEvent, Workflow, step
    from anyio_workflows.client import WorkflowClient
    from anyio_workflows.server import WorkflowServer

    class Many(Workflow):
        @step
        async def write(self, ctx: Context, ev: StartEvent) -> StopEvent:
            for n in range(500):
                ctx.write_event_to_stream(Event())
            return StopEvent()

    async def main():
        server = WorkflowServer()
        server.add_workflow("many", Many())
        async with anyio.create_task_group() as group:
            url = await group.start(lambda *, task_status: server.serve(port=0, task_status=task_status))
            async with WorkflowClient(url) as client:
                run = await client.start("many")
                async for _ in run.events():
                    break  # dropped
                kept = run.events()
                async for _ in kept:
                    break
                with anyio.move_on_after(0.05):
                    async for _ in kept:
                        pass
                gc.collect()
                print(len([one async for one in run.events()]))
                left = run.events()
                async for _ in left:
                    break
            del left, kept
            gc.collect()
            print(type(client._made).__module__.partition(".")[0])
            group.cancel_scope.cancel()

    anyio.run(main, backend={backend!r})
"""


@on_each_backend
@pytest.mark.parametrize("fallback", [False, True])
def test_no_generator_is_left_half_way(backend: str, fallback: bool):
    """Trio warns of those; and httpx, which older programs have, does not close its own."""
    for module in ("starlette", "orjson", "uvicorn", "hypercorn"):
        pytest.importorskip(module)
    if fallback:
        pytest.importorskip("httpx")
    ran = run_script(LEAVES_LOOPS.format(backend=backend, fallback=fallback))
    assert "Async generator" not in ran.stderr
    assert ran.stdout.split() == ["501", "httpx" if fallback else "httpx2"]
    assert ran.returncode == 0


def test_without_httpx_the_extra_is_named():
    ran = run_script(
        """
        import sys
        sys.modules["httpx2"] = sys.modules["httpx"] = None
        import anyio_workflows
        try:
            import anyio_workflows.client
        except ImportError as error:
            print(error)
        """
    )
    assert ran.stdout.strip() == (
        'anyio_workflows.client needs httpx2: pip install "anyio-workflows[client]"'
    )
