"""Names of the environment variables that processes of a run give each other.

Every process below a guard bears `ROLECALL_RUN`, `ROLECALL_GUARD` and `ROLECALL_WORKER`, by which a sweep of `/proc`
finds it wherever it went.
"""

from collections.abc import Mapping

PREFIX = "ROLECALL_"  # names with it are the runtime's; users may not set them

RUN = "ROLECALL_RUN"
GUARD = "ROLECALL_GUARD"
WORKER = "ROLECALL_WORKER"

# What a worker knows of its place, programs above all.
HOST = "ROLECALL_HOST"
PORTS = "ROLECALL_PORTS"
ROLE = "ROLECALL_ROLE"
INDEX = "ROLECALL_INDEX"
EXPERIMENT = "ROLECALL_EXPERIMENT"
TRIAL = "ROLECALL_TRIAL"
TARGET_HOST = "ROLECALL_TARGET_HOST"  # of the worker in whose slot a fork lives
TARGET_PORTS = "ROLECALL_TARGET_PORTS"

CONTROL = "ROLECALL_CONTROL"  # number of the descriptor by which a module learns that it may serve as a worker

RAY_NAMESPACE = "ROLECALL_RAY_NAMESPACE"
RAY_PLACEMENT_GROUP = "ROLECALL_RAY_PLACEMENT_GROUP"

# Variables of other launchers: an MPI library that finds them takes over the process.
_FOREIGN = ("PMI", "OMPI_")
# What `torch.distributed` reads. Libraries that find these wait for peers, so only roles that ask have them.
PROCESS_GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def inheritable(env: Mapping[str, str]) -> dict[str, str]:
    """An environment without what is one process's own: its run's, its launcher's, its process group's."""
    own = (PREFIX, *_FOREIGN)
    return {name: value for name, value in env.items() if name not in PROCESS_GROUP and not name.startswith(own)}


def marks(run_id: str, guard_id: str) -> dict[str, str]:
    """Variables of a guard's process, by which a sweep finds it and all that it starts."""
    return {RUN: run_id, GUARD: guard_id}
