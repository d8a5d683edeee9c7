"""A worker that changes its user, which its guard may or may not signal."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL

import pytest

from tests.faults.stories import AS_OTHER, OTHER_USER, PROGRAM, ran

NOBODY = 65534


@pytest.fixture
def home() -> Iterator[Path]:
    """A short one that every user can reach."""
    if os.geteuid() != 0 and not os.environ.get("CI"):
        pytest.skip("only root can become other users")
    path = Path(tempfile.mkdtemp(prefix="h", dir="/tmp"))
    path.chmod(0o755)
    os.chown(path, OTHER_USER, OTHER_USER)
    yield path
    shutil.rmtree(path)


def test_a_worker_that_root_has_made_another_user_is_ended_with_all_it_has_started(home: Path) -> None:
    """Its tensors are read, and it reads others."""
    done = ran([*PROGRAM, "user_is_changed", str(home), str(NOBODY), "allowed"], TMPDIR=str(home))
    assert done.returncode == 0, done


def test_a_user_without_a_name_or_a_home_can_stop_a_run(home: Path) -> None:
    """As in a container whose user nobody has entered anywhere; also at the limit of its processes."""
    command = ["env", *(f"--unset={name}" for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"))]
    done = ran([*command, *AS_OTHER, *PROGRAM, "user_has_no_name", str(home)], TMPDIR=str(home))
    assert done.returncode == 0, done


def test_who_may_not_signal_what_changed_its_user_names_it_and_goes_on(home: Path) -> None:
    """The worker itself ends without a signal. What it has started is left, and named with whose it is."""
    command = [*AS_OTHER, *PROGRAM, "user_is_changed", str(home), str(NOBODY), "refused"]
    done = ran([*command], TMPDIR=str(home), HOME=str(home))
    assert done.returncode == 0, done
    left = done.stdout.splitlines()[-1]
    os.kill(int(left), SIGKILL)
    assert f"SIGKILL did not end actor/0 {left} sleep (another user's: it or root may end it)" in done.stderr
