"""A Ray cluster of several nodes on this machine, with logical devices. Started by `ray start`, as a user would."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, TypeVar

from tests.clusters import cables
from tests.clusters.slurm_layout import Layout

MARK = "RC_RAY_CLUSTER"  # every process of a cluster inherits it, also what its actors start
# Enough for sixteen workers of the default size on each node; Ray believes it, nobody uses it.
NODE_CPUS = 128
NODE_DEVICES = 4
STORE_BYTES = 1 << 29  # taken as it is filled
START_S = 120.0
GONE_S = 20.0
LONGEST_DIR = 28  # below it come 79 bytes of session and socket, and the path of a Unix socket holds 107
# `ray start` without the other commands of its program, which import FastAPI and pandas where those are installed, and
# without a server for Ray's client, which there is where grpc is.
RAY = """import sys
for unused in "ray.serve.scripts", "ray.dashboard.modules.job.cli", "ray.util.state.state_cli", "grpc":
    sys.modules[unused] = None
from ray.scripts.scripts import main
main()"""
_NOT_INHERITED = ("RAY_", "RC_TEST_", "TMPDIR", "ROLECALL_")  # a cluster belongs to no test that uses it


C = TypeVar("C", bound="RayCluster")


class RayCluster:
    """A head without resources, and nodes with CPUs, GPUs and NPUs.

    Args:
        folder: All of its files lie below; `stop` removes it.
        settings: Further variables of its processes, Ray's own settings for instance.
    """

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None) -> None:
        if len(str(folder)) > LONGEST_DIR:
            raise ValueError(f"{folder} is too long for the sockets below it; use {LONGEST_DIR} characters or less")
        self.folder, self._settings = folder, dict(settings or {})

    def start(self, nodes: int = 2, *, token: bool = False, devices: int = NODE_DEVICES) -> None:
        """Starts it and returns when every node has joined. A cluster that runs is left as it is."""
        if self.pids():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_exports(token)
        try:
            self.add_head()
            self._write_exports(token, self._head_address())
            for number in range(1, nodes + 1):  # not side by side: on one host they would choose the same sockets
                self.add_node(f"n{number}", devices)
        except BaseException:
            self.stop()
            raise

    def add_head(self, *args: str) -> None:
        """Starts the head, with further arguments for `ray start`."""
        self._ray("head", "--head", "--port=0", "--num-cpus=0", "--num-gpus=0", "--include-dashboard=false", *args)

    def add_node(self, name: str, devices: int = NODE_DEVICES, *args: str) -> None:
        """One more node, with further arguments for `ray start`; returns when it has joined."""
        resources = json.dumps({"NPU": devices, name: 1}) if devices else json.dumps({name: 1})
        size = (f"--num-cpus={NODE_CPUS}", f"--num-gpus={devices}", f"--resources={resources}")
        self._ray(name, f"--address={self.exports['RAY_ADDRESS']}", *size, *args)

    @property
    def exports(self) -> dict[str, str]:
        """Variables by which a program finds it."""
        found: dict[str, str] = json.loads((self.folder / "exports.json").read_text())
        return found

    def pids(self) -> list[int]:
        """All of its processes, and all that its actors have started."""
        return [pid for pid in _pids() if _has_mark(pid, f"{MARK}={self.folder}")]

    def kill(self, program: str, node: str = "") -> int:
        """SIGKILL to the raylet of a node (the name that it was given), or to the `gcs_server`; returns its pid."""
        (found,) = [pid for pid in self.pids() if _runs(pid, program, f",{node},1," if node else "")]
        os.kill(found, signal.SIGKILL)
        return found

    def stop(self) -> None:
        """Ends every process and removes every file."""
        deadline = time.monotonic() + GONE_S
        while (left := self.pids()) and time.monotonic() < deadline:
            _signal(left, signal.SIGKILL)  # SIGTERM takes a raylet seconds, and nothing here is worth them
            time.sleep(0.02)
        if left:
            raise RuntimeError(f"SIGKILL did not end {left}")
        with contextlib.suppress(FileNotFoundError):
            cables.remove(Layout.from_json(self.cables.read_text()))
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def cables(self) -> Path:
        """Says what its hosts are connected by, where they have networks of their own."""
        return self.folder / "cables.json"

    def _write_exports(self, token: bool, address: str = "") -> None:
        # Said in so many words, since `ray start --head` turns authentication on by itself where it finds a token.
        exports = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token" if token else "disabled"}
        if token:
            path = self.folder / "token"
            path.touch(0o600)
            path.write_text(path.read_text() or secrets.token_hex(16))
            exports["RAY_AUTH_TOKEN_PATH"] = str(path)
        (self.folder / "exports.json").write_text(json.dumps(exports))

    def _head_address(self) -> str:
        return (self.folder / "ray_current_cluster").read_text().strip()

    def environment(self) -> dict[str, str]:
        """What its processes are started with. Not RAY_ADDRESS: real nodes do not have it either."""
        own = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_INHERITED)}
        found = {MARK: str(self.folder), "SPT_NOENV": "1"}  # no title takes the room of the mark
        return own | auth(self) | self._settings | found | {"RAY_USAGE_STATS_ENABLED": "0"}

    def _ray(self, name: str, *args: str) -> None:
        quiet = ("--disable-usage-stats", "--include-log-monitor=false", f"--object-store-memory={STORE_BYTES}")
        ports = ("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0")
        temp = (f"--temp-dir={self.folder}",) if "--head" in args else ()
        command = [sys.executable, "-P", "-c", RAY, "start", *args, *quiet, *ports, *temp]
        log = self.folder / f"start-{name}.log"
        with log.open("wb") as out:
            succeeded = self._carry_out(name, command, out)
        if not succeeded:
            raise RuntimeError(f"ray start of {name} failed:\n{log.read_text(errors='replace')[-3000:]}")

    def _carry_out(self, name: str, command: list[str], out: BinaryIO) -> bool:
        """Runs `ray start` for a node."""
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,  # what is for those who use it, Ctrl-C for one, is not for it
            env=self.environment(),
            timeout=START_S,
        )
        return done.returncode == 0


@contextlib.contextmanager
def started(
    nodes: int = 2,
    *,
    token: bool = False,
    settings: Mapping[str, str] | None = None,
) -> Iterator[RayCluster]:
    """A cluster for a block of code of this process."""
    with running(RayCluster(new_folder(), settings=settings), nodes, token=token) as cluster:
        yield cluster


def new_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="rc-ray-", dir="/tmp"))


@contextlib.contextmanager
def running(cluster: C, nodes: int = 2, *, token: bool = False) -> Iterator[C]:
    """Brings a cluster up and down. It goes down with the process too, however that ends."""
    keeper = _keeper(cluster.folder)
    try:
        cluster.start(nodes, token=token)
        yield cluster
    finally:
        cluster.stop()
        keeper.communicate()


def _keeper(folder: Path) -> subprocess.Popen[bytes]:
    """A process that takes the cluster down when we close its input, or die."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_INHERITED)}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "tests.clusters.ray_nodes", str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, env=env, cwd="/")


def auth(cluster: RayCluster) -> dict[str, str]:
    """Of a cluster's exports those that say who may use it."""
    return {k: v for k, v in cluster.exports.items() if k != "RAY_ADDRESS"}


def _pids() -> Iterable[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _has_mark(pid: int, mark: str) -> bool:
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False  # it has ended
    return mark.encode() in environ and state not in "ZX"


def command_line(pid: int) -> list[str]:
    """A process's arguments; none when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def _runs(pid: int, program: str, argument: str) -> bool:
    command = command_line(pid)
    return bool(command) and Path(command[0]).name == program and argument in "\0".join(command)


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


if __name__ == "__main__":
    sys.stdin.read()
    RayCluster(Path(sys.argv[1])).stop()
