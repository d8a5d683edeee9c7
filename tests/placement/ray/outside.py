"""What somebody else does to a run on its cluster: `outside.py kill-actor|remove-group NAME`, with RAY_ADDRESS."""

from __future__ import annotations

import sys


def main(what: str, name: str) -> None:
    import ray

    ray.init(namespace="rolecall", log_to_driver=False)
    if what == "kill-actor":
        ray.kill(ray.get_actor(name))
    elif what == "remove-group":
        ray.util.remove_placement_group(ray.util.get_placement_group(name))
    else:
        sys.exit(f"unknown: {what}")


if __name__ == "__main__":
    main(*sys.argv[1:])
