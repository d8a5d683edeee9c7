"""The backends that there are, by name."""

from __future__ import annotations

from rolecall.placement.base import Placement
from rolecall.placement.local import LocalPlacement
from rolecall.placement.ray.placement import RayPlacement
from rolecall.placement.slurm.placement import SlurmPlacement

PLACEMENTS: dict[str, type[Placement]] = {
    placement.name: placement for placement in (LocalPlacement, SlurmPlacement, RayPlacement)
}
