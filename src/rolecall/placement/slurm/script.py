"""The batch script of a role as text. Pure: the same job, options and run give the same script.

What the script does: it sends its output to the run directory, runs the user's lines, and starts one guard on each
node by one `srun`, of which it keeps the standard input. The guards' configuration goes there first; nothing else
brings it to a node, neither an argument nor an environment nor a shared file. Slurm's signal before the time limit
reaches this shell alone, which tells the guards by a further line. It is SIGURG, which ends nobody that does not expect
it: the shell before its first line, say. When `srun` has failed, what Slurm said last is added to the job's comment:
its state says no more than that a script ended, and the controller need not see the script's output.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rolecall.placement.slurm.options import SlurmOptions
from rolecall.placement.slurm.packing import Packing
from rolecall.protocol.environment import GUARD, RUN

NAME = "<name of the guards>"
CONFIGURATION = "<configuration of the guards>"
END = "END_OF_CONFIGURATION"
COMPLAINT = r"s/^([0-9]+: )?((srun|slurmstepd)[^ ]*: error: )/\2/p"  # `srun --label` puts the task's number in front
COMMENT = "rolecall/"
SAID = ": "  # between the comment that a job is given and what its script adds


@dataclass(frozen=True)
class Surroundings:
    """What a script must know of its run.

    Attributes:
        log_dir: Where the script's output goes.
        cwd: The controller's current folder, which the user's lines run in where the node has it.
        python: Interpreter of the guards.
        python_path: Where it finds modules, rolecall itself among them.
        binds: Folders that a container needs.
    """

    experiment: str
    run_id: str
    log_dir: str
    cwd: str
    python: str
    python_path: Sequence[str] = ()
    binds: Sequence[str] = ()


def job_name(experiment: str, role: str) -> str:
    """Name of a role's job in the queue."""
    return f"rolecall-{experiment}-{role}"


def job_comment(run_id: str) -> str:
    """The job's comment, by which a run's jobs are told from another's of the same name."""
    return f"{COMMENT}{run_id}"


def run_of(comment: str) -> str:
    """The run's id in such a comment."""
    return comment.removeprefix(COMMENT)


def render(role: str, packing: Packing, options: SlurmOptions, here: Surroundings) -> str:
    """The script, with places for the guards' name and configuration."""
    users = [*options.additional_bash_cmds, ""] if options.additional_bash_cmds else []
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH --{line}" for line in directives(role, packing, options, here)),
            "",
            *(["noticed=", "trap noticed=yes URG"] if options.signal_s else []),  # it may come before there are guards
            f"logs={shlex.quote(here.log_dir)}",
            "output=$logs/slurm-$SLURM_JOB_ID.out",
            '(umask 022 && mkdir -p -- "$logs") && (umask 077 && : >>"$output") && exec >>"$output" 2>&1',
            f"cd -- {shlex.quote(here.cwd)} || cd /",
            "",
            *users,
            *_guards(role, packing, options, here),
        ]
    )


def filled(script: str, name: str, configuration: Mapping[str, object]) -> str:
    """The script as it is submitted. The last such places are meant: what stands before is the user's.

    The configuration is one line of JSON, which begins with a brace and cannot be the line that ends it.
    """
    head, _, tail = script.rpartition(f"\n{CONFIGURATION}\n")
    start, _, rest = head.rpartition(f"={shlex.quote(NAME)}\n")
    return f"{start}={shlex.quote(name)}\n{rest}\n{json.dumps(configuration)}\n{tail}"


def directives(role: str, packing: Packing, options: SlurmOptions, here: Surroundings) -> list[str]:
    """What stands behind `#SBATCH --`. Every value was checked: there is no quoting that all versions agree on."""
    node = packing.node
    names = ("partition", "account", "qos", "reservation", "time", "constraint", "nodelist", "exclude")
    said = {name: getattr(options, name) for name in names}
    return [
        f"job-name={job_name(here.experiment, role)}",
        f"comment={job_comment(here.run_id)}",
        f"nodes={packing.nodes}",
        "ntasks-per-node=1",
        f"cpus-per-task={node.cpus}",
        *([f"mem={node.mem}M"] if node.mem else []),
        *_devices(node.gpus, options),
        *(f"{name}={value}" for name, value in said.items() if value is not None),
        *([f"signal=B:URG@{options.signal_s}"] if options.signal_s else []),
        "output=/dev/null",  # a node need not have the run directory; the script looks itself
        "no-requeue",
        "export=ALL",
    ]


