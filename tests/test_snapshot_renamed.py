"""Snapshots age well: names that have changed are found again with `renamed={...}` (P8).

A program is written down as text and defined in two releases: a run of the first one is saved, and the
second one continues it.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import anyio
import pytest
from cattrs import Converter

from anyio_workflows import Context, HumanResponseEvent
from anyio_workflows.checkpoint import checkpointed, load_checkpoint, run_with_checkpoints
from anyio_workflows.errors import ContextSerdeError, WorkflowConfigurationError

from .hostile import LONG, refused
from .running import PATIENCE
from .test_snapshot_format import (
    MOMENTS,
    OLD_FILES,
    Answer,
    Moment,
    golden,
    read_file,
    stop_the_clock,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_threads")]

SOURCE = """
    from enum import Enum
    import attrs
    from anyio_workflows import *

    class Color(Enum):
        RED = "red"

    @attrs.define
    class Author:
        name: str = "ada"

    class Titled(Event):
        title: str

    class Page(Titled):
        subtitle: str = "sub"
        author: Author = Author()
        authors: list[Author] = []
        maybe: Author | None = None
        color: object = Color.RED

    class Note(HumanResponseEvent):
        pass

    @attrs.define
    class State:
        pages: list = attrs.Factory(list)
        kind: object = Page

    class Flow(Workflow):
        types = (Color, Author)

        @step
        async def begin(self, ctx: Context[State], ev: StartEvent) -> Page:
            page = Page(title="tea", authors=[Author(name="bob")], maybe=Author())
            await ctx.store.set("pages", [page, {"deep": (page, Note(text="a"))}])
            return page

        @step
        async def work(self, ctx: Context, ev: Page) -> StopEvent:
            await ctx.wait_for_event(HumanResponseEvent, InputRequiredEvent())
            return StopEvent(result=[ev, await ctx.store.get_state()])

        @step
        async def note(self, ev: Note) -> None: ...
