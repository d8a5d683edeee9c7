"""The batch script of a job, against golden files, written anew by `ROLECALL_GOLDEN=1 pytest tests/placement/slurm`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from rolecall import SchedulingSpec
from rolecall.placement.slurm.options import SlurmOptions
from rolecall.placement.slurm.packing import Node, Share, place
from rolecall.placement.slurm.script import Surroundings, filled, render

GOLDEN = Path(__file__).parent / "golden"
NODES = [Node(f"n{i}", f"10.0.0.{i}", Share(cpus=64, mem=512 * 1024, gpus=8)) for i in range(1, 5)]
HERE = Surroundings(
    experiment="demo",
    run_id="0123456789ab",
    log_dir="/home/u/.rolecall/demo/t0/logs",
    cwd="/home/u/project",
    python="/opt/venv/bin/python",
    python_path=["/home/u/project", "/home/u/rolecall/src"],
    binds=["/home/u/.rolecall/demo/t0"],
)
HOSTILE = (
    """it's "here" $(touch owned) `touch owned` \\ #\n#SBATCH --comment=stolen\nEND_OF_CONFIGURATION\n; touch owned"""
)


@dataclass(frozen=True)
class Case:
    specs: Sequence[SchedulingSpec]
    options: SlurmOptions = field(default_factory=SlurmOptions)
    here: Surroundings = HERE

    def script(self) -> str:
        return render("actor", place("actor", self.specs, NODES), self.options, self.here)


