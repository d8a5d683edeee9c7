"""Each peer's own virtual environment, made on demand under build/bench. The product depends on no peer."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONSTRAINTS = ROOT / "constraints.txt"


def python_of(peer: str) -> str:
    """The interpreter that runs a peer; for ours the one that runs the benchmark."""
    requirements = ROOT / "benchmarks" / "peers" / f"{peer}.txt"
    if not requirements.exists():
        return sys.executable
    folder = ROOT / "build" / "bench" / peer
    wanted = hashlib.sha256(requirements.read_bytes() + CONSTRAINTS.read_bytes()).hexdigest()
    stamp = folder / "installed"
    if not (stamp.exists() and stamp.read_text() == wanted):
        make(peer, folder, requirements)
        stamp.write_text(wanted)
    return str(folder / "bin" / "python")


def make(peer: str, folder: Path, requirements: Path) -> None:
    print(
        f"making the environment of {peer} in {folder.relative_to(ROOT)} (over a gigabyte with torch) ...", flush=True
    )
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "-q", "-q"]
    subprocess.run([*install, "-r", requirements, "-c", CONSTRAINTS], check=True)
