"""The forms of the page: from the JSON Schema of the input of a workflow, and of the answers to questions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("orjson")

from .browsing import Page, browsing, serving, until


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with browsing() as driver:
        yield driver


@pytest.fixture(scope="module")
def url(driver: Any) -> Iterator[str]:
    with serving("asyncio") as server:
        yield server.url


@pytest.fixture
def page(driver: Any, url: str) -> Iterator[Page]:
    page = Page(driver, url)
    page.open()
    yield page
    page.check_console()


def put(page: Page, name: str, value: str) -> None:
    """Set a field as a picker does: what is typed depends on the language of the browser."""
    page.one(f"#input [name={name}]")
    page.driver.execute_script(
        "const field = document.querySelector(`#input [name=${arguments[0]}]`); field.value = arguments[1];"
        "field.dispatchEvent(new Event('input', {bubbles: true}))",
        name,
        value,
    )


def test_each_kind_of_field_has_its_control_and_its_value(page: Page):
    page.choose_workflow("book")
    kinds = {
        "name": "textarea",
        "day": "date",
        "at": "datetime-local",
        "wishes": "textarea",
        "address": "textarea",
        "either": "textarea",
        "size": "select-one",
        "nights": "number",
        "price": "number",
        "breakfast": "checkbox",
        "notice": "text",
    }
    for name, kind in kinds.items():
        assert page.one(f"#input [name={name}]").get_property("type") == kind, name
    page.wait_for_text("#input", "Who comes")
    page.fill(name="Ada")
    put(page, "day", "2026-12-24")
    put(page, "at", "2026-12-24T18:30")
    put(page, "wishes", "a view\n\na bath")
    put(page, "address", '{"street": "Main", "number": 7}')
    put(page, "either", '"seven"')
    page.one("#input [name=nights]").clear()
    page.one("#input [name=breakfast]").click()
    page.one("#run-button").click()
    page.wait_for_status("completed")
    assert page.fetch(f"v1/runs/{page.text('#run-id')}")["result"] == {
        "name": "Ada",
        "day": "2026-12-24",
        "at": "2026-12-24T18:30:00",
        "wishes": ["a view", "a bath"],
        "address": {"street": "Main", "number": 7},
        "either": "seven",
        "size": "large",
        "nights": 2,
        "price": None,
        "breakfast": False,
        "notice": "P0DT7200S",
    }


def test_what_is_missing_or_wrong_is_said_at_the_field(page: Page):
    page.choose_workflow("book")
    put(page, "address", '{"street": ')
    page.one("#run-button").click()
    page.one("[name=day][aria-invalid]")
    page.wait_for_text("#input", "This is not JSON")
    put(page, "day", "2026-12-24")
    put(page, "at", "2026-12-24T18:30")
    put(page, "address", '{"street": "Main"}')
    page.refusals_expected = True  # the browser reports that the server refuses it
    page.one("#run-button").click()
    field = page.one("[name=address][aria-invalid]")
    assert page.driver.switch_to.active_element == field
    page.wait_for_text("#input", "number")
    assert page.text("#run-id") == ""


def test_a_default_is_replaced_by_what_is_typed_and_what_was_typed_is_not(page: Page):
    from selenium.webdriver import ActionChains, Keys

    def press(*keys: str) -> None:
        ActionChains(page.driver).send_keys(*keys).perform()

    page.choose_workflow("loud")
    page.one("#input [name=events]").click()
    press(Keys.TAB, "tea")
    field = page.one("#input [name=text]")
    assert field.get_property("value") == "tea"
    page.one("#input [name=events]").click()
    press(Keys.TAB, Keys.END, " and coffee")
    assert field.get_property("value") == "tea and coffee"


def test_open_events_are_asked_for_as_json(page: Page):
    page.choose_workflow("open")
    put(page, "Data", "[1, 2]")
    page.one("#run-button").click()
    page.wait_for_text("#input", "This has to be a JSON object")
    put(page, "Data", '{"city": "Zürich"}')
    page.one("#run-button").click()
    page.wait_for_text(".question", "ask waits for HumanResponseEvent")
    field = page.one(".question textarea")
    assert '"response": ""' in field.get_property("value")
    field.clear()
    field.send_keys('{"response": "yes"}')
    page.one(".question button").click()
    page.wait_for_status("completed")
    result = page.fetch(f"v1/runs/{page.text('#run-id')}")["result"]
    assert result == {"city": "Zürich", "response": "yes"}


def test_a_half_written_answer_stays_while_others_come_and_go(page: Page):
    run_id = page.start("survey", topic="tea", sources=1)
    page.one(".question [name=comment]").send_keys("half an ans")

    def asked() -> int:
        return sum(f"{run_id}/questions" in address for address in page.requests())

    before = asked()
    until(lambda: asked() > before + 1)
    script = "return document.querySelector('.question [name=comment]').value"
    assert page.driver.execute_script(script) == "half an ans"


ROLES = ("button", "textbox", "searchbox", "combobox", "checkbox", "listbox", "spinbutton", "link")


def test_whatever_can_be_used_has_a_name(page: Page):
    page.start("survey", topic="tea", sources=1)
    page.one(".question")
    tree = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    names: dict[str, list[str]] = {}
    for node in tree:
        role = node.get("role", {}).get("value", "")
        if role in ROLES and not node.get("ignored"):
            names.setdefault(role, []).append(node.get("name", {}).get("value", "").strip())
    assert all(all(found) for found in names.values()), names
    assert {"Step review: 1 waiting", "Start run", "Cancel"} <= set(names["button"])
    assert "topic" in " ".join(names["textbox"])


def test_the_page_is_where_the_server_is_mounted(driver: Any):
    with serving("asyncio", mount=True) as server:
        page = Page(driver, server.url)
        page.open()
        page.start("survey", topic="tea", sources=1)
        page.one(".question [name=approved]").click()
        page.one(".question button").click()
        page.wait_for_status("completed")
        page.wait_for_step("review", "done", "1 done")
        page.check_console()
