"""The values that travel between a guard, its controller and its workers."""

import msgspec

from rolecall.protocol.token import CarriesToken


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """How a program shows that it is ready. None of the three: it is still alive after a short settle.

    Attributes:
        http: Path that answers with a status below 400.
        tcp: It accepts connections on its first port.
        log: A regular expression that a line of its log matches.
    """

    http: str | None = None
    tcp: bool = False
    log: str | None = None


class ProcessSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One process to start.

    Attributes:
        env: Whole environment beyond the guard's base; for forks the target's comes first.
        argv: None hosts engines; else a program, with placeholders
            `{host} {port} {ports[1]} {role} {index} {devices} {python}`.
        target: Fork: in the slot of this living worker, with its devices, cwd and environment as it is now.
        devices: The slot's devices, set as `device_var`; none hides all.
        cores: The slot's cores; 0 leaves thread counts to the libraries.
        ports: Leased before with `alloc_ports(owner=worker_id)`; when empty, `port_count` are leased now.
        python: Another interpreter: started cold.
    """

    worker_id: str
    env: dict[str, str] = {}
    argv: list[str] | None = None
    target: str | None = None
    devices: list[str] = []
    device_var: str = "CUDA_VISIBLE_DEVICES"
    cores: int = 0
    ports: list[int] = []
    port_count: int = 2
    ready: Ready | None = None
    start_timeout: float = 120.0
    python: str | None = None
    cwd: str = ""


class StartResult(msgspec.Struct, kw_only=True):
    """What became of one `ProcessSpec`. `timeline` holds seconds since the request by what was reached."""

    worker_id: str
    ok: bool
    pid: int | None = None
    ip: str = ""
    ports: list[int] = []
    socket: str = ""
    elapsed: float = 0.0
    timeline: dict[str, float] = {}
    error: str = ""
    exit_code: int | None = None
    signal: int | None = None
    log_tail: str = ""
    log_path: str = ""


class WorkerConfig(CarriesToken, frozen=True, kw_only=True):
    """What an engine worker is told over its control channel with the request `configure`."""

    worker_id: str
    run_id: str
    guard_id: str
    token: str
    socket: str
    ip: str
    bind: str
    port: int
    ports: list[int]
    run_dir: str
    main_path: str
    sys_path: list[str]
    progress: str
    log_path: str
    tensor_backend: str = "shm"


class Configured(msgspec.Struct, frozen=True, kw_only=True):
    """The worker's answer to `configure`: it listens."""

    pid: int
    socket: str
    port: int


class ExitNote(msgspec.Struct, frozen=True, kw_only=True):
    """Notify `exited`: a worker ended that nobody asked to end."""

    worker: str
    pid: int
    exit_code: int | None
    signal: int | None
    reason: str
    log_tail: str
    log_path: str
    host: str


class StallNote(msgspec.Struct, frozen=True, kw_only=True):
    """Notify `stalled`: a worker lives but does not run. `kind` is `stopped` or `suspected`."""

    worker: str
    pid: int
    kind: str
    reason: str
    stacks: str


class NoticeNote(msgspec.Struct, frozen=True, kw_only=True):
    """Notify `notice`: the cluster's manager is about to end a role. `seconds`: about how long it has."""

    role: str
    reason: str
    seconds: int


class ResumeNote(msgspec.Struct, frozen=True, kw_only=True):
    """Notify `resumed`: a worker that had stalled runs again."""

    worker: str


class KillReport(msgspec.Struct, kw_only=True):
    """Answer to `kill`.

    Attributes:
        killed: How each worker ended, in words, by id.
        survivors: `worker pid name` of what could not be killed; its ports stay leased.
        ports: Ports given back.
        unknown: Ids that named no worker (ended before, for instance).
    """

    killed: dict[str, str] = {}
    survivors: list[str] = []
    ports: list[int] = []
    unknown: list[str] = []


class ShutdownReport(msgspec.Struct, kw_only=True):
    """Answer to `shutdown`.

    Attributes:
        killed: How each worker ended, in words, by id.
        strays: `pid name` of processes that belonged to no worker any more and were killed.
        survivors: What could not be killed.
    """

    killed: dict[str, str] = {}
    strays: list[str] = []
    survivors: list[str] = []
