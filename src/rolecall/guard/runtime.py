"""The run's private directory on a host: its token and its sockets. Several guards and the controller may share it.

Each guard has a directory of its own in it, with a progress page per worker; it removes the sockets of those workers
only.
"""

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

from rolecall.guard.claims import claim, found_in
from rolecall.protocol.progress import PAGE_BYTES, SIZE, Counters, parse
from rolecall.transport.address import listens

WORKER_SOCKETS = "w"
PAGE = ".progress"
LONGEST_STEM = 24  # the whole path of a Unix socket has 107 bytes


def _stem(worker_id: str) -> str:
    """The worker's part of a file's name; a long one becomes its beginning and a digest."""
    stem = worker_id.replace("/", "-")
    if len(stem) <= LONGEST_STEM:
        return stem
    digest = hashlib.blake2s(stem.encode(), digest_size=8).hexdigest()
    return f"{stem[: LONGEST_STEM - len(digest) - 1]}-{digest}"


def worker_socket(runtime_dir: str, worker_id: str) -> str:
    """Path of a worker's Unix socket."""
    return str(Path(runtime_dir, WORKER_SOCKETS, _stem(worker_id) + ".sock"))


def guard_socket(runtime_dir: str, guard_id: str) -> str:
    """Path of a guard's Unix socket."""
    return str(Path(runtime_dir, f"{guard_id}.sock"))


def page_path(runtime_dir: str, guard_id: str, worker_id: str) -> str:
    """Path of a worker's progress page."""
    return str(Path(runtime_dir, guard_id, _stem(worker_id) + PAGE))


def prepare(runtime_dir: str, guard_id: str) -> None:
    """Creates the directory (0700), unless the scheduler has done so, and claims the guard's part of it.

    Raises:
        PermissionError: It belongs to another user, or is a link.
    """
    path = Path(runtime_dir)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.is_symlink() or path.lstat().st_uid != os.getuid():
        raise PermissionError(f"{path} is not a directory of this user; remove it")
    path.chmod(0o700)
    for name in (WORKER_SOCKETS, guard_id):
        (path / name).mkdir(mode=0o700, exist_ok=True)
    claim(path / guard_id)


def clean(runtime_dir: str, guard_id: str) -> bool:
    """Removes the files of a guard, or the whole directory if no other guard and no running controller use it.

    Returns:
        True when the directory is gone.
    """
    path = Path(runtime_dir)
    remove(guard_socket(runtime_dir, guard_id))
    for page in (path / guard_id).glob("*" + PAGE):
        remove(str(path / WORKER_SOCKETS / (page.name.removesuffix(PAGE) + ".sock")))
    shutil.rmtree(path / guard_id, ignore_errors=True)
    with suppress(OSError):  # sockets of other guards are in it
        (path / WORKER_SOCKETS).rmdir()
    others = [entry for entry in found_in(path, "*/") if entry.name != WORKER_SOCKETS and entry.suffix != ".sock"]
    if not others and not any(listens(str(entry)) for entry in found_in(path, "*.sock")):
        shutil.rmtree(path, ignore_errors=True)
    return not path.exists()


def remove(path: str) -> None:
    """Removes a file of a worker, where it is one still: the worker may have put anything there."""
    with suppress(OSError):
        Path(path).unlink()


class ProgressPage:
    """The file of a worker's progress page (see `protocol.progress`); it is removed with the worker.

    Read, not mapped: a worker that cuts the file short must not be able to end the guard with SIGBUS.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(fd, "rb+", buffering=0)
        try:
            os.posix_fallocate(fd, 0, PAGE_BYTES)  # a worker that wrote where a full disk has no room would get SIGBUS
        except OSError as e:
            self.close()
            raise OSError(e.errno, e.strerror, path) from e

    def read(self) -> Counters:
        return parse(os.pread(self._file.fileno(), SIZE, 0))

    def close(self) -> None:
        """May be called twice."""
        self._file.close()
        remove(self.path)
