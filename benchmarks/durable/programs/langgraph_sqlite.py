"""The jobs as graphs of LangGraph with its checkpoints in SQLite; `durability` is an option."""

from __future__ import annotations

import asyncio
import operator
import time
from typing import Annotated, Any, Self, TypedDict

import measured
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send, interrupt
from measured import Countdown, Course, Job, Measurement

course: Course
waiting: Countdown
finished: Countdown | None = None
resumed: asyncio.Queue[float] = asyncio.Queue()
fan_clock = measured.Clock()


class State(TypedDict):
    left: int


async def arrive(state: State) -> State:
    await course.arrive()
    return state


async def turn(state: State) -> State:
    return {"left": state["left"] - 1}


async def only(state: State) -> State:
    return {"left": state["left"] - 1}


async def ask(state: State) -> State:
    answer = interrupt("number?")
    resumed.put_nowait(time.perf_counter())
    return {"left": answer}


async def hang(state: State) -> State:
    if finished is None:
        waiting.come()
        await asyncio.Event().wait()
    else:
        finished.come()
    return {"left": state["left"] - 1}


class Scores(TypedDict):
    items: int
    scores: Annotated[list[int], operator.add]


async def split(state: Scores) -> dict[str, Any]:
    fan_clock.begin()
    return {}


async def score(number: int) -> dict[str, Any]:
    return {"scores": [number]}


async def join(state: Scores) -> dict[str, Any]:
    assert len(state["scores"]) == state["items"]
    return {}


def linear(*nodes: Any, again: str | None = None) -> StateGraph[State]:
    """Return a graph of nodes one after the other; the last starts itself until nothing is left."""
    graph = StateGraph(State)
    names = [node.__name__ for node in nodes]
    for name, node in zip(names, nodes, strict=True):
        graph.add_node(name, node)
    for before, after in zip([START, *names], names, strict=False):
        graph.add_edge(before, after)
    if again is None:
        graph.add_edge(names[-1], END)
    else:
        graph.add_conditional_edges(again, lambda state: END if state["left"] < 0 else again)
    return graph


class Graph:
    """A graph that is compiled with a database; `run` starts or continues the run of a name."""

    def __init__(self, job: Job, graph: StateGraph[Any]) -> None:
        self._saver = AsyncSqliteSaver.from_conn_string(job["database"])
        self._graph = graph
        self._durability = job["durability"]

    async def __aenter__(self) -> Self:
        self._compiled = self._graph.compile(checkpointer=await self._saver.__aenter__())
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._saver.__aexit__(*exc)

    async def run(self, name: str, given: Any) -> Any:
        config: Any = {"configurable": {"thread_id": name}, "recursion_limit": 100_000}
        return await self._compiled.ainvoke(given, config, durability=self._durability)


async def steps(job: Job) -> Measurement:
    async with Graph(job, linear(arrive, turn, again="turn")) as graph:
        await race(graph, 1, 10)  # warms up
        await race(graph, job["runs"], job["steps"])
        course.clock.end()
    return course.each()


async def race(graph: Graph, runs: int, steps: int) -> None:
    global course
    course = Course(runs, steps, asyncio.Event)
    given = {"left": steps - 2}
    await asyncio.gather(*(graph.run(f"{number} of {runs}", given) for number in range(runs)))


async def start(job: Job) -> Measurement:
    ends = []
    async with Graph(job, linear(only)) as graph:
        for number in range(job["runs"]):
            begun = time.perf_counter()
            await graph.run(str(number), {"left": 1})
            ends.append(time.perf_counter() - begun)
    return {"end": measured.median(ends)}  # a graph is started and run by the same call


async def answers(job: Job) -> Measurement:
    waits = []
    async with Graph(job, linear(ask)) as graph:
        await asyncio.gather(*(graph.run(str(n), {"left": 1}) for n in range(job["runs"])))
        for number in range(job["runs"]):
            begun = time.perf_counter()
            await graph.run(str(number), Command(resume=1))
            waits.append(resumed.get_nowait() - begun)
    return {"seconds": measured.median(waits)}


async def wait(job: Job) -> Measurement:
    async with Graph(job, linear(ask)) as graph:
        await asyncio.gather(*(graph.run(f"first-{n}", {"left": 1}) for n in range(10)))
        disk, memory = measured.sqlite_size(job["database"]), measured.memory()
        for number in range(job["runs"]):
            await graph.run(str(number), {"left": 1})
        grown = measured.memory() - memory
        disk = measured.sqlite_size(job["database"]) - disk
    return {"memory": grown / job["runs"], "disk": disk / job["runs"]}


async def hang_up(job: Job) -> Measurement:
    global waiting
    all_wait = asyncio.Event()
    waiting = Countdown(job["runs"], all_wait.set)
    async with Graph(job, linear(only, hang)) as graph:
        runs = [asyncio.create_task(graph.run(str(n), {"left": 2})) for n in range(job["runs"])]
        await all_wait.wait()
        if job["durability"] == "async":
            await asyncio.sleep(10)  # the last of them are about to be written
        measured.wait_to_be_killed(runs)
    raise AssertionError


async def recover(job: Job) -> Measurement:
    """Resume the runs by their names: nothing does that by itself, and the names are known here."""
    global finished
    clock = measured.Clock()
    done = asyncio.Event()
    finished = Countdown(job["runs"], done.set)
    clock.begin()
    async with Graph(job, linear(only, hang)) as graph:
        await asyncio.gather(*(graph.run(str(n), None) for n in range(job["runs"])))
        assert done.is_set()
    clock.end()
    return clock.each(job["runs"])


async def fan_out(job: Job) -> Measurement:
    graph = StateGraph(Scores)
    for node in (split, score, join):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "split")
    graph.add_conditional_edges(
        "split", lambda state: [Send("score", n) for n in range(state["items"])], ["score"]
    )
    graph.add_edge("score", "join")
    graph.add_edge("join", END)
    async with Graph(job, graph) as compiled:
        for items in (10, job["items"]):  # the first warms up
            await compiled.run(f"fan-{items}", {"items": items, "scores": []})
        fan_clock.end()
    return fan_clock.each(job["items"])


JOBS = {
    "steps": steps,
    "start": start,
    "answers": answers,
    "wait": wait,
    "interrupt": hang_up,
    "recover": recover,
    "fan_out": fan_out,
}

if __name__ == "__main__":
    measured.main(JOBS, lambda job: asyncio.run(job()))
