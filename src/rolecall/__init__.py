"""rolecall: one program starts roles of workers, hosts engines in them, and calls them.

Names are loaded when they are first used, so that `import rolecall` is fast and guards and workers carry no scheduler.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rolecall.protocol.state import GuardState as GuardState
    from rolecall.protocol.state import RunState as RunState
    from rolecall.protocol.state import WorkerState as WorkerState
    from rolecall.scheduler.backends import LocalScheduler as LocalScheduler
    from rolecall.scheduler.backends import RayScheduler as RayScheduler
    from rolecall.scheduler.backends import SlurmScheduler as SlurmScheduler
    from rolecall.scheduler.backends import scheduler as scheduler
    from rolecall.scheduler.calls import PendingCall as PendingCall
    from rolecall.scheduler.roles import Role as Role
    from rolecall.scheduler.roles import RoleWorker as RoleWorker
    from rolecall.scheduler.scheduler import Scheduler as Scheduler
    from rolecall.tensors.functions import clear as clear
    from rolecall.tensors.functions import localize as localize
    from rolecall.tensors.functions import remotize as remotize
    from rolecall.tensors.handle import RTensor as RTensor
    from rolecall.transport.codec import register_type as register_type
    from rolecall.types import Job as Job
    from rolecall.types import SchedulingSpec as SchedulingSpec
    from rolecall.types import SchedulingStrategy as SchedulingStrategy
    from rolecall.types import Worker as Worker
    from rolecall.worker.context import CurrentWorker as CurrentWorker
    from rolecall.worker.context import current_worker as current_worker
    from rolecall.worker.context import ray_placement_group as ray_placement_group
    from rolecall.worker.main import serve as serve

__version__ = "0.1.0"

_MODULES = {
    "rolecall.protocol.state": ("GuardState", "RunState", "WorkerState"),
    "rolecall.scheduler.backends": ("LocalScheduler", "RayScheduler", "SlurmScheduler", "scheduler"),
    "rolecall.scheduler.calls": ("PendingCall",),
    "rolecall.scheduler.roles": ("Role", "RoleWorker"),
    "rolecall.scheduler.scheduler": ("Scheduler",),
    "rolecall.tensors.functions": ("clear", "localize", "remotize"),
    "rolecall.tensors.handle": ("RTensor",),
    "rolecall.transport.codec": ("register_type",),
    "rolecall.types": ("Job", "SchedulingSpec", "SchedulingStrategy", "Worker"),
    "rolecall.worker.context": ("CurrentWorker", "current_worker", "ray_placement_group"),
    "rolecall.worker.main": ("serve",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", *sorted(_HOMES)]


class _Package(ModuleType):
    """Keeps `rolecall.scheduler` the function; importing the subpackage of that name would replace it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'rolecall' has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return found


def __dir__() -> list[str]:
    return __all__
