"""Telling the user what is being waited for, once it has taken two seconds."""

from __future__ import annotations

import threading
from contextlib import suppress
from types import TracebackType

from rich.console import Console

PATIENCE_S = 2.0


class Waiting:
    """Shows `message` on stderr while its block takes over two seconds: a spinner, or a line without a terminal."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._console = Console(stderr=True)
        self._status = self._console.status(message)
        self._timer = threading.Timer(PATIENCE_S, self._show)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._over = self._shown = False

    def __enter__(self) -> Waiting:
        with suppress(RuntimeError):  # no further thread: then nobody is told
            self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._timer.cancel()
        with self._lock:
            self._over = True
            self._status.stop()

    def say(self, message: str) -> None:
        """Shows something else from now on; without a terminal a further line, when it has changed."""
        with self._lock:
            news, self._message = message != self._message, message
            self._status.update(message)
            if news and self._shown and not self._console.is_terminal:
                self._console.print(message, highlight=False)

    def _show(self) -> None:
        with self._lock:
            self._shown = not self._over
            if self._shown and self._console.is_terminal:
                self._status.start()
            elif self._shown:
                self._console.print(self._message, highlight=False)
