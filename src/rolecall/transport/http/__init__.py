"""HTTP/1.1 on the listeners that serve frames, so that `curl` works. It knows nothing of workers."""

from rolecall.transport.http.asgi import AsgiRoute
from rolecall.transport.http.connection import HttpConnection, linger
from rolecall.transport.http.messages import JSON, Disconnect, HttpError, Request, Response, json_response
from rolecall.transport.http.router import MAX_BODY, Route, Routes

__all__ = [
    "JSON",
    "MAX_BODY",
    "AsgiRoute",
    "Disconnect",
    "HttpConnection",
    "HttpError",
    "Request",
    "Response",
    "Route",
    "Routes",
    "json_response",
    "linger",
]
