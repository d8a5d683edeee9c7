"""`rolecall doctor`: checks this machine for what makes runs fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rolecall.cli.checks.installation import check_devices, check_py_spy, check_versions
from rolecall.cli.checks.left_over import (
    check_left_allocations,
    check_left_processes,
    check_runtime_dirs,
    check_shared_memory,
)
from rolecall.cli.checks.limits import check_limits
from rolecall.cli.checks.paths import check_paths
from rolecall.cli.checks.ports import check_ports
from rolecall.cli.runs import RunNotFoundError, root_of, select_run
from rolecall.cli.stop import Ending, end_run
from rolecall.cli.terminal import FilerootOption, JsonOption, console, print_json, table
from rolecall.placement.outside import Finding, Severity, warning
from rolecall.placement.registry import PLACEMENTS

Check = Callable[[], Iterable[Finding]]
STYLES = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "", Severity.OK: "green"}
SOMETHING_WRONG = 1


def doctor(
    fileroot: FilerootOption = None,
    brief: Annotated[bool, typer.Option("--brief", help="Show only problems.")] = False,
    fix: Annotated[bool, typer.Option("--fix", help="First end and remove what dead runs of yours left.")] = False,
    json: JsonOption = False,
) -> None:
    """Checks this machine for what makes runs fail, and says for each finding what to do.

    It checks left-over processes and files, ports, /dev/shm, limits, permissions, devices, versions and clusters.
    Without --fix it changes nothing (it makes a directory where a run would, and removes it). With it, processes,
    files, cgroups and jobs of runs whose controller is dead are ended and removed. The exit status is 1 if there are
    errors.

    Example: rolecall doctor --brief
    """
    todo = checks(root_of(fileroot))
    findings = list(examine(todo))
    endings = end_left({finding.left_by for finding in findings if finding.left_by} if fix else (), fileroot)
    if endings:
        findings = list(examine(todo))
    errors = sum(finding.severity is Severity.ERROR for finding in findings)
    shown = [finding for finding in findings if not (brief and finding.severity is Severity.OK)]
    if json:
        fixed = [asdict(ending) for ending in endings]
        print_json({"errors": errors, "findings": [finding._asdict() for finding in shown], "fixed": fixed})
    else:
        for ending in endings:
            print(f"run {ending.run_id}: ended {', '.join((*ending.ended, *ending.allocations.ended)) or 'nothing'}")
        _print(shown, findings)
    if errors:
        raise typer.Exit(SOMETHING_WRONG)


def end_left(run_ids: Iterable[str], fileroot: Path | None) -> list[Ending]:
    """Ends what dead runs have left, as `rolecall stop` does."""
    endings = []
    for run_id in sorted(run_ids):
        with suppress(RunNotFoundError):  # it has ended by itself
            endings.append(end_run(select_run(run_id, fileroot), 0.0))
    return endings


def checks(fileroot: Path) -> list[tuple[str, Check]]:
    """All checks with their names."""
    return [
        ("processes", lambda: check_left_processes(fileroot)),
        ("runtime directories", check_runtime_dirs),
        ("shared memory", check_shared_memory),
        ("ports", check_ports),
        ("limits", check_limits),
        ("paths", lambda: check_paths(fileroot)),
        ("devices", check_devices),
        ("py-spy", check_py_spy),
        ("versions", check_versions),
        *((name, placement.findings) for name, placement in PLACEMENTS.items()),
        ("allocations", lambda: check_left_allocations(fileroot)),
    ]


def examine(todo: Iterable[tuple[str, Check]]) -> Iterator[Finding]:
    """Runs the checks. A check that raises becomes a finding, and the others still run."""
    for name, check in todo:
        try:
            yield from check()
        except Exception as e:  # an unusual machine may raise anything; the other checks must still run
            yield warning(name, f"could not be checked: {type(e).__name__}: {e}", "check it by hand")


def _print(shown: list[Finding], findings: list[Finding]) -> None:
    ranked = sorted(shown, key=lambda finding: list(Severity).index(finding.severity))
    out = console()
    if ranked:
        todo = ["\n".join(filter(None, (f.advice, f.command and f"$ {f.command}"))) for f in ranked]
        rows = [(f.severity.upper(), f.check, f.seen, do) for f, do in zip(ranked, todo, strict=True)]
        out.print(table(("", "CHECK", "SEEN", "WHAT TO DO"), rows, [STYLES[f.severity] for f in ranked]))
    errors, warnings = (sum(f.severity is s for f in findings) for s in (Severity.ERROR, Severity.WARNING))
    out.print(f"{errors} error(s), {warnings} warning(s)", highlight=False, markup=False)
