"""AReaL's own PPO controller over rolecall and over AReaL's LocalScheduler, with the same engines, side by side.

    python benchmarks/areal.py [--rounds 3] [--quick] [--json FILE]     (AREAL_SRC, or ../shared/areal; `make areal`)

In every round each is brought up, measured and taken down while the other does not run. Medians of:

first_s    scheduler made, and a first role of two workers with an initialised gloo group
further_s  a second such role
fork_s     a third, forked beside the first
delete_s   the second destroyed and deleted
call_ms    a call without arguments to both workers
step_s     log-probs, advantages and an update of 64 trajectories of 512 tokens, by handles, and their end
local_ms   64 x 4,096 tokens fetched into the controller
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).parent.parent)

from benchmarks import rounds
from tests.areal import source

CONTENDERS = ("rolecall", "areal")
MEASURES = ("first_s", "further_s", "fork_s", "delete_s", "call_ms", "step_s", "local_ms")
SERVER = "python -m areal.infra.rpc.rpc_server"


def main() -> None:
    options = rounds.parsed(rounds.parser(__doc__, CONTENDERS), CONTENDERS)
    if missing := source.use():
        sys.exit(f"{missing}: {source.HOW}")
    os.environ.setdefault("AREAL_CACHE_DIR", tempfile.mkdtemp(prefix="areal-cache-"))
    import areal.trainer.ppo.actor  # noqa: F401  # both wait for it

    calls = 20 if options.quick else 200
    contest = rounds.Contest(MEASURES, "step_s", "areal", {"calls": calls})
    contest.run({name: partial(_measured, name, calls) for name in CONTENDERS}, options)


def _scheduler(name: str, folder: Path) -> Any:
    root = folder / "names"
    root.mkdir()
    names: dict[str, Any] = {
        "experiment_name": "bench",
        "trial_name": name,
        "fileroot": str(folder),
        "nfs_record_root": str(root),
    }
    if name == "areal":
        from areal.infra.scheduler.local import LocalScheduler

        return LocalScheduler(gpu_devices=[0], startup_timeout=120, **names)
    from rolecall.areal import RolecallScheduler

    return RolecallScheduler(quiet=True, **names)


def _measured(name: str, calls: int) -> dict[str, float]:
    from areal.infra.rpc.rtensor import RTensor

    begun = time.perf_counter()
    scheduler = _scheduler(name, Path(tempfile.mkdtemp()))
    actor = _controller(scheduler, "actor")
    first_s = time.perf_counter() - begun
    further_s, critic = _timed(lambda: _controller(scheduler, "critic"))
    fork_s, reference = _timed(lambda: _controller(scheduler, "ref", "actor"))
    call_ms = 1000 * statistics.median(_timed(actor.get_version)[0] for _ in range(calls))
    step_s = statistics.median(_timed(lambda: _step(actor, 512))[0] for _ in range(3 + calls // 40))
    made = actor.compute_advantages(_trajectories(4096))
    local_s, _ = _timed(lambda: RTensor.localize(made))
    delete_s, _ = _timed(critic.destroy)
    for controller in (reference, actor):
        controller.destroy()
    scheduler.delete_workers()
    getattr(scheduler, "close", lambda: None)()
    figures = (first_s, further_s, fork_s, delete_s, call_ms, step_s, 1000 * local_s)
    return dict(zip(MEASURES, figures, strict=True))


def _controller(scheduler: Any, role: str, target: str | None = None) -> Any:
    from areal.api import FinetuneSpec
    from areal.api.cli_args import SchedulingSpec, SchedulingStrategy, TrainEngineConfig
    from areal.trainer.ppo.actor import PPOActorController

    from tests.areal.train_engine import TableEngine

    strategy = SchedulingStrategy(type="colocation", target=target) if target else SchedulingStrategy()
    spec = (SchedulingSpec(cpu=1, mem=1, cmd=SERVER),)
    config = TrainEngineConfig(
        backend="fsdp:d2", scheduling_spec=spec, scheduling_strategy=strategy, experiment_name="bench", trial_name="t"
    )
    controller = PPOActorController(TableEngine, config, scheduler)
    controller.initialize(role, FinetuneSpec(total_train_epochs=1, dataset_size=64, train_batch_size=8))
    return controller


def _trajectories(tokens: int) -> list[dict[str, Any]]:
    import torch

    mask = torch.ones(1, tokens, dtype=torch.bool)
    ids = torch.randint(0, 32, (1, tokens))
    one = {"input_ids": ids, "attention_mask": mask, "loss_mask": mask, "rewards": torch.ones(1)}
    return [{key: value.clone() for key, value in one.items()} for _ in range(64)]


def _step(actor: Any, tokens: int) -> None:
    batch = actor.compute_advantages(_trajectories(tokens))
    logp = actor.compute_logp(batch)
    actor.ppo_update(batch)
    actor.clear_batches(batch, logp)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    done = work()
    return time.perf_counter() - begun, done


if __name__ == "__main__":
    main()
