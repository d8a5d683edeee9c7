"""The wall clock may be set while a run lasts: nothing of a run depends on it."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.faults.stories import PROGRAM, ran


@pytest.mark.slow("calls that last while the clock is set, twice", seconds=8)
def test_a_clock_that_is_set_by_hours_changes_nothing(tmp_path: Path) -> None:
    """Deadlines, the guard's watches, forks, restarts and the end, in all processes of a run, forward and back."""
    library, shift = tmp_path / "clock.so", tmp_path / "shift"
    compiler = str(sysconfig.get_config_var("CC")).split()
    source = str(Path(__file__).with_name("clock.c"))
    subprocess.run([*compiler, "-shared", "-fPIC", "-O2", "-o", str(library), source], check=True)
    shift.write_text("0")
    command = [*PROGRAM, "clock_is_set", str(tmp_path / "root"), str(shift)]
    done = ran(command, LD_PRELOAD=str(library), CLOCK_SHIFT=str(shift))
    assert done.returncode == 0, done
