"""Describes this host to the controller: addresses and devices. It changes nothing."""

import os
import platform
import socket
import sys

import msgspec

from rolecall.protocol.devices import visible_devices
from rolecall.protocol.guard_config import GuardConfig
from rolecall.protocol.state import GuardState
from rolecall.transport import address
from rolecall.transport.address import address_toward, this_host
from rolecall.transport.handshake import Hello


def resolved(config: GuardConfig) -> GuardConfig:
    """Completes the configuration on this host: its address, its interpreter, the controller's addresses in its reach.

    Raises:
        OSError: There is no route to the controller.
    """
    if config.controller_host and config.controller_host != this_host():
        reachable = [where for where in config.controller if not address.parse(where).is_unix]
        config = msgspec.structs.replace(config, controller=reachable, controller_pid=0)
    dialled = [where.host for where in map(address.parse, config.controller) if not where.is_unix]
    ip = config.ip or (address_toward(dialled[0]) if dialled else "127.0.0.1")
    return msgspec.structs.replace(config, ip=ip, bind=config.bind or ip, python=config.python or sys.executable)


def hello(config: GuardConfig) -> Hello:
    """What the guard says of itself when it connects."""
    guard = GuardState(
        id=config.guard_id,
        pid=os.getpid(),
        host=socket.gethostname(),
        host_id=this_host(),
        ip=config.ip,
        devices=visible_devices(os.environ),
        python=f"{platform.python_version()} {sys.executable}",
    )
    return Hello(name=guard.id, guard=guard, run_id=config.run_id)
