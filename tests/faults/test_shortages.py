"""Limits of the system are told, with what to do; what runs goes on, what must end does, and nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.faults.stories import AS_OTHER, OTHER_USER, PROGRAM, ran

MANY = """
import sys
from rolecall import scheduler
with scheduler("local", preload=[], experiment="e", trial="t", fileroot=sys.argv[1]) as s:
    try:
        s.start("actor", int(sys.argv[2]), cpu=0.01, mem=0.01)
    except Exception as e:
        print(type(e).__name__, e, flush=True)
    print(len(s.start("few", 2, cpu=0.01, mem=0.01)), flush=True)
"""
ROOT_LIKE = os.getuid() == 0


def limited(limit: str, fileroot: Path, workers: int = 1) -> subprocess.CompletedProcess[str]:
    return ran(["bash", "-c", f"ulimit {limit} && exec {sys.executable} -c '{MANY}' {fileroot} {workers}"])


def test_too_few_open_files_are_told_with_the_limit_to_raise(tmp_path: Path) -> None:
    """Of a start that needs more than the guard may open; a smaller one works afterwards."""
    done = limited("-n 64", tmp_path, 40)
    *told, few = done.stdout.splitlines()
    assert "Too many open files" in told[0] and "`ulimit -n`" in "".join(told), done
    assert few == "2"


def test_without_a_temporary_directory_a_run_does_not_begin(tmp_path: Path) -> None:
    """No file with content can be made: all of them are full, or may not be written to."""
    done = limited("-f 0", tmp_path)
    told = done.stderr.splitlines()[-1]
    assert "WorkerConfigurationError: no place for the sockets" in told and "or set TMPDIR" in told, done


def test_a_limit_of_the_size_of_files_is_told_where_it_is_too_low(tmp_path: Path) -> None:
    """What the run hands to its processes goes through files, and is never cut: it is whole, or that is an error."""
    done = limited("-f 1", tmp_path)
    told = "the run was not started: [Errno 27] File too large; raise the limit of a file's size (`ulimit -f`)"
    assert told in done.stderr.splitlines()[-1], done
    assert limited("-f 4", tmp_path).stdout.splitlines() == ["2"], "workers are started cold"


def test_a_full_disk_ends_nothing_that_runs_and_is_told(tmp_path: Path) -> None:
    """The run directory's and the temporary one's (progress pages are mapped, so SIGBUS would end a worker).

    Nor is a home or /dev/shm needed that can be written to.
    """
    home, *folders = tmp_path, tmp_path.parent / "root", Path(tempfile.mkdtemp(prefix="t"))
    folders[0].mkdir()
    sizes = {home: "ro", Path("/dev/shm"): "ro", **dict.fromkeys(folders, "size=1m")}
    mounts = "".join(f"mount -t tmpfs -o {size} none {folder} && " for folder, size in sizes.items())
    unshare = ["unshare", "-m" if ROOT_LIKE else "-Urm"]  # nobody else sees these file systems
    command = " ".join([*PROGRAM, "full_disks", *map(str, folders)])
    done = ran([*unshare, "bash", "-c", f"{mounts} exec {command}"], TMPDIR=str(folders[1]), HOME=str(home))
    assert done.returncode == 0, done
    assert "not kept up to date: [Errno 28] No space left on device; make room" in done.stderr
    folders[1].rmdir()


@pytest.mark.parametrize("limited", ["controller's memory", "guard's memory", "worker's memory"])
def test_without_memory_for_a_thread_calls_and_ends_work(limited: str, tmp_path: Path) -> None:
    """Calls, tensors, forks, `delete_workers` and the end of the run; what needs a thread says which limit to raise."""
    done = ran([*PROGRAM, "no_threads", str(tmp_path), limited])
    assert done.returncode == 0, done


@pytest.mark.parametrize("limited", ["processes of the controller", "processes of the worker"])
def test_at_the_limit_of_processes_starts_say_so_and_calls_and_ends_work(limited: str, tmp_path: Path) -> None:
    """RLIMIT_NPROC counts those of the user, also threads, on the whole host; root has no limit."""
    home = tmp_path if not ROOT_LIKE else Path(tempfile.mkdtemp(prefix="h", dir="/tmp"))
    if ROOT_LIKE:
        os.chown(home, OTHER_USER, OTHER_USER)
    command = [*(AS_OTHER if ROOT_LIKE else []), "prlimit", "--nproc=60", *PROGRAM, "no_threads", str(home), limited]
    done = ran(command, HOME=str(home), TMPDIR=str(home))
    assert done.returncode == 0, done
    subprocess.run(["rm", "-r", str(home)], check=True)
