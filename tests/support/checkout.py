"""Where the checkout is, for programs that tests start."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src"
PYTHONPATH = os.pathsep.join([str(SOURCES), str(ROOT)])  # with the tests' own modules
