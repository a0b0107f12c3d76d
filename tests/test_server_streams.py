"""Streams and pages of events: what they have and how they end (H2), and how many there are (H7); in process."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import anyio
import attrs
import pytest
from anyio.abc import TaskStatus

pytest.importorskip("starlette")
pytest.importorskip("orjson")

from anyio_workflows import Context, Event, Runtime, StartEvent, StopEvent, Workflow, step
from anyio_workflows._documents import describe_record, time_text
from anyio_workflows.instrument import EventRecord
from anyio_workflows.runtime import MemoryData, MemoryStore
from anyio_workflows.server import WorkflowServer, _frames

from .asking import Asker, Frame, Streamed, asking

pytestmark = pytest.mark.anyio

LINES = {"accept": "application/x-ndjson"}
PAGE = {"accept": "application/json"}


class Said(Event):
    text: str


class Loud(Said):
    pass


class Go(Event):
    pass


class Talk(Workflow[str]):
    """Say something each time it is told to, until that is the word `end`."""

    mended = True

    @step
    async def talk(self, ctx: Context, ev: StartEvent) -> StopEvent:
        while True:
            word = await ctx.wait_for_event(Said, timeout=None)
            if word.text == "end":
                return StopEvent(result="over")
            if word.text == "fail" and not self.mended:
                raise ValueError("failed")
            kind = Loud if word.text.isupper() else Said
            ctx.write_event_to_stream(kind(text=word.text))


class Stubborn(Workflow[None]):
    @step
    async def stay(self, ev: StartEvent) -> StopEvent:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(100)
        return StopEvent()


TALK = Talk(timeout=None)


async def a_run(server: Asker, *words: str, run_id: str = "r") -> str:
    """Start a run that says these words, and return its path."""
    await server.post("/v1/workflows/talk/runs", {"run_id": run_id})
    path = f"/v1/runs/{run_id}"
    await say(server, path, *words)
    return path


async def say(server: Asker, path: str, *words: str) -> None:
    for word in words:
        for _ in range(100):
            if (await server.get(f"{path}/questions"))["questions"]:
                break
            await anyio.sleep(0.1)
        await server.post(f"{path}/events", {"type": "Said", "data": {"text": word}})
    await anyio.sleep(1)


async def raw(streamed: Streamed) -> bytes:
    """Return what is there."""
    found = b""
    await anyio.sleep(0.01)
    while streamed.chunks.statistics().current_buffer_used:
        found += await streamed.chunks.receive()
    return found


def texts(events: list[Any]) -> list[str]:
    return [event["data"].get("text", event["type"]) for event in events]


async def frames(server: Asker, path: str, **headers: str) -> list[Frame]:
    async with server.streaming("GET", path, headers=headers) as streamed:
        assert streamed.status == 200
        return [frame async for frame in streamed.frames()]


# --- What is sent -----------------------------------------------------------------------------------


async def test_a_stream_begins_with_when_to_come_back():
    async with asking(TALK) as server:
        path = await a_run(server)
        waits = set()
        for _ in range(5):
            async with server.streaming("GET", f"{path}/events") as streamed:
                name, _, number = (await raw(streamed)).strip().partition(b": ")
                assert name == b"retry"
                waits.add(int(number))
        assert len(waits) > 1
        assert min(waits) >= 500
        assert max(waits) <= 2000


async def test_the_headers_of_a_stream():
    async with asking(TALK) as server:
        path = await a_run(server)
        async with server.streaming("GET", f"{path}/events") as streamed:
            expected = {
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-store",
                "x-accel-buffering": "no",
                "connection": "close",
            }
            assert expected.items() <= streamed.headers.items()
        for version in ("2", "3"):  # where this header is an error
            asker = attrs.evolve(server, http_version=version)
            async with asker.streaming("GET", f"{path}/events") as streamed:
                assert "connection" not in streamed.headers


async def test_head_opens_no_stream():
    async with asking(TALK) as server:
        path = await a_run(server, "a")
        for accept in ("*/*", *LINES.values(), *PAGE.values()):
            with anyio.fail_after(1):
                query = "after=1&wait=60"
                asked = await server.ask("HEAD", f"{path}/events?{query}", None, {"accept": accept})
            assert asked.status == 200
        assert asked.headers["content-type"] == "application/json"
        assert (await server.get(path))["log"]["readers"] == 0


async def test_lines_have_events_and_the_end():
    async with asking(TALK) as server:
        path = await a_run(server, "a", "end")
        answered = await server.ask("GET", f"{path}/events", headers=LINES)
        assert answered.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in answered.body.splitlines()]
        assert [line.get("seq") for line in lines] == [1, 2, None]
        assert lines[-1] == {"end": {"status": "completed", "last": 2}}
        assert (await server.ask("GET", f"{path}/events?after=2", headers=LINES)).status == 204


async def test_a_reader_is_told_what_it_missed():
    async with asking(Runtime(workflows=[TALK], log_events=2)) as server:
        path = await a_run(server, "a", "b", "c", "d")
        gap = {"first": 1, "last": 2, "reason": "trimmed"}
        async with (
            server.streaming("GET", f"{path}/events") as streamed,
            aclosing(streamed.frames()) as found,
        ):
            assert await anext(found) == Frame("gap", None, gap)
            assert (await anext(found)).id == "3"
        async with server.streaming("GET", f"{path}/events", headers=LINES) as streamed:
            assert json.loads((await raw(streamed)).splitlines()[0]) == {"gap": gap}
        page = await server.get(f"{path}/events", **PAGE)
        assert page["gap"] == gap
        assert texts(page["events"]) == ["c", "d"]


async def test_larger_data_is_only_measured():
    async with asking(TALK, max_frame=100) as server:
        path = await a_run(server, "a" * 89, "b" * 90, "end")
        (first, second, *_) = await frames(server, f"{path}/events")
        assert first.data["data"] == {"text": "a" * 89}
        assert second.data["data"] == {"$too_large": len('{"text":""}') + 90}
        assert (second.id, second.data["type"]) == ("2", "Said")


async def test_an_event_is_encoded_once_for_all_readers(monkeypatch: pytest.MonkeyPatch):
    encoded: list[Event] = []

    def to_data(event: Event, **options: Any) -> Any:
        encoded.append(event)
        return {}

    monkeypatch.setattr(_frames, "to_data", to_data)
    async with asking(TALK) as server:
        path = await a_run(server, "a", "b")
        for headers in (LINES, PAGE, {}, {}):
            async with server.streaming("GET", f"{path}/events", headers=headers) as streamed:
                await raw(streamed)
        assert len(encoded) == 2


class Hurry(Workflow[None]):
    @step
    async def hurry(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await anyio.sleep(1)
        for number in range(200):
            ctx.write_event_to_stream(Said(text=str(number)))
            await anyio.sleep(0.001)
        return StopEvent()


async def test_events_that_come_in_quick_succession_share_writes_and_the_first_waits_for_nothing():
    async with asking(Hurry()) as server:
        async with server.streaming(
            "POST", "/v1/workflows/hurry/runs", {}, {"accept": "text/event-stream"}
        ) as streamed:
            begun, seen = anyio.current_time(), []
            async for chunk in streamed.chunks:
                seen.append((anyio.current_time() - begun, chunk.count(b"id: ")))
        assert seen[0] == (0, 0)
        assert seen[1] == (pytest.approx(1), 1)
        assert sum(events for _, events in seen) == 201
        assert len(seen) <= 25


# --- Types ------------------------------------------------------------------------------------------


async def test_types_are_names_of_classes_or_of_their_bases():
    async with asking(TALK) as server:
        path = await a_run(server, "a", "B", "c", "D", "end")
        for types, found in [
            ("Loud", "B D"),
            ("Said", "a B c D"),
            ("Loud,StopEvent", "B D StopEvent"),
            ("Nothing", ""),
            ("", ""),
        ]:
            page = await server.get(f"{path}/events?types={types}", **PAGE)
            assert texts(page["events"]) == found.split()
            assert (page["next"], page["done"]) == (5, True)
            streamed = await frames(server, f"{path}/events?types={types}")
            assert texts([frame.data for frame in streamed[:-1]]) == found.split()
            assert streamed[-1].event == "end"


async def test_a_reader_of_some_types_keeps_the_cursor_of_all():
    """An EventSource that never sees the last event would come back for it for ever."""
    async with asking(TALK) as server:
        path = await a_run(server, "A", "b")
        async with server.streaming("GET", f"{path}/events?types=Loud") as streamed:
            assert (await raw(streamed)).rstrip().endswith(b"}")
            await anyio.sleep(20)
            assert await raw(streamed) == b"id: 2\n\n"
            await say(server, path, "c", "end")
            assert (await raw(streamed)).startswith(b"id: 4\n\nevent: end\n")


async def test_a_long_poll_waits_for_the_types_it_asked_for():
    async with asking(TALK) as server:
        path = await a_run(server)
        pages: list[Any] = []

        async def poll() -> None:
            pages.append(await server.get(f"{path}/events?types=Loud&wait=60", **PAGE))

        async with anyio.create_task_group() as group:
            group.start_soon(poll)
            await say(server, path, "a", "b")
            assert not pages
            await say(server, path, "C")
        assert texts(pages[0]["events"]) == ["C"]
        assert pages[0]["next"] == 3


# --- Pages ------------------------------------------------------------------------------------------


async def test_pages_follow_one_another():
    async with asking(TALK) as server:
        path = await a_run(server, "a", "b", "c", "end")
        cursor, found, done = 0, [], []
        while not done or not done[-1]:
            page = await server.get(f"{path}/events?after={cursor}&limit=2", **PAGE)
            found += texts(page["events"])
            done.append(page["done"])
            cursor = page["next"]
        assert found == ["a", "b", "c", "StopEvent"]
        assert done == [False, True]
        page = await server.get(f"{path}/events?after=4", **PAGE)
        assert page == {"events": [], "next": 4, "done": True, "gap": None}


async def test_a_page_is_bounded_in_bytes():
    async with asking(TALK) as server:
        path = await a_run(server, *["x" * 200_000] * 8)
        page = await server.get(f"{path}/events", **PAGE)
        assert 5 <= len(page["events"]) < 8
        assert page["next"] == len(page["events"])


async def test_a_long_poll_waits_for_one_event_and_no_longer_than_it_was_told():
    async with asking(TALK, max_wait=30) as server:
        path = await a_run(server, "a")
        began = anyio.current_time()
        empty = {"events": [], "next": 1, "done": False, "gap": None}
        assert await server.get(f"{path}/events?after=1&wait=10", **PAGE) == empty
        assert anyio.current_time() - began == pytest.approx(10)
        assert await server.get(f"{path}/events?after=1&wait=999", **PAGE) == empty
        assert anyio.current_time() - began == pytest.approx(40)
        assert await server.get(f"{path}/events?after=1", **PAGE) == empty
        assert texts((await server.get(f"{path}/events?wait=10", **PAGE))["events"]) == ["a"]
        assert anyio.current_time() - began == pytest.approx(40)


async def test_polls_that_give_up_at_any_moment_miss_nothing():
    async with asking(TALK) as server:
        path = await a_run(server)
        found: list[str] = []

        async def poll() -> None:
            cursor, done = 0, False
            while not done:
                page = await server.get(f"{path}/events?after={cursor}&wait=0.07", **PAGE)
                found.extend(texts(page["events"]))
                cursor, done = page["next"], page["done"]

        words = [str(n) for n in range(20)]
        async with anyio.create_task_group() as group:
            group.start_soon(poll)
            await say(server, path, *words, "end")
        assert found == [*words, "StopEvent"]


# --- Heartbeats -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("headers", "heartbeat"), [({}, b":\n\n"), (LINES, b"\n")])
async def test_a_silent_stream_has_a_heartbeat(headers: dict[str, str], heartbeat: bytes):
    async with asking(TALK) as server:
        path = await a_run(server)
        async with server.streaming("GET", f"{path}/events", headers=headers) as streamed:
            await raw(streamed)
            for _ in range(3):
                await anyio.sleep(15)
                assert await raw(streamed) == heartbeat


async def test_a_stream_that_is_not_silent_needs_no_heartbeat():
    async with asking(TALK) as server:
        path = await a_run(server)
        async with server.streaming("GET", f"{path}/events") as streamed:
            await raw(streamed)
            for n in range(1, 10):
                await say(server, path, "a")
                await anyio.sleep(5)
                assert (await raw(streamed)).startswith(b"id: %d\n" % n)


# --- Clients that leave, and clients that do not read --------------------------------------------------


async def readers_of(server: Asker, path: str) -> int:
    await anyio.sleep(0.1)
    return (await server.get(path))["log"]["readers"]


async def test_a_client_that_leaves_is_noticed_while_nothing_is_written():
    async with asking(TALK) as server:
        path = await a_run(server)
        for headers in ({}, LINES):
            async with server.streaming("GET", f"{path}/events", headers=headers):
                await anyio.sleep(1)
                assert await readers_of(server, path) == 1
            assert await readers_of(server, path) == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/events?wait=60"), ("GET", "?wait=60"), ("POST", "/cancel?wait=60")],
)
async def test_nobody_waits_for_a_client_that_has_left(method: str, path: str):
    async with asking(Stubborn(timeout=None, cleanup_timeout=1000)) as server:
        run = await server.post("/v1/workflows/stubborn/runs", {"run_id": "r"})
        messages = [{"type": "http.request", "body": b"", "more_body": False}]
        scope = server.scope(method, f"/v1/runs/{run['id']}{path}", PAGE)

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await anyio.sleep(3)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        began = anyio.current_time()
        await server.app(scope, receive, send)
        assert anyio.current_time() - began == pytest.approx(3, abs=0.5)
        assert await readers_of(server, "/v1/runs/r") == 0


async def test_a_server_that_says_in_send_that_the_client_has_left():
    """As ASGI has it since version 2.4."""
    async with asking(TALK) as server:
        path = await a_run(server, "a")
        asked = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            if asked:
                return asked.pop()
            return await anyio.sleep_forever()

        for failing in ("http.response.start", "http.response.body"):

            async def send(message: Any, failing: str = failing) -> None:
                if message["type"] == failing:
                    raise BrokenPipeError

            with anyio.fail_after(1):
                await server.app(server.scope("GET", f"{path}/events", {}), receive, send)
            assert await readers_of(server, path) == 0


async def test_a_server_that_says_at_the_end_that_the_client_has_left():
    """Hypercorn does it before it closes the connection: the last sending is not to be cancelled by that."""
    async with asking(TALK) as server:
        path = await a_run(server, "a", "end")
        asked, is_over, is_closed = [{"type": "http.request", "body": b""}], anyio.Event(), False

        async def receive() -> Any:
            if asked:
                return asked.pop()
            await is_over.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            nonlocal is_closed
            if message["type"] == "http.response.body" and not message.get("more_body"):
                is_over.set()
                await anyio.sleep(1)
                is_closed = True

        await server.app(server.scope("GET", f"{path}/events", {}), receive, send)
        assert is_closed


@pytest.mark.parametrize("query", ["", "?on_disconnect=cancel"])
async def test_a_run_is_cancelled_with_its_client_if_that_was_asked_for(query: str):
    async with asking(TALK) as server:
        async with server.streaming(
            "POST", f"/v1/workflows/talk/runs{query}", {}, {"accept": "text/event-stream"}
        ) as streamed:
            path = streamed.headers["location"]
            await anyio.sleep(1)
            assert (await server.get(path))["status"] == "waiting"
        await anyio.sleep(1)
        assert (await server.get(path))["status"] == ("cancelled" if query else "waiting")


async def test_a_stream_that_the_server_ends_cancels_no_run():
    """Servers say that the client has left at the end of each response, too."""
    runtime = Runtime(workflows=[TALK])
    async with runtime, asking(runtime) as server:
        async with server.streaming(
            "POST",
            "/v1/workflows/talk/runs?on_disconnect=cancel",
            {},
            {"accept": "text/event-stream"},
        ) as streamed:
            await server.server._context.streams.stop(1)
            await streamed.rest()
        await anyio.sleep(1)
        [info] = (await runtime.runs()).runs
        assert info.status == "waiting"


async def test_a_client_that_does_not_read_holds_up_nobody_and_little_is_kept_for_it():
    async with asking(Runtime(workflows=[TALK], log_events=5)) as server:
        path = await a_run(server)
        slow = attrs.evolve(server, buffer=1)
        async with slow.streaming("GET", f"{path}/events") as streamed:
            for n in range(20):
                await say(server, path, str(n))
            assert (await server.get(path))["log"]["kept"] == 5
            # What was sent before it stopped reading, and what is in memory, with a gap between.
            found = []
            async with aclosing(streamed.frames()) as frames_:
                while not found or found[-1].id != "20":
                    found.append(await anext(frames_))
        gaps = [frame.data for frame in found if frame.event == "gap"]
        assert len(gaps) == 1
        assert gaps[0]["last"] == 15
        ids = [int(frame.id or 0) for frame in found if frame.id]
        assert ids == [*range(1, gaps[0]["first"]), *range(16, 21)]


# --- The end of the server --------------------------------------------------------------------------


async def test_streams_end_between_two_events_and_waits_with_what_there_is():
    runtime = Runtime(workflows=[TALK])
    async with runtime, asking(runtime) as server:
        path = await a_run(server, "a")
        answers: dict[str, Any] = {}

        async def ask(name: str, method: str, path: str, headers: dict[str, str]) -> None:
            answers[name] = await server.ask(method, path, None, headers)

        async with anyio.create_task_group() as group:
            group.start_soon(ask, "stream", "GET", f"{path}/events", {})
            group.start_soon(ask, "poll", "GET", f"{path}/events?after=1&wait=60", PAGE)
            group.start_soon(ask, "run", "GET", f"{path}?wait=60", {})
            await anyio.sleep(1)
            assert not answers
            began = anyio.current_time()
            await server.server._context.streams.stop(5)
        assert anyio.current_time() - began < 1
        assert answers["stream"].body.endswith(b"}}\n\n")
        assert b"event: end" not in answers["stream"].body
        assert answers["poll"].json()["next"] == 1
        assert answers["run"].json()["status"] == "waiting"
        assert (await server.ask("GET", path)).status == 503


async def test_a_client_that_does_not_read_is_waited_for_so_long_and_then_cut_off():
    async with asking(TALK) as server:
        path = await a_run(server)
        slow = attrs.evolve(server, buffer=0)
        streams = server.server._context.streams
        async with slow.streaming("GET", f"{path}/events"):
            began = anyio.current_time()
            await streams.stop(5)
            assert anyio.current_time() - began == pytest.approx(5, abs=0.1)
            assert streams.readers == 1
    assert streams.readers == 0


async def test_an_application_whose_lifespan_ends_leaves_no_stream_open():
    bodies: list[bytes] = []

    async def follow(server: Asker, path: str) -> None:
        bodies.append((await server.ask("GET", f"{path}/events")).body)

    async with anyio.create_task_group() as group, asking(TALK) as server:
        path = await a_run(server)
        group.start_soon(follow, server, path)
        await anyio.sleep(1)
        assert server.server._context.streams.readers == 1
    assert server.server._context.streams.readers == 0
    assert bodies[0].startswith(b"retry")


async def test_a_server_can_start_again():
    server = WorkflowServer()
    server.add_workflow("talk", TALK)
    for _ in range(2):
        async with server.lifespan():
            asker = Asker(server.app)
            path = await a_run(asker, "end")
            assert (await frames(asker, f"{path}/events"))[-1].event == "end"


# --- Limits -----------------------------------------------------------------------------------------


async def test_there_are_so_many_readers_of_a_run_and_so_many_in_all():
    async with asking(TALK, max_readers=3, max_readers_per_run=2) as server:
        one, two = await a_run(server, run_id="one"), await a_run(server, run_id="two")
        open_: list[Callable[[], Any]] = []

        async def follow(path: str, headers: dict[str, str]) -> None:
            async with server.streaming("GET", f"{path}/events?wait=60", headers=headers) as found:
                if found.status == 200:
                    open_.append(found.leave)
                    await anyio.sleep_forever()

        async with anyio.create_task_group() as group:
            group.start_soon(follow, one, {})
            group.start_soon(follow, one, LINES)
            await anyio.sleep(1)
            full = await server.ask("GET", f"{one}/events")
            assert full.status == 429
            assert full.headers["retry-after"] == "5"
            assert full.detail.startswith("2 requests read the events of run one")
            poll = await server.ask("GET", f"{one}/events?wait=60", None, PAGE)
            assert poll.status == 429
            assert (await server.ask("GET", f"{one}/events", None, PAGE)).status == 200
            group.start_soon(follow, two, PAGE)  # a long poll counts while it waits
            await anyio.sleep(1)
            assert (await server.ask("GET", f"{two}/events")).status == 429
            sse = {"accept": "text/event-stream"}
            refused = await server.ask("POST", "/v1/workflows/talk/runs", {"run_id": "x"}, sse)
            assert refused.status == 429
            assert (await server.ask("GET", "/v1/runs/x")).status == 404  # it was not started
            open_[0]()
            await anyio.sleep(1)
            group.start_soon(follow, one, {})
            await anyio.sleep(1)
            assert len(open_) == 3
            group.cancel_scope.cancel()


async def test_no_more_readers_are_let_in_at_once_than_there_may_be():
    async with asking(TALK, max_readers_per_run=3) as server:
        path = await a_run(server)
        statuses: list[int] = []

        async def follow() -> None:
            async with server.streaming("GET", f"{path}/events") as found:
                statuses.append(found.status)
                await anyio.sleep(1)

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(follow)
        assert sorted(statuses) == [200] * 3 + [429] * 7


# --- What becomes of a run ---------------------------------------------------------------------------


@pytest.mark.parametrize("far", [0, 1])
async def test_a_cursor_that_is_not_of_this_run_is_refused(far: int):
    """Also with a database, where only reading tells."""
    data = MemoryData()
    for database in (None, MemoryStore(data)):
        async with asking(Runtime(database, workflows=[TALK])) as server:
            path = await a_run(server, "a")
            for headers in ({}, LINES, PAGE):
                asked = await server.ask("GET", f"{path}/events?after={2 + far}", None, headers)
                assert asked.status == 400
                assert f"event {2 + far}" in asked.detail


async def test_a_run_that_is_parked_has_an_end():
    data = MemoryData()
    async with asking(Runtime(MemoryStore(data), workflows=[TALK])) as server:
        path = await a_run(server, "a")
    data.rows["r"]["w1"] = "{"
    async with asking(Runtime(MemoryStore(data), workflows=[TALK])) as server:
        found = await frames(server, f"{path}/events")
        end = Frame("end", None, {"status": "incompatible", "last": 1})
        assert [frame.id for frame in found] == ["1", None]
        assert found[-1] == end
        page = await server.get(f"{path}/events", **PAGE)
        assert (texts(page["events"]), page["done"]) == (["a"], True)
        assert (await server.ask("GET", f"{path}/events?after=1")).status == 204


async def test_a_stream_of_a_run_that_its_runtime_lets_go_has_no_end():
    runtime, leave = Runtime(MemoryStore(), workflows=[TALK]), anyio.Event()
    bodies: list[bytes] = []

    async def run(*, task_status: TaskStatus[None]) -> None:
        async with runtime:
            task_status.started()
            await leave.wait()

    async def follow(server: Asker, path: str) -> None:
        bodies.append((await server.ask("GET", f"{path}/events")).body)

    async with anyio.create_task_group() as group:
        await group.start(run)
        async with asking(runtime) as server:
            path = await a_run(server, "a")
            group.start_soon(follow, server, path)
            await anyio.sleep(1)
            leave.set()
            await anyio.sleep(1)
            assert bodies[0].endswith(b"}}\n\n")
            assert b"event: end" not in bodies[0]


async def test_a_run_is_followed_from_another_process_and_through_a_retry():
    data, talk = MemoryData(), Talk(timeout=None)
    talk.mended = False
    async with (
        asking(Runtime(MemoryStore(data, poll=0.05), workflows=[talk])) as here,
        asking(Runtime(MemoryStore(data, poll=0.05), workflows=[talk])) as there,
    ):
        path = await a_run(here, "a")
        found: list[Frame] = []

        async def follow() -> None:
            found.extend(await frames(there, f"{path}/events"))

        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            await say(here, path, "b", "fail")
        assert [frame.id for frame in found] == ["1", "2", "3", None]
        assert found[-1].data == {"status": "failed", "last": 3}
        talk.mended = True
        await there.post(f"{path}/retry")
        async with anyio.create_task_group() as group:
            found.clear()
            group.start_soon(follow)
            await say(here, path, "c", "end")
        # The step is repeated, and says again what it said before it failed.
        assert [frame.id for frame in found] == [*"12345678", None]
        assert found[-1].data == {"status": "completed", "last": 8}


async def test_a_stream_of_a_run_that_is_removed_ends_without_an_end():
    data = MemoryData()
    bodies: list[bytes] = []
    async with asking(Runtime(MemoryStore(data, poll=0.05), workflows=[TALK])) as server:
        path = await a_run(server, "a", "end")
    data.runs["r"] = attrs.evolve(data.runs["r"], status="waiting", ended=None, owner="other")
    async with asking(Runtime(MemoryStore(data, poll=0.05), workflows=[TALK])) as server:

        async def follow() -> None:
            bodies.append((await server.ask("GET", f"{path}/events?after=1")).body)

        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            await anyio.sleep(0.01)
            del data.runs["r"], data.events["r"]
            await anyio.sleep(5)
        assert b"event: end" not in bodies[0]
        assert (await server.ask("GET", f"{path}/events")).status == 404


class Hasty(Workflow[None]):
    @step
    async def begin(self, ev: StartEvent) -> Go:
        return Go()

    @step
    async def end(self, ev: Go) -> StopEvent:
        return StopEvent()


@pytest.mark.parametrize("kept", [False, True], ids=["in memory", "in a store"])
async def test_h2_a_stream_that_starts_its_run_has_every_internal_event_of_it(kept: bool):
    store = MemoryStore(MemoryData()) if kept else None
    async with asking(Runtime(store, workflows=[Hasty()])) as server:
        path, accept = "/v1/workflows/hasty/runs?internal=1", {"accept": "text/event-stream"}
        async with server.streaming("POST", path, {}, accept) as streamed:
            found = [frame.data async for frame in streamed.frames()]
    states = [
        (one["data"]["name"], one["data"]["step_state"])
        for one in found
        if one.get("type") == "StepStateChanged"
    ]
    assert states == [
        (step, state)
        for step in ("begin", "end")
        for state in ("preparing", "running", "not_running")
    ]


async def test_internal_events_have_no_number_and_are_sent_only_if_asked_for():
    async with asking(TALK) as server:
        path = await a_run(server)
        async with (
            server.streaming("GET", f"{path}/events?internal=1") as with_internal,
            server.streaming("GET", f"{path}/events") as without,
        ):
            await say(server, path, "a", "end")
            found = [frame async for frame in with_internal.frames()]
            assert [frame.id async for frame in without.frames()] == ["1", "2", None]
        internal = [frame for frame in found if frame.data.get("internal")]
        assert internal
        assert {frame.id for frame in internal} == {None}
        assert [frame.id for frame in found if frame not in internal] == ["1", "2", None]
        assert {frame.data["type"] for frame in internal} >= {"StepStateChanged"}


@pytest.mark.parametrize(
    "seconds",
    [0.0, 1.5, 1_700_000_000.9996, 1_700_000_000.9999997, 2_318_133_599.0669994, 4e9 - 1e-7],
)
def test_the_time_of_an_event_is_written_as_other_times_are(seconds: float):
    record = EventRecord(1, seconds, Said(text="a"))
    written = describe_record(record)["time"]
    assert written == time_text(datetime.fromtimestamp(seconds, UTC))
