"""Runs a program so that it dies with the guard. A file of its own, run by path with `python -I -S`, to stay light.

`shim.py <parent pid> <name> <cwd> -- <program> <arguments...>`; the environment is passed on byte for byte.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, name, cwd, dashes, *argv = sys.argv[1:]
    assert dashes == "--"
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit(1)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and exec would pass that on
        signal.signal(number, signal.SIG_DFL)
    with open("/proc/self/environ", "rb") as file:  # noqa: PTH123  Python adds LC_CTYPE to its own in the C locale
        items = (item.partition(b"=") for item in file.read().split(b"\0") if item)
        env = {key: value for key, _, value in items}
    try:
        if cwd:
            os.chdir(cwd)
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        sys.exit(f"rolecall: cannot run {name}: {argv[0]!r}: {error.strerror}")


if __name__ == "__main__":
    main()
