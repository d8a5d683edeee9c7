"""Programs of Slurm's names that answer what they are told to: for states that no real cluster can be brought into."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

ANSWERS = {
    "sinfo": "n1|main*|64|262144|127.0.0.1|gpu:4\n",
    "sbatch": "7\n",
    "squeue": "7|RUNNING|2026-11-21T05:00:00|None\n",
    "scancel": "",
    "scontrol": "JobId=7 JobName=x\n   PreemptEligibleTime=N/A PreemptTime=None\n   Comment=rolecall/0123 \n",
}


class FakeSlurm:
    """A folder for PATH. What each program answers can be changed while it is in use; calls are counted."""

    def __init__(self, folder: Path, programs: Iterable[str] = ANSWERS) -> None:
        self.folder = folder
        folder.mkdir()
        for program in programs:
            self.says(program, ANSWERS[program])

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}"}

    def says(self, program: str, answer: str = "", *, errors: str = "", code: int = 0, after_s: float = 0) -> None:
        """From now on. The old program is replaced whole, since it may be running."""
        (self.folder / f"{program}.answer").write_text(answer)
        (self.folder / f"{program}.errors").write_text(errors)
        here = shlex.quote(str(self.folder))
        self.does(
            program,
            f"sleep {after_s}\ncat {here}/{program}.errors >&2\ncat {here}/{program}.answer\nexit {code}",
        )

    def does(self, program: str, script: str) -> None:
        """Runs lines of shell. How it was called is kept for `calls`, `environment_of` and `input_of`."""
        log = shlex.quote(str(self.folder / program))
        new = self.folder / f"{program}.new"
        lines = [
            "#!/bin/bash",
            f'(IFS=$\'\\t\'; printf "%s\\n" "$*") >>{log}.calls',
            f"env -0 >{log}.env",
            f"cat >{log}.input",
            script,
        ]
        new.write_text("\n".join(lines) + "\n")
        new.chmod(0o755)
        new.replace(self.folder / program)

    def calls(self, program: str) -> list[list[str]]:
        path = self.folder / f"{program}.calls"
        return [line.split("\t") for line in path.read_text().splitlines()] if path.exists() else []

    def environment_of(self, program: str) -> dict[str, str]:
        items = (self.folder / f"{program}.env").read_text().split("\0")
        return dict(item.split("=", 1) for item in items if "=" in item)

    def input_of(self, program: str) -> str:
        return (self.folder / f"{program}.input").read_text()
