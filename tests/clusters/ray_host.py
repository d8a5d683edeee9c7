"""The first process of a host of its own: hides folders of the machine, runs a command, and lives until it is killed.

`ray_host.py --hide FOLDER ... -- COMMAND ...`, started in namespaces of its own. It says `ready` when the command has
succeeded. Its end is the end of all that the host runs.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

READY = b"ready"


def in_namespaces(netns: str, hidden: list[Path], command: list[str]) -> list[str]:
    """The command in a network that is there, with mounts and pids of its own: a host as far as a program can tell."""
    own = ["nsenter", f"--net=/run/netns/{netns}", "unshare", "--mount", "--pid", "--fork", "--mount-proc"]
    hide = [arg for folder in hidden for arg in ("--hide", str(folder))]
    return [*own, sys.executable, "-P", __file__, *hide, "--", *command]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hide", action="append", default=[], metavar="FOLDER", help="is empty on this host")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    for folder in given.hide:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    out = os.dup(1)
    os.dup2(2, 1)
    subprocess.run(given.command, check=True)
    os.write(out, READY)
    os.close(out)
    while True:  # the daemons' parent, since every host needs one
        try:
            os.wait()
        except ChildProcessError:
            signal.pause()


if __name__ == "__main__":
    main()
