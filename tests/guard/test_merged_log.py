"""The merged log is bounded: what a worker writes faster than it is copied is left out, and said to be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rolecall.guard import logs
from rolecall.guard.logs import MAX_LAG, MergedLog
from rolecall.transport.files import FileThread

GIB = 1 << 30


def merged(tmp_path: Path, files: FileThread) -> str:
    assert files.drain(120)
    return (tmp_path / "logs" / "merged.log").read_text().replace("\0", "")


def test_what_is_too_far_behind_is_left_out_by_a_line(tmp_path: Path) -> None:
    """A sparse log of 6 GiB costs no more than `MAX_LAG`; lines before and after the gap are there."""
    files = FileThread("test")
    together = MergedLog(str(tmp_path), files)
    path = logs.log_path(str(tmp_path), "actor/0")
    log = together.follow("actor/0", path, 0)
    with Path(path).open("wb") as out:
        out.write(b"first\n")
        out.flush()
        together.copy_new_lines()
        assert merged(tmp_path, files) == "[actor/0] first\n"
        out.truncate(6 * GIB)
        out.seek(0, os.SEEK_END)
        out.write(b"\nlast")
        out.flush()
        together.unfollow(log)
        first, note, *_, last = merged(tmp_path, files).splitlines()
    assert first == "[actor/0] first" and last == "[actor/0] last"
    assert "bytes are left out here" in note and path in note
    assert (tmp_path / "logs" / "merged.log").stat().st_size < MAX_LAG + (1 << 20)


def test_a_log_that_hangs_blocks_nobody_else(tmp_path: Path) -> None:
    """Opening it never returns; calls do, and waiting for the end has a limit."""
    files = FileThread("test")
    together = MergedLog(str(tmp_path), files)
    path = logs.log_path(str(tmp_path), "actor/0")
    os.mkfifo(path)
    together.follow("actor/0", path, 0)
    together.copy_new_lines()
    together.finish()
    assert not files.drain(0.2)
    with Path(path).open("wb"):  # lets the thread go
        Path(path).unlink()
    assert files.drain(30)


def test_a_fifo_that_somebody_reads_is_no_log(tmp_path: Path) -> None:
    """Its reader may stop: neither a merged log nor a worker's own is written to it."""
    path = tmp_path / "logs" / "merged.log"
    path.parent.mkdir()
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(OSError, match="is a FIFO, not a file"):
        MergedLog(str(tmp_path), FileThread("test"))
    assert "is a FIFO" in str(logs.open_log(str(path)))
    os.close(reader)
