"""Types that a controller's own program defines travel to its workers and back, however the program was started."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rolecall.errors import EngineImportError
from tests.support import types_program
from tests.support.checkout import PYTHONPATH
from tests.support.schedulers_under_test import OF_PROCESSES, each

pytestmark = pytest.mark.slow("controllers that are programs of their own")
PROGRAM = Path(types_program.__file__)
STARTED = {
    "script": [str(PROGRAM)],
    "module": ["-m", types_program.__name__],
    "package": ["-m", "package_of_types"],
    "imported": ["-c", f"import sys, {types_program.__name__} as p; p.main(*sys.argv[1:])"],
}


# A guard learns of a program by its path or its name, whichever backend has started it.
ELSEWHERE = ("script", "package")
CASES = [(backend, how) for backend in OF_PROCESSES for how in STARTED if backend == "local" or how in ELSEWHERE]


@pytest.mark.parametrize(("backend", "how"), [pytest.param(*case, marks=each([case[0]])[0].marks) for case in CASES])
def test_every_kind_of_type_travels_both_ways(backend: str, how: str, tmp_path: Path) -> None:
    """Enums, flags, named tuples, dataclasses, Structs, pydantic models and exceptions, alone and nested."""
    package = tmp_path / "package_of_types"
    package.mkdir()
    shutil.copy(PROGRAM, package / "__main__.py")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([PYTHONPATH, str(tmp_path)])}
    command = [sys.executable, *STARTED[how], backend, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "8 types\n"), done.stderr


def test_a_program_that_reads_its_arguments_when_it_is_imported_is_told_of_the_main_guard(tmp_path: Path) -> None:
    """Workers load the program without its arguments, and argparse then ends them."""
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import argparse, rolecall
parser = argparse.ArgumentParser()
parser.add_argument("fileroot")
fileroot = parser.parse_args().fileroot
class Engine: pass
if __name__ == "__main__":
    with rolecall.scheduler("local", fileroot=fileroot, preload=[]) as s:
        try:
            s.start("actor").create_engine(Engine)
        except {EngineImportError.__module__}.{EngineImportError.__name__} as e:
            print(e)
"""
    )
    env = {**os.environ, "PYTHONPATH": PYTHONPATH}
    done = subprocess.run([sys.executable, script, tmp_path], env=env, capture_output=True, text=True, timeout=60)
    assert "SystemExit: 2; what it does when it is started" in done.stdout, done.stderr
    assert 'below `if __name__ == "__main__":`' in done.stdout


UNGUARDED = """
import sys, rolecall, rolecall.errors
class Engine: pass
with rolecall.scheduler("local", fileroot=sys.argv[1], trial="t", preload=[]) as s:
    try:
        s.start("actor").create_engine(Engine)
    except rolecall.errors.EngineImportError as e:
        print(e)
"""


@pytest.mark.parametrize("how", ["script", "package"])
def test_a_program_without_the_guard_starts_no_second_run(how: str, tmp_path: Path) -> None:
    """Its workers import it to find the class, and are refused the scheduler that it makes then."""
    main = tmp_path / "unguarded" / "__main__.py"
    main.parent.mkdir()
    main.write_text(UNGUARDED)
    started = [str(main)] if how == "script" else ["-m", "unguarded"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([PYTHONPATH, str(tmp_path)])}
    command = [sys.executable, *started, str(tmp_path / "runs")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert "a scheduler was made while a worker loads this script" in done.stdout, done.stderr
    assert [path.name for path in (tmp_path / "runs" / "default").iterdir()] == ["t"]
