"""The values between the guard, the template and a child while it is born."""

import msgspec


class ForkSpec(msgspec.Struct, frozen=True, kw_only=True):
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
    sys_path: list[str] = []


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(list[ForkSpec]).decode


class TemplateReady(msgspec.Struct, frozen=True, kw_only=True):
    """The template's first message: what it imported, what it could not, how many threads it has (one is right)."""

    loaded: list[str]
    skipped: dict[str, str]
    threads: int
    seconds: float
