"""The front door is light: `import rolecall` waits for nobody's extra."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = {"torch", "numpy", "ray", "pydantic", "transformers", "matplotlib"}

PROGRAM = """
import json, sys, time
begun = time.perf_counter()
import rolecall
seconds = time.perf_counter() - begun
print(json.dumps({"seconds": seconds, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def test_importing_rolecall_imports_nothing_heavy() -> None:
    """A fresh interpreter that imports rolecall has loaded no tensor library, no cluster and no model code."""
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    seen = json.loads(ran.stdout)
    print(f"import rolecall took {seen['seconds']:.3f} s")
    assert not HEAVY & set(seen["modules"])


def test_a_name_of_the_front_door_is_loaded_once_and_then_there() -> None:
    """`from rolecall import *` leaves every public name in the module, where the API reference finds it."""
    program = "import rolecall; from rolecall import *; print([n for n in rolecall.__all__ if n not in vars(rolecall)])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "[]"


def test_the_function_scheduler_is_not_hidden_by_the_subpackage_of_its_name() -> None:
    """`rolecall.scheduler(...)` works too where a submodule of `rolecall.scheduler` was imported first."""
    program = "import rolecall; rolecall.LocalScheduler; print(type(rolecall.scheduler).__name__)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "function"
