"""Who may do what, and whose run is whose."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any, Literal, NamedTuple

import attrs
from starlette.requests import Request

from .._arguments import check_token
from .._messages import short_repr
from ..errors import (
    ContextSerdeError,
    UnknownRunError,
    WorkflowConfigurationError,
)
from ..runtime import RunHandle, RunInfo, Runtime
from ..runtime._records import is_name
from ._problems import ProblemError

Verb = Literal["list", "read", "start", "send", "cancel", "retry", "delete", "metrics"]
"""What a request wants to do."""

OWNER = "$owner"
"""The key of metadata under which the owner of a run is kept."""

"""Not `.` and `..`: browsers take them out of a path, however they are written, so nobody could ask for such a run."""


class UnreadableRunError(ProblemError):
    """A run of another program cannot be read here."""


class Action(NamedTuple):
    """What a request wants to do.

    Attributes:
        verb: `"list"` is to see which runs and workflows there are, `"read"` to look at one run, `"metrics"`
            to read counts of all of them.
        workflow: The name of the workflow; `None` if the path names none.
        run_id: The id of the run; `None` if the path names none.
    """

    verb: Verb
    workflow: str | None
    run_id: str | None


Authorize = Callable[[Request, Action], "str | Awaitable[str | None] | None"]


@attrs.define(eq=False)
class Access:
    """Lets requests in, and shows them what is theirs.

    Attributes:
        token: What a request has to show; `None` for nothing.
        authorize: Returns the principal of a request, or `None` to refuse it; `None` for no principals.
    """

    token: str | None = attrs.field(repr=False)
    authorize: Authorize | None

    def __attrs_post_init__(self) -> None:
        if self.token is not None:
            check_token(self.token)
        if self.authorize is not None and not callable(self.authorize):
            raise WorkflowConfigurationError(
                f"authorize must be a function of a request and an action, not {short_repr(self.authorize)}"
            )

    @property
    def is_open(self) -> bool:
        """Whether anybody is let in."""
        return self.token is None and self.authorize is None

    async def check(self, request: Request, verb: Verb) -> str | None:
        """Return the principal of a request; `None` if there are none here.

        Raises:
            ProblemError: If the request is refused.
            HTTPException: If `authorize` raises one.
            WorkflowConfigurationError: If `authorize` returns something else than it may.
        """
        if self.token is not None:
            self._check_token(self.token, request.headers.get("authorization"))
        if self.authorize is None:
            return None
        path = request.path_params
        answer: object = self.authorize(request, Action(verb, path.get("name"), path.get("id")))
        principal = await answer if isawaitable(answer) else answer
        if principal is None:
            raise ProblemError(403, "you are not allowed to do this")
        if not (isinstance(principal, str) and principal):
            raise WorkflowConfigurationError(
                "authorize must return the name of a principal, a str that is not empty, or None to refuse the "
                f"request; it returned {short_repr(principal)}"
            )
        return principal

    def _check_token(self, token: str, header: str | None) -> None:
        scheme, _, given = (header or "").partition(" ")
        # As bytes, since texts that are not ASCII are refused; they take the same time wherever they differ.
        is_right = hmac.compare_digest(given.strip().encode(), token.encode())
        if scheme.lower() != "bearer" or not is_right:
            challenge = "Bearer" if header is None else 'Bearer error="invalid_token"'
            said = "this server asks for its token" if header is None else "this is not its token"
            raise ProblemError(
                401,
                f"{said}: send 'Authorization: Bearer TOKEN'",
                {"www-authenticate": challenge},
            )

    def may_see(self, info: RunInfo, principal: str | None) -> bool:
        """Return whether a run is one of those that a principal may know of."""
        return self.authorize is None or info.metadata.get(OWNER) == principal

    async def find(self, runtime: Runtime, run_id: str, principal: str | None) -> RunHandle[Any]:
        """Return a run. One that belongs to others is as unknown as one that does not exist.

        Raises:
            UnknownRunError: If there is no such run, or it belongs to others.
            UnreadableRunError: If this program cannot work with it.
        """
        if not is_name(run_id):  # a database is asked for nothing else
            raise UnknownRunError(run_id)
        try:
            run = await runtime.get(run_id)
        except (WorkflowConfigurationError, ContextSerdeError) as error:
            # Another program has started it, whose workflow or types are not known here.
            await self.find_info(runtime, run_id, principal)
            raise UnreadableRunError(409, f"{error}; here it can only be listed") from None
        if self.authorize is not None and not self.may_see(run.info, principal):
            raise UnknownRunError(run_id)
        return run

    async def find_info(self, runtime: Runtime, run_id: str, principal: str | None) -> RunInfo:
        """Return how a run stands, of whichever program it is.

        Raises:
            UnknownRunError: If there is no such run, or it belongs to others.
        """
        if not is_name(run_id):  # a database is asked for nothing else
            raise UnknownRunError(run_id)
        info = await runtime.info(run_id)
        if not self.may_see(info, principal):
            raise UnknownRunError(run_id)
        return info
