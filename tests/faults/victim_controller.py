"""A controller for tests to kill: brings itself into a state, prints what it is as a line of JSON, and stays in it."""

from __future__ import annotations

import json
import sys
import threading
import time

from tests.support import sample_engines
from tests.support.schedulers_under_test import make_scheduler

SLEEPER = ["sleep", "3600"]


def main(backend: str, state: str, fileroot: str) -> None:
    with make_scheduler(backend, trial="controller", fileroot=fileroot) as s:
        actor = s.start("actor", replicas=2)
        actor.create_engine(sample_engines.HidingParent)

        def announce() -> None:
            print(json.dumps({"run_id": s.run_id, "run_dir": s.run_dir}), flush=True)

        threading.Timer(0.3, announce).start()
        if state == "idle":
            time.sleep(3600)
        elif state == "call":
            actor.call("wait")
        elif state == "starting":
            s.start("slow", cmd=SLEEPER, ready="/never")
        elif state == "forking":
            actor.fork("slow", command=SLEEPER, ready="/never")


if __name__ == "__main__":
    main(*sys.argv[1:])