def _devices(count: int, options: SlurmOptions) -> list[str]:
    if not count:
        return []
    if options.gpu_request == "gres":
        return [f"gres={options.gres}:{count}"]
    kind = options.gres.partition(":")[2]
    return [f"gpus-per-node={kind}:{count}" if kind else f"gpus-per-node={count}"]


def _guards(role: str, packing: Packing, options: SlurmOptions, here: Surroundings) -> list[str]:
    path = shlex.quote(":".join(here.python_path))
    return [
        "set +vx; trap - DEBUG",  # a shell that tells what it reads would tell the configuration that follows
        f"export {RUN}={shlex.quote(here.run_id)}",
        f"export {GUARD}={shlex.quote(NAME)}",
        *([f'export PYTHONPATH={path}"${{PYTHONPATH:+:$PYTHONPATH}}"'] if here.python_path else []),
        "",
        "exec 3>&1",
        "coproc guards {",
        f"    exec {shlex.join(_srun(packing, options))} \\",
        f"        {shlex.join(_guard(packing, options, here))} >&3 3>&-",
        "}",
        "guards_pid=$! guards_stdin=${guards[1]:-2}",
        "trap '' PIPE",
        f"cat >&$guards_stdin <<'{END}'",
        CONFIGURATION,
        END,
        "",
        *(_notice(role, options.signal_s) if options.signal_s else []),
        "status=1",
        "while kill -0 $guards_pid 2>/dev/null; do",  # a signal ends the wait, not the guards
        "    status=0",
        "    wait $guards_pid || status=$?",
        "done",
        *_last_words(here),
        "exit $status",
        "",
    ]


def _last_words(here: Surroundings) -> list[str]:
    """What srun and slurmstepd complained of, by the one way that is left when the guards are gone."""
    return [
        "if ((status)); then",
        f"    said=$(sed -nE '{COMPLAINT}' -- \"$output\" | awk '!seen[$0]++' | tail -n 5 | cut -c -300)",
        "    said=${said//$'\\n'/; }",
        f'    [[ ! $said ]] || scontrol update JobId=$SLURM_JOB_ID "Comment={job_comment(here.run_id)}{SAID}$said"',
        "fi",
    ]


def _srun(packing: Packing, options: SlurmOptions) -> list[str]:
    """One guard on each node. Since 22.05 srun forgets how many CPUs the job has for a task."""
    tasks = f"--nodes={packing.nodes} --ntasks={packing.nodes} --ntasks-per-node=1 --cpus-per-task={packing.node.cpus}"
    fixed = "--kill-on-bad-exit=1 --input=all --mpi=none --label"
    return ["srun", *tasks.split(), *fixed.split(), *options.srun_arguments()]


def _guard(packing: Packing, options: SlurmOptions, here: Surroundings) -> list[str]:
    guard = [here.python, "-m", "rolecall.guard", "--config-fd", "0", "--ordinal-from", "SLURM_PROCID"]
    if options.container is None:
        return guard
    binds = [*here.binds, *([options.mount] if options.mount else [])]
    devices = ["--nv"] if packing.node.gpus else []
    return ["apptainer", "exec", *devices, *(f"--bind={bind}" for bind in binds), options.container, *guard]


def _notice(role: str, seconds: int) -> list[str]:
    reason = f"Slurm is about to end job %s: it has {seconds} s until its time limit, or another job needs its place"
    line = json.dumps({"role": role, "reason": reason, "seconds": seconds})
    return [
        "notice() {",
        f"    printf '{line}\\n' \"$SLURM_JOB_ID\" >&$guards_stdin",
        "}",
        "trap notice URG",
        "[[ ! $noticed ]] || notice",
    ]
