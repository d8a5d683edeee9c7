"""A guard below its reaper, as a child of whoever starts it.

It uses the standard library alone, since on Ray it travels to the cluster by value.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence


def start_guard(config: str, env: Mapping[str, str], output: int) -> subprocess.Popen[bytes]:
    """Starts a guard. Its configuration, the run's token in it, goes through a file without a name.

    Args:
        config: As JSON.
        output: Descriptor of what takes all that it prints.
    """
    with open(os.memfd_create("rolecall-config", os.MFD_CLOEXEC), "w+b") as handed:  # noqa: PTH123
        handed.write(config.encode())
        handed.seek(0)
        # Where stdout was closed, new files get its number, and would be lost when a child's stdout is set up.
        fd = fcntl.fcntl(handed, fcntl.F_DUPFD_CLOEXEC, 3)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "rolecall.guard", "--config-fd", str(fd)],
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=env,
        )
    finally:
        os.close(fd)


def end_guard(process: subprocess.Popen[bytes], patience: Sequence[float]) -> bool:
    """SIGTERM has the reaper ask the guard, a second one has it kill the guard, SIGKILL ends the reaper.

    Args:
        patience: Seconds to wait after each. False when it survives all three.
    """
    for push, seconds in zip((process.terminate, process.terminate, process.kill), patience, strict=True):
        push()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return True
    return False