"""

Names = dict[str, str | None]


def release(module: str = "app", *changes: tuple[str, str], source: str = SOURCE) -> Any:
    """Return the names of a module with the program, some parts of whose text have changed."""
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    names = {"__name__": module}
    # `dont_inherit`: the annotations are not postponed, since no module has them.
    exec(compile(textwrap.dedent(source), module, "exec", dont_inherit=True), names)
    return names


async def saved(program: Any) -> Any:
    """Return the snapshot of a run that waits for an answer."""
    handler = program["Flow"](timeout=None).run()
    await anext(handler.stream_events())
    data = json.loads(json.dumps(handler.ctx.to_dict()))
    await handler.cancel_run()
    return data


async def finished(program: Any, data: Any, renamed: Names | None) -> Any:
    """Return the page and the state that a restored run ends with."""
    workflow = program["Flow"](timeout=None)
    handler = workflow.run(ctx=Context.from_dict(workflow, data, renamed=renamed))
    await handler.send_event(HumanResponseEvent())
    return await handler


def refusal(program: Any, data: Any, renamed: Names | None = None) -> ContextSerdeError:
    return refused(lambda: Context.from_dict(program["Flow"](), data, renamed=renamed))


def suggested(error: Exception) -> list[Names]:
    """Return each `renamed=` in the text of an error, as it is pasted into a program."""
    return [ast.literal_eval(text) for text in re.findall(r"renamed=(\{[^{}]*\})", str(error))]


MOVES: dict[str, tuple[Any, Names]] = {
    "a class that has moved": (
        release("app.events"),
        {f"app:{name}": f"app.events:{name}" for name in ("Page", "Color", "Note", "State")},
    ),
    "an event that was renamed": (release("app", ("Page", "Sheet")), {"app:Page": "app:Sheet"}),
    "an enum that was renamed": (release("app", ("Color", "Paint")), {"app:Color": "app:Paint"}),
    "a state that was renamed": (
        release("app", ("State", "Progress")),
        {"app:State": "app:Progress"},
    ),
    "a record inside others that was renamed, whose tag is nowhere": (
        release("app", ("Author", "Writer")),
        {},
    ),
    "a step that was renamed": (release("app", ("def work", "def finish")), {"work": "finish"}),
    "a field that was renamed": (
        release("app", ("name: str", "full_name: str"), ("name=", "full_name=")),
        {"app:Author.name": "full_name"},
    ),
    "a field of a base class that was renamed": (
        release("app", ("    title:", "    headline:"), ("(title=", "(headline=")),
        {"app:Titled.title": "headline"},
    ),
    "a field of an open event that was renamed": (
        release("app", ("text=", "words=")),
        {"app:Note.text": "words"},
    ),
    "everything at once, in several releases": (
        release(
            "app.events",
            ("Page", "Sheet"),
            ("    title:", "    headline:"),
            ("(title=", "(headline="),
            ("def work", "def finish"),
        ),
        {
            **{f"app:{name}": f"app.events:{name}" for name in ("Color", "Note", "State")},
            "app:Page": "app:Leaf",
            "app:Leaf": "app.events:Sheet",
            "work": "process",
            "process": "finish",
            "app:Page.title": "name",
            "app.events:Sheet.name": "headline",
        },
    ),
}


@pytest.mark.parametrize("move", MOVES)
async def test_p8_what_has_another_name_is_found_again(move: str) -> None:
    old, (new, renamed) = release(), MOVES[move]
    data = await saved(old)
    page, state = await finished(new, data, renamed)
    expected = await finished(new, await saved(new), None)
    assert [page, state] == expected
    assert type(state.pages[1]["deep"][0]) is type(page)
    assert state.kind is type(page)
    # What is saved next has the new names alone, and is read with and without the mapping.
    workflow = new["Flow"]()
    again = Context.from_dict(workflow, data, renamed=renamed).to_dict()
    for mapping in (None, renamed):
        assert Context.from_dict(workflow, again, renamed=mapping).to_dict() == again


@pytest.mark.parametrize("move", MOVES)
async def test_p8_without_the_mapping_the_error_offers_it_one_entry_after_the_other(
    move: str,
) -> None:
    data, (new, renamed) = await saved(release()), MOVES[move]
    if not renamed or move.startswith("a field of an open event"):  # it takes any
        await finished(new, data, None)
        return
    found: Names = {}
    while len(found) < 10:
        try:
            Context.from_dict(new["Flow"](), data, renamed=found)
        except ContextSerdeError as error:
            ((old, offered), *_) = suggested(error)[0].items()
            found |= renamed if offered is ... else {old: offered}
        else:
            break
    assert found
    assert await finished(new, data, found) == await finished(new, data, renamed)


async def test_p8_a_new_field_gets_its_default_and_needs_one() -> None:
    data = await saved(release())
    field = 'subtitle: str = "sub"'
    page, _ = await finished(
        release("app", (field, f"{field}\n        pages: int = 7")), data, None
    )
    assert page.pages == 7
    error = refusal(release("app", (field, f"{field}\n        pages: int")), data)
    assert str(error).endswith(
        "pages: missing, Page needs it; give the field a default, which older snapshots then get"
    )


REMOVED = release("app", ('subtitle: str = "sub"', ""))


async def test_p8_a_field_that_was_removed_has_to_be_named() -> None:
    data = await saved(release())
    error = refusal(REMOVED, data)
    assert error.path.endswith(".subtitle")
    assert suggested(error) == [{"app:Page.subtitle": None}]
    page, _ = await finished(REMOVED, data, {"app:Page.subtitle": None})
    assert "subtitle" not in page


async def test_p8_the_error_of_a_field_names_all_that_may_be_its_new_name() -> None:
    new = release("app", ("    title: str\n", '    heading: str = ""\n        name: str = ""\n'))
    error = refusal(new, await saved(release()))
    assert error.problem.startswith(
        "Page has no such field; if it was renamed: renamed={'app:Page.title': ...}, "
        "known: heading, name; if it was removed: "
    )


async def test_p8_a_field_that_is_there_by_both_names_is_refused() -> None:
    new = release("app", ("subtitle", "below"))
    data = await saved(new)
    data["work"]["work"][0]["events"][0]["value"]["subtitle"] = "old"
    error = refusal(new, data, {"app:Page.subtitle": "below"})
    assert error.path == "$.work.work[0].events[0].below"
    assert "by two names" in error.problem


async def test_p8_a_subclass_keeps_a_field_of_its_own() -> None:
    own = ("class Page(Titled):", "class Page(Titled):\n        title: str")
    new = release("app", ("    title: str\n", '    headline: str = ""\n'), own)
    page, _ = await finished(new, await saved(release()), {"app:Titled.title": "headline"})
    assert (page.title, page.headline) == ("tea", "")


@pytest.fixture(autouse=True)
def _fixed_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_the_clock(monkeypatch)


MODELS = """
    from pydantic import BaseModel, ConfigDict
    from anyio_workflows import *

    class Array:
        def __init__(self, n):
            self.n = n
        def __eq__(self, other):
            return self.n == other.n

    class Card(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        title: str
        note: str = ""
        array: Array | None = None

    class Flow(Workflow):
        types = (Card,)
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent()
"""


async def test_p7_p8_models_have_fields_that_are_renamed_and_that_hooks_write() -> None:
    pytest.importorskip("pydantic")

    def flow(program: Any) -> Any:
        converter = Converter()
        converter.register_unstructure_hook(program["Array"], lambda array: array.n)
        converter.register_structure_hook(program["Array"], lambda n, cls: cls(n))
        return program["Flow"](converter=converter)

    old = release(source=MODELS)
    ctx = Context(flow(old))
    await ctx.store.set("it", old["Card"](title="tea", note="hot", array=old["Array"](5)))
    data = json.loads(json.dumps(ctx.to_dict()))
    changes = [("title: str", "headline: str"), ('note: str = ""', 'language: str = "en"')]
    new = release("app.models", *changes, source=MODELS)
    renamed: Names = {"app:Card": "app.models:Card", "app:Card.title": "headline"}
    with pytest.raises(ContextSerdeError) as caught:
        Context.from_dict(flow(new), data, renamed=renamed)
    assert suggested(caught.value)[-1] == {"app.models:Card.note": None}
    renamed |= suggested(caught.value)[-1]
    card = await Context.from_dict(flow(new), data, renamed=renamed).store.get("it")
    assert card == new["Card"](headline="tea", array=new["Array"](5))


# --- Steps ----------------------------------------------------------------------------------------


def with_old_steps(data: Any, names: dict[str, str]) -> Any:
    """Return a snapshot in which steps have other names."""
    if type(data) is list:
        return [with_old_steps(one, names) for one in data]
    if type(data) is not dict:
        return data
    found = {}
    for key, value in data.items():
        if key in ("step", "last_finished"):
            found[key] = names.get(value, value)
        elif key in ("arrived", "recoveries"):
            found[key] = {names[step]: with_old_steps(one, names) for step, one in value.items()}
        else:
            found[key] = with_old_steps(value, names)
    return found


FILES = [
    *[(moment, golden(name)) for name, moment in MOMENTS.items()],
    *[(MOMENTS[file.stem], read_file(file)) for file in OLD_FILES],
]


@pytest.mark.parametrize(
    ("moment", "data"), FILES, ids=[f"{m.workflow.__name__}-{d['version']}" for m, d in FILES]
)
async def test_p8_steps_are_renamed_wherever_a_snapshot_names_them(
    moment: Moment, data: Any
) -> None:
    steps = {name: f"old_{name}" for name in moment.make().graph.steps}
    old = with_old_steps(data, steps)
    renamed: Names = {old: new for new, old in steps.items()}
    expected = Context.from_dict(moment.make(), data, [Answer]).to_dict()
    assert Context.from_dict(moment.make(), old, [Answer], renamed).to_dict() == expected
    if old != data:
        error = refused(lambda: Context.from_dict(moment.make(), old, [Answer]))
        assert suggested(error) in ([], *([{old: new}] for old, new in renamed.items()))
        assert "renamed={'old_" in str(error)


@pytest.mark.parametrize(
    ("moment", "data"), FILES, ids=[f"{m.workflow.__name__}-{d['version']}" for m, d in FILES]
)
async def test_p8_types_are_found_wherever_a_snapshot_names_them(moment: Moment, data: Any) -> None:
    here = Answer.__module__
    old = json.loads(json.dumps(data).replace(f"{here}:", "app:"))
    classes = ["Item", "Part", "Scored", "Other", "Basket", "Color", "Question", "Answer", "Mail"]
    classes += ["Parcel", "Numbers", "Values"]
    known: Names = {}
    for name in classes:
        known[f"app:{name}"] = f"{here}:{name}"
        try:
            Context.from_dict(moment.make(), golden_start(moment), [Answer], known)
        except WorkflowConfigurationError:
            del known[f"app:{name}"]
    expected = Context.from_dict(moment.make(), data, [Answer]).to_dict()
    assert Context.from_dict(moment.make(), old, [Answer], known).to_dict() == expected


def golden_start(moment: Moment) -> Any:
    return Context(moment.make()).to_dict()


async def test_p8_two_steps_of_a_snapshot_never_become_one() -> None:
    moment, data = MOMENTS["recovered"], golden("recovered")
    renamed: Names = {"act": "recover", "do": "recover"}
    assert data["work"]["last_finished"] == "work"
    old = with_old_steps(data, {"work": "do", "recover": "act"})
    error = refused(lambda: Context.from_dict(moment.make(), old, [Answer], renamed))
    assert "$: it has both steps, 'act' and 'do', and renamed makes them one" in str(error)
    one = with_old_steps(data, {"work": "work", "recover": "do"})
    expected = Context.from_dict(moment.make(), data, [Answer]).to_dict()
    assert Context.from_dict(moment.make(), one, [Answer], renamed).to_dict() == expected


async def test_p8_the_step_that_fits_is_offered_if_no_name_is_close() -> None:
    data = await saved(release())
    error = refusal(release("app", ("def work", "def xyz")), data)
    assert suggested(error) == [{"work": "xyz"}]


# --- What is wrong with the mapping ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("renamed", "problem"),
    [
        ([("work", "begin")], "renamed must be a mapping of old names to new ones, not"),
        ({1: "begin"}, "renamed={1: 'begin'}: names are texts"),
        ({"run": 1}, "renamed={'run': 1}: names are texts"),
        ({"run": ...}, "renamed={'run': ...}: names are texts"),
        ({"run": None}, "renamed={'run': None}: only a field can be dropped"),
        ({"app:Old": None}, "renamed={'app:Old': None}: only a field can be dropped"),
        ({"app:Old": "Page"}, "the new tag of a type looks like 'module:QualName'"),
        ({"run": "app:Page"}, "the name of a step has no colon"),
        ({"run": "wrok"}, "renamed={'run': 'wrok'}: there is no step 'wrok', did you mean 'work'"),
        ({"begin": "work"}, "renamed={'begin': 'work'}: the old name is still in use"),
        ({"a": "b", "b": "a"}, "renamed={'a': 'b'}: there is no step 'a', known: begin, note"),
        ({"app:Old": "app:Pgae"}, "'app:Pgae', did you mean 'app:Page'?"),
        ({"app:Old": "os:system"}, "there is no known type 'os:system'; types=[...] names more"),
        ({"app:Note": "app:Page"}, "the old name is still in use"),
        ({"app:Pgae.title": "x"}, "types=[...] names more; if it has a new name, add 'app:Pgae': 'app:Page'"),
        ({"app:Page.old": "titel"}, "Page has no field 'titel', did you mean 'title'?"),
        ({"app:Page.title": "author"}, "the old name is still in use"),
        ({"app:Page.title": None}, "the old name is still in use"),
        ({"app:Page.old": "app:Page.title"}, "the new name of a field is without its type: 'title'"),
        ({"app:Old": "app:Page", "app:Page": "app:Old"}, "renamed={'app:Page': 'app:Old'}: the old name"),
        ({"app:Page.a": "b", "app:Page.b": "a"}, "Page has no field 'a'"),
        ({"app:Note.a": "b", "app:Note.b": "a"}, "Note has no field 'a'"),
        ({"app:Color.red": "RED"}, "Color has no fields"),
        ({LONG: LONG + "b"}, "there is no step"),
        ({f"app:{LONG}": f"app:{LONG}"}, "there is no known type"),
        ({f"app:Page.{LONG}": LONG}, "Page has no field"),
    ],
    ids=range(26),
)  # fmt: skip
async def test_p8_a_wrong_mapping_is_refused_whatever_the_snapshot_holds(
    renamed: Any, problem: str, tmp_path: Path
) -> None:
    workflow = release()["Flow"](timeout=None)
    data = Context(workflow).to_dict()
    with pytest.raises(WorkflowConfigurationError) as caught:
        Context.from_dict(workflow, data, renamed=renamed)
    assert problem in str(caught.value)
    assert len(str(caught.value)) <= 1000
    for call in (run_with_checkpoints, load_checkpoint):
        with pytest.raises(WorkflowConfigurationError):
            await call(workflow, tmp_path / "job.json", renamed=renamed)  # type: ignore[operator]
    assert os.listdir(tmp_path) == []


async def test_p8_entries_that_a_snapshot_does_not_need_have_no_effect() -> None:
    program = release()
    data = await saved(program)
    renamed: Names = {"gone": "work", "old:Page": "app:Page", "app:Page.gone": None}
    renamed |= {"older:Page": "old:Page", "old:Page.gone_too": "author"}
    assert await finished(program, data, renamed) == await finished(program, data, None)


# --- Hostile data ---------------------------------------------------------------------------------


async def test_p8_long_names_are_refused_in_few_words_and_little_time() -> None:
    program = release()
    data = await saved(program)
    renamed: Names = {"app:Page.gone": "title", "old:Page": "app:Page", "old": "work"}
    (work,) = data["work"]["work"]
    event = work["events"][0]
    for place, key, value in [
        (work, "step", LONG),
        (event, "$", f"app:{LONG}"),
        (event["value"], LONG, 1),
        (event["value"], "gone", LONG),
        (event["value"], "authors", [{LONG: 1}]),
        (work, "recoveries", {LONG + str(n): 1 for n in range(10)}),
    ]:
        before = dict(place)
        place[key] = value
        error = refusal(program, data, renamed)
        assert len(error.problem) < 700
        place.clear()
        place.update(before)


def test_p8_what_the_library_itself_writes_has_no_other_names() -> None:
    program = release()
    data = Context(program["Flow"]()).to_dict()
    error = refusal(program, data | {"wrok": 1})
    assert error.problem == "Snapshot has no such field, did you mean 'work'?"
    del data["state"]
    assert refusal(program, data).problem == "missing, Snapshot needs it"


# --- Files, and programs that are run -------------------------------------------------------------


async def test_p8_files_are_read_with_other_names(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    new, renamed = MOVES["everything at once, in several releases"]
    workflow = new["Flow"](timeout=None)
    text = json.dumps(await saved(release()))
    expected = await finished(new, json.loads(text), renamed)

    path.write_text(text)
    with pytest.raises(ContextSerdeError, match=r"renamed=\{.*app\.events.*\(in .*job\.json\)"):
        await run_with_checkpoints(workflow, path)
    async with checkpointed(workflow, path, renamed=renamed) as handler:
        await handler.send_event(HumanResponseEvent())
        assert await handler == expected

    path.write_text(text)
    async with anyio.create_task_group() as group:

        async def run() -> None:
            with anyio.move_on_after(1):
                await run_with_checkpoints(workflow, path, renamed=renamed)

        group.start_soon(run)
    again = json.loads(path.read_text())
    assert "app:" not in path.read_text()
    assert await finished(new, again, renamed) == expected


PROGRAM = """
    import sys
    import anyio
    from anyio_workflows import *
    from anyio_workflows.checkpoint import checkpointed

    class Page(Event):
        n: int

    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Page:
            return Page(n=7)

        @step
        async def work(self, ctx: Context, ev: Page) -> StopEvent:
            await ctx.wait_for_event(HumanResponseEvent, InputRequiredEvent())
            return StopEvent(result=ev.n)

    async def main(renamed=None, answer=False):
        workflow = Flow(timeout=None)
        async with checkpointed(workflow, "job.json", renamed=renamed) as handler:
            if not answer:
                await anext(handler.stream_events())
                await handler.cancel_run()
            else:
                await handler.send_event(HumanResponseEvent())
                print(await handler)

    if __name__ == "__main__":
        anyio.run(main)
"""


def test_p8_a_class_that_moved_from_main_to_a_module(tmp_path: Path) -> None:
    def run(*command: str) -> str:
        ran = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return ran.stdout + ran.stderr

    (tmp_path / "app.py").write_text(textwrap.dedent(PROGRAM))
    assert run("app.py") == ""
    assert '"__main__:Page"' in (tmp_path / "job.json").read_text()
    restore = "import anyio, app; anyio.run(app.main, {}, True)"
    error = run("-c", restore.format(None))
    assert "ContextSerdeError" in error
    renamed = suggested(Exception(error))[-1]
    assert renamed == {"__main__:Page": "app:Page"}
    assert run("-c", restore.format(renamed)) == "7\n"
