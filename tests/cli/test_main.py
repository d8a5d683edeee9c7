"""The command line as a whole: help, wrong options, and what it costs to start."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rolecall import __version__
from tests.cli.cli_rig import CommandLine, environment

COMMANDS = ("ps", "logs", "top", "stack", "stop", "doctor")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_and_json(cli: CommandLine, command: str) -> None:
    """`--help` ends questions."""
    done = cli.run(command, "--help")
    assert done.returncode == 0
    assert f"Example: rolecall {command}" in done.stdout and "--json" in done.stdout


def test_an_empty_fileroot_is_one_clear_line(cli: CommandLine) -> None:
    """Status 2, and what to do instead."""
    done = cli.run("ps")
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("rolecall: no run under") and "--fileroot" in line


def test_a_run_that_may_not_be_read_is_one_clear_line(cli: CommandLine) -> None:
    """Where it is asked for by its name; among others it is passed over."""
    for trial in ("open", "closed"):
        (cli.fileroot / "e" / trial).mkdir(parents=True)
        (cli.fileroot / "e" / trial / ".lock").touch()
    (cli.fileroot / "e" / "closed").chmod(0)
    powerless = ["setpriv", "--bounding-set=-all"] if os.getuid() == 0 else []  # root may read all
    for arguments, status, said in (("ps",), 0, "e/open"), (("logs", "--run", "e/closed"), 2, "another --fileroot"):
        argv = [*powerless, *cli.argv(*arguments)]
        done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (status, 1) and said in done.stderr, done.stderr


def test_a_wrong_option_is_status_2(cli: CommandLine) -> None:
    """As every program has it."""
    assert cli.run("ps", "--nonsense").returncode == 2


def test_a_reader_that_goes_away_is_no_fault(cli: CommandLine) -> None:
    """`rolecall doctor | head` ends in silence."""
    process = cli.start("doctor")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait(30)


def test_help_does_not_load_what_only_workers_need() -> None:
    """Torch takes seconds to import; nobody waits for it to read the help."""
    code = "import sys, rolecall.cli.main; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), timeout=60, check=False)
    assert done.returncode == 0


def test_the_version_is_printed() -> None:
    """`rolecall --version` prints the version of the package."""
    argv = [sys.executable, "-m", "rolecall.cli", "--version"]
    assert subprocess.check_output(argv, env=environment(), text=True, timeout=60).strip() == __version__
