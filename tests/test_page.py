"""The page in a real browser: what docs/page.md promises, done as a person does it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("orjson")

from .browsing import TOKENS, Page, ServerProcess, browsing, serving, until
from .conftest import BACKENDS


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with browsing() as driver:
        yield driver


@pytest.fixture(scope="module", params=BACKENDS)
def server(request: pytest.FixtureRequest, driver: Any) -> Iterator[ServerProcess]:
    with serving(request.param) as server:
        yield server


@pytest.fixture
def page(driver: Any, server: ServerProcess) -> Iterator[Page]:
    """The page, opened; afterwards its console is empty, and no request has left the origin."""
    page = Page(driver, server.url)
    page.open()
    yield page
    page.check_console()


def answer(page: Page, approved: bool, comment: str = "") -> None:
    form = page.one(".question")
    if approved:
        form.find_element("name", "approved").click()
    form.find_element("name", "comment").send_keys(comment)
    form.find_element("css selector", "button").click()


def test_a_run_is_started_lights_up_is_answered_and_done(page: Page, tmp_path: Path):
    gate = tmp_path / "gate"
    run_id = page.start("survey", topic="tea", sources=7, gate=gate)
    page.wait_for_step("plan", "done", "1 done")
    page.wait_for_step("look", "running", "3 queued, 3 running, 1 done")
    assert page.step("write").get_dom_attribute("data-state") is None
    filled = "return getComputedStyle(document.querySelector('[data-step=look] rect')).fill"
    until(lambda: page.driver.execute_script(filled) == "rgb(223, 240, 255)")  # after a transition
    page.wait_for_status("running")
    gate.touch()
    page.wait_for_step("look", "done", "7 done")
    page.wait_for_step("review", "waiting", "1 waiting")
    page.wait_for_status("waiting")
    page.wait_for_text(".question", "Publish the report on tea?")
    page.wait_for_text(f"[data-run='{run_id}']", "1 question")
    answer(page, approved=True)
    page.wait_for_status("completed")
    page.wait_for_text("#outcome", "published tea")
    page.wait_for_step("review", "done", "1 done")
    assert page.all(".question") == []
    assert page.rows() == [TOKENS, "Publish", "StopEvent"]
    page.wait_for_text("#time-note", "10 executions")


def test_a_failed_run_says_why_and_is_retried(page: Page, tmp_path: Path):
    gate = tmp_path / "gate"
    page.start("fragile", gate=gate)
    page.wait_for_status("failed")
    page.wait_for_text("#outcome", "ConnectionError")
    page.wait_for_text("#outcome", "the host cannot be reached")
    page.wait_for_text("#outcome", "in step fetch, after 2 attempts")
    page.wait_for_step("fetch", "failed", "1 failed, 1 retried")
    gate.touch()
    page.one("#retry").click()
    page.wait_for_status("completed")
    page.wait_for_text("#outcome", "fetched")
    until(lambda: page.rows() == ["WorkflowFailedEvent", "StopEvent"])


def test_a_run_is_cancelled_and_deleted(page: Page, tmp_path: Path):
    run_id = page.start("held", gate=tmp_path / "gate")
    page.wait_for_step("hold", "running", "1 running")
    page.one("#cancel").click()
    page.wait_for_status("cancelled")
    page.one("#delete").click()
    page.wait_for_text("#delete", "Delete for good?")
    # Again, if the page has stopped waiting for the second click meanwhile.
    click = "document.getElementById('delete').click()"
    until(lambda: "No run" in page.text("#run-title") or page.driver.execute_script(click))
    page.gone(f"[data-run='{run_id}']")


def test_two_tabs_see_one_run_and_a_question_is_answered_once(page: Page):
    run_id = page.start("survey", topic="tea", sources=1)
    page.one(".question")
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    page.driver.get(f"{page.url}#run/{run_id}")
    page.one(".question")
    answer(page, approved=True)
    page.wait_for_status("completed")
    page.driver.close()
    page.driver.switch_to.window(first)
    page.gone(".question")
    page.wait_for_status("completed")
    until(lambda: page.rows() == [TOKENS, "Publish", "StopEvent"], page.rows)


def test_who_answers_second_is_told_so(page: Page):
    run_id = page.start("survey", topic="tea", sources=1)
    page.one(".question")
    # The browser reports each answer that is not a success.
    page.refusals_expected = True
    script = """
        const [id, done] = arguments;
        window.said = "";
        new MutationObserver(changes => changes.forEach(one => one.addedNodes.forEach(added => {
          window.said += added.textContent;
        }))).observe(document.getElementById("notices"), {childList: true});
        fetch(`v1/runs/${id}/questions`).then(r => r.json()).then(({questions: [{id: question}]}) =>
          fetch(`v1/runs/${id}/questions/${question}`, {
            method: "POST", headers: {"content-type": "application/json"},
            body: JSON.stringify({data: {approved: false, comment: "no"}})}))
          .then(() => document.querySelector(".question")?.requestSubmit()).then(done)
    """
    page.driver.execute_async_script(script, run_id)
    page.gone(".question")
    until(lambda: "answered" in page.driver.execute_script("return window.said"))
    page.wait_for_status("failed")


def test_everything_works_by_keyboard_alone(page: Page):
    from selenium.webdriver import ActionChains, Keys

    def press(*keys: str) -> None:
        ActionChains(page.driver).send_keys(*keys).perform()

    def tab_to(selector: str) -> None:
        script = "return document.activeElement?.matches(arguments[0]) ?? false"
        for _ in range(60):
            if page.driver.execute_script(script, selector):
                return
            press(Keys.TAB)
        raise AssertionError(f"{selector} is not reached")

    page.one("#input [name=topic]")
    tab_to("#input [name=topic]")
    press("tea")
    tab_to("#run-button")
    press(Keys.ENTER)
    page.one(".question")
    assert page.driver.switch_to.active_element == page.one("#run-button")
    tab_to(".question [name=approved]")
    press(Keys.SPACE)
    tab_to(".question button")
    press(Keys.ENTER)
    page.wait_for_status("completed")
    page.gone(".question")
    assert page.driver.switch_to.active_element == page.one("#events")
    tab_to("[data-step=review]")
    press(Keys.ENTER)
    page.wait_for_text("#step-filter", "step review")
    assert TOKENS not in page.rows()
    press(Keys.ENTER)
    page.gone("#step-filter")
    tab_to("#timeline")
    press(Keys.ARROW_RIGHT)
    page.wait_for_text("#inspector-title", "plan #1")
    tab_to("#events")
    press(Keys.HOME)
    page.wait_for_text("#inspector-title", f"{TOKENS}, events 1 to 20")
    page.wait_for_text("#json", "word0 word1 word2")
    press(Keys.ARROW_RIGHT)
    page.one("#events [aria-expanded=true]")
    press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    page.wait_for_text("#inspector-title", "2 Token")
    press(Keys.ESCAPE)
    page.gone("#inspector")
    press("/")
    press("publish")
    until(lambda: page.rows() == ["Publish", "StopEvent"])
    tab_to("#delete")
    press(Keys.ENTER)
    page.wait_for_text("#delete", "Delete for good?")
    until(lambda: "No run" in page.text("#run-title") or press(Keys.ENTER))


def test_a_link_leads_to_a_run_and_to_an_event(page: Page):
    run_id = page.start("loud", events=2000)
    page.wait_for_status("completed")
    page.open(f"#run/{run_id}/1234")
    page.wait_for_text("#inspector-title", "1234 Note")
    page.wait_for_text("#json", '"number": 1233')
    assert page.one("[aria-selected=true] .seq").text == "1234"
    page.open(f"#run/{run_id}")
    page.wait_for_status("completed")
    until(lambda: page.rows()[-1:] == ["StopEvent"])
    page.refusals_expected = True
    page.open("#run/no-such-run")
    page.wait_for_text("#no-events", "There is no run no-such-run")


def test_a_run_that_was_not_followed_has_its_counts_all_the_same(page: Page):
    script = """
        const [done] = arguments;
        fetch("v1/workflows/loud/runs?wait=60", {
          method: "POST", headers: {"content-type": "application/json"},
          body: JSON.stringify({input: {events: 2}, metadata: {who: "ada"}})}).then(r => r.json()).then(done)
    """
    run = page.driver.execute_async_script(script)
    page.one(f"[data-run='{run['id']}'] button").click()
    page.wait_for_step("shout", "done", "1 done")
    page.wait_for_text("#no-times", "Nobody followed this run")
    covered = """
        const {left, right, top, bottom} = document.getElementById("timeline").getBoundingClientRect();
        return [[left + 5, top + 5], [right - 5, bottom - 5]].map(at => document.elementFromPoint(...at).id)
    """
    assert page.driver.execute_script(covered) == ["no-times", "no-times"]
    assert page.rows() == ["Note", "Note", "StopEvent"]
    page.one("#details").click()
    page.wait_for_text("#json", '"who": "ada"')


def test_html_in_the_data_of_events_is_text(page: Page):
    text = "<img src=x onerror=document.title='hacked'><script>document.title='hacked'</script>"
    page.start("loud", events=3, text=text)
    page.wait_for_status("completed")
    assert text in page.one(".row .what").text
    page.all(".row")[0].click()
    page.wait_for_text("#json", "<img src=x")
    page.start("survey", topic=text, sources=1)
    page.wait_for_text(".question", text)
    answer(page, approved=True)
    page.wait_for_text("#outcome", text)
    assert page.all("main img, main script") == []
    assert "hacked" not in page.driver.title


def test_only_the_events_in_view_are_elements(page: Page):
    page.start("loud", events=10_000)
    page.wait_for_status("completed")
    page.wait_for_text("#summary", "10,001 events")
    until(lambda: page.rows()[-1:] == ["StopEvent"])
    assert len(page.all(".row")) < 150
    page.driver.execute_script("document.getElementById('events').scrollTop = 24 * 5000")
    until(lambda: "5001" in page.text("#events"))
    assert not page.one("#follow").is_selected()
    page.one("#filter").send_keys('"number":77')
    until(lambda: page.rows()[:2] == ["Note", "Note"] and len(page.rows()) < 150)
    assert len(page.all(".row")) < 150


def test_the_server_is_told_what_is_wrong_at_the_field(page: Page):
    page.choose_workflow("survey")
    page.fill(topic="tea", sources="")
    page.one("#input [name=sources]").send_keys("1.5")
    page.one("#run-button").click()
    until(lambda: page.one("#input [name=sources][aria-invalid]"))
    page.fill(sources=1)
    page.one("#run-button").click()
    page.one(".question")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [800, 1600])
def test_nothing_is_wider_than_the_page(page: Page, scheme: str, width: int):
    page.open(width=width, scheme=scheme)
    page.start("survey", topic="tea", sources=3)
    page.one(".question")
    wide = page.driver.execute_script(
        "return ['html', 'body', 'aside', 'main', '#body', '.question', '#log-panel']"
        ".filter(one => { const e = document.querySelector(one); return e.scrollWidth > e.clientWidth + 1; })"
    )
    assert wide == []
    colour = "return getComputedStyle(document.body).backgroundColor"
    bright = page.driver.execute_script(colour) == "rgb(255, 255, 255)"
    assert bright == (scheme == "light")
