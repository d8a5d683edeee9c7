"""What a user says of a Slurm job beside its workers: checked when it is said. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rolecall.errors import WorkerConfigurationError
from rolecall.types import ContainerType, Job, SchedulingSpec, check_count, check_one_of

GpuRequest = Literal["gres", "gpus-per-node"]

# Where sites and users keep their defaults. In a script's environment they would win over the script.
DEFAULTS = {
    "partition": "SBATCH_PARTITION",
    "account": "SBATCH_ACCOUNT",
    "qos": "SBATCH_QOS",
    "time": "SBATCH_TIMELIMIT",
    "constraint": "SBATCH_CONSTRAINT",
    "reservation": "SBATCH_RESERVATION",
}
FROM_SPECS = ("image", "container_type", "mount", "nodelist", "exclude", "additional_bash_cmds", "srun_additional_args")
OURS = ("-n", "--ntasks", "-N", "--nodes", "--ntasks-per-node", "-i", "--input", "--multi-prog", "-Z", "--no-allocate")
MAX_SIGNAL_S = 65535  # sbatch takes no more

_DIRECTIVE = re.compile(r"""(?!-)(?:(?!["'\\#])[!-~])+""")
_TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|UNLIMITED|INFINITE", re.IGNORECASE)
_GRES = re.compile(r"[A-Za-z]\w*(:[\w.-]+)?")


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """Options of a job. Those that a `SchedulingSpec` has too are overridden by it.

    Args:
        partition, account, qos, time, constraint, reservation: As of `sbatch`; where None, what the controller's
            environment says (`SBATCH_PARTITION`, ...), else the cluster's default. `time` as a number is in minutes.
        nodelist: Nodes to use, and no others: `n[1-4],n7`.
        exclude: Nodes not to use.
        image: Container image that the workers live in; None for none.
        container_type: `apptainer`, or `none` to pass `image` over.
        mount: What is mounted in the container beside the run directory: `/data:/data,/scratch`.
        additional_bash_cmds: Lines of shell that the batch script runs on its first node before the guards are
            started; what they export reaches all nodes.
        srun_additional_args: Further arguments of `srun`, as a list or as a string that is split as a shell would.
        n_gpus_per_node, cpus_per_node: What a node has for one job, where Slurm's own figures are not it.
        mem_per_node: The same, in GiB; 0 where memory is not to be asked for at all.
        gres: Name of the devices as generic resource, with a type or without: `gpu`, `gpu:a100`, `npu`.
        gpu_request: Ask for devices by `--gres=<gres>:N` or by `--gpus-per-node=[<type>:]N`.
        signal_s: How many seconds before the time limit the event `notice` comes; 0 for never.
        python: Interpreter on the nodes where it is not the controller's. It must have rolecall's dependencies.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | int | None = None
    nodelist: str | None = None
    exclude: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    image: str | None = None
    container_type: ContainerType = "apptainer"
    mount: str | None = None
    additional_bash_cmds: Sequence[str] | None = None
    srun_additional_args: str | Sequence[str] | None = None
    n_gpus_per_node: int | None = None
    cpus_per_node: int | None = None
    mem_per_node: int | None = None
    gres: str = "gpu"
    gpu_request: GpuRequest = "gres"
    signal_s: int = 120
    python: str | None = None

    def __post_init__(self) -> None:
        for name in ("partition", "account", "qos", "nodelist", "exclude", "constraint", "reservation"):
            # A word of an `#SBATCH` line: there is no shell there, but quotes and comments.
            expected = "use printable ASCII without spaces, quotes, backslashes and '#', and no '-' in front"
            _check(name, getattr(self, name), _DIRECTIVE, expected)
        expected = "use minutes, or 'hours:minutes:seconds', or 'days-hours:minutes:seconds'"
        _check("time", str(self.time) if type(self.time) is int else self.time, _TIME, expected)
        _check("gres", self.gres or "", _GRES, "use a name, or a name and a type: gpu:a100")
        for name in ("n_gpus_per_node", "cpus_per_node", "mem_per_node"):
            check_count(name, getattr(self, name))
        check_count("signal_s", self.signal_s, MAX_SIGNAL_S)
        check_one_of("container_type", self.container_type, ContainerType)
        check_one_of("gpu_request", self.gpu_request, GpuRequest)
        for name in ("image", "mount", "python"):
            value = getattr(self, name)
            if value is not None and not (_is_text(value) and value and value[0] != "-"):
                raise WorkerConfigurationError(f"bad {name}", value, "use printable text that does not begin with '-'")
        lines = self.additional_bash_cmds
        if isinstance(lines, str) or not all(isinstance(line, str) and "\0" not in line for line in lines or ()):
            raise WorkerConfigurationError("bad additional_bash_cmds", lines, "give a list of shell lines")
        self.srun_arguments()

    @property
    def container(self) -> str | None:
        """The image that the guards run in."""
        return self.image if self.container_type != "none" else None

    def srun_arguments(self) -> tuple[str, ...]:
        """The further arguments of `srun`.

        Raises:
            WorkerConfigurationError: They would start something else, or hold what no shell will expand.
        """
        given = self.srun_additional_args or ()
        try:
            found = tuple(shlex.split(given) if isinstance(given, str) else given)
        except ValueError as e:
            raise WorkerConfigurationError("bad srun_additional_args", given, str(e)) from e
        _check_srun(found)
        return found

    def of(self, job: Job) -> SlurmOptions:
        """The options of one job.

        Raises:
            WorkerConfigurationError: Its specs differ in what concerns the whole job.
        """
        said = {name: _agreed(job, name) for name in FROM_SPECS}
        return replace(self, **{name: value for name, value in said.items() if value is not None})


def with_defaults(given: Mapping[str, Any], environment: Mapping[str, str]) -> SlurmOptions:
    """The options that were given; the environment's defaults stand in for those that were not."""
    unsaid = [name for name in DEFAULTS if given.get(name) is None]
    return SlurmOptions(**{**given, **{name: environment.get(DEFAULTS[name]) or None for name in unsaid}})


def _agreed(job: Job, name: str) -> Any:
    """What all specs of a job say, None when they say nothing; a default is nothing."""
    said = {repr(value): value for value in (getattr(spec, name) for spec in job.specs())}
    if len(said) > 1:
        what = f"the specs of role {job.role!r} differ in {name}"
        raise WorkerConfigurationError(what, list(said.values()), "a role is one job; make two roles of it")
    (value,) = said.values()
    return None if value == getattr(SchedulingSpec, name, None) else value


def _check(name: str, value: object, pattern: re.Pattern[str], expected: str) -> None:
    """Nothing, or a text of that pattern."""
    if value is not None and not (isinstance(value, str) and pattern.fullmatch(value)):
        raise WorkerConfigurationError(f"bad {name}", value, expected)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


def _check_srun(arguments: Sequence[str]) -> None:
    for argument in arguments:
        if not _is_text(argument):
            raise WorkerConfigurationError("bad srun_additional_args", argument, "use printable text")
        if "$" in argument or "`" in argument:
            raise WorkerConfigurationError("srun_additional_args pass no shell", argument, "write the value itself")
        if _is_ours(argument.partition("=")[0]) or re.match(r"-[nNiZ]\d", argument):
            expected = "the number of nodes and their input follow from the job's specs"
            raise WorkerConfigurationError("an argument of srun that is not yours to give", argument, expected)
    if arguments and (not arguments[0].startswith("-") or "--" in arguments):
        raise WorkerConfigurationError("bad srun_additional_args", list(arguments), "begin each with its option")


def _is_ours(option: str) -> bool:
    """Slurm knows a long option by its beginning too."""
    return option in OURS or (option.startswith("--") and any(ours.startswith(option) for ours in OURS))
