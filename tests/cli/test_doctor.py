"""`doctor`: each check on a thing that is wrong, and on one that is not."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import socket
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from rolecall.cli.checks import installation, limits, ports
from rolecall.cli.checks.installation import check_devices
from rolecall.cli.checks.left_over import check_left_processes, check_runtime_dirs, check_shared_memory
from rolecall.cli.checks.paths import check_paths, socket_room
from rolecall.cli.doctor import examine
from rolecall.guard.ports import PortLeases, ephemeral
from rolecall.placement.outside import Finding, Severity
from rolecall.placement.ray.placement import check_ray
from rolecall.placement.slurm.placement import check_slurm
from tests.cli.cli_rig import CommandLine, Controller

OLD = time.time() - 3600


def severities(findings: list[Finding]) -> set[Severity]:
    return {finding.severity for finding in findings}


def report_of(line: CommandLine) -> dict[str, Any]:
    """What it says, whatever else runs on this machine and is being killed by other tests."""
    report: dict[str, Any] = json.loads(line.run("doctor", "--json").stdout)
    return report


@pytest.mark.slow("a controller of its own")
def test_doctor_leaves_a_living_run_alone(cli: CommandLine, controller: Controller) -> None:
    """Its processes, runtime directory and ports are in order, also seen from another fileroot."""
    for line in (cli, CommandLine(cli.fileroot / "elsewhere")):
        findings = report_of(line)["findings"]
        about = [f for f in findings if controller.run_id in f["seen"]]
        assert [f["severity"] for f in about] == ["ok"], about
        assert any(f["check"] == "ports" and re.match(r"[1-9]\d* leased", f["seen"]) for f in findings)


def test_a_process_whose_run_may_be_elsewhere_is_no_left_over(tmp_path: Path) -> None:
    """As what a controller with another TMPDIR has beside itself: left alone. With ours and no files it is not."""
    here, elsewhere = (uuid.uuid4().hex[:12] for _ in range(2))
    with contextlib.ExitStack() as ends:
        for run_id, tmp in ((here, {}), (elsewhere, {"TMPDIR": str(tmp_path)})):
            process = subprocess.Popen(["sleep", "60"], env={**os.environ, **tmp, "ROLECALL_RUN": run_id})
            ends.callback(process.wait)
            ends.callback(process.kill)
        findings = list(check_left_processes(tmp_path))
    found = {run_id: (f.severity, f.left_by) for f in findings for run_id in (here, elsewhere) if run_id in f.seen}
    assert found == {here: (Severity.ERROR, here), elsewhere: (Severity.INFO, "")}


def test_every_finding_that_is_wrong_says_what_to_do(cli: CommandLine) -> None:
    """Advice is never missing, in the table and in JSON."""
    report = report_of(cli)
    assert len(report["findings"]) > 15
    for finding in report["findings"]:
        if finding["severity"] in ("error", "warning"):
            assert finding["advice"], finding
    assert "error(s)" in cli.run("doctor", "--brief").stdout


def test_a_check_that_fails_is_a_finding_and_stops_no_other() -> None:
    """A strange machine still gets the rest of the diagnosis."""

    def broken() -> list[Finding]:
        raise OSError("no such thing here")

    good = Finding("fine", Severity.OK, "fine")
    first, second = examine([("broken", broken), ("fine", lambda: [good])])
    assert first.severity is Severity.WARNING and "no such thing here" in first.seen
    assert second == good


def test_stale_and_readable_runtime_directories_are_told_apart_from_fresh_ones(tmp_path: Path) -> None:
    """Left over: nobody listens, no process, no longer young. Readable by others: an error with the command."""
    root = tmp_path / "root"
    stale, fresh, served = root / "aaaa", root / "bbbb", root / "cccc"
    for path in (root, stale, fresh, served):
        path.mkdir(mode=0o700)
    (fresh / "token").touch(mode=0o644)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(served / "g0.sock"))
        listener.listen()
        for path in (stale, served):
            os.utime(path, (OLD, OLD))
        findings = list(check_runtime_dirs(root))
    assert [(f.severity, f.command) for f in findings] == [
        (Severity.WARNING, f"rm -r {stale}"),
        (Severity.ERROR, f"chmod 600 {fresh / 'token'}"),
    ]


def test_a_runtime_root_that_is_a_link_is_an_error(tmp_path: Path) -> None:
    """Somebody could have put it there to receive our token."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    (finding,) = check_runtime_dirs(link)
    assert finding.severity is Severity.ERROR


def test_shared_memory_files_are_stale_only_when_nobody_uses_them(tmp_path: Path) -> None:
    """Ours and torch's by name; one that is open somewhere, is young, or is another's stays out of it."""
    stale, used, young, foreign = (tmp_path / n for n in ("torch_1_2_3", "rolecall-x", "torch_9", "plasma"))
    for path in (stale, used, young, foreign):
        path.write_bytes(b"x" * 4096)
    for path in (stale, used, foreign):
        os.utime(path, (OLD, OLD))
    with used.open("rb"):
        findings = [f for f in check_shared_memory(tmp_path) if "no process" in f.seen]
    assert [f.command for f in findings] == [f"rm -- {stale}"]


def test_leases_are_found_without_taking_any(tmp_path: Path) -> None:
    """Looking at the lock file shows another's ports, and leaves them leasable."""
    path = tmp_path / "ports.lock"
    leases = PortLeases("seed", path=path, span=(20000, 20500))
    taken = sorted(leases.lease("a", 2) + leases.lease("b", 3))
    with path.open("r+b") as file:
        assert ports.leased(file.fileno(), 20000, 20500) == taken
        leases.release("a")
        assert len(ports.leased(file.fileno(), 20000, 20500)) == 3
    leases.close()
    (finding,) = [f for f in ports.check_ports(path) if "leased" in f.seen]
    assert finding.seen == "no port is leased"


