"""AReaL's controllers on rolecall: `RolecallScheduler` takes the place of AReaL's schedulers.

    from rolecall.areal import RolecallScheduler

    scheduler = RolecallScheduler(backend="slurm", exp_config=config)

AReaL itself must be importable, in the controller and on the nodes. It uses rolecall's public interface alone.
"""

from rolecall.areal.scheduler import RolecallScheduler

__all__ = ["RolecallScheduler"]
