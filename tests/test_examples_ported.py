"""The programs in `examples/ported/`, against a server of their protocol: real sockets, real time."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_workflows import Context, Event, StopEvent, WorkflowFailedEvent, WorkflowHandler

from .conftest import BACKENDS
from .fake_openai import Answer, FakeOpenAI, Refuses, Says, calls, client_generators, says, serving

openai = pytest.importorskip("openai")

PORTED = Path(__file__).parent.parent / "examples" / "ported"

pytestmark = [pytest.mark.parametrize("backend", BACKENDS), client_generators]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOpenAI]:
    with serving(monkeypatch) as server:
        monkeypatch.syspath_prepend(PORTED)
        yield server


def read(
    backend: str,
    start: Callable[[], WorkflowHandler[Any]],
    respond: Callable[[WorkflowHandler[Any], Event], Awaitable[object]] | None = None,
) -> tuple[list[Event], Any]:
    """Return all the events of a run, and what `await handler` returned or raised."""

    async def main() -> tuple[list[Event], Any]:
        events = []
        async with start() as handler:
            async for event in handler.stream_events():
                events.append(event)
                if respond:
                    await respond(handler, event)
            try:
                return events, await handler
            except Exception as exc:
                return events, exc

    return anyio.run(main, backend=backend)


def command(backend: str, monkeypatch: pytest.MonkeyPatch, name: str, *args: str) -> None:
    """Run an example as a program."""
    monkeypatch.setattr(sys, "argv", [name, "--backend", backend, *args])
    runpy.run_path(str(PORTED / f"{name}.py"), run_name="__main__")


def last_message(request: dict[str, Any]) -> Any:
    return request["messages"][-1]["content"]


# The story.


def segment(text: str, *choices: str) -> Says:
    return says(json.dumps({"text": text, "choices": choices}))


SEGMENTS = [
    segment("A door.", "Knock", "Leave"),
    segment("It opens.", "Enter", "Wait"),
    segment("A garden."),
]
STORY = "A door.\n\n> Leave\n\nIt opens.\n\n> Enter\n\nA garden."


def tell(backend: str, numbers: list[int]) -> tuple[Any, list[Event], Any]:
    """Run the story; the reader makes these choices, one after the other."""
    story = importlib.import_module("story")
    remaining = iter(numbers)

    async def choose(handler: WorkflowHandler[Any], event: Event) -> None:
        if isinstance(event, story.Scene):
            assert await handler.send_event(story.Choice(number=next(remaining))) == ("choose",)

    events, result = read(backend, lambda: story.Story().run(text="A walk."), choose)
    return story, events, result


def test_story_continues_as_the_reader_chooses(backend: str, server: FakeOpenAI) -> None:
    server.script(SEGMENTS)
    story, events, result = tell(backend, [2, 1])
    assert events == [
        story.Scene(text="A door.", choices=["Knock", "Leave"]),
        story.Scene(text="It opens.", choices=["Enter", "Wait"]),
        StopEvent(STORY),
    ]
    assert result == STORY
    assert [last_message(request) for request in server.requests] == [
        "A walk.\n\nWrite the next segment.",
        "A walk.\n\nA door.\n\n> Leave\n\nWrite the next segment.",
        "A walk.\n\nA door.\n\n> Leave\n\nIt opens.\n\n> Enter\n\n"
        "Write the last segment: the story ends here.",
    ]
    schema = server.requests[0]["response_format"]["json_schema"]["schema"]
    assert set(schema["properties"]) == {"text", "choices"}


def test_story_shows_the_scene_again_after_an_unknown_choice(
    backend: str, server: FakeOpenAI
) -> None:
    server.script(SEGMENTS)
    story, events, result = tell(backend, [7, 0, 2, 1])
    assert [event.problem for event in events if isinstance(event, story.Scene)] == [
        "",
        "There is no choice 7.",
        "There is no choice 0.",
        "",
    ]
    assert result == STORY
    assert len(server.requests) == 3


def test_story_asks_again_for_a_segment_that_does_not_fit(backend: str, server: FakeOpenAI) -> None:
    server.script([says('{"text": "A do'), says('{"text": "A door."}'), *SEGMENTS])
    _, events, result = tell(backend, [2, 1])
    assert result == STORY
    assert len(events) == 3
    assert server.requests[0] == server.requests[1] == server.requests[2]


def test_story_fails_with_the_error_of_the_server(backend: str, server: FakeOpenAI) -> None:
    server.script([Refuses(401, "no such key")])
    _, [failure], raised = tell(backend, [])
    assert isinstance(failure, WorkflowFailedEvent)
    assert (failure.step_name, failure.attempts) == ("write", 1)
    assert isinstance(raised, openai.AuthenticationError)


def test_story_continues_in_another_process(backend: str, server: FakeOpenAI) -> None:
    """The book and the open question survive as JSON, in the middle of the story."""
    story = importlib.import_module("story")
    server.script(SEGMENTS)

    async def main() -> tuple[list[Event], Any]:
        async with story.Story().run(text="A walk.") as handler:
            assert [await anext(handler.stream_events())] == [
                story.Scene(text="A door.", choices=["Knock", "Leave"])
            ]
            saved = json.dumps(handler.ctx.to_dict())
            await handler.cancel_run()
        workflow = story.Story()
        events = []
        async with workflow.run(ctx=Context.from_dict(workflow, json.loads(saved))) as handler:
            await handler.send_event(story.Choice(number=2))
            async for event in handler.stream_events():
                events.append(event)
                if isinstance(event, story.Scene):
                    await handler.send_event(story.Choice(number=1))
            return events, await handler

    events, result = anyio.run(main, backend=backend)
    assert result == STORY
    assert len(events) == 2


def test_story_at_the_terminal(
    backend: str,
    server: FakeOpenAI,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.script(SEGMENTS)
    answers = iter(["leave", "2", "1"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
    command(backend, monkeypatch, "story", "A walk.")
    printed = capsys.readouterr().out
    assert printed.startswith("\nA door.\n\n  1. Knock\n  2. Leave\n\nThere is no choice 0.\n\n")
    assert printed.endswith(f"\nThe whole story:\n\n{STORY}\n")


# The ReAct agent.


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def search(text: str) -> str:
    """Search the web."""
    raise ConnectionError(f"no network, cannot find {text}")


def thoughts(*, action: str = "", arguments: str = "{}", answer: str = "") -> Says:
    """A message of the model in the form that it was told, in pieces."""
    rest = ["Answer: ", answer] if answer else ["Action: ", action, "\nArguments: ", arguments]
    return says("Thought: I ", "think.\n", *rest)


def converse(backend: str, workflow: Any, *questions: str) -> list[tuple[list[Event], Any]]:
    """Run an agent once for each question, with the same context."""
    ctx: Context[Any] = Context(workflow)
    return [read(backend, partial(workflow.run, ctx=ctx, text=text)) for text in questions]


def test_react_agent_streams_its_reasoning_and_remembers(backend: str, server: FakeOpenAI) -> None:
    react = importlib.import_module("react_agent")
    script = [
        thoughts(action="add", arguments='{"a": 2, "b": 3}'),
        thoughts(answer="5"),
        thoughts(answer="I said 5."),
    ]
    server.script(script)
    agent = react.ReActAgent([add, search])
    (events, first), (_, second) = converse(backend, agent, "2 + 3?", "Pardon?")
    assert first == react.Answer(text="5", sources=['add({"a": 2, "b": 3})'])
    assert second == react.Answer(text="I said 5.", sources=[])
    pieces = [piece for answer in script[:2] for piece in answer.pieces]
    assert events == [*(react.Delta(text=piece) for piece in pieces), first]
    system, *chat = server.requests[-1]["messages"]
    assert "add(a: 'int', b: 'int') -> 'int': Add two numbers." in system["content"]
    assert [message["content"] for message in chat] == [
        "2 + 3?",
        "".join(script[0].pieces),
        "Observation: 5",
        "".join(script[1].pieces),
        "Pardon?",
    ]
    assert all(request["stream"] for request in server.requests)


@pytest.mark.parametrize(
    ("said", "observed"),
    [
        (
            thoughts(action="search", arguments='{"text": "it"}'),
            "Observation: ConnectionError('no network, cannot find it')",
        ),
        (thoughts(action="dance"), "There is no tool 'dance'."),
        (thoughts(action="add", arguments='{"a": 2, b}'), "The arguments are not JSON: "),
        (says("Let me see."), "Neither an action nor an answer was found in the message."),
    ],
    ids=["a tool that raises", "unknown tool", "bad arguments", "no form"],
)
def test_react_agent_tells_the_model_what_went_wrong(
    backend: str, server: FakeOpenAI, said: Says, observed: str
) -> None:
    react = importlib.import_module("react_agent")
    server.script([said, thoughts(answer="Nobody knows.")])
    [(_, answer)] = converse(backend, react.ReActAgent([add, search]), "What is it?")
    assert answer.text == "Nobody knows."
    assert last_message(server.requests[1]).startswith(observed)


def test_react_agent_repeats_only_the_thought_that_failed(backend: str, server: FakeOpenAI) -> None:
    """The server fails in the middle of the second message: what came before is kept."""
    react = importlib.import_module("react_agent")
    first = thoughts(action="add", arguments='{"a": 2, "b": 3}')
    server.script([first, Says(("Thought: ",), "overload"), thoughts(answer="5")])
    agent = react.ReActAgent([add])
    ctx: Context[Any] = Context(agent)
    events, raised = read(backend, lambda: agent.run(ctx=ctx, text="2 + 3?"))
    assert isinstance(raised, openai.APIError)
    assert isinstance(events[-1], WorkflowFailedEvent)
    assert events[-1].step_name == "think"
    ctx.retry_failed()
    _, answer = read(backend, lambda: agent.run(ctx=ctx))
    assert answer == react.Answer(text="5", sources=['add({"a": 2, "b": 3})'])
    assert server.requests[1]["messages"] == server.requests[2]["messages"]


def test_react_agent_ends_with_a_model_that_finds_no_answer(
    backend: str, server: FakeOpenAI
) -> None:
    react = importlib.import_module("react_agent")
    server.script([thoughts(action="dance"), says("Let me see."), thoughts(action="dance")] * 2)
    agent = react.ReActAgent([add], turns=3)
    _, raised = read(backend, lambda: agent.run(text="What is it?"))
    assert str(raised) == "no answer after 3 turns"
    assert len(server.requests) == 3


def test_react_agent_at_the_terminal(
    backend: str,
    server: FakeOpenAI,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = '{"amount": 42.195, "unit": "km", "to": "mi"}'
    server.script([thoughts(action="convert", arguments=arguments), thoughts(answer="26.22 mi")])
    command(backend, monkeypatch, "react_agent", "A marathon in miles?")
    assert last_message(server.requests[1]) == "Observation: 26.22 mi"
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "Answer: 26.22 mi",
        "",
        f"Sources: convert({arguments})",
    ]


# The function-calling agent.


def test_function_agent_calls_tools_side_by_side(backend: str, server: FakeOpenAI) -> None:
    """Two calls of one message, each of which waits for the other to begin."""
    agents = importlib.import_module("function_agent")
    begun: dict[str, anyio.Event] = {}

    async def weigh(name: str, other: str) -> str:
        """Weigh a thing together with another one."""
        begun.setdefault(name, anyio.Event()).set()
        await begun.setdefault(other, anyio.Event()).wait()
        return f"{name} is as heavy as {other}"

    pair = calls(("weigh", {"name": "a", "other": "b"}), ("weigh", {"name": "b", "other": "a"}))
    server.script([pair, says("They balance.")])
    agent = agents.FunctionAgent([weigh])
    [(events, result)] = converse(backend, agent, "Do they balance?")
    assert result == "They balance."
    assert sorted(event.content for event in events if isinstance(event, agents.Used)) == [
        "a is as heavy as b",
        "b is as heavy as a",
    ]
    first, second = server.requests
    parameters = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "other": {"type": "string"}},
        "required": ["name", "other"],
    }
    description = "Weigh a thing together with another one."
    assert first["tools"] == [
        {
            "type": "function",
            "function": {"name": "weigh", "description": description, "parameters": parameters},
        }
    ]
    user, assistant, *results = second["messages"]
    assert user == {"role": "user", "content": "Do they balance?"}
    assert [call["id"] for call in assistant["tool_calls"]] == ["call-1", "call-2"]
    assert {message["tool_call_id"]: message["content"] for message in results} == {
        "call-1": "a is as heavy as b",
        "call-2": "b is as heavy as a",
    }


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (("divide", {"a": 1, "b": 0}), "error: ZeroDivisionError("),
        (("divide", '{"a": 1, '), "error: JSONDecodeError("),
        (("divide", {"a": 1}), "error: TypeError("),
        (("multiply", {}), "error: KeyError('multiply')"),
    ],
    ids=["raises", "no JSON", "missing argument", "unknown tool"],
)
def test_function_agent_gives_errors_of_tools_to_the_model(
    backend: str, server: FakeOpenAI, call: tuple[str, Any], error: str
) -> None:
    agents = importlib.import_module("function_agent")

    async def divide(a: float, b: float) -> float:
        """Divide a by b."""
        return a / b

    server.script([calls(call, ("divide", {"a": 6, "b": 3})), says("So be it.")])
    [(_, result)] = converse(backend, agents.FunctionAgent([divide]), "1 / 0?")
    assert result == "So be it."
    contents = {
        message["tool_call_id"]: message["content"]
        for message in server.requests[1]["messages"]
        if message["role"] == "tool"
    }
    assert contents["call-1"].startswith(error)
    assert contents["call-2"] == "2.0"


def test_function_agent_fails_with_the_error_of_the_server(
    backend: str, server: FakeOpenAI
) -> None:
    agents = importlib.import_module("function_agent")
    server.script([Refuses(400, "no such model")])
    [([failure], raised)] = converse(backend, agents.FunctionAgent([]), "Hello?")
    assert isinstance(failure, WorkflowFailedEvent)
    assert failure.step_name == "ask"
    assert isinstance(raised, openai.BadRequestError)


def test_function_agent_ends_with_a_model_that_finds_no_answer(
    backend: str, server: FakeOpenAI
) -> None:
    agents = importlib.import_module("function_agent")
    server.script([calls(("dance", {}))] * 4)
    agent = agents.FunctionAgent([], turns=2)
    _, raised = read(backend, lambda: agent.run(text="How heavy?"))
    assert str(raised) == "no answer after 2 turns"
    assert len(server.requests) == 2


def test_function_agent_at_the_terminal(
    backend: str,
    server: FakeOpenAI,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two messages, and a loop of two rounds of tools for the first one."""
    server.script(
        [
            calls(("temperature", {"city": "Rome"})),
            calls(("subtract", {"a": 19.5, "b": 4})),
            says("By 15.5 degrees."),
            says("You are welcome."),
        ]
    )
    command(backend, monkeypatch, "function_agent", "How much warmer is Rome?", "Thank you.")
    assert capsys.readouterr().out.splitlines() == [
        'temperature({"city": "Rome"}): 19.5',
        'subtract({"a": 19.5, "b": 4}): 15.5',
        "By 15.5 degrees.",
        "You are welcome.",
    ]
    roles = [message["role"] for message in server.requests[-1]["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "assistant", "user"]


# The document pipeline.


def write(folder: Path, **texts: str) -> dict[str, Path]:
    paths = {name: folder / f"{name}.txt" for name in texts}
    for name, text in texts.items():
        paths[name].write_text(text, "utf-8")
    return paths


def summarise(body: dict[str, Any]) -> Answer:
    """Summarise a page as its first and last characters; a digest keeps the line breaks."""
    text = last_message(body)
    return says(text[0] + text[-1]) if "Summarise" in body["messages"][0]["content"] else says(text)


def process(backend: str, paths: dict[str, Path]) -> tuple[Any, list[Event], Any]:
    pipeline = importlib.import_module("document_pipeline")
    events, result = read(backend, lambda: pipeline.Pipeline().run(paths=list(paths.values())))
    return pipeline, events, result


def test_pipeline_makes_one_digest_per_document(
    backend: str, server: FakeOpenAI, tmp_path: Path
) -> None:
    server.answer = summarise
    paths = write(tmp_path, long="a" * 4000 + "b" * 4000 + "c", short="de", empty=" \n")
    pipeline, events, result = process(backend, paths)
    assert result == {
        paths["long"]: "aa\nbb\ncc",
        paths["short"]: "de",
        paths["empty"]: "(empty)",
    }
    pages = [(ev.path, ev.number) for ev in events if isinstance(ev, pipeline.Progress)]
    assert sorted(pages) == sorted(
        [(paths["long"], 1), (paths["long"], 2), (paths["long"], 3), (paths["short"], 1)]
    )
    tasks = [request["messages"][0]["content"] for request in server.requests]
    assert sorted(tasks) == [
        *["Make one paragraph of this."] * 2,
        *["Summarise this page in two sentences."] * 4,
    ]


def test_pipeline_tries_a_page_again(backend: str, server: FakeOpenAI, tmp_path: Path) -> None:
    refusals = iter([Refuses(503), Refuses(429)])
    server.answer = lambda body: next(refusals, None) or summarise(body)
    paths = write(tmp_path, short="de")
    assert process(backend, paths)[2] == {paths["short"]: "de"}
    assert len(server.requests) == 4


def test_pipeline_leaves_out_a_page_that_fails_for_good(
    backend: str, server: FakeOpenAI, tmp_path: Path
) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        return Refuses(400, "indecent") if last_message(body)[0] == "b" else summarise(body)

    server.answer = answer
    paths = write(tmp_path, long="a" * 4000 + "b" * 4000 + "c", short="de")
    _, _, result = process(backend, paths)
    assert result[paths["short"]] == "de"
    first, second, third = result[paths["long"]].splitlines()
    assert (first, third) == ("aa", "cc")
    assert second.startswith("(no summary: Error code: 400")


def test_pipeline_fails_if_a_document_cannot_be_read(
    backend: str, server: FakeOpenAI, tmp_path: Path
) -> None:
    server.answer = summarise
    _, events, raised = process(backend, {"absent": tmp_path / "absent.txt"})
    assert isinstance(raised, FileNotFoundError)
    assert isinstance(events[-1], WorkflowFailedEvent)
    assert events[-1].step_name == "split"


def test_pipeline_at_the_terminal(
    backend: str,
    server: FakeOpenAI,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.answer = summarise
    path = write(tmp_path, short="de")["short"]
    command(backend, monkeypatch, "document_pipeline", str(path))
    assert capsys.readouterr().out == f"{path}, page 1\n\n{path}\nde\n"
