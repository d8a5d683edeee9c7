"""The front door: a scheduler by name, with options that it has."""

from __future__ import annotations

import re
from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import rolecall
from rolecall import Scheduler, SchedulingSpec
from rolecall.errors import WorkerConfigurationError
from rolecall.placement.local import LocalPlacement
from rolecall.placement.registry import PLACEMENTS
from rolecall.placement.slurm.options import SlurmOptions
from rolecall.scheduler.backends import SCHEDULERS, options_of
from rolecall.scheduler.keywords import LocalKeywords, RayKeywords, RunOptions, SlurmKeywords, SpecKeywords
from rolecall.testing import InProcessScheduler


def test_an_unknown_scheduler_names_those_that_there_are() -> None:
    """The error lists the schedulers that exist."""
    with pytest.raises(WorkerConfigurationError, match="use one of local, slurm, ray"):
        rolecall.scheduler("kubernetes")


@pytest.mark.parametrize(("backend", "option"), [("local", "partition"), ("slurm", "devices"), ("ray", "partition")])
def test_an_option_of_another_scheduler_is_refused_by_name(backend: str, option: str) -> None:
    """Before anything is started; the message lists what there is."""
    with pytest.raises(WorkerConfigurationError, match=f"{backend}' has no such option: '{option}'; it has .*fileroot"):
        options: dict[str, Any] = {option: "x"}
        rolecall.scheduler(backend, **options)


def test_every_scheduler_has_the_common_options_and_its_own() -> None:
    """`options_of` knows the shared options of each scheduler and those of its backend."""
    common = {"experiment", "trial", "fileroot", "tensors", "preload", "start_timeout", "grace_s", "lease_s", "quiet"}
    known = {name: options_of(name) for name in SCHEDULERS}
    assert all(common <= options for options in known.values())
    assert {"ip", "queue_timeout"} <= known["slurm"] & known["ray"]
    assert {"partition", "time", "signal_s", "image"} <= known["slurm"]
    assert {"address", "namespace", "accelerator"} <= known["ray"]


@pytest.mark.parametrize(
    ("backend", "keywords"), [("local", LocalKeywords), ("slurm", SlurmKeywords), ("ray", RayKeywords)]
)
def test_editors_are_told_all_keywords_with_their_types(backend: str, keywords: type) -> None:
    """The typed dictionaries of keywords say what the constructors take."""
    found = {name: hint for maker in (RunOptions, PLACEMENTS[backend]) for name, hint in hints_of(maker).items()}
    if backend == "slurm":
        found |= {name: hint for name, hint in hints_of(SlurmOptions).items() if name in options_of("slurm")}
    assert {name: found[name] for name in options_of(backend)} == get_type_hints(keywords)


@pytest.mark.parametrize("backend", SCHEDULERS)
def test_help_lists_all_options(backend: str) -> None:
    """With their defaults, and with what they mean."""
    scheduler = SCHEDULERS[backend]
    assert signature(scheduler).parameters.keys() == options_of(backend)
    told = re.findall(r"^    (\w[\w, ]*): ", scheduler.__doc__ or "", re.MULTILINE)
    assert {name for names in told for name in names.split(", ")} >= options_of(backend)


def test_editors_are_told_the_fields_of_a_spec_with_their_types() -> None:
    """As keywords of `start`."""
    assert get_type_hints(SpecKeywords) == get_type_hints(SchedulingSpec)


def hints_of(maker: type) -> dict[str, Any]:
    return get_type_hints(vars(maker)["__init__"])


def test_a_placement_is_taken_in_the_place_of_a_name(tmp_path: Path) -> None:
    """The scheduler has the options of every scheduler; those of the placement are its own."""
    with rolecall.scheduler(LocalPlacement(devices=["7"]), experiment="own", fileroot=tmp_path, quiet=True) as s:
        assert (type(s), s.n_gpus_per_node, s.plan(rolecall.Job("actor")).role) == (rolecall.Scheduler, 1, "actor")


def test_a_placement_belongs_to_one_scheduler(tmp_path: Path) -> None:
    """Another one would end the first one's guards; and a wrong option is named as for a scheduler by name."""
    placement = LocalPlacement(devices=[])
    rolecall.scheduler(placement, experiment="own", fileroot=tmp_path, quiet=True).close()
    with pytest.raises(WorkerConfigurationError, match="this LocalPlacement is another scheduler's"):
        Scheduler(placement, fileroot=tmp_path)
    with pytest.raises(WorkerConfigurationError, match="with a LocalPlacement has no such option: 'devics'; it has"):
        rolecall.scheduler(LocalPlacement(), devics=1)  # type: ignore[call-overload]


def test_a_scheduler_leaves_no_descriptor_open(tmp_path: Path) -> None:
    """Also one that was closed before its guard had connected."""
    before = set(Path("/proc/self/fd").iterdir())
    for _ in range(3):
        InProcessScheduler(fileroot=tmp_path, quiet=True).close()
    assert len(set(Path("/proc/self/fd").iterdir()) - before) <= 1  # the one that lists them


@pytest.mark.parametrize("devices", ["0,1", 2])
def test_devices_are_a_list(devices: Any) -> None:
    """The text of a visible-devices variable is not taken for its letters."""
    with pytest.raises(WorkerConfigurationError, match=r"use a list of names, devices=\[0, 1\]"):
        LocalPlacement(devices=devices)


def test_a_class_is_no_placement() -> None:
    """The error says what is missing."""
    with pytest.raises(WorkerConfigurationError, match="pass an instance of it"):
        rolecall.scheduler(LocalPlacement)  # type: ignore[call-overload]
