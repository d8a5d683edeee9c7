"""Port leases: never two holders, never stale, never from where the kernel gives ports away."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rolecall.errors import PortAllocationError
from rolecall.guard.ports import PortLeases, lease_range, open_lock_file
from tests.support.checkout import PYTHONPATH

HOLDER = """
import sys
from pathlib import Path
from rolecall.guard.ports import PortLeases
leases = PortLeases("x", path=Path(sys.argv[1]), span=(20000, 20019))
print(leases.lease("me", 10), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "ports.lock"


def test_two_runs_never_hold_the_same_port(lock: Path) -> None:
    """Two holders of one file, also in one process, share the range without meeting."""
    first, second = (PortLeases("same seed", path=lock, span=(20000, 20019)) for _ in range(2))
    ports = first.lease("a", 7) + second.lease("b", 7)
    assert len(set(ports)) == 14
    first.close()
    second.close()


def test_a_file_that_others_have_made_unusable_is_replaced(lock: Path, tmp_path: Path) -> None:
    """It is no file, or somebody holds locks on all of it: the user's own file is used then, also for what is freed."""
    own = tmp_path / "own.lock"
    lock.mkdir()
    instead = PortLeases("x", own, path=lock, span=(20000, 20019))
    first = instead.lease("a", 3)
    instead.close()
    lock.rmdir()
    hostile = PortLeases("x", path=lock, span=(20000, 20019))
    hostile.lease("all", 20)
    leases = PortLeases("x", own, path=lock, span=(20000, 20019))
    assert len(leases.lease("a", 3)) == len(first) == 3
    assert len(leases.lease("b", 17)) == 17
    with pytest.raises(PortAllocationError):
        leases.lease("c", 1)
    assert leases.release("b") and len(leases.lease("c", 17)) == 17
    hostile.close()
    leases.close()


def test_all_or_none(lock: Path) -> None:
    """A lease that cannot be had whole is an error with the range in it, and takes nothing."""
    leases = PortLeases("x", path=lock, span=(20000, 20004))
    with pytest.raises(PortAllocationError) as caught:
        leases.lease("a", 6)
    assert (caught.value.wanted, caught.value.low, caught.value.high) == (6, 20000, 20004)
    assert len(leases.lease("a", 5)) == 5
    leases.close()


def test_a_dead_holders_ports_are_free(lock: Path) -> None:
    """SIGKILL of a holder gives its ports back; nothing has to be cleaned up."""
    argv = [sys.executable, "-c", HOLDER, str(lock)]
    env = os.environ | {"PYTHONPATH": PYTHONPATH}
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        leases = PortLeases("y", path=lock, span=(20000, 20019))
        with pytest.raises(PortAllocationError):
            leases.lease("a", 11)
        holder.kill()
        holder.wait()
    assert len(leases.lease("a", 20)) == 20
    leases.close()


def test_a_taken_port_is_not_leased(lock: Path) -> None:
    """A port that somebody listens on, on whichever address, is passed over."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        leases = PortLeases("x", path=lock, span=(port, port))
        with pytest.raises(PortAllocationError):
            leases.lease("a", 1)
    leases.close()


def test_release_gives_back(lock: Path) -> None:
    """What an owner gives back can be leased again, by others too; releasing twice is harmless."""
    first, second = (PortLeases("x", path=lock, span=(20000, 20001)) for _ in range(2))
    ports = first.lease("a", 2)
    assert sorted(first.release("a")) == sorted(ports) and first.release("a") == [] and first.held() == []
    assert sorted(second.lease("b", 2)) == sorted(ports)
    first.close()
    second.close()


def test_the_range_keeps_clear_of_the_kernels() -> None:
    """Leases come from below the ephemeral range, or above it, and from among it only when it leaves no room."""
    assert lease_range((32768, 60999)) == (20000, 32767)
    assert lease_range((1024, 50000)) == (50001, 65535)
    assert lease_range((1024, 65535)) == (20000, 65535)


def test_a_link_in_place_of_the_lock_file_is_refused(tmp_path: Path, lock: Path) -> None:
    """A link laid under the shared name is not followed."""
    lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        open_lock_file(lock)
    assert not (tmp_path / "elsewhere").exists()


def test_every_user_may_lock_the_file(lock: Path) -> None:
    """The file is 0666 whatever the umask."""
    before = os.umask(0o077)
    try:
        os.close(open_lock_file(lock))
    finally:
        os.umask(before)
    assert lock.stat().st_mode & 0o777 == 0o666
