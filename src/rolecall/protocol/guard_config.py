"""A guard's configuration: what the scheduler tells it before it can ask anybody."""

from typing import Any

from rolecall.protocol.message import Message
from rolecall.protocol.token import HIDDEN


class GuardConfig(Message, frozen=True, kw_only=True):
    """Comes as JSON through an inherited descriptor or a 0600 file, because it holds the run's token.

    Attributes:
        controller: Addresses that the guard dials, `unix:/path` or `tcp:host:port`, best first.
        lease_s: The guard ends, with all its workers, when the controller has not renewed the lease for so long.
        ip: This host as the controller and other hosts see it; empty for its address on the way to the controller.
        bind: Address that TCP listeners of workers bind; empty for `ip`.
        env: Base environment of workers, over the guard's own.
        sys_path: The controller's `sys.path`, for modules to preload and for workers.
        main: What the controller runs, so that classes defined in it are found: the path of its script, or the name of
            the module that `python -m` was given; empty for none.
        seed: The run's; None for none.
        controller_host: Identity of the controller's host (`transport.address`); its sockets and pid count there alone.
        controller_pid: The controller's pid and start time (ticks since boot) on its host.
        starter_pid: The reaper ends, as by SIGTERM, when this process dies, which has started it; 0 when it may outlive
            it.
        stall_s: A worker without heartbeat, CPU time and ended calls for so long is suspected to hang.
        grace_s: Seconds between SIGTERM and SIGKILL of workers whose start was given up, and of forks that workers end.
        silence_s: A program that was ready by an HTTP path and has not answered there for so long is told as stalled.
        notices: Each further line on the guard's stdin, a JSON object, is a notice for the controller.
        tensor_backend: Which of their backends workers ask first to store a tensor.
        setup: Path of a function that workers call before they make their first engine; empty for none.
        one_engine_thread: All engines of a worker have the same thread.
        python: Interpreter of workers; empty for the guard's own.
        entry: What an engine worker runs, `module:function`; it gets the control socket.
        cold_module: The same for a worker that is started cold, as `python -m <cold_module>`, which finds the
            number of the socket in ROLECALL_CONTROL.
    """

    run_id: str
    guard_id: str
    token: str
    controller: list[str]
    run_dir: str
    runtime_dir: str
    experiment: str = ""
    trial: str = ""
    seed: int | None = None
    lease_s: float = 30.0
    ip: str = ""
    bind: str = ""
    preload: list[str] = []
    env: dict[str, str] = {}
    cwd: str = ""
    sys_path: list[str] = []
    main: str = ""
    controller_host: str = ""
    controller_pid: int = 0
    controller_start: int = 0
    starter_pid: int = 0
    stall_s: float = 120.0
    silence_s: float = 8.0
    grace_s: float = 5.0
    notices: bool = False
    tensor_backend: str = "shm"
    setup: str = ""
    one_engine_thread: bool = False
    python: str = ""
    entry: str = "rolecall.worker.main:run"
    cold_module: str = "rolecall.worker"

    def __repr__(self) -> str:
        return f"GuardConfig({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Everything but the token."""
        return [(name, HIDDEN if name == "token" else getattr(self, name)) for name in self.__struct_fields__]
