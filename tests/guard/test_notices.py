"""What a guard is told on its standard input while it lives."""

import asyncio
import contextlib
import os

from rolecall.guard.guard import LONGEST_NOTICE, forward_notices
from rolecall.protocol.events import Notice

LINE = b'{"role": "actor", "reason": "the time limit", "seconds": 120}\n'
NOTICE = Notice(role="actor", reason="the time limit", seconds=120)


async def told(*pieces: bytes) -> list[Notice]:
    """What is told of pieces that are written one after the other, each when the one before has been read."""
    heard: list[Notice] = []
    theirs, ours = os.pipe()
    forwarding = asyncio.ensure_future(forward_notices(heard.append, theirs))
    await asyncio.sleep(0)
    os.set_blocking(ours, False)
    for piece in pieces:
        with contextlib.suppress(BlockingIOError):  # nobody reads any more
            while piece:
                piece = piece[os.write(ours, piece) :]
                for _ in range(20):
                    await asyncio.sleep(0)
    os.close(ours)
    await asyncio.wait_for(forwarding, 10)
    os.close(theirs)
    return heard


def test_every_line_is_a_notice_however_it_comes() -> None:
    """In pieces, several at once, and without a newline at the end none."""
    assert asyncio.run(told(LINE)) == [NOTICE]
    assert asyncio.run(told(LINE[:9], LINE[9:] + LINE, LINE)) == [NOTICE] * 3
    assert asyncio.run(told(LINE, LINE[:-1])) == [NOTICE]
    assert asyncio.run(told()) == []


def test_what_is_no_notice_is_passed_over() -> None:
    """Other text, other JSON, bytes that are no text."""
    assert asyncio.run(told(b"hello\n", b'{"role": 1}\n', b"\xff\x00\n", b"\n", LINE)) == [NOTICE]


def test_a_line_without_an_end_is_not_kept() -> None:
    """Nobody is listened to who writes such."""
    assert asyncio.run(told(b"x" * 3 * LONGEST_NOTICE)) == []
