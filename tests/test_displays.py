"""What workflows and handlers look like in notebooks: their HTML, in any state (E8)."""

from __future__ import annotations

import gc
import html
import re
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest

from anyio_workflows import Context, Event, StartEvent, Workflow, WorkflowHandler, step
from anyio_workflows._drawing.svg import COLOURS
from anyio_workflows.drawing import draw
from anyio_workflows.errors import (
    WorkflowCancelledByUser,
    WorkflowTimeoutError,
    WorkflowValidationError,
)

from .conftest import BACKENDS
from .running import read, run_virtually, texts
from .samples import (
    A,
    Answer,
    Asks,
    Ends,
    FanOut,
    Job,
    Loop,
    OneStep,
    ProviderError,
)

pytestmark = pytest.mark.anyio


def table(shown: str) -> list[tuple[str, str]]:
    """Return the table below a picture, as headings and texts."""
    found = re.findall(r"<th[^>]*>(.*?)</th><td[^>]*>(.*?)</td>", shown, re.DOTALL)
    return [(heading, html.unescape(text)) for heading, text in found]


def rows(handler: WorkflowHandler[Any]) -> list[tuple[str, str]]:
    """Return the table below the picture of a run; its run id is left out."""
    first, *others = table(handler._repr_html_())
    assert first == ("Run", handler.run_id)
    return others


class TestHandler:
    async def test_a_run_in_progress(self):
        handler = FanOut().run(items=[1, 2, 3])
        assert rows(handler) == [("State", "running"), ("Unread events", "0")]
        await anyio.sleep(1.5)
        shown = handler._repr_html_()
        assert ">work<" in shown
        assert "2 running" in shown
        assert "1 done" in shown
        await handler

    async def test_a_result(self):
        handler = FanOut().run(items=[1, 2])
        await handler
        assert rows(handler) == [
            ("State", "ended, it returned StopEvent"),
            ("Result", "[1, 2]"),
            ("Unread events", "2"),
        ]

    async def test_a_result_that_is_an_event(self):
        handler = Ends().run(how="subclass")
        await handler
        assert ("Result", "Total(result=None, total=3)") in rows(handler)

    async def test_a_failure_with_its_step(self):
        handler = Ends().run(how="raise")
        with pytest.raises(ProviderError):
            await handler
        [state, error, note, unread] = rows(handler)
        assert state == ("State", "ended, step only failed with ProviderError")
        assert error == ("Error", "ProviderError: down")
        assert note[0] == "Note"
        assert "step only" in note[1]
        assert unread == ("Unread events", "1")

    async def test_a_timeout(self):
        handler = Ends(timeout=3).run(how="hang")
        with pytest.raises(WorkflowTimeoutError):
            await handler
        assert ("State", "ended, it timed out after 3 s") in rows(handler)

    async def test_a_cancelled_run_that_cleans_up(self):
        handler = Job().run()
        await anyio.sleep(1)
        await handler.cancel_run(timeout=1)
        assert rows(handler)[0] == ("State", "ending, it was cancelled, cancel_run() was called")
        with pytest.raises(WorkflowCancelledByUser):
            await handler
        assert rows(handler)[0] == ("State", "ended, it was cancelled, cancel_run() was called")

    async def test_w5_open_waits_with_what_an_answer_needs(self):
        handler = Asks().run()
        await anyio.sleep(1)
        [wait] = handler.open_waits()
        assert rows(handler)[-1] == (
            "Open wait",
            f"ask waits for Answer after {wait.question!r}, wait={wait.id!r}",
        )
        await handler.send_event(Answer(text="yes"), wait=wait.id)
        await handler
        assert "Open wait" not in dict(rows(handler))

    async def test_w5_of_many_waits_the_first_ones(self):
        async def wait_often(ctx: Context) -> None:
            async with anyio.create_task_group() as group:
                for n in range(30):
                    group.start_soon(wait_once, ctx, n)

        async def wait_once(ctx: Context, n: int) -> None:
            await ctx.wait_for_event(Answer, waiter_id=f"w{n}", requirements={"n": n})

        handler = OneStep(wait_often).run()
        await anyio.sleep(1)
        found = [text for heading, text in rows(handler) if heading == "Open wait"]
        assert len(found) == 11
        assert found[-1] == "... and 20 more"
        await handler.cancel_run()

    async def test_w4_a_restored_run(self):
        handler = Asks().run()
        await anyio.sleep(1)
        data = handler.ctx.to_dict()
        await handler.cancel_run()
        workflow = Asks()
        restored = workflow.run(ctx=Context.from_dict(workflow, data))
        assert [heading for heading, _ in rows(restored)] == ["State", "Unread events", "Open wait"]
        await restored.send_event(Answer(text="yes"))
        assert await restored == "yes"

    async def test_s1_no_event_is_read(self):
        handler = Loop().run()
        await anyio.sleep(1)
        for _ in range(3):
            assert dict(rows(handler))["Unread events"] == "4"
        assert texts(await read(handler)) == [3, 2, 1]

    async def test_o6_no_failure_is_retrieved(self, caplog: pytest.LogCaptureFixture):
        handler = Ends().run(how="raise")
        await anyio.sleep(1)
        assert "Error" in dict(rows(handler))
        del handler
        gc.collect()
        assert "never retrieved" in caplog.text

    async def test_what_is_shown_is_bounded(self):
        async def fail(ctx: Context) -> None:
            error = ProviderError("x" * 1_000_000)
            error.add_note("y" * 1_000_000)
            raise error

        for handler in (OneStep(fail).run(), Ends().run(how="return")):
            await anyio.sleep(1)
            assert sum(len(text) for _, text in rows(handler)) < 3000
            handler.get_stop_event()

    async def test_text_is_text(self):
        async def fail(ctx: Context) -> None:
            raise ProviderError("<script>alert('&')</script>\x00\ud800")

        handler = OneStep(fail).run()
        await anyio.sleep(1)
        shown = handler._repr_html_()
        assert "<script" not in shown
        shown.encode()
        assert dict(rows(handler))["Error"] == (
            "ProviderError: <script>alert('&')</script>\\x00\\ud800"
        )
        handler.get_stop_event()

    async def test_whatever_the_result_is(self):
        class Rude:
            def __repr__(self) -> str:
                raise RuntimeError("no repr")

        async def return_it(ctx: Context) -> Any:
            return Rude()

        handler = OneStep(return_it).run()
        await handler
        assert "Rude" in dict(rows(handler))["Result"]

    async def test_a_step_may_show_its_own_run(self):
        shown = []

        async def show(ctx: Context) -> None:
            shown.append(handler._repr_html_())

        handler = OneStep(show).run()
        await handler
        assert "1 running" in shown[0]

    async def test_r5_elsewhere_the_plain_repr_is_shown_while_the_run_is_in_progress(self):
        handler = Asks().run()
        await anyio.sleep(1)
        found: list[Any] = []

        def show() -> None:
            found.append(handler._repr_html_())
            found.append(repr(handler))

        thread = threading.Thread(target=show)  # an AnyIO worker thread would call the event loop
        thread.start()
        thread.join()
        assert found[0] is None
        assert found[1].startswith("<WorkflowHandler of ")
        await handler.send_event(Answer(text="yes"))
        await handler
        thread = threading.Thread(target=show)
        thread.start()
        thread.join()
        assert "&#x27;yes&#x27;" in found[2]

    async def test_what_fails_shows_the_plain_repr(self, monkeypatch: pytest.MonkeyPatch):
        def fail(*args: Any) -> str:
            raise RuntimeError("no picture")

        monkeypatch.setattr("anyio_workflows._drawing.svg.svg", fail)
        handler = Ends().run(how="return")
        assert handler._repr_html_() is None
        assert Ends()._repr_html_() is None
        assert Ends()._repr_svg_() is None
        assert await handler == 7

    async def test_what_notebooks_probe_for_is_not_there(self):
        """IPython asks for methods that nothing has, to find out what answers to any name."""
        handler = Ends().run(how="return")
        for shown in (handler, handler.ctx, Ends(), Ends().graph, Event(n=1)):
            for name in ("_ipython_canary_method_should_not_exist_", "_ipython_display_"):
                assert not hasattr(shown, name)
            assert not hasattr(shown, "_repr_mimebundle_")
        await handler


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_whose_loop_has_ended(backend: str):
    async def main() -> WorkflowHandler[Any]:
        handler = Ends().run(how="hang")
        await anyio.sleep(1)
        return handler

    handler = run_virtually(backend, main)
    assert rows(handler)[0] == ("State", "ended, it was cancelled, its event loop ended")


