"""Type checkers find what is wrong with a call, and nothing wrong with what is right."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.checkout import ROOT

EXAMPLES = "tests/support/typed_calls.py"


@pytest.mark.slow("a type checker reads the package", seconds=10)
def test_mypy_sees_what_is_right_and_what_is_wrong() -> None:
    """No error beyond those that are expected, and none of these is missing."""
    command = ["-m", "mypy", "--warn-unused-ignores", "--no-incremental", EXAMPLES]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert [line for line in done.stdout.splitlines() if EXAMPLES in line] == []
    assert done.returncode == 0, done.stdout


@pytest.mark.slow("a type checker reads the package", seconds=10)
def test_pyright_sees_what_is_right_and_what_is_wrong() -> None:
    """The same errors, in the same lines."""
    command = ["-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=250)
    seen = json.loads(done.stdout)
    assert [(each["range"]["start"]["line"] + 1, each["message"]) for each in seen["generalDiagnostics"]] == []
    assert seen["summary"]["filesAnalyzed"] == 1
