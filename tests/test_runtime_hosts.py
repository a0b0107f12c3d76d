"""Runtimes in processes of their own, on one SQLite file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import Runtime, StopEvent
from anyio_workflows.errors import WorkflowRuntimeError

from .running import on_each_backend
from .samples import Answer, Asks, Question

HOST = """
import sys
import anyio
from anyio_workflows import Runtime
from tests.samples import Asks

async def main(path):
    async with Runtime(f"sqlite:///{path}", workflows=[Asks(timeout=None)]) as runtime:
        run = await runtime.start(Asks, "one")
        print(run.id, flush=True)
        await anyio.sleep_forever()

anyio.run(main, sys.argv[1], backend=sys.argv[2])
"""


@contextmanager
def host(path: Path, backend: str) -> Iterator[subprocess.Popen[str]]:
    """Let a process start the run, or find it, and execute what there is."""
    command = [sys.executable, "-c", HOST, str(path), backend]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as child:
        try:
            yield child
        finally:
            child.kill()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs signals of POSIX")
@on_each_backend
def test_d6_d8_processes_share_a_run_are_stopped_and_are_terminated(
    tmp_path: Path, backend: str
) -> None:
    """Two start it at once; a third one follows it, and executes it when they are gone."""
    path = tmp_path / "runs.db"

    async def main() -> None:
        with ExitStack() as stack:
            hosts = [stack.enter_context(host(path, backend)) for _ in range(2)]
            for child in hosts:
                assert child.stdout is not None
                assert child.stdout.readline() == "one\n"
            url = f"sqlite:///{path}"
            async with Runtime(url, workflows=[Asks(timeout=None)]) as runtime:
                assert [info.id for info in (await runtime.runs()).runs] == ["one"]
                run = await runtime.get("one")
                events = run.stream_events()
                assert isinstance(await anext(events), Question)
                [wait] = await run.open_waits()
                for child in hosts:
                    child.send_signal(signal.SIGSTOP)
                    await anyio.to_thread.run_sync(os.waitid, os.P_PID, child.pid, os.WSTOPPED)
                with anyio.move_on_after(1.5):  # longer than it takes to look for dead processes
                    await run.send_event(Answer(text="no"), wait="nonsense")
                assert runtime.statistics().in_progress == 0
                for child in hosts:
                    child.send_signal(signal.SIGCONT)
                with pytest.raises(WorkflowRuntimeError, match="'nonsense'"):
                    await run.send_event(Answer(text="no"), wait="nonsense")
                for child in hosts:
                    child.terminate()
                    await anyio.to_thread.run_sync(child.wait)
                while not runtime.statistics().in_progress:
                    await checkpoint()
                assert await run.send_event(Answer(text="yes"), wait=wait.id) == ("ask",)
                assert await run == "yes"
                assert [type(event) async for event in events] == [StopEvent]
                assert [record.seq async for record in run.records()] == [1, 2]

    anyio.run(main, backend=backend)
