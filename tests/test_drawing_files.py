"""Pictures in files, under the names of `llama_index.utils.workflow`."""

from __future__ import annotations

import gc
import inspect
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_workflows import StartEvent, StopEvent, Workflow, step
from anyio_workflows.drawing import draw, draw_all_possible_flows, draw_most_recent_execution
from anyio_workflows.errors import WorkflowConfigurationError

from .samples import Asks, Ends, FanOut, ProviderError

DOCUMENTATION = Path(__file__).parent.parent / "docs" / "drawing.md"

pytestmark = pytest.mark.anyio


class Page(HTMLParser):
    """The elements of a page, the text outside of the picture, and what it would load or execute."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = self.title = ""
        self.loads: list[str] = []
        self.policy = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        if tag == "meta" and given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""
        self.loads += [f"{tag} {name}" for name in given if name in ("src", "href", "data")]
        self.loads += [f"{tag} {name}" for name in given if name.startswith("on")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["title"] and "svg" not in self.open:
            self.title += data
        elif not {"svg", "style"} & set(self.open):
            self.text += data


def page(path: Path) -> Page:
    return Page(path.read_text("utf-8"))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (
            draw_all_possible_flows,
            {
                "workflow": inspect.Parameter.empty,
                "filename": "workflow_all_flows.html",
                "notebook": False,
                "max_label_length": None,
                "include_child_workflows": True,
            },
        ),
        (
            draw_most_recent_execution,
            {
                "handler": inspect.Parameter.empty,
                "filename": "workflow_recent_execution.html",
                "notebook": False,
                "max_label_length": None,
            },
        ),
    ],
)
def test_the_calls_of_llama_index_utils_workflow_fit(function: Any, expected: Any):
    """Their parameters as of version 0.11, in their order, with their defaults."""
    found = inspect.signature(function).parameters
    assert {name: one.default for name, one in found.items()} == expected
    assert {one.kind for one in found.values()} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


class TestAllFlows:
    def test_without_a_name_the_page_is_where_programs_look_for_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.chdir(tmp_path)
        assert draw_all_possible_flows(FanOut, notebook=True, include_child_workflows=False) is None
        found = page(tmp_path / "workflow_all_flows.html")
        assert found.title == found.text.strip() == "FanOut"
        assert draw(FanOut) in (tmp_path / "workflow_all_flows.html").read_text("utf-8")

    def test_a_page_needs_no_script_and_no_network(self, tmp_path: Path):
        draw_all_possible_flows(FanOut, tmp_path / "flows.html")
        found = page(tmp_path / "flows.html")
        assert found.loads == []
        assert "script" not in found.tags
        assert found.policy == "default-src 'none'; style-src 'unsafe-inline'"
        source = (tmp_path / "flows.html").read_text("utf-8")
        assert set(re.findall(r"\w+://[^\s\"']*", source)) == {"http://www.w3.org/2000/svg"}

    @pytest.mark.parametrize(
        ("suffix", "form"),
        [
            (".svg", "svg"),
            (".SVG", "svg"),
            (".mmd", "mermaid"),
            (".mermaid", "mermaid"),
            (".dot", "dot"),
            (".gv", "dot"),
            (".txt", "text"),
        ],
    )
    @pytest.mark.parametrize(
        "given", [FanOut, FanOut(), FanOut().graph], ids=["class", "it", "graph"]
    )
    def test_the_suffix_says_in_which_form(
        self, suffix: str, form: Any, given: Any, tmp_path: Path
    ):
        path = tmp_path / f"flows{suffix}"
        draw_all_possible_flows(given, str(path))
        assert path.read_text("utf-8") == draw(FanOut, form)

    @pytest.mark.parametrize("name", ["flows", "flows.png", ".html", "x" * 1_000_000])
    def test_another_suffix_is_refused(self, name: str, tmp_path: Path):
        with pytest.raises(WorkflowConfigurationError) as caught:
            draw_all_possible_flows(FanOut, tmp_path / name)
        assert str(caught.value).startswith(
            "the name of the file has to end in one of .html, .svg, "
        )
        assert len(str(caught.value)) < 300
        assert list(tmp_path.iterdir()) == []

    def test_names_may_be_cut_off(self, tmp_path: Path):
        long = "a_step_with_a_name_of_fifty_characters_or_even_more"

        async def probe(self: Any, ev: StartEvent) -> StopEvent: ...

        cut = type("Cut", (Workflow,), {long: step(probe)})
        path = tmp_path / "cut.svg"
        draw_all_possible_flows(cut, path, max_label_length=10)
        shown = path.read_text("utf-8")
        assert ">a_step_wi…<" in shown
        assert f"<title>{long}" in shown  # the tooltip
        assert ">StartEvent<" in shown
        assert ">StopEvent<" in shown
        draw_all_possible_flows(cut, path, max_label_length=100)
        assert path.read_text("utf-8") == draw(cut)

    @pytest.mark.parametrize("most", [0, -1, "10", 2.5, True])
    def test_another_length_is_refused(self, most: Any, tmp_path: Path):
        with pytest.raises(
            WorkflowConfigurationError, match="max_label_length must be a positive int"
        ):
            draw_all_possible_flows(FanOut, tmp_path / "flows.html", max_label_length=most)

    def test_a_name_is_text(self, tmp_path: Path):
        odd = type("<script>&", (FanOut,), {})
        draw_all_possible_flows(odd, tmp_path / "odd.html")
        found = page(tmp_path / "odd.html")
        assert found.title == "<script>&"
        assert "script" not in found.tags

    def test_what_is_no_workflow_is_refused(self, tmp_path: Path):
        with pytest.raises(
            WorkflowConfigurationError, match=r"draw_all_possible_flows\(\) takes a workflow"
        ):
            draw_all_possible_flows(3, tmp_path / "flows.html")  # type: ignore[arg-type]

    def test_the_page_names_each_suffix(self, tmp_path: Path):
        documented = re.findall(r"^\| (`\..*?) \|", DOCUMENTATION.read_text("utf-8"), re.MULTILINE)
        with pytest.raises(WorkflowConfigurationError) as caught:
            draw_all_possible_flows(FanOut, tmp_path / "flows.png")
        [known] = re.findall(r"has to end in one of (.*); not", str(caught.value))
        assert re.findall(r"`(.*?)`", " ".join(documented)) == known.split(", ")


class TestMostRecentExecution:
    async def test_a_page_with_the_picture_and_how_the_run_stands(self, tmp_path: Path):
        handler = FanOut().run(items=[1, 2])
        await handler
        path = tmp_path / "run.html"
        assert draw_most_recent_execution(handler, path) is None
        found = page(path)
        assert found.title.startswith("FanOut: ")
        assert found.title not in found.text  # the picture has it as its heading
        assert f">{found.title}</text>" in path.read_text("utf-8")
        assert "ended, it returned StopEvent" in found.text
        assert "[1, 2]" in found.text
        assert draw(FanOut, run=handler) in path.read_text("utf-8")
        assert "2 done" in path.read_text("utf-8")

    async def test_o6_s1_nothing_counts_as_read_or_retrieved(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        handler = Ends().run(how="raise")
        await anyio.sleep(1)
        draw_most_recent_execution(handler, tmp_path / "run.html")
        assert f"{ProviderError.__name__}: down" in page(tmp_path / "run.html").text
        assert handler.statistics().unread_events == 1
        del handler
        gc.collect()
        assert "never retrieved" in caplog.text

    async def test_a_run_in_progress_in_each_form(self, tmp_path: Path):
        handler = Asks().run()
        await anyio.sleep(1)
        for suffix, form in [
            (".svg", "svg"),
            (".mmd", "mermaid"),
            (".dot", "dot"),
            (".txt", "text"),
        ]:
            path = tmp_path / f"run{suffix}"
            draw_most_recent_execution(handler, path)
            assert path.read_text("utf-8") == draw(Asks, form, handler)
        draw_most_recent_execution(handler, tmp_path / "run.html")
        assert "ask waits for Answer" in page(tmp_path / "run.html").text
        await handler.cancel_run()

    @pytest.mark.parametrize("given", [FanOut(), FanOut, None])
    async def test_a_workflow_keeps_no_runs(self, given: Any, tmp_path: Path):
        with pytest.raises(WorkflowConfigurationError) as caught:
            draw_most_recent_execution(given, tmp_path / "run.html")
        assert str(caught.value).startswith(
            "draw_most_recent_execution() takes the handler that workflow.run() returned, not "
        )
