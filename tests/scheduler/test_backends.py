"""The front door: a scheduler by name, with options that it has."""

from __future__ import annotations

import pytest

import rolecall
from rolecall.errors import WorkerConfigurationError
from rolecall.scheduler.backends import SCHEDULERS, options_of


def test_an_unknown_scheduler_names_those_that_there_are() -> None:
    """The error lists the schedulers that exist."""
    with pytest.raises(WorkerConfigurationError, match="use one of local, slurm, ray"):
        rolecall.scheduler("kubernetes")


@pytest.mark.parametrize(("backend", "option"), [("local", "partition"), ("slurm", "devices"), ("ray", "partition")])
def test_an_option_of_another_scheduler_is_refused_by_name(backend: str, option: str) -> None:
    """Before anything is started; the message lists what there is."""
    with pytest.raises(WorkerConfigurationError, match=f"{backend}' has no such option: '{option}'; it has .*fileroot"):
        rolecall.scheduler(backend, **{option: "x"})


def test_every_scheduler_has_the_common_options_and_its_own() -> None:
    """`options_of` knows the shared options of each scheduler and those of its backend."""
    common = {"experiment", "trial", "fileroot", "tensors", "preload", "start_timeout", "grace_s", "lease_s", "quiet"}
    known = {name: options_of(name) for name in SCHEDULERS}
    assert all(common <= options for options in known.values())
    assert {"ip", "queue_timeout"} <= known["slurm"] & known["ray"]
    assert {"partition", "time", "signal_s", "image"} <= known["slurm"]
    assert {"address", "namespace", "accelerator"} <= known["ray"]
