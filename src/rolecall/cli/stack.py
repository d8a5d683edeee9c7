"""`rolecall stack`: prints the current Python stacks of a worker, or those saved when it stalled."""

from __future__ import annotations

import re
import subprocess
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Annotated

import typer

from rolecall.cli.client import NoAnswerError
from rolecall.cli.runs import FoundRun, select_run
from rolecall.cli.terminal import FilerootOption, JsonOption, RunOption, print_json, remark
from rolecall.cli.view import RunView, WorkerView, view
from rolecall.errors import WorkerNotFoundError, printable
from rolecall.guard.probe import PY_SPY_S, py_spy

GUARD_S = 20.0  # the guard gives py-spy 15 s and then uses the worker's own faulthandler
NO_STACKS = 2


@dataclass
class Stacks:
    """The stacks of one worker. `source` is `guard`, `py-spy`, `saved` or empty; `why` lists the failed attempts."""

    worker: str
    pid: int | None
    fresh: bool = False
    source: str = ""
    text: str = ""
    why: list[str] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)


def stack(
    target: Annotated[str, typer.Argument(metavar="ROLE[/I]", help="A worker, or a role for all of its workers.")],
    run: RunOption = None,
    fileroot: FilerootOption = None,
    json: JsonOption = False,
) -> None:
    """Prints the Python stack of every thread of a worker. They are read from outside, so the worker may be stuck.

    They come from the worker's guard, or from py-spy if the guard is stuck or has ended. If the worker has ended, the
    stacks saved when it stalled are shown. The exit status is 2 if there were no current stacks.

    Example: rolecall stack actor/0
    """
    found = select_run(run, fileroot)
    seen = view(found)
    stuck = {guard.id: guard.why for guard in seen.guards if guard.state != "running"}
    taken = [_take(found, worker, stuck) for worker in _targets(seen, target)]
    if json:
        print_json([asdict(each) for each in taken])
    else:
        for each in taken:
            _print(each)
    if not all(each.fresh for each in taken):
        raise typer.Exit(NO_STACKS)


def _targets(seen: RunView, target: str) -> list[WorkerView]:
    workers = [worker for worker in seen.workers if target in (worker.worker, worker.role)]
    if not workers:
        raise WorkerNotFoundError(target, [worker.worker for worker in seen.workers])
    return workers


def _take(run: FoundRun, worker: WorkerView, stuck: dict[str, str]) -> Stacks:
    taken = Stacks(worker.worker, worker.pid)
    if worker.processes or worker.state in ("running", "starting"):
        sources = {"guard": partial(_from_guard, run, worker, stuck), "py-spy": partial(_from_py_spy, worker)}
        for source, read in sources.items():
            text, why = read()
            if not why:
                taken.fresh, taken.source, taken.text = True, source, text
                return taken
            taken.why.append(why)
    else:
        taken.why.append(f"its process has ended: {worker.reason or worker.state}")
    _from_files(run, taken)
    return taken


def _from_guard(run: FoundRun, worker: WorkerView, stuck: dict[str, str]) -> tuple[str, str]:
    """The stacks, and why there are none."""
    if worker.guard in stuck:
        return "", f"guard {worker.guard} does not answer: {stuck[worker.guard]}"
    try:
        text = run.client.stacks(worker.guard, worker.worker, GUARD_S)
    except NoAnswerError as e:
        return "", str(e)
    return text, f"guard {worker.guard}: {text}" if text.startswith("no stacks") else ""


def _from_py_spy(worker: WorkerView) -> tuple[str, str]:
    """As `_from_guard`."""
    if worker.pid is None or not worker.processes:
        return "", f"its process is on another host, {worker.host}"
    argv = py_spy(worker.pid)
    if not argv:
        return "", "py-spy is not installed here: pip install py-spy"
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PY_SPY_S, check=False)
    except subprocess.TimeoutExpired:
        return "", f"py-spy did not finish within {PY_SPY_S:g} s"
    return done.stdout, f"py-spy failed: {done.stderr.strip()}" if done.returncode else ""


def _from_files(run: FoundRun, taken: Stacks) -> None:
    """The newest saved stacks: from a file in `stacks/`, else from the event that reported the stall."""
    if run.path is None:
        return
    own = re.compile(re.escape(taken.worker.replace("/", "-")) + r"(?!\d).*")
    found = [path for path in (run.path / "stacks").glob("*") if own.fullmatch(path.name)]
    files = sorted(found, key=lambda path: path.stat().st_mtime)
    taken.saved = [str(path) for path in files]
    said = [
        str(event["stacks"])
        for event in run.events
        if event.get("event") == "stalled" and event.get("worker") == taken.worker and event.get("stacks")
    ]
    if files or said:
        taken.source, taken.text = "saved", files[-1].read_text(errors="replace") if files else said[-1]


def _print(taken: Stacks) -> None:
    if not taken.fresh:
        remark(f"no current stacks of {taken.worker}: {'; '.join(taken.why)}")
        for path in taken.saved:
            remark(f"saved: {path}")
    if taken.text:
        when = "" if taken.fresh else ", saved when it stalled"
        text = re.sub(r"\AProcess \d+: .*\n", "", taken.text).rstrip()  # a worker's command line is its template's
        print(f"== {taken.worker} (pid {taken.pid}{when})\n{printable(text)}\n", flush=True)
