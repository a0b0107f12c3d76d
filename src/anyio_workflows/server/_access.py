"""Which requests are let in, and whose run is whose."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any, Literal, NamedTuple

import attrs
from starlette.requests import Request

from .._messages import short_repr
from ..errors import UnknownRunError
from ..runtime import RunHandle, RunInfo, Runtime
from ._problems import ProblemError

Verb = Literal["list", "read", "start", "send", "cancel", "retry", "delete"]
"""What a request wants to do."""

OWNER = "$owner"
"""The key of metadata under which the owner of a run is kept."""


class Action(NamedTuple):
    """What a request wants to do.

    Attributes:
        verb: `"list"` is to read what there is, runs and workflows.
        workflow: The name of the workflow; `None` if the path names none.
        run_id: The id of the run; `None` if the path names none.
    """

    verb: Verb
    workflow: str | None
    run_id: str | None


Authorize = Callable[[Request, Action], "str | Awaitable[str | None] | None"]


@attrs.define(eq=False)
class Access:
    """Lets requests in.

    Attributes:
        token: What a request has to show; `None` for nothing.
        authorize: Returns the principal of a request, or `None` to refuse it.
    """

    token: str | None
    authorize: Authorize | None

    async def check(self, request: Request, verb: Verb) -> str | None:
        """Return the principal of a request; `None` if there are none here.

        Raises:
            ProblemError: If the request is refused.
        """
        if self.token is not None:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.encode(), self.token.encode())
            if scheme.lower() != "bearer" or not right:
                raise ProblemError(
                    401,
                    "this server asks for a token: send 'Authorization: Bearer TOKEN'",
                    {"www-authenticate": "Bearer"},
                )
        if self.authorize is None:
            return None
        path = request.path_params
        principal = self.authorize(request, Action(verb, path.get("name"), path.get("id")))
        if isawaitable(principal):
            principal = await principal
        if principal is None:
            raise ProblemError(403, "this is not allowed to you")
        return principal

    def may_see(self, info: RunInfo, principal: str | None) -> bool:
        """Return whether a run is one of those that a principal may know of."""
        return self.authorize is None or info.metadata.get(OWNER) == principal

    async def find(self, runtime: Runtime, run_id: str, principal: str | None) -> RunHandle[Any]:
        """Return a run. One that belongs to others is as unknown as one that does not exist."""
        try:
            run = await runtime.get(run_id)
            if self.may_see(run.info, principal):
                return run
        except UnknownRunError:
            pass
        raise ProblemError(404, f"there is no run {short_repr(run_id)} here")
