"""What is said about a route: enough to answer its requests, and to describe it to others."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

import attrs
from starlette.requests import Request

from ._access import Verb
from ._context import ServerContext
from ._runs import Answer

Handler = Callable[[ServerContext, Request], Awaitable[Answer]]

Endpoint = Callable[[Request], Awaitable[Answer]]

Schema = Mapping[str, Any]


@attrs.frozen
class Parameter:
    """A parameter of a request.

    Attributes:
        name: Its name.
        schema: The JSON Schema of its values.
        description: What it is for.
        place: Where it stands.
    """

    name: str
    schema: Schema
    description: str
    place: Literal["query", "path", "header"] = "query"


@attrs.frozen
class Content:
    """What a route answers with.

    Attributes:
        description: What it is, in a few words.
        media: Media types, each with the name of the schema in it, or a schema.
        headers: Names of headers, with what they are.
    """

    description: str
    media: Mapping[str, str | Schema] = attrs.field(factory=dict)
    headers: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Route:
    """What is answered where.

    Attributes:
        method: The method of HTTP.
        path: The path for Starlette, with its parameters in braces.
        handler: Answers; its docstring is the description.
        verb: What a request has to be allowed to do; `None` if anybody may.
        answers: What it answers with, by status; problems are not among them.
        problems: The statuses of problems that are its own.
        parameters: The parameters of the query and the headers that it reads; others are refused.
        body: The name of the schema of the body; `None` if it reads none.
        is_page: Whether it is a part of the page, and not of what programs use.
    """

    method: str
    path: str
    handler: Handler
    verb: Verb | None
    answers: Mapping[int, Content]
    problems: tuple[int, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    body: str | None = None
    is_page: bool = False

    @property
    def template(self) -> str:
        """The path as others write it: without what Starlette is told about its parameters."""
        return re.sub(r"{(\w+):\w+}", r"{\1}", self.path)

    @property
    def all_problems(self) -> set[int]:
        """The statuses of all problems with which a request may be answered, besides those of the server's own."""
        common = set() if self.verb is None else {400, 401, 403, 503}
        return {
            *self.problems,
            *common,
            *({415} if self.method == "POST" else ()),
            *({413} if self.body else ()),
        }

    @property
    def query(self) -> list[str]:
        """The names of the parameters of the query."""
        return [one.name for one in self.parameters if one.place == "query"]
