"""A module that tests run as a worker: it takes the reference system's arguments, and serves what it was told."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        told = {name: value for name, value in os.environ.items() if name.startswith("ROLECALL_") or name == "COLOUR"}
        body = json.dumps({"arguments": sys.argv[1:], "environment": told}).encode()
        self.send_response(200 if self.path in ("/health", "/told") else 404)
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
