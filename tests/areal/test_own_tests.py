"""AReaL's own tests of its controllers, with real workers of rolecall where they have a mock of a scheduler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.areal import source
from tests.support.checkout import ROOT

NEEDS = "from tests.utils import get_model_path\n"  # which imports triton, for one test that needs a GPU
MOCKS = "sends a Mock, which is not serializable"
HEADS = "expects False where AReaL's own workers, and ours, answer None: only heads return results"
TRAIN = {
    "test_identify_dp_heads": HEADS,
    "test_connect_engine_sets_rollout": MOCKS,
    "test_connect_engine_warns_on_change": MOCKS,
    "test_connect_engine_same_rollout_no_warning": MOCKS,
    "test_check_rollout_engine_connected_passes_when_connected": MOCKS,
    "test_prepare_batch_delegates_to_rollout": MOCKS,
    "test_rollout_batch_delegates_to_rollout": MOCKS,
}
ROLLOUT = {"test_rollout_controller_integration[]": "needs a model and a GPU"}


@pytest.mark.slow("eighty tests with processes of their own", seconds=60)
@pytest.mark.parametrize(("name", "known", "at_least"), [("train", TRAIN, 26), ("rollout", ROLLOUT, 54)])
def test_areals_own_tests_pass_with_real_workers(
    name: str, known: dict[str, str], at_least: int, tmp_path: Path
) -> None:
    """All but those that are named, each with why."""
    assert source.FOLDER is not None
    file = source.FOLDER / "tests" / f"test_{name}_controller.py"
    (tmp_path / file.name).write_text(file.read_text().replace(NEEDS, "get_model_path = lambda *names: ''\n"))
    plugins = ["-p", "tests.areal.own.plugin", "-p", "no:cacheprovider", "-p", "no:xdist"]
    found = tmp_path / "report.xml"
    report = ["--rootdir", str(tmp_path), "-c", os.devnull, "--timeout", "120", "--junitxml", str(found)]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=native", file.name, *plugins, *report]
    paths = os.pathsep.join([str(ROOT), *map(str, source.PATHS)])
    ran = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=280
    )
    cases = list(ElementTree.parse(found).iter("testcase"))
    ended = {str(case.get("name")): {child.tag for child in case} for case in cases}
    failed = {test for test, tags in ended.items() if tags & {"failure", "error"}}
    skipped = [test for test, tags in ended.items() if "skipped" in tags]
    assert failed == set(known), ran.stdout[-4000:]
    assert len(ended) - len(failed) - len(skipped) >= at_least
