"""The command line's client of running guards and workers: HTTP over their Unix sockets, with the run's token."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from rolecall.errors import RolecallError
from rolecall.guard.runtime import guard_socket, worker_socket
from rolecall.placement.outside import is_private
from rolecall.protocol.guard import WorkerRow

TIMEOUT_S = 2.0  # a guard or worker that makes progress answers in milliseconds


class NoAnswerError(RolecallError):
    """A guard or worker does not answer. The commands then show what the run directory contains."""

    def __init__(self, target: str, reason: str) -> None:
        self.target, self.reason = target, reason
        super().__init__(f"{target} does not answer: {reason}")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass(frozen=True)
class RunClient:
    """Requests to the guards and workers of one run on this host."""

    runtime_dir: Path

    def table(self, guard_id: str) -> list[WorkerRow]:
        """The rows of a guard's table of workers.

        Raises:
            NoAnswerError: The guard has ended, is stuck, or refuses the request; so for the other methods.
        """
        answer = self._ask_guard(guard_id, "GET", "/workers", None, TIMEOUT_S)
        try:
            return msgspec.convert(answer, list[WorkerRow])
        except msgspec.ValidationError as e:
            raise NoAnswerError(f"guard {guard_id}", f"it is of another version: {e}") from e

    def stacks(self, guard_id: str, worker_id: str, timeout: float) -> str:
        """The Python stacks of a worker, or a message that begins with `no stacks`."""
        return str(self._ask_guard(guard_id, "POST", "/stacks", {"worker": worker_id}, timeout))

    def kill(self, guard_id: str, workers: list[str], grace_s: float, timeout: float) -> None:
        """Has a guard end workers; returns when they have ended."""
        self._ask_guard(guard_id, "POST", "/kill", {"workers": workers, "grace_s": grace_s}, timeout)

    def worker(self, worker_id: str) -> dict[str, Any]:
        """The metrics of a worker.

        Raises:
            NoAnswerError: The worker has ended, does not release the interpreter lock, or is a command worker.
        """
        path = worker_socket(str(self.runtime_dir), worker_id)
        answer = self._ask(f"worker {worker_id}", path, "GET", "/metrics?format=json", None, TIMEOUT_S)
        return dict(answer)

    def serves(self, worker_id: str) -> bool:
        """Whether there is a worker's socket here: a program may have become one, by `rolecall.serve`."""
        return Path(worker_socket(str(self.runtime_dir), worker_id)).exists()

    def _ask_guard(self, guard_id: str, verb: str, route: str, value: Any, timeout: float) -> Any:
        return self._ask(f"guard {guard_id}", self.guard_socket(guard_id), verb, route, value, timeout)

    def guard_socket(self, guard_id: str) -> str:
        return guard_socket(str(self.runtime_dir), guard_id)

    def guard_ids(self) -> list[str]:
        """Guards with a socket in the runtime directory, including those that have ended."""
        return sorted(p.stem for p in self.runtime_dir.glob("*.sock") if p.name != "controller.sock")

    def _ask(self, target: str, path: str, verb: str, route: str, value: Any, timeout: float) -> Any:
        connection = _UnixConnection(path, timeout)
        try:
            headers = {"Authorization": f"Bearer {self._token()}", "Content-Type": "application/json"}
            connection.request(verb, route, None if value is None else json.dumps(value), headers)
            response = connection.getresponse()
            body = response.read()
            return _answer(target, response.status, body)
        except (OSError, http.client.HTTPException, ValueError) as e:
            raise NoAnswerError(target, _why(e)) from e
        finally:
            connection.close()

    def _token(self) -> str:
        """The run's token. `state.json` names the directory, which is trusted only if it is private."""
        if not is_private(self.runtime_dir):
            raise PermissionError(f"{self.runtime_dir} is not a private directory of this user")
        return (self.runtime_dir / "token").read_text().strip()


def _answer(target: str, status: int, body: bytes) -> Any:
    try:
        value = json.loads(body) if body else None
    except ValueError:
        value = body.decode(errors="replace")
    if status == 200:
        return value
    reason = value.get("error", value) if isinstance(value, dict) else value
    raise NoAnswerError(target, f"the request was refused with status {status}: {reason}")


def _why(error: Exception) -> str:
    match error:
        case TimeoutError():
            return "no answer in time; the process is stuck or stopped"
        case ConnectionRefusedError():
            return "its process has ended (no process listens on its socket)"
        case FileNotFoundError():
            return f"{Path(str(error.filename or 'its socket')).name} does not exist"
        case _:
            return str(error) or type(error).__name__
