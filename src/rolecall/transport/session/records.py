"""What this side was asked: every id it has taken, and each answer until the caller has it. Any thread.

Ids are remembered for ever, as a few intervals. Answers are bounded: beyond the bound the oldest ones that were not
acknowledged are dropped, and who asks for them is told so; nothing is run a second time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from rolecall.transport.incoming import Incoming, Parts
from rolecall.transport.session.sequences import SequenceSet

MAX_RECORDS = 65536
MAX_RECORD_BYTES = 4 << 30


class Records:
    """The callee's table of one caller's session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = SequenceSet()
        self._all: dict[int, Incoming] = {}
        self._finished: dict[int, int] = {}  # bytes of the answer, oldest first
        self._bytes = 0

    def take(self, seq: int) -> bool:
        """Marks an id as taken; False when it was before, so that its request must not be run."""
        return self._taken.add(seq)

    def was_taken(self, seq: int) -> bool:
        return seq in self._taken

    def enter(self, record: Incoming) -> None:
        self._all[record.seq] = record

    def get(self, seq: int) -> Incoming | None:
        return self._all.get(seq)

    def all(self) -> list[Incoming]:
        return list(self._all.values())

    def __len__(self) -> int:
        return len(self._all)

    def keep_reply(self, record: Incoming, parts: Parts) -> bool:
        """Makes `parts` the one answer of a call; False when it has one, or when nobody waits for it any more."""
        with self._lock:
            if record.reply is not None:
                return False
            record.reply = parts
            if record.settled:
                return False
            size = sum(map(len, parts))
            self._finished[record.seq] = size
            self._bytes += size
            evicted = self._evict()
        _wake(evicted)
        return True

    def replace_reply(self, record: Incoming, parts: Parts) -> bool:
        """Puts the same answer, in memory of its own, in place of a lent one; False when it has arrived meanwhile."""
        with self._lock:
            if record.settled:
                return False
            record.reply, record.lent = parts, None
            return True

    def drop(self, seqs: Iterable[int]) -> None:
        """Forgets answers that have arrived."""
        with self._lock:
            dropped = [self._remove(seq) for seq in seqs if seq in self._finished]
        _wake(dropped)

    def drop_settled(self, below: int, waiting: Sequence[int]) -> None:
        """Forgets every answer to a call under `below` but to those the caller still waits for."""
        kept = set(waiting)
        with self._lock:
            seqs = [seq for seq in self._finished if seq < below and seq not in kept]
        self.drop(seqs)

    def clear(self, *, forget_ids: bool) -> None:
        """Ends every call: those that run are cancelled, answers are forgotten."""
        with self._lock:
            records = list(self._all.values())
            self._all.clear()
            self._finished.clear()
            self._bytes = 0
            if forget_ids:
                self._taken = SequenceSet()
            for record in records:
                record.settled = True
        for record in records:
            record._cancel()
            record.wake()

    def _evict(self) -> list[Incoming]:
        evicted = []
        while len(self._finished) > MAX_RECORDS or (self._bytes > MAX_RECORD_BYTES and len(self._finished) > 1):
            evicted.append(self._remove(next(iter(self._finished))))
        return evicted

    def _remove(self, seq: int) -> Incoming:
        self._bytes -= self._finished.pop(seq)
        record = self._all.pop(seq)
        record.settled = True
        return record


def _wake(records: Sequence[Incoming]) -> None:
    for record in records:
        if record._waiters:
            record.wake()
