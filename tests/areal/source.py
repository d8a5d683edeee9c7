"""Where AReaL's source is: $AREAL_SRC, a folder or an archive, or ../shared/areal beside the repository."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

from tests.support.checkout import ROOT

HOW = "set AREAL_SRC to the folder or the archive of its source, and run `make areal`, which installs what it needs"
STAND_INS = Path(__file__).parent / "stand_ins"


def use() -> str:
    """Puts the source on the path of this process and of those that it starts; returns what is missing."""
    if FOLDER is None:
        return "AReaL's source is not here"
    sys.path += [str(path) for path in PATHS if str(path) not in sys.path]
    missing = [module for module in ("torchdata", "aiohttp", "flask") if find_spec(module) is None]
    return f"AReaL's packages are not here ({', '.join(missing)})" if missing else ""


def _unpacked() -> Path | None:
    given = os.environ.get("AREAL_SRC")
    beside = sorted((ROOT.parent / "shared" / "areal").glob("areal-*.tar.*"))
    found = Path(given) if given else beside[0] if beside else None
    if found is None or not found.exists():
        return None
    if found.is_file():
        into = Path(tempfile.mkdtemp(prefix="areal-"))
        atexit.register(shutil.rmtree, into, ignore_errors=True)
        with tarfile.open(found) as archive:
            archive.extractall(into, filter="data")
        found = into
        os.environ["AREAL_SRC"] = str(found)  # pytest's workers need not unpack it again
    return next(iter(found.glob("**/areal/__init__.py"))).parent.parent


FOLDER = _unpacked()
PATHS = [FOLDER, STAND_INS]  # behind what is installed: a stand-in stands in for what is not
