"""What the guard tells the controller about its host. It only looks."""

import os
import platform
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from rolecall.protocol.devices import VARIABLES, listed
from rolecall.protocol.guard_config import GuardConfig
from rolecall.protocol.guard_hello import GuardHello
from rolecall.transport import address
from rolecall.transport.hosts import address_toward, this_host

HOST_CORES = len(os.sched_getaffinity(0))


def memory_gib() -> float:
    """Physical memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def visible_devices(env: Mapping[str, str], folder: Path = Path("/dev")) -> list[str]:
    """The devices that we were given, by the variable that says so, else those that there are."""
    named = listed(env)
    counts = [len(list(folder.glob(f"{kind}[0-9]*"))) for kind in VARIABLES]
    return [str(index) for index in range(max(counts))] if named is None else named


def settled(config: GuardConfig) -> GuardConfig:
    """The configuration with what only this host knows: its own address, and which of the controller's it can use.

    Raises:
        OSError: There is no way from here to the controller.
    """
    if config.controller_host and config.controller_host != this_host():
        reachable = [where for where in config.controller if not address.parse(where).is_unix]
        config = msgspec.structs.replace(config, controller=reachable, controller_pid=0)
    ip = config.ip or _own_address(config.controller)
    return msgspec.structs.replace(config, ip=ip, bind=config.bind or ip)


def _own_address(controller: list[str]) -> str:
    dialled = [where.host for where in map(address.parse, controller) if not where.is_unix]
    return address_toward(dialled[0]) if dialled else "127.0.0.1"


def hello(config: GuardConfig) -> GuardHello:
    """Who and where this guard is."""
    return GuardHello(
        guard_id=config.guard_id,
        run_id=config.run_id,
        pid=os.getpid(),
        host=socket.gethostname(),
        host_id=this_host(),
        ip=config.ip,
        cores=HOST_CORES,
        memory_gib=memory_gib(),
        devices=visible_devices(os.environ),
        python=f"{platform.python_version()} {sys.executable}",
    )
