"""`rolecall.serve`: a program that is an HTTP server and a worker, on one port."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Sequence

from rolecall.errors import WorkerConfigurationError
from rolecall.protocol.environment import CONTROL
from rolecall.transport.http import AsgiRoute
from rolecall.transport.http.asgi import Application
from rolecall.worker.loading import import_main_by_name
from rolecall.worker.main import run


def serve(app: Application, *, public: Sequence[str] = ()) -> None:
    """Serves an ASGI application and hosts engines, on the worker's first port, until the worker is ended.

    A module calls it that is started as a worker, by `role.fork("proxy", "package.module")` or
    `s.start("proxy", cmd="package.module")`. The worker is then one like those that host engines: `create_engine`,
    `call`, `submit`, streams, handles, `set_worker_env`, `stacks` and reports of its death work on it. Requests for the
    paths in docs/http.md are the worker's, all others the application's. `rolecall.current_worker()` works in its
    handlers and in its lifespan. Bodies of requests have at most 64 MiB.

    Args:
        app: The application (ASGI 3, `http` and `lifespan`): Starlette's or FastAPI's, for instance.
        public: Paths that the application serves without the run's token, since it has credentials of its own, say:
            `"/v1/models"`, or all below `"/v1/"`. All other requests need the token, as everywhere in a run; those of
            the worker always do. Bodies of requests without it have at most 1 MiB.

    Raises:
        WorkerConfigurationError: `app` cannot be called, `public` is a text or has a path that does not begin with `/`,
            or this process was not started as a worker that is a dotted module.
    """
    route = AsgiRoute(app, public)
    import_main_by_name()
    run(inherited_control(), route)


def inherited_control() -> socket.socket:
    """The socket to the guard that this process was started with.

    Raises:
        WorkerConfigurationError: There is none.
    """
    number = os.environ.pop(CONTROL, "")
    try:
        if number and stat.S_ISSOCK(os.fstat(int(number)).st_mode):
            os.set_inheritable(int(number), False)
            return socket.socket(fileno=int(number))
    except OSError:  # this is a child of the module, which has inherited its environment alone
        pass
    how = 'role.fork("proxy", "package.module"), or s.start("proxy", cmd="package.module")'
    expected = f"start the module as a worker: {how}, without a `ready` of its own"
    raise WorkerConfigurationError("rolecall.serve() was called outside of a run", None, expected)
