"""A server that speaks as vLLM does to AReaL: completions in tokens, weights read from a folder, pause and go on."""

from __future__ import annotations

import json
import math
import random
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

VOCABULARY = 32
weights = [0.0] * VOCABULARY


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({"status": "ok"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        if self.path == "/areal_update_weights":
            weights[:] = json.loads((Path(asked["model_path"]) / "table.json").read_text())
        self._answer(completion(asked) if self.path == "/v1/completions" else {"success": True})

    def _answer(self, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


def completion(asked: dict[str, Any]) -> dict[str, Any]:
    """So many tokens, sampled from the table, with their log-probabilities."""
    total = math.log(sum(map(math.exp, weights)))
    tokens = random.choices(range(VOCABULARY), [math.exp(w) for w in weights], k=asked["max_tokens"])
    logprobs = {
        "tokens": [f"token_id:{token}" for token in tokens],
        "token_logprobs": [weights[token] - total for token in tokens],
    }
    return {"choices": [{"finish_reason": "length", "logprobs": logprobs, "text": ""}]}


if __name__ == "__main__":
    ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Answers).serve_forever()
