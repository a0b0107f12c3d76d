"""Mail: what is sent to a run from another process than that which executes it, or while the run sleeps."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import anyio
import attrs

from .._messages import text_of
from ..errors import WorkflowError, WorkflowRuntimeError
from ..events import Event
from ._durable import DurableLive
from ._kept import KeptRuns
from ._live import KeptRun
from ._registered import Registered
from ._store import ACTIVE, ENDED, Mail, MailKind, RunStatus, Store

_PARKED = "{} cannot be taken: the run is {}; await runtime.retry(run_id) continues it"


@attrs.define(eq=False, repr=False)
class Mailbox:
    """Sends mail through a store and waits for the reply, and delivers the mail of the runs of this process.

    Attributes:
        store: Where mail is left.
        registered: The workflows by the names under which they are registered.
        runs: Those that this process executes.
        wake: Has the attendant look at once, who delivers mail and brings back runs that have some.
        left: Whether the runtime is being left.
    """

    store: Store
    registered: Mapping[str, Registered]
    runs: KeptRuns
    wake: Callable[[], None]
    left: bool = attrs.field(default=False, init=False)

    _unwanted: list[int] = attrs.field(factory=list, init=False)
    """Mail that was sent here, and for whose reply nobody waits any more: the sender was cancelled, for example."""

    _delivered: set[int] = attrs.field(factory=set, init=False)
    """Mail that has been delivered, and whose reply may not be on the disk yet."""

    _news: anyio.Event = attrs.field(factory=anyio.Event, init=False)
    """Set when there may be a reply."""

    def wake_senders(self) -> None:
        """Have those who wait for a reply look for it."""
        news, self._news = self._news, anyio.Event()
        news.set()

    def leave(self) -> None:
        """Tell those who wait for a reply that the runtime is being left."""
        self.left = True
        self._news.set()

    async def send(
        self, kept: KeptRun, event: Event, step: str | None, wait: str | None
    ) -> tuple[str, ...]:
        """Send an event to a run that this process does not execute; returns the steps that took it."""
        writer = self.registered[kept.workflow].writer(self.store.wall)
        data = {"event": json.loads(writer.event(event)), "step": step, "wait": wait}
        reply = await self._post(kept, "send", data, type(event).__name__)
        return tuple(reply["taken_by"])

    async def cancel(self, kept: KeptRun) -> None:
        """Cancel a run that this process does not execute."""
        with suppress(_EndedError):
            await self._post(kept, "cancel", {}, "a cancellation")

    async def _post(self, kept: KeptRun, kind: MailKind, data: Any, what: str) -> dict[str, Any]:
        """Leave mail for a run, and return the reply, once it is on the disk with what it caused."""
        self.check_not_left(f"{what} cannot be sent")
        mail = await self.store.post(kept.id, kind, json.dumps(data))
        self.wake()
        try:
            reply: dict[str, Any] = json.loads(await self._reply_to(mail, kept, what))
        except BaseException:
            if mail is not None:
                self._unwanted.append(mail)
                self.wake()
            raise
        if "ended" in reply:
            raise _EndedError(what)
        if "error" in reply:
            raise WorkflowRuntimeError(reply["error"])
        return reply

    async def _reply_to(self, mail: int | None, kept: KeptRun, what: str) -> str:
        """Wait for the reply to mail, and take it."""
        while True:
            self.check_not_left(f"nobody has taken {what} yet, which is kept for run {kept.id}")
            stored = await self.store.find_run(kept.id)  # first: the reply may come with the end
            text = None if mail is None else await self.store.take_reply(mail)
            if text is not None:
                return text
            if stored is None or stored.has_ended:
                raise _EndedError(what)
            if stored.status not in ACTIVE:
                raise WorkflowRuntimeError(_PARKED.format(what, stored.status))
            with anyio.move_on_after(self.store.poll):
                await self._news.wait()

    def check_not_left(self, what: str) -> None:
        """Refuse what cannot be done any more.

        Raises:
            WorkflowRuntimeError: Which begins with `what`, if the runtime is being left.
        """
        if self.left:
            raise WorkflowRuntimeError(f"{what}: this runtime has been left")

    async def deliver(self) -> None:
        """Do what the mail of the runs that this process executes asks for."""
        while self._unwanted:
            await self.store.want_no_reply(self._unwanted[0])
            del self._unwanted[0]  # only now: if it fails, the next look does it
        mail = await self.store.mail()
        self._delivered &= {one.id for one in mail}
        for one in mail:
            kept = self.runs.by_id.get(one.run_id)
            live = None if kept is None else kept.live
            if isinstance(live, DurableLive) and one.id not in self._delivered:
                self._delivered.add(one.id)
                live.journal.reply(one.id, json.dumps(self._deliver(live, one)))

    def _deliver(self, live: DurableLive, mail: Mail) -> dict[str, Any]:
        """Do what mail asks for; returns the reply, which is kept together with that."""
        run = live.run
        if mail.kind == "cancel":
            run.cancel("cancel() was called")
            return {}
        data = json.loads(mail.data)
        try:
            reader = self.registered[live.kept.workflow].reader()
            event = reader.event(json.dumps(data["event"]))
            if data["wait"] is None:
                return {"taken_by": run.send(event, data["step"])}
            return {"taken_by": run.answer(event, data["wait"], data["step"])}
        except WorkflowError as error:
            return {"error": text_of(error)}


def late_reply(status: RunStatus) -> str:
    """Return the reply to mail that a run did not take before it ended, or was parked.

    Its senders are told by the status of the run, and what was refused must not be done later: when the run is
    retried, all that was left over is replied to.
    """
    if status in ENDED:
        return json.dumps({"ended": True})
    return json.dumps({"error": _PARKED.format("what was sent", status)})


class _EndedError(WorkflowRuntimeError):
    """Mail has come too late."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} cannot be sent: the run has ended")
