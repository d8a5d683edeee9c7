"""A module that tests run as a worker: it takes the reference system's arguments, and serves what it was told.

It hosts an engine as the reference system's proxies do, by routes of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

if os.environ.get("FAILS") == os.environ.get("ROLECALL_INDEX", "-"):
    time.sleep(5)  # of other imports
    raise ImportError("no such kernel")

NESTED = "nested"
AWAKE = threading.Event()  # cleared, nothing is answered
AWAKE.set()


class Engine:
    """What it hosts, whatever class it is asked for."""

    def __init__(self, calls: int = 0) -> None:
        self.calls = calls

    def add(self, number: int, times: int = 1) -> int:
        self.calls += number * times
        return self.calls

    def nested(self) -> str:
        """Answered with lists in lists."""
        return NESTED

    def fail(self, text: str) -> None:
        raise ValueError(text)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def hang(self) -> None:
        """Answers no health until `wake`."""
        AWAKE.clear()

    def wake(self) -> None:
        AWAKE.set()

    def leave(self, code: int) -> None:
        os._exit(code)


class Handler(BaseHTTPRequestHandler):
    engine: Engine | None = None
    engine_path = ""
    configured: Any = None

    def do_GET(self) -> None:
        AWAKE.wait()
        told = {name: value for name, value in os.environ.items() if name.startswith("ROLECALL_") or name == "COLOUR"}
        facts = {"arguments": sys.argv[1:], "environment": told, "configured": Handler.configured}
        facts["engine"] = Handler.engine_path
        self._answer(200 if self.path in ("/health", "/told") else 404, facts)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            self._answer(200, {"status": "success", "result": self._done(asked)})
        except LookupError as e:
            self._answer(404, {"detail": f"no {e}"})
        except Exception as e:
            self._answer(500, {"error": f"{type(e).__name__}: {e}"})

    def _done(self, asked: dict[str, Any]) -> Any:
        match self.path:
            case "/create_engine":
                if Handler.engine is not None:
                    raise ValueError("Engine already exists")
                Handler.engine_path = asked["engine"]
                Handler.engine = Engine(*asked["init_args"], **asked["init_kwargs"])
            case "/call" if Handler.engine is None:
                raise LookupError(f"engine {asked['engine_name']}")
            case "/call":
                return getattr(Handler.engine, asked["method"])(*asked["args"], **asked["kwargs"])
            case "/set_env" if asked["env"].get("COLOUR") == "refused":
                raise ValueError("no such colour")
            case "/set_env":
                AWAKE.wait()
                os.environ.update(asked["env"])
            case "/configure":
                Handler.configured = asked
            case path:
                raise LookupError(f"path {path}")
        return None

    def _answer(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode().replace(f'"{NESTED}"'.encode(), b"[" * 3000 + b"]" * 3000)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("host", "role", "experiment-name", "trial-name"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("port", "worker-index"):
        parser.add_argument(f"--{name}", required=True, type=int)
    options = parser.parse_args()
    time.sleep(0.5)  # as long as an import may take, and longer than programs without a port are waited for
    ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