def test_a_listener_in_our_range_is_told_with_its_process() -> None:
    """Harmless, so an info; it names the port and the process."""
    low, _ = ephemeral()
    with socket.socket() as stranger:
        port = next(p for p in range(min(low - 1, 30000), 20000, -1) if _bound(stranger, p))
        stranger.listen()
        told = [f for f in ports.check_ports() if f.severity is Severity.INFO]
    assert any(f"{os.getpid()} " in f.seen for f in told), (port, told)


def _bound(sock: socket.socket, port: int) -> bool:
    try:
        sock.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("finding", "severity"),
    [
        (limits.files(256, 1024), Severity.ERROR),
        (limits.files(1024, 1 << 20), Severity.WARNING),
        (limits.files(resource.RLIM_INFINITY, resource.RLIM_INFINITY), Severity.OK),
        (limits.processes(100), Severity.WARNING),
        (limits.locked_memory(64 << 10), Severity.INFO),
        (limits.memory(1 << 30), Severity.WARNING),
        (limits.sysctl("kernel.pid_max", "1024"), Severity.WARNING),
        (limits.sysctl("vm.overcommit_memory", "2"), Severity.WARNING),
        (limits.sysctl("vm.overcommit_memory", "0"), Severity.OK),
        (limits.huge_pages("always advise [never]"), Severity.INFO),
        (limits.huge_pages("always [advise] never"), Severity.OK),
        (socket_room(Path("/tmp/rolecall-0")), Severity.OK),
        (socket_room(Path("/" + "x" * 90)), Severity.ERROR),
    ],
)
def test_limits_are_judged_by_their_value(finding: Finding, severity: Severity) -> None:
    """And whatever is wrong comes with advice."""
    assert finding.severity is severity
    assert finding.advice or severity is Severity.OK


def test_a_fileroot_that_others_can_write_is_an_error(tmp_path: Path) -> None:
    """What lies there is believed, so only its owner may write it; a private one is in order."""
    tmp_path.chmod(0o777)
    assert Severity.ERROR in severities(list(check_paths(tmp_path)))
    tmp_path.chmod(0o700)
    private = [finding for finding in check_paths(tmp_path) if "sockets" not in finding.seen]
    assert severities(private) == {Severity.OK}
    assert not list(tmp_path.iterdir())


def test_a_fileroot_that_nobody_can_write_is_an_error(tmp_path: Path) -> None:
    """It is tried, where a run would make its directories: not even root can make any in /sys."""
    for root in (Path("/sys/home/.rolecall"), tmp_path / "file" / ".rolecall"):
        (tmp_path / "file").touch()
        _, found = check_paths(root)
        assert found.severity is Severity.ERROR and found.seen.startswith(f"a run cannot write in {root}: ")
        assert "fileroot=" in found.advice
    _, found = check_paths(tmp_path / "home" / ".rolecall")
    assert found.severity is Severity.OK and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_devices_are_seen_and_missing_ones_are_told(tmp_path: Path) -> None:
    """A variable that names a device that is not there is a warning."""
    assert severities(list(check_devices(tmp_path, {}))) == {Severity.INFO}
    (tmp_path / "nvidia0").touch()
    assert severities(list(check_devices(tmp_path, {"CUDA_VISIBLE_DEVICES": "0"}))) == {Severity.OK}
    assert Severity.WARNING in severities(list(check_devices(tmp_path, {"CUDA_VISIBLE_DEVICES": "0,1"})))


def tools(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line tool that says what no cluster at hand would."""
    folder.mkdir(exist_ok=True)
    for tool, text in (("sbatch", "exit 0"), (name, script)):
        (folder / tool).write_text(f"#!/bin/sh\n{text}\n")
        (folder / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_nodes_that_take_no_job_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drained node is the usual reason why a role waits for ever."""
    tools(tmp_path / "bin", "sinfo", "printf 'n1|idle\\nn2|drain*\\nn3|mix\\n'", monkeypatch)
    closed, rest = check_slurm()
    assert closed.severity is Severity.WARNING and "1 of 3" in closed.seen and "n2 (drain*)" in closed.seen
    assert rest.severity is Severity.OK and "2 node(s)" in rest.seen


def test_a_slurm_that_does_not_answer_is_told_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where there is none, that is no fault."""
    tools(
        tmp_path / "bin", "sinfo", "echo 'slurm_load_node: Unable to contact slurm controller' >&2; exit 1", monkeypatch
    )
    (silent,) = check_slurm()
    assert silent.severity is Severity.WARNING and "Unable to contact" in silent.seen
    monkeypatch.setenv("PATH", str(tmp_path))
    (none,) = check_slurm()
    assert none.severity is Severity.INFO


def test_ray_is_looked_for_where_its_variable_points() -> None:
    """Nobody there, somebody there, no address at all, an address of another kind."""
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{head.getsockname()[1]}"
        assert severities(list(check_ray({"RAY_ADDRESS": where}))) == {Severity.WARNING}
        head.listen()
        assert severities(list(check_ray({"RAY_ADDRESS": where}))) == {Severity.OK}
    assert severities(list(check_ray({}))) == {Severity.INFO}
    assert severities(list(check_ray({"RAY_ADDRESS": "ray://head:10001"}))) == {Severity.WARNING}


def test_versions_are_compared_as_numbers() -> None:
    """`2.10` is newer than `2.4`, and a local part does not count."""
    assert not installation.older("2.10.0+cpu", "2.4")
    assert installation.older("2.3.9", "2.4")
    assert not installation.older("16", "6")
