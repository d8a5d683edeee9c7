"""What is asked of Slurm by options has really reached it: in the words of `scontrol show` on a real cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rolecall import SlurmScheduler
from rolecall.errors import GPUAllocationError, WorkerCreationError
from rolecall.protocol.devices import ASCEND, CUDA
from tests.clusters.slurm_layout import NODE_NPUS
from tests.support import sample_engines
from tests.support.slurm_cluster import SlurmCluster

Make = Callable[..., SlurmScheduler]
SMALL: dict[str, Any] = {"cpu": 1, "mem": 1}


@pytest.fixture
def reservation(cluster: SlurmCluster) -> Iterator[str]:
    """The second node, for this user."""
    facts = ("Users=root", "StartTime=now", "Duration=10", "Nodes=n2")
    cluster.ask("scontrol", "create", "reservation", "ReservationName=ours", *facts)
    yield "ours"
    cluster.ask("scontrol", "delete", "ReservationName=ours")


def shown(cluster: SlurmCluster) -> set[str]:
    """What Slurm says of the one job that there is, word by word."""
    (job,) = cluster.jobs()
    return set(" ".join(cluster.ask("scontrol", "show", "job", job)).split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"constraint": "only-n2"}, ["Features=only-n2", "NodeList=n2"]),
        ({"constraint": "any&only-n1"}, ["Features=any&only-n1", "NodeList=n1"]),
        ({"account": "lab-7"}, ["Account=lab-7"]),
        ({"partition": "yielding"}, ["Partition=yielding"]),
        ({"time": "1-12:00:00"}, ["TimeLimit=1-12:00:00"]),
        ({"exclude": "n1"}, ["ExcNodeList=n1", "NodeList=n2"]),
        ({"nodelist": "n2"}, ["ReqNodeList=n2", "NodeList=n2"]),
        ({"gres": "gpu:a100"}, ["TresPerNode=gres:gpu:a100:2"]),
        ({"gres": "gpu"}, ["TresPerNode=gres:gpu:2"]),
        ({"gpu_request": "gpus-per-node"}, ["TresPerNode=gres:gpu:2"]),
        ({"gpu_request": "gpus-per-node", "gres": "gpu:a100"}, ["TresPerNode=gres:gpu:a100:2"]),
    ],
    ids=str,
)
def test_an_option_is_what_slurm_has_got(
    make: Make, cluster: SlurmCluster, options: dict[str, Any], words: list[str]
) -> None:
    """And the role works with it, on the devices that it asked for."""
    role = make(**options).start("actor", gpu=2, **SMALL)
    assert shown(cluster) >= set(words)
    role.create_engine(sample_engines.Echo)
    assert role.call("environment", "CUDA_VISIBLE_DEVICES") == [{"CUDA_VISIBLE_DEVICES": "0,1"}]


def test_npus_are_a_resource_and_a_variable_of_their_own(make: Make, cluster: SlurmCluster) -> None:
    """Slurm sets no variable for them: a line of the site's does. Workers and forks see it, and no other."""
    names = (ASCEND, CUDA)
    s = make(gres="npu", additional_bash_cmds=[f"export {ASCEND}=4,5"])
    assert s.n_gpus_per_node == NODE_NPUS
    role = s.start("actor", 2, gpu=1, **SMALL)
    assert shown(cluster) >= {"TresPerNode=gres:npu:2"}
    for each in (role, role.fork("ref")):
        each.create_engine(sample_engines.Echo)
        assert each.call("environment", *names) == [{ASCEND: "4", CUDA: None}, {ASCEND: "5", CUDA: None}]


def test_a_reservation_is_used(make: Make, cluster: SlurmCluster, reservation: str) -> None:
    """The job runs in the reservation, on its node."""
    s = make(reservation=reservation)
    s.start("actor", **SMALL)
    assert shown(cluster) >= {"Reservation=ours", "NodeList=n2"}
    s.close()


def test_a_quality_of_service_is_asked_for(make: Make, cluster: SlurmCluster) -> None:
    """As far as it goes without accounting, where Slurm knows of none: the job's own script."""
    make(qos="high").start("actor", **SMALL)
    (job,) = cluster.jobs()
    assert "#SBATCH --qos=high" in cluster.ask("scontrol", "write", "batch_script", job, "-")


@pytest.mark.parametrize("given", [["--job-name=of mine"], "--job-name='of mine'"], ids=str)
def test_further_arguments_of_srun_reach_the_step(make: Make, cluster: SlurmCluster, given: str | list[str]) -> None:
    """`srun_additional_args`, as text or list, reach the job step."""
    make(srun_additional_args=given).start("actor", **SMALL)
    assert "of mine" in cluster.ask("squeue", "--steps", "--noheader", "--format=%j")


@pytest.mark.parametrize("gres", ["gpu:h100", "tpu"])
def test_devices_that_no_node_has_are_refused(make: Make, cluster: SlurmCluster, gres: str) -> None:
    """An unknown kind or type of GRES fails before anything is submitted."""
    with pytest.raises(GPUAllocationError, match=r"1 device\(s\) wanted, 0 free"):
        make(gres=gres).start("actor", gpu=1, **SMALL)
    assert cluster.jobs() == {}


def test_a_constraint_that_no_node_meets_is_refused_in_slurms_words(make: Make, cluster: SlurmCluster) -> None:
    """sbatch's own refusal is in the error."""
    with pytest.raises(WorkerCreationError, match="Invalid feature specification"):
        make(constraint="nosuch").start("actor", **SMALL)
    assert cluster.jobs() == {}
