"""Runs over HTTP: start them, follow them, answer them, from programs and from a page in the browser."""

# A thin door over a `Runtime`: it adds no state of its own. What the server knows, the runtime knows; what is
# open here are the streams, and these end without harm at any moment, since readers come back with a cursor.
#
# In the order of a request's path:
#
#   _server     the public `WorkflowServer`: what is served, and the ASGI application of it
#   _serving    `serve()`: sockets, signals, and the order in which everything ends
#   _hosts      under which names the server may be asked, and for pages of which origins
#   _access     who may do what: token, `authorize`, and whose run is whose
#   _routes     the one table of routes, from which the application and the OpenAPI document are made (_route:
#               what is said about one)
#   _requests   queries and bodies, read and checked
#   _problems   what is answered instead of a result (RFC 9457)
#   _runs, _events, _questions, _workflows, _page, _health, _metrics
#               the handlers of the routes (_counts: of requests, for the last)
#   _frames     events as bytes, for all three formats
#   _streams    the response that follows a run; the streams that are open, their heartbeats and their end
#   _openapi    the description of the table (_schemas: of what is answered and taken)
#   page/       the page: files as they are sent, without a build; `page.js` puts the other modules together

try:
    import orjson as _orjson  # noqa: F401
    import starlette as _starlette  # noqa: F401
except ImportError as exc:
    exc.add_note(
        "anyio_workflows.server needs starlette and orjson: pip install 'anyio-workflows[server]'"
    )
    raise

from ._access import Action, Authorize, Verb
from ._server import WorkflowServer

__all__ = ["Action", "Authorize", "Verb", "WorkflowServer"]
