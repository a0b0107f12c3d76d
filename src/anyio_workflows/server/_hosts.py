"""Under which names the server is there, and for the pages of which origins."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

import attrs
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .._messages import short_repr
from ..errors import WorkflowConfigurationError
from ._problems import ProblemError

_NAME = re.compile(r"\*|(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{1,5})?")
_HEADER = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+?)\.?(:\d{1,5})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


@attrs.define(eq=False)
class Hosts:
    """The names and addresses under which a server may be asked, and who else's pages may ask it.

    A page of another origin reaches a server on this machine in two ways. It may send a simple request, which
    browsers let through without asking: it has an `Origin` that is not this server's. Or its own name may
    be made to stand for the address of this machine (DNS rebinding): then `Host` is that name.

    Attributes:
        listed: Names that are this server's: exact, `*.example.org`, or `*` for all.
        origins: Origins of pages that may use it, besides its own; `*` for all.
        bound: The host that `serve()` was given; `None` if another program has bound the address.
    """

    listed: frozenset[str]
    origins: frozenset[str]
    bound: str | None = None

    def check(self, scope: Scope) -> None:
        """Refuse a request to another name, or from a page of another origin.

        Raises:
            ProblemError: Which names the remedy.
        """
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        host = hosts[0].lower() if len(hosts) == 1 else ""
        match = _HEADER.fullmatch(host)
        name = match[1].strip("[]") if match else ""
        if "*" not in self.listed and not self._is_own(name, scope.get("server")):
            what = f"the Host of this request, {short_repr(', '.join(hosts))}, is not one of this server's"
            raise ProblemError(403, f"{what}; WorkflowServer(hosts=[...]) lists more of them")
        for origin in headers.getlist("origin"):
            if not self._is_allowed(origin.lower(), host):
                raise ProblemError(
                    403,
                    f"pages of {short_repr(origin)} may not use this server; "
                    "WorkflowServer(allow_origins=[...]) lists those that may",
                )

    def _is_own(self, name: str, server: tuple[str, int | None] | None) -> bool:
        """Return whether a name or address is the server's."""
        if not name:
            return False
        if name in self.listed or name == self.bound or is_loopback(name):
            return True
        parts = name.split(".")
        if any("*." + ".".join(parts[n:]) in self.listed for n in range(1, len(parts))):
            return True
        # An address cannot be made to stand for another one.
        if not _is_address(name):
            return False
        return self.bound in ("", "0.0.0.0", "::") or (server is not None and server[0] == name)

    def _is_allowed(self, origin: str, host: str) -> bool:
        if origin in self.origins or "*" in self.origins:
            return True
        scheme, _, place = origin.partition("://")
        default = _DEFAULT_PORTS.get(scheme)
        # A proxy in front may have another scheme than this server: only the host tells.
        return default is not None and place == host.removesuffix(default)


def read_hosts(hosts: Iterable[str], allow_origins: Iterable[str]) -> Hosts:
    """Return the names and origins that a server was given.

    Raises:
        WorkflowConfigurationError: If one of them is none.
    """
    names = [name.strip("[]").lower() for name in _texts("hosts", hosts)]
    for name in names:
        if not (_NAME.fullmatch(name) or _is_address(name)):
            raise WorkflowConfigurationError(
                f"hosts has {short_repr(name)}; it lists names such as 'example.org', '*.example.org' or '*', "
                "without a port"
            )
    origins = [origin.lower() for origin in _texts("allow_origins", allow_origins)]
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise WorkflowConfigurationError(
                f"allow_origins has {short_repr(origin)}; it lists origins such as 'https://example.org', without "
                "a path, or '*'"
            )
    return Hosts(frozenset(names), frozenset(origins))


def _texts(name: str, given: object) -> list[str]:
    texts = None if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    if texts is None or not all(isinstance(text, str) for text in texts):
        raise WorkflowConfigurationError(f"{name} must be a list of str, not {short_repr(given)}")
    return texts


def is_loopback(host: str) -> bool:
    """Return whether a name or address stands for this machine, and cannot be reached from others."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class HostGate:
    """Lets only those requests through that `Hosts` allows: in front of all routes, the page included."""

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer with a problem."""
        app = self._app
        if scope["type"] == "http":
            try:
                self._hosts.check(scope)
            except ProblemError as problem:
                app = problem.response()
        await app(scope, receive, send)