class TestWorkflow:
    async def test_a_picture_of_its_steps(self):
        for shown in (FanOut()._repr_html_(), FanOut()._repr_svg_()):
            assert all(f">{name}<" in shown for name in ("split", "work", "join"))
        assert table(FanOut()._repr_html_()) == []

    async def test_v1_a_graph_with_faults(self):
        class Faulty(Workflow):
            @step
            async def only(self, ev: StartEvent) -> A: ...

        with pytest.raises(WorkflowValidationError) as caught:
            Faulty().validate()
        shown = Faulty()._repr_html_()
        assert ">only<" in shown
        assert table(shown) == [("Fault", fault) for fault in caught.value.faults]
        assert table(Faulty(disable_validation=True)._repr_html_()) == []

    async def test_v1_a_step_that_cannot_be_read(self):
        @step
        async def late(ev: A) -> "Unknown": ...  # noqa: F821, UP037

        cls = type("Odd", (Ends,), {})
        cls.add_step(late)
        workflow = object.__new__(cls)  # the constructor refuses it
        [(heading, fault)] = table(workflow._repr_html_())
        assert heading == "Fault"
        assert "'Unknown'" in fault
        assert ">only<" in workflow._repr_svg_()

    async def test_light_or_dark_as_the_notebook_is(self):
        """JupyterLab, VS Code and Colab may differ from the system, which the picture would follow."""
        shown = FanOut()._repr_html_()
        light, dark = COLOURS["background"]
        for theme, colour in (
            ('[data-jp-theme-light="true"]', light),
            ('[data-jp-theme-light="false"]', dark),
            (".vscode-dark", dark),
            ('html[theme="dark"]', dark),
        ):
            [rule] = re.findall(rf"{re.escape(theme)}[^{{}}]*\.aw-picture {{([^}}]*)}}", shown)
            assert f"--aw-background:{colour};" in rule

    async def test_one_that_skips_the_constructor_of_its_base(self):
        class Own(Ends):
            def __init__(self) -> None:
                pass

        assert ">only<" in Own()._repr_html_()

    async def test_one_that_is_drawn_without_an_instance(self):
        """IPython asks no class for its picture."""
        picture = draw(FanOut)
        assert picture._repr_svg_() == picture == FanOut()._repr_svg_()
        assert picture._repr_html_() == FanOut()._repr_html_()
        assert not hasattr(draw(FanOut, "text"), "_repr_svg_")
