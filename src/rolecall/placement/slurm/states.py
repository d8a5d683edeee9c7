"""What Slurm's words for a job's state mean to us. Pure; the words of all versions from 20 to 25 are here."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Literal

log = logging.getLogger("rolecall")
Meaning = Literal["queued", "running", "ended"]

_WORDS: dict[Meaning, str] = {
    "queued": "PENDING CONFIGURING EXPEDITING POWER_UP_NODE REQUEUED REQUEUE_FED REQUEUE_HOLD RESV_DEL_HOLD "
    "SPECIAL_EXIT",
    "running": "RUNNING RESIZING SIGNALING STAGE_OUT STOPPED SUSPENDED UPDATE_DB",
    "ended": "BOOT_FAIL CANCELLED COMPLETED COMPLETING DEADLINE FAILED LAUNCH_FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED "
    "RECONFIG_FAIL REVOKED TIMEOUT",
}
MEANINGS = {word: meaning for meaning, words in _WORDS.items() for word in words.split()}
_COMPLETING = "COMPLETING"
_HIDE_CAUSE = {"COMPLETED", "FAILED", "RUNNING"}
_HALTED = {"SUSPENDED", "STOPPED"}
_NONE = ("", "None", "N/A", "(null)", "Unknown")


@dataclass(frozen=True)
class JobState:
    """A job as Slurm shows it.

    Attributes:
        raw: Its state as Slurm writes it: `CANCELLED+`, `CANCELLED by 0`, or several with commas in newer versions.
        reason: Why it waits or why it has ended, empty for none.
        start: When it began or is expected to, empty when nothing is known.
    """

    raw: str
    reason: str = ""
    start: str = ""

    @property
    def names(self) -> list[str]:
        return re.findall(r"[A-Z][A-Z_]+", self.raw)

    @property
    def meaning(self) -> Meaning:
        """An end beats all, a wait beats running. Unknown words mean that it runs, so that nothing is given up."""
        found = [MEANINGS[name] for name in self.names if name in MEANINGS]
        unknown = [name for name in self.names if name not in MEANINGS]
        if unknown or not found:
            log.warning("Slurm calls a job %r, which this version does not know; taken for running", self.raw)
        order: tuple[Meaning, ...] = ("ended", "queued")
        return next((meaning for meaning in order if meaning in found), "running")

    @property
    def runs(self) -> bool:
        """It runs, and is not halted: its processes do not move then, and its guards fall silent."""
        return self.meaning == "running" and not _HALTED & set(self.names)

    @property
    def completing(self) -> bool:
        """It has ended, but its processes or its epilog still hold its nodes."""
        return _COMPLETING in self.names

    @property
    def has_outcome(self) -> bool:
        """Whether it says how it ended. COMPLETING hides that for a moment, in older versions."""
        return self.names != [_COMPLETING]

    @property
    def hides_cause(self) -> bool:
        """It says how the script ended, or that it has not, and not what ended guards or workers."""
        return bool(_HIDE_CAUSE & set(self.names))

    def __str__(self) -> str:
        reason = "" if self.reason in _NONE else f" ({self.reason})"
        return f"{self.raw}{reason}"

    @property
    def wait(self) -> str:
        """Why it waits, and until when."""
        until = "" if self.start in _NONE else f", expected to start at {self.start}"
        state = "" if "PENDING" in self.names else f"{self.raw}: "
        return f"{state}{'no reason given' if self.reason in _NONE else self.reason}{until}"
