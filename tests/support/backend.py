"""A backend as the suites see it: what may differ between backends, as data, never as a branch in a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rolecall import Scheduler
from rolecall.errors import GPUAllocationError, RolecallError

DEVICES = 8  # what each backend has for a test to give out, so that one job fits all of them


@dataclass(frozen=True)
class Backend:
    """One backend.

    Attributes:
        make: Makes a scheduler with its devices; takes the options of `Scheduler`.
        cluster: The fixture of the cluster that it needs, which is its group of tests too; its own group when None.
        full: How asking for a device of which none is free ends, and what the error says.
        contract_only: The contract of schedulers runs against it, and no other suite.
        guards_of_roles: Each role has guards of its own, so a lost one concerns no other role.
        own_processes: Each worker is a process, with an environment of its own.
        told_s: A caller learns of a worker's death within so long.
        guard_told_s: And of a guard's, since a cluster's manager is asked why.
        gone_s: What a dead worker or guard owned is gone within so long.
        controller_gone_s: What a dead controller owned is; longer, since nobody is left to ask for it.
        ctrl_c_s: A controller that was interrupted has ended everything within so long.
    """

    name: str
    make: Callable[..., Scheduler]
    cluster: str | None = None
    full: tuple[type[RolecallError], str] = (GPUAllocationError, r"actor/0 holds 0, 1; actor/1 holds 2, 3")
    contract_only: bool = False
    guards_of_roles: bool = False
    own_processes: bool = True
    told_s: float = 1.0
    guard_told_s: float = 1.0
    gone_s: float = 2.0
    controller_gone_s: float = 5.0
    ctrl_c_s: float = 3.0

    def __str__(self) -> str:
        return self.name


ON_A_CLUSTER: dict[str, Any] = {
    "guards_of_roles": True,
    "told_s": 7.0,  # a manager that may have sent SIGTERM is asked for 5 s
    "guard_told_s": 15.0,
    "gone_s": 5.0,
    "controller_gone_s": 15.0,
    "ctrl_c_s": 15.0,
}
