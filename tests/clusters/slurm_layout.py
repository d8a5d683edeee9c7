"""What a Slurm cluster on one machine looks like: files, names, ports, configuration. Pure but for `free_ports`."""

from __future__ import annotations

import json
import socket
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

# Enough for sixteen workers of the default size (8 cores, 32 GiB) on each node; Slurm believes it, nobody uses it.
NODE_CPUS = 128
NODE_MEMORY_MIB = 512 * 1024
NODE_GPUS = 4
GPU_TYPE = "a100"
NODE_NPUS = 2
# Room for sockets below the directory: the path of a Unix socket holds 107 bytes.
LONGEST_DIR = 64
# Below the ports that rolecall leases (20000 and more) and those the kernel gives away by itself.
PORTS = range(7000, 9900)


@dataclass(frozen=True)
class Node:
    """One slurmd. In a namespace of its own it has an address of its own, else loopback and a port of its own."""

    name: str
    address: str
    port: int
    netns: str | None = None
    veth: str | None = None


@dataclass(frozen=True)
class Layout:
    """A cluster as it is written to `cluster.json`, from which everything else follows.

    Attributes:
        private: Folders that nodes do not share: each has another one in their place, empty at first.
    """

    dir: Path
    hostname: str
    address: str
    port: int
    nodes: tuple[Node, ...]
    bridge: str | None = None
    private: tuple[str, ...] = ()

    @property
    def conf(self) -> Path:
        return self.dir / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        return self.dir / "munge" / "socket"

    @property
    def gpus(self) -> list[Path]:
        return [self.dir / "dev" / f"gpu{n}" for n in range(NODE_GPUS)]

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Layout:
        known = json.loads(text)
        nodes = tuple(Node(**node) for node in known.pop("nodes"))
        return cls(dir=Path(known.pop("dir")), nodes=nodes, private=tuple(known.pop("private")), **known)


def on_loopback(directory: Path, nodes: int) -> Layout:
    """All daemons on 127.0.0.1, each node with a port of its own."""
    first, *others = free_ports(directory, nodes + 1)
    members = tuple(Node(f"n{i}", "127.0.0.1", port) for i, port in enumerate(others, 1))
    return Layout(directory, _hostname(), "127.0.0.1", first, members)


def in_namespaces(directory: Path, nodes: int, subnet: int) -> Layout:
    """Each node in a network namespace at 10.213.<subnet>.<10 + n>, slurmctld at 10.213.<subnet>.1 in the main one."""
    ctld_port, node_port = free_ports(directory, 2)
    bridge = bridge_of(subnet)
    members = tuple(
        Node(f"n{i}", f"10.213.{subnet}.{10 + i}", node_port, f"{bridge}-n{i}", f"{bridge}-n{i}")
        for i in range(1, nodes + 1)
    )
    return Layout(directory, _hostname(), f"10.213.{subnet}.1", ctld_port, members, bridge)


def bridge_of(subnet: int) -> str:
    return f"rcs{subnet}"


def _hostname() -> str:
    return socket.gethostname().partition(".")[0]


def free_ports(directory: Path, count: int) -> list[int]:
    """Ports that nobody listens on. Different directories look from different places, so that they do not race."""
    start = zlib.crc32(bytes(directory)) % len(PORTS)
    found: list[int] = []
    for port in [*PORTS[start:], *PORTS[:start]]:
        if _free(port):
            found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"no {count} free ports in {PORTS.start}-{PORTS.stop - 1}")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
        return True


def slurm_conf(layout: Layout) -> str:
    """The text of slurm.conf: quick scheduling of many tiny jobs, short patience with what does not end."""
    d = layout.dir
    return f"""\
ClusterName=rolecall
SlurmctldHost={layout.hostname}({layout.address})
SlurmctldPort={layout.port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={layout.munge_socket}
CredType=cred/munge

StateSaveLocation={d}/state
SlurmdSpoolDir={d}/spool/%n
SlurmctldPidFile={d}/run/slurmctld.slurm-pid
SlurmdPidFile={d}/run/%n.slurm-pid
SlurmctldLogFile={d}/log/slurmctld.log
SlurmdLogFile={d}/log/slurmd-%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
LogTimeFormat=iso8601_ms
JobCompType=jobcomp/filetxt
JobCompLoc={d}/log/jobs

ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
# Looks every second, and ends what uses more than its --mem; nothing here is kept in a cgroup.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill

SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# Without it a job that names no memory takes all that a node has.
DefMemPerCPU=1024
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,bf_window=1440
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=CANCEL

JobRequeue=0
ReturnToService=2
# A job that ended stays in `scontrol show job` this long.
MinJobAge=120
KillWait=5
UnkillableStepTimeout=60
OverTimeLimit=0
InactiveLimit=0
WaitTime=0
BatchStartTimeout=20
MessageTimeout=10
SlurmctldTimeout=60
SlurmdTimeout=15

GresTypes=gpu,npu
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
{"".join(_node_line(layout, node) for node in layout.nodes)}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=INFINITE State=UP
# Jobs in `urgent` take the place of those in `yielding`, which get a few seconds to end, and of those in `ousted`.
PartitionName=yielding Nodes=ALL PriorityTier=1 GraceTime=4 State=UP
PartitionName=ousted Nodes=ALL PriorityTier=1 GraceTime=0 State=UP
PartitionName=urgent Nodes=ALL PriorityTier=9 State=UP
# For the reasons why a job waits: one node and one minute at most; a partition that starts nothing.
PartitionName=tiny Nodes={layout.nodes[0].name} MaxTime=1 DefaultTime=1 State=UP
PartitionName=closed Nodes=ALL MaxTime=INFINITE State=DOWN
"""


def _node_line(layout: Layout, node: Node) -> str:
    return (
        f"NodeName={node.name} NodeHostname={layout.hostname} NodeAddr={node.address} Port={node.port} "
        f"CPUs={NODE_CPUS} RealMemory={NODE_MEMORY_MIB} Gres=gpu:{GPU_TYPE}:{NODE_GPUS},npu:{NODE_NPUS} "
        f"Feature=any,only-{node.name} State=UNKNOWN\n"
    )


def gres_conf(layout: Layout) -> str:
    """The text of gres.conf: logical devices over plain device nodes. Real ones are not looked for."""
    names = ",".join(node.name for node in layout.nodes)
    gpus = f"NodeName={names} Name=gpu Type={GPU_TYPE} File={layout.dir}/dev/gpu[0-{NODE_GPUS - 1}]"
    return f"AutoDetect=off\n{gpus}\nNodeName={names} Name=npu Count={NODE_NPUS}\n"
