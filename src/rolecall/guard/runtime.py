"""The run's private directory on a host: its token and its sockets. Several guards and the controller may share it."""

import os
import shutil
import socket
from pathlib import Path

WORKER_SOCKETS = "w"


def worker_socket(runtime_dir: str, worker_id: str) -> str:
    """Path of a worker's Unix socket."""
    return str(Path(runtime_dir, WORKER_SOCKETS, worker_id.replace("/", "-") + ".sock"))


def prepare(runtime_dir: str) -> None:
    """Makes the directory (0700) where the scheduler has not done so.

    Raises:
        PermissionError: It belongs to somebody else, or is a link.
    """
    path = Path(runtime_dir)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if path.is_symlink() or status.st_uid != os.getuid():
        raise PermissionError(f"{path} is not a directory of this user; remove it")
    path.chmod(0o700)
    (path / WORKER_SOCKETS).mkdir(mode=0o700, exist_ok=True)


def _listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # a full backlog, for instance: somebody is there
    return True


def clean(runtime_dir: str, guard_id: str) -> bool:
    """Removes a guard's sockets and those that nobody listens on; the whole directory when nobody is left in it.

    Returns:
        True when the directory is gone.
    """
    path = Path(runtime_dir)
    (path / f"{guard_id}.sock").unlink(missing_ok=True)
    living = False
    for candidate in [*path.glob("*.sock"), *path.glob(f"{WORKER_SOCKETS}/*.sock")]:
        if _listening(candidate):
            living = True
        else:
            candidate.unlink(missing_ok=True)
    if not living:
        shutil.rmtree(path, ignore_errors=True)
    return not path.exists()
