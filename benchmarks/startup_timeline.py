"""Where the time goes between nothing and two workers with torch that answer, step by step.

python benchmarks/startup_timeline.py [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import rolecall


class Answers:
    """The smallest engine."""

    def ready(self) -> bool:
        return True


def one_round(folder: str, number: int) -> dict[str, float]:
    """Milliseconds of each step; `worker ...` counts from the request to the guard, the slower of two workers."""
    steps: dict[str, float] = {}
    begun = last = time.perf_counter()

    def step(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        steps[name], last = (now - last) * 1e3, now

    with rolecall.LocalScheduler(experiment="timeline", trial=str(number), fileroot=folder, quiet=True) as s:
        step("scheduler made, guard launched")
        first = s.start("first", replicas=2)
        step("first two ready (guard calls home, template imports torch, fork)")
        first.create_engine(Answers)
        first.call("ready")
        step("engines made and called")
        steps["all of that"] = (time.perf_counter() - begun) * 1e3
        s.start("second", replicas=2)
        step("two more ready (template warm)")
        for name, reached in _timeline(Path(s.run_dir), "second").items():
            steps[f"  worker {name}"] = reached * 1e3
        last = time.perf_counter()
    step("everything ended, proved")
    return steps


def _timeline(run_dir: Path, role: str) -> dict[str, float]:
    state: dict[str, Any] = json.loads((run_dir / "state.json").read_text())
    workers = next(r["workers"] for r in state["roles"] if r["name"] == role)
    return {name: max(w["timeline"][name] for w in workers) for name in workers[0]["timeline"] if name != "requested"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often; medians are shown")
    parser.add_argument("--json", type=Path, help="write every round to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rounds = [one_round(folder, i) for i in range(options.rounds)]
    medians = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    for name, value in medians.items():
        print(f"{value:9.1f} ms  {name}")
    if options.json:
        options.json.write_text(json.dumps({"unit": "ms", "medians": medians, "rounds": rounds}, indent=1))


if __name__ == "__main__":
    main()
