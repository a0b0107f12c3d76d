"""The page and its connection: a server that dies and comes back, one that asks for a token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("orjson")

from .browsing import TOKENS, Page, browsing, serving, until
from .proxying import proxying
from .running import on_each_backend


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with browsing() as driver:
        yield driver


@on_each_backend
def test_a_run_continues_after_the_server_was_killed(backend: str, driver: Any, tmp_path: Path):
    gate = tmp_path / "gate"
    with serving(backend, database=f"sqlite:///{tmp_path}/runs.db") as server:
        page = Page(driver, server.url)
        page.open()
        page.start("survey", topic="tea", sources=2, gate=gate)
        page.wait_for_step("look", "running", "1 running, 1 done")
        page.refusals_expected = True  # the browser reports that nobody answers
        server.kill()
        page.wait_for_text("#connection", "reconnecting")
        server.start()
        page.wait_for_text("#connection", "live")
        gate.touch()
        page.wait_for_text(".question", "Publish the report on tea?")
        page.one(".question [name=approved]").click()
        page.one(".question button").click()
        page.wait_for_status("completed")
        page.wait_for_text("#outcome", "published tea")
        assert page.rows() == [TOKENS, "Publish", "StopEvent"]
        page.check_console()


def streams(page: Page) -> int:
    """Return how often the page has asked for the events of a run that had been started."""
    return sum("/events?" in address for address in page.requests())


@on_each_backend
def test_connections_that_are_cut_lose_nothing_and_repeat_nothing(
    backend: str, driver: Any, tmp_path: Path
):
    gate = tmp_path / "gate"
    with serving(backend) as server, proxying(server.url) as proxy:
        page = Page(driver, proxy.url)
        page.refusals_expected = True  # the browser reports what was cut
        page.open()
        page.one("#internal").click()
        page.start("survey", topic="tea", sources=4, gate=gate)
        page.wait_for_step("look", "running", "3 running, 1 done")
        for cuts in range(3):
            proxy.cut()
            until(lambda: streams(page) == cuts + 1)  # noqa: B023 - called in this round only
            page.wait_for_text("#connection", "live")
        gate.touch()
        page.one(".question")
        proxy.cut()  # behind public events too
        until(lambda: streams(page) == 4)
        page.wait_for_text("#connection", "live")
        page.one(".question [name=approved]").click()
        page.one(".question button").click()
        page.wait_for_status("completed")
        until(lambda: page.rows()[-1:] == ["StopEvent"])
        page.wait_for_text("#time-note", "7 executions")
        changes = ["StepStateChanged"] * (3 * 7)  # queued, running, over
        changes += ["StepStateChanged"] * 2  # waiting, running again
        rows = [row for row in page.rows() if row not in (TOKENS, "Publish", "StopEvent")]
        assert [row for row in rows if row != "WorkflowIdleEvent"] == changes
        page.one("#internal").click()
        assert page.rows() == [TOKENS, "Publish", "StopEvent"]
        page.check_console()


@on_each_backend
def test_a_tab_that_nobody_looks_at_gives_its_connection_back(backend: str, driver: Any):
    # The timer of the page takes too long to wait for: its part is done by the test.
    script = """
        const [id, done] = arguments;
        window.seen = [];
        import("./api.js").then(({Feed}) => {
          const {promise, resolve} = Promise.withResolvers();
          const take = (kind, data) => {
            if (!data?.internal) window.seen.push(data.type ?? kind);
            if (kind === "message") resolve();
          };
          window.feed = new Feed(id, {take, state() {}});
          window.feed.read();
          return promise;
        }).then(done);
    """
    with serving(backend) as server:
        page = Page(driver, server.url)
        page.open()
        run_id = page.start("survey", topic="tea", sources=1)
        page.one(".question")

        def readers() -> int:
            return page.fetch(f"v1/runs/{run_id}")["log"]["readers"]

        assert readers() == 1
        driver.execute_async_script(script, run_id)
        assert readers() == 2
        seen = ["Token"] * 20 + ["Publish"]
        until(lambda: driver.execute_script("return window.seen") == seen)
        driver.execute_script("window.feed.pause()")
        until(lambda: readers() == 1)
        page.one(".question [name=approved]").click()
        page.one(".question button").click()
        page.wait_for_status("completed")
        assert driver.execute_script("return window.seen") == seen
        driver.execute_script("window.feed.resume()")
        seen += ["StopEvent", "end"]
        until(lambda: driver.execute_script("return window.seen") == seen)
        page.check_console()


@on_each_backend
def test_events_that_have_left_the_memory_are_a_gap(backend: str, driver: Any):
    with serving(backend, log_events=100) as server:
        page = Page(driver, server.url)
        page.open()
        run_id = page.start("loud", events=1000)
        page.wait_for_status("completed")
        page.open(f"#run/{run_id}")
        page.wait_for_text("#summary", "1,001 events")
        page.one("#follow").click()
        page.driver.execute_script("document.getElementById('events').scrollTop = 0")
        until(lambda: page.rows()[:2] == ["gap", "Note"])
        page.wait_for_text(".row[data-kind=gap]", "901 events from 1 on had left the memory")
        page.check_console()


@on_each_backend
def test_a_token_is_asked_for_and_kept_for_the_session(backend: str, driver: Any):
    with serving(backend, token="a-secret") as server:
        page = Page(driver, server.url)
        page.refusals_expected = True  # the browser reports what was refused
        page.open()
        page.one("#token").send_keys("a guess\n")
        page.wait_for_text("#token-fault", "does not accept")
        page.one("#token").send_keys("a-secret\n")
        page.gone("#token-dialog")
        page.start("survey", topic="tea", sources=1)
        page.one(".question")
        page.check_console()
        page.refusals_expected = False
        page.open()
        page.wait_for_text("#runs", "survey")
        page.check_console()


@on_each_backend
def test_a_token_in_the_link_is_taken_out_of_the_address(backend: str, driver: Any):
    with serving(backend, token="a+b/c") as server:
        page = Page(driver, server.url)
        page.open("#token=a%2Bb%2Fc")
        page.wait_for_text("#workflow", "survey")
        assert driver.current_url == server.url
        assert not page.one("#run-button").get_attribute("disabled")
        page.check_console()
