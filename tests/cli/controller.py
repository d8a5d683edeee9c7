"""A real controller: starts roles, then obeys its stdin line by line and answers each with `ok` or an error."""

from __future__ import annotations

import sys

from rolecall import LocalScheduler
from rolecall.errors import RolecallError


def main(fileroot: str, trial: str) -> None:
    with LocalScheduler(experiment="cli", trial=trial, fileroot=fileroot, preload=[], grace_s=1.0) as s:
        actors = s.start("actor", replicas=2, cpu=1)
        actors.create_engine("tests.cli.cli_engines.Chatter")
        actors.fork("sidecar", command=[sys.executable, "-c", "import time; time.sleep(3600)"])
        print("ready", flush=True)
        for line in sys.stdin:
            verb, _, rest = line.rstrip("\n").partition(" ")
            try:
                if verb == "say":
                    actors[0].call("say", rest)
                elif verb == "leave":
                    actors[1].call("leave", int(rest))
                elif verb == "wait":
                    actors[0].submit("wait")
                elif verb == "role":
                    s.start(rest, cpu=1).create_engine("tests.cli.cli_engines.Chatter")
                    s.call_engine(f"{rest}/0", "say", None, f"this is {rest}")
                elif verb == "hide":
                    s.start("hiding", cpu=1).create_engine("tests.support.sample_engines.HidingParent")
                elif verb == "serve":
                    s.start("served", cmd="tests.support.served_module")
                print("ok", flush=True)
            except RolecallError as e:
                print(f"{type(e).__name__}: {str(e).splitlines()[0]}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
