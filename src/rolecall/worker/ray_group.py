"""The placement group that an engine lives in, for engines that use Ray themselves."""

from __future__ import annotations

import os
from typing import Any

from rolecall.errors import WorkerConfigurationError
from rolecall.protocol.environment import RAY_NAMESPACE, RAY_PLACEMENT_GROUP


def ray_placement_group() -> Any:
    """The `ray.util.placement_group.PlacementGroup` of the worker that this is called in.

    For engines that start actors of their own, vLLM's Ray executor for one. With `ray_placement_strategy="deferred"`
    all of the group's CPUs and devices are free for them; otherwise the worker occupies its bundle. Joins the
    cluster where the engine has not done so.

    Raises:
        WorkerConfigurationError: This process is not a worker of a Ray scheduler, or its group was removed.
    """
    name = os.environ.get(RAY_PLACEMENT_GROUP)
    if name is None:
        expected = "call it in an engine of a Ray scheduler's worker"
        raise WorkerConfigurationError("this process has no placement group", None, expected)
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table

    if not ray.is_initialized():
        ray.init(address=os.environ["RAY_ADDRESS"], namespace=os.environ[RAY_NAMESPACE], log_to_driver=False)
    for key, table in placement_group_table().items():  # by name in all namespaces: the engine may have chosen its own
        if table["name"] == name and table["state"] != "REMOVED":
            return PlacementGroup(ray.PlacementGroupID(bytes.fromhex(key)))
    raise WorkerConfigurationError("this worker's placement group was removed", name)
