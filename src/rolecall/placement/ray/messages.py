"""What Ray says, in words for the user of a run. Pure: tables and errors come in, sentences go out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from rolecall.placement.ray.groups import described
from rolecall.protocol.ray_driver import Resources

T = TypeVar("T")


def why(waiting: Sequence[Mapping[str, Any]], total: int, nodes: Sequence[Mapping[str, Any]], free: Any) -> str:
    """Why placement groups wait: what is asked for, and what of it is free on each node.

    Args:
        waiting: Ray's tables of the groups that are not placed.
        total: How many there are.
        nodes: Ray's table of living nodes.
        free: Resources that are not taken, by node id.
    """
    first = waiting[0]
    bundles = list(first["bundles"].values())
    keys = sorted({key for bundle in bundles for key in bundle})
    rows = [_row(node, free.get(node["NodeID"], {}), keys) for node in nodes]
    impossible = first["stats"]["scheduling_state"] == "INFEASIBLE"
    return (
        f"{len(waiting)} of {total} placement group(s) not placed"
        + (", and no nodes are large enough" if impossible else "")
        + f": {first['name']} asks for {' + '.join(_listed(bundle) for bundle in bundles)}"
        + f"; free: {'; '.join(rows) or 'no node'}"
    )


def _row(node: Mapping[str, Any], free: Resources, keys: Sequence[str]) -> str:
    def amount(of: Resources, key: str) -> str:
        return described({key: of.get(key, 0)}).removesuffix(f" {key}")

    what = ", ".join(f"{amount(free, key)} of {amount(node['Resources'], key)} {key}" for key in keys)
    return f"{node['NodeName']} ({node['NodeID'][:6]}) {what}"


def _listed(bundle: Resources) -> str:
    return "{" + described(dict(sorted(bundle.items()))) + "}"


def lost(home: str, nodes: Sequence[Mapping[str, Any]]) -> str:
    """What became of a node that does not live, or of which Ray has forgotten even that.

    Args:
        home: Its id.
        nodes: Ray's table of all nodes.
    """
    for node in nodes:
        if node["NodeID"] == home:
            return f"its Ray node {node['NodeManagerAddress']} died: {node['DeathReasonMessage'] or 'no reason known'}"
    return f"its Ray node ({home[:6]}) is gone from Ray's list"


def or_error(work: Callable[..., T], *args: Any) -> T | str:
    """What some work with Ray comes to, or in words the error that it ends with."""
    try:
        return work(*args)
    except Exception as e:  # whatever Ray raises
        return error_text(e)


def error_text(error: Exception) -> str:
    """An error of Ray's, without its table of identifiers and its general advice."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith("\t")]
    said = " ".join(lines[1:] if len(lines) > 1 and lines[0].startswith("The actor died") else lines)
    return said.partition(" Some common causes")[0].strip() or type(error).__name__
