"""Engines that look at the Ray cluster that they live in, and use it."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from rolecall import ray_placement_group


class Inside:
    """Tells where it is."""

    def environment(self, *names: str) -> dict[str, str | None]:
        return {name: os.environ.get(name) for name in names}

    def pid(self) -> int:
        return os.getpid()

    def niceness(self) -> int:
        return os.nice(0)

    def wait(self) -> None:
        threading.Event().wait()


class Spanning:
    """Starts actors of its own in its placement group, as an engine that spans nodes does."""

    def group(self) -> list[dict[str, Any]]:
        specs: list[dict[str, Any]] = ray_placement_group().bundle_specs
        return specs

    def devices_of_actors(self) -> list[str]:
        """Starts an actor in each bundle that takes all of its devices; returns what each of them sees."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group = ray_placement_group()
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's own processes do not find this file
        actor_class = ray.remote(num_cpus=1)(Member)
        actors = [
            actor_class.options(
                num_gpus=bundle["GPU"], scheduling_strategy=PlacementGroupSchedulingStrategy(group, index)
            ).remote()
            for index, bundle in enumerate(group.bundle_specs)
        ]
        seen: list[str] = ray.get([actor.devices.remote() for actor in actors])
        return seen

    def destroy(self) -> None:
        import ray

        ray.shutdown()


class Member:
    """An actor of a spanning engine."""

    def devices(self) -> str:
        return os.environ["CUDA_VISIBLE_DEVICES"]
