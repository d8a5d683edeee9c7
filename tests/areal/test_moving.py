"""The lines of docs/moving.md with which AReaL's trainer runs on rolecall."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from areal.api.cli_args import BaseExperimentConfig, ClusterSpecConfig, NameResolveConfig, SchedulerConfig

from rolecall.areal import RolecallScheduler
from tests.support.checkout import ROOT


def test_the_trainer_shown_makes_the_scheduler_of_its_configuration(tmp_path: Path) -> None:
    """From AReaL's configuration: names, folders, name resolution, the kind of scheduler."""
    block = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "moving.md").read_text(), re.DOTALL)[0]
    shown: dict[str, Any] = {}
    exec(block, shown)
    resolving = NameResolveConfig(nfs_record_root=str(tmp_path / "names"))
    config = BaseExperimentConfig(
        experiment_name="moved",
        trial_name="t",
        cluster=ClusterSpecConfig(fileroot=str(tmp_path), name_resolve=resolving, n_gpus_per_node=1),
        scheduler=SchedulerConfig(type="local"),
    )
    with shown["Trainer"]._init_scheduler(SimpleNamespace(config=config)) as scheduler:
        assert isinstance(scheduler, RolecallScheduler)
        assert (scheduler.experiment_name, scheduler.name_resolve_config) == ("moved", resolving)
        scheduler.delete_workers()
