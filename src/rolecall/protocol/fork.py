"""What a guard sends its template process to fork workers, and what the template says when it can."""

import msgspec

from rolecall.protocol.message import Message


class ForkSpec(Message, frozen=True, kw_only=True):
    """What a forked child needs to become a worker.

    Attributes:
        guard: Pid of the guard, which the child waits to be handed over to.
        env: Its whole environment; it replaces the template's. Bytes, because it may hold what is no UTF-8.
        threads: Thread count for libraries that were imported before the fork.
        entry: `module:function`, called with the control socket.
    """

    worker_id: str
    guard: int
    env: dict[bytes, bytes]
    log_path: str
    entry: str
    cwd: str = ""
    threads: int = 0


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(list[ForkSpec]).decode


class TemplateReady(Message, frozen=True, kw_only=True):
    """The template's first message: what it could not import, how many threads it has (one is right)."""

    skipped: dict[str, str]
    threads: int
