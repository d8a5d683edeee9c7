"""Everything of Ray that is not its public interface: `ray._private` and `ray.core` are imported in this file alone.

Tried with Ray 2.60. Another version may move or rename any of it: an ImportError or AttributeError that is raised here
says which. Ray is imported when a function is called, never when this module is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

# Of an object, a worker or a node: 28 bytes, which are not those of nothing.
Id = Annotated[str, msgspec.Meta(pattern=r"\A(?!f{56})[0-9a-f]{56}\Z")]


class OwnerAddress(msgspec.Struct, kw_only=True):
    """The process that owns an object of the store.

    Attributes:
        ip: Its host.
        port: Its port there.
        worker: Id of the process, hexadecimal.
        node: Id of its node, hexadecimal.
    """

    ip: Annotated[str, msgspec.Meta(pattern=r"\A[\x00-\x7f]*\Z")]
    port: Annotated[int, msgspec.Meta(gt=0, lt=65536)]
    worker: Id
    node: Id

    def serialized(self) -> bytes:
        """The address as Ray's messages hold it."""
        from ray.core.generated.common_pb2 import Address

        worker, node = bytes.fromhex(self.worker), bytes.fromhex(self.node)
        address = Address(ip_address=self.ip, port=self.port, worker_id=worker, node_id=node)
        return bytes(address.SerializeToString())

    @classmethod
    def parsed(cls, raw: bytes) -> OwnerAddress:
        """The address that `serialized` returned."""
        from ray.core.generated.common_pb2 import Address

        found = Address.FromString(raw)
        worker, node = found.worker_id.hex(), found.node_id.hex()
        return cls(ip=found.ip_address, port=found.port, worker=worker, node=node)


class Attachment(NamedTuple):
    """This process's connection to a cluster, as it was when `attachment` was called.

    Attributes:
        head: `host:port` of the head; empty where Ray does not say.
        cluster: Id of the cluster, hexadecimal.
        worker_id: Id of this process in it, hexadecimal.
        store_socket: Path of the raylet's socket for the object store.
    """

    head: str
    cluster: str
    worker_id: str
    store_socket: str
    worker: Any
    core: Any

    @property
    def current(self) -> bool:
        """False once this process has left the cluster (`ray.shutdown`)."""
        return getattr(self.worker, "core_worker", None) is self.core

    def put(self, data: Any) -> tuple[Any, OwnerAddress]:
        """Copies a `pickle.PickleBuffer` into the store.

        Returns:
            The reference, and who owns the object.
        """
        reference = self.worker.put_object(data)
        return reference, OwnerAddress.parsed(self.core.get_owner_address(reference))

    def reference(self, binary: bytes, owner: OwnerAddress) -> Any:
        """A reference to another process's object."""
        import ray

        raw = owner.serialized()
        reference = ray.ObjectRef(binary, raw, "")
        # Without the object's status, so that the owner is asked for it: what was freed is told from what is there.
        self.core.deserialize_and_register_object_ref(binary, ray.ObjectRef.nil(), raw, b"")
        return reference

    def get(self, references: Sequence[Any], timeout: float) -> list[tuple[Any, bytes]]:
        """Data and metadata of each object.

        Raises:
            ray.exceptions.GetTimeoutError: Not all are here within `timeout` seconds, or known to be lost.
        """
        found = self.core.get_objects(list(references), int(timeout * 1000))
        return [(data, metadata or b"") for data, metadata, *_ in found]


def attachment() -> Attachment:
    """The cluster that this process is connected to.

    Raises:
        AttributeError: It is connected to none, or this version of Ray is another one.
    """
    from ray._private.worker import global_worker

    node = global_worker.node
    head = str(getattr(node, "gcs_address", ""))
    ids = node.cluster_id.hex(), global_worker.worker_id.hex()
    return Attachment(head, *ids, node.plasma_store_socket_name, global_worker, global_worker.core_worker)


def out_of_band_buffers(data: Any) -> Sequence[Any]:
    """The buffers that lie beside the pickle in an object's data; the pickle is not loaded."""
    from ray._private.serialization import split_buffer, unpack_pickle5_buffers

    _, pickled = split_buffer(data)
    _, buffers = unpack_pickle5_buffers(pickled)
    return list(buffers)


def error_name(kind: bytes) -> str | None:
    """Ray's name of the error that an object's metadata holds in the place of a value; None when it is none."""
    from ray.core.generated.common_pb2 import ErrorType

    if kind.isdigit() and int(kind) in ErrorType.values():
        return str(ErrorType.Name(int(kind)))
    return None


def address_file() -> str:
    """Where `ray start` notes the address of the cluster that runs on this host."""
    from ray._private.utils import get_ray_address_file

    return str(get_ray_address_file(None))


def check_admitted(address: str) -> None:
    """Raises what a cluster's head refuses us with; `ray.init` asks it for minutes."""
    from ray import _raylet

    _raylet.GcsClient(address=address)  # type: ignore[attr-defined]


def read_settings_again() -> None:
    """Has Ray read its variables, the token's among them, which it does once, when it is imported."""
    from ray import _raylet

    _raylet.Config.initialize("")  # type: ignore[attr-defined]
    _raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]


def actor_state(actor: Any) -> str:
    """What the head says of an actor: `ALIVE`, `DEAD`, ..."""
    from ray._private.state import actors

    return str(actors(actor._actor_id.hex()).get("State", "DEAD"))


def free_resources() -> dict[str, dict[str, float]]:
    """What nobody has taken of each node, by its id."""
    from ray._private.state import available_resources_per_node

    return dict(available_resources_per_node())


def may_grow(nodes: Iterable[str]) -> bool:
    """Whether nodes may be added to the cluster on demand; True while Ray does not know yet.

    Args:
        nodes: Ids of its nodes.
    """
    from ray.experimental.internal_kv import _internal_kv_get

    if _internal_kv_get(b"__autoscaler_v2_enabled", namespace=b"__autoscaler") == b"1":
        return True
    status = json.loads(_internal_kv_get(b"__autoscaling_status") or b"{}")
    kinds = status.get("autoscaler_report", {}).get("active_nodes")
    # Without an autoscaler each node is the only one of a kind that is named after it.
    return kinds is None or not set(kinds) <= {f"node_{node}" for node in nodes}
