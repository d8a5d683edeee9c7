"""What a guard says of itself and its host when it connects to the controller."""

from rolecall.protocol.message import Message


class GuardHello(Message, frozen=True, kw_only=True):
    """Who and where a guard is.

    Attributes:
        host: Name of its host.
        host_id: Identity of its host (boot and namespaces), which names do not give.
        ip: Address under which its workers are reached.
        cores: How many of the host's cores it may use.
        devices: Accelerators that it was given, as the visible-devices variable names them.
        python: Version and path of its interpreter.
    """

    guard_id: str
    run_id: str
    pid: int
    host: str
    host_id: str
    ip: str
    cores: int = 0
    memory_gib: float = 0.0
    devices: list[str] = []
    python: str = ""
    kind: str = "guard"