CASES = {
    "one-node": Case([SchedulingSpec(gpu=1)] * 8),
    "two-nodes": Case([SchedulingSpec(gpu=2)] * 8),
    "part-of-a-node": Case([SchedulingSpec(cpu=2, mem=4, gpu=1)] * 2),
    "no-devices": Case([SchedulingSpec(cpu=1, mem=0)]),
    "uneven": Case([SchedulingSpec(gpu=1)] * 9),
    "unequal": Case([SchedulingSpec(gpu=4, cpu=32, mem=256), *[SchedulingSpec(gpu=1, cpu=4, mem=16)] * 6]),
    "all-options": Case(
        [SchedulingSpec(gpu=1)],
        SlurmOptions(
            partition="gpu,gpu-long",
            account="lab-7",
            qos="high",
            time="1-12:00:00",
            nodelist="n[1-2]",
            exclude="n3",
            constraint="(a100|h100)&ib",
            reservation="maint",
            additional_bash_cmds=["module load cuda/12.4", 'export NCCL_SOCKET_IFNAME="ib0"'],
            srun_additional_args="--cpu-bind=none --comment 'a b'",
            gres="gpu:a100",
            signal_s=300,
        ),
    ),
    "gpus-per-node": Case([SchedulingSpec(gpu=1)], SlurmOptions(gres="gpu:h100", gpu_request="gpus-per-node")),
    "without-a-signal": Case([SchedulingSpec(gpu=1)], SlurmOptions(signal_s=0, time=30)),
    "container": Case(
        [SchedulingSpec(gpu=1)] * 2,
        SlurmOptions(image="/images/train 2.sif", mount="/data:/data:ro,/scratch", python="python3"),
        replace(HERE, python="python3"),
    ),
    "hostile": Case(
        [SchedulingSpec(gpu=1)],
        SlurmOptions(
            image=HOSTILE.replace("\n", ";"), mount="/a b:/c 'd'", srun_additional_args=["--chdir", "/it's #1"]
        ),
        Surroundings(
            experiment="demo",
            run_id="0123456789ab",
            log_dir=f"/home/u/{HOSTILE}/logs",
            cwd=f"/home/u/{HOSTILE}",
            python=f"/home/u/{HOSTILE}/bin/python",
            python_path=[f"/home/u/{HOSTILE}", "-e"],
            binds=[f"/home/u/{HOSTILE}"],
        ),
    ),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_script_is_the_golden_one(name: str) -> None:
    """Whoever changes a script sees the change in the golden file's difference."""
    path, script = GOLDEN / f"{name}.sh", CASES[name].script()
    if os.environ.get("ROLECALL_GOLDEN"):
        path.write_text(script)
    assert script == path.read_text()


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", sorted(CASES))
def test_bash_can_read_it(name: str) -> None:
    checked = subprocess.run(["bash", "-n"], input=CASES[name].script(), text=True, capture_output=True, timeout=30)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_guard_gets_what_it_is_meant_to_get_and_nobody_else_anything(name: str, tmp_path: Path) -> None:
    """The script is run, with commands that write down how they were called: nothing of it is taken for shell."""
    case = CASES[name]
    token, seen = "f" * 64, tmp_path / "seen"
    configuration = {"token": token, "run_dir": HOSTILE, "guard_id": "g1"}
    calls = _run(filled(case.script(), "g1", configuration), case, tmp_path)
    words = calls["arguments"]
    start = words.index("exec") + 1 if "apptainer" in words else 0
    python = words.index(case.here.python, start)
    assert words[python:] == [
        case.here.python,
        "-m",
        "rolecall.guard",
        "--config-fd",
        "0",
        "--ordinal-from",
        "SLURM_PROCID",
    ]
    assert json.loads(calls["input"]) == configuration
    assert calls["environment"]["ROLECALL_RUN"] == case.here.run_id
    assert calls["environment"]["ROLECALL_GUARD"] == "g1"
    assert calls["environment"]["PYTHONPATH"] == ":".join(case.here.python_path)
    assert not any(token in text for text in [*words, *calls["environment"].values()])
    assert not (tmp_path / "owned").exists() and seen.exists()


def test_a_configuration_of_any_text_stays_one_line() -> None:
    """Lines that end the here-document, or look like the places to fill, are text like any other."""
    case = CASES["one-node"]
    nasty = "\nEND_OF_CONFIGURATION\n<configuration of the guards>\n\r\x0b\x85\u2028"
    script = filled(case.script(), "g1", {"token": nasty})
    assert script.splitlines().count("END_OF_CONFIGURATION") == 1
    assert json.loads(script.partition("'END_OF_CONFIGURATION'\n")[2].partition("\n")[0]) == {"token": nasty}


def test_users_lines_are_no_place_for_the_token() -> None:
    """A user's line that looks like the place for the configuration is left as it is."""
    lines = ["<configuration of the guards>", "export ROLECALL_GUARD='<name of the guards>'", ": x"]
    case = replace(CASES["one-node"], options=SlurmOptions(additional_bash_cmds=lines))
    script = filled(case.script(), "g1", {"token": "secret"})
    assert script.count("secret") == 1
    assert (
        script.index(lines[0])
        < script.index(lines[1])
        < script.index("export ROLECALL_GUARD=g1")
        < script.index("secret")
    )


@pytest.mark.parametrize("line", ["set -v", "set -xv", "trap 'echo $BASH_COMMAND' DEBUG"])
def test_a_shell_that_tells_what_it_reads_does_not_tell_the_token(line: str, tmp_path: Path) -> None:
    """Users look for errors in their lines that way, and the output is a file that others may read."""
    case = replace(CASES["one-node"], options=SlurmOptions(additional_bash_cmds=["exec 2>&1", line, ": heard"]))
    script = filled(case.script(), "g1", {"token": "f" * 64})
    log_dir = tmp_path / "logs"
    _run(script.replace(case.here.log_dir, str(log_dir)), case, tmp_path)
    told = (log_dir / "slurm-7.out").read_text()
    assert "heard" in told and "f" * 64 not in told


def _run(script: str, case: Case, folder: Path) -> dict[str, Any]:
    """What `srun` saw of the script, which is run as it is but for the folders of its user."""
    tools = folder / "bin"
    tools.mkdir()
    report = tools / "srun"
    report.write_text(
        "#!/usr/bin/env python3\n"
        "import json, os, sys\n"
        f"line = sys.stdin.readline()\n"
        f"facts = {{'arguments': sys.argv[1:], 'environment': dict(os.environ), 'input': line}}\n"
        f"open({str(folder / 'seen')!r}, 'w').write(json.dumps(facts))\n"
    )
    report.chmod(0o755)
    home = str(folder / "home")
    script = script.replace("/home/u", home)
    script = "module() { :; }\n" + script
    env = {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash"], input=script, text=True, cwd=folder, env=env, capture_output=True, timeout=60)
    facts: dict[str, Any] = json.loads((folder / "seen").read_text().replace(home, "/home/u"))
    assert done.returncode == 0, done.stderr
    return facts
