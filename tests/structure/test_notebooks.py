"""What the page on notebooks shows runs in a real kernel, cell by cell."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

from tests.support.checkout import ROOT, SOURCES

CELLS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "notebooks.md").read_text(), re.DOTALL)
SHOWN = [re.findall(r"  # (.*)\n", cell) for cell in CELLS]


@pytest.mark.slow("a kernel with a run")
def test_the_cells_run_and_show_what_they_say(tmp_path: Path) -> None:
    """Workers find the written file, cells can await, and nothing is left when the kernel ends."""
    env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(SOURCES), "IPYTHONDIR": str(tmp_path)}
    kernel, client = start_new_kernel(cwd=str(tmp_path), env=env)
    seen: list[list[str]] = []

    def collect(message: dict[str, Any]) -> None:
        if message["msg_type"] == "execute_result":
            seen[-1].append(message["content"]["data"]["text/plain"])

    try:
        for cell in CELLS:
            seen.append([])
            reply = client.execute_interactive(cell, timeout=60, output_hook=collect)
            assert reply["content"]["status"] == "ok", reply["content"]
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
        kernel.cleanup_resources()
    assert seen == SHOWN
    assert sum(map(len, SHOWN)) == 3
