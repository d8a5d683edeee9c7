"""The parent process of a guard. When the guard ends in any way, it kills all remaining descendants.

When it is killed itself, the guard ends, and does the same. It imports little: it runs as long as the guard does.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rolecall.errors import explained, remedy
from rolecall.guard import cgroup, runtime
from rolecall.guard.claims import CGROUP, write_private
from rolecall.guard.kernel import become_subreaper, die_with_parent, set_name
from rolecall.guard.proc import kill_below
from rolecall.guard.sweep import GUARD_NAME, REAPER_NAME, sweep

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STOP_TIMEOUT_S = 15  # a guard that does not end within this time (stopped, stuck) is killed
KILL_TIMEOUT_S = 10.0


def run(config: bytes, guard_main: Callable[[bytes], int]) -> int:
    """Forks the guard and waits for its end.

    Args:
        config: The guard's configuration as JSON, read from its descriptor or file.
        guard_main: What the child does. It is called with the stop signals blocked.

    Returns:
        The guard's exit status, 128 + signal when it was killed.
    """
    fields = json.loads(config)
    if fields.get("starter_pid") and not _detach_from_starter(fields):
        return 0  # the launching process has died, and nothing was started
    with suppress(PermissionError):  # already the leader of a group: started in a session of its own, or by a shell
        os.setsid()
    become_subreaper()
    set_name(REAPER_NAME)
    reaper = os.getpid()
    runtime.prepare(fields["runtime_dir"], fields["guard_id"])
    group = cgroup.make(f"rolecall-{fields['run_id']}-{fields['guard_id']}")
    if group:
        write_private(Path(fields["runtime_dir"], fields["guard_id"], CGROUP), group)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # so that none falls between the fork and its handlers
    guard = os.fork()
    if guard == 0:
        _run_guard(reaper, config, fields, group, guard_main)
    status = _wait_for_guard(guard)
    _clean_up(fields)
    return status


def _clean_up(fields: dict[str, Any]) -> None:
    """Ends all that the guard has left, below this process and elsewhere on the host."""
    kill_below(KILL_TIMEOUT_S)
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    sweep(fields["run_id"], fields["guard_id"], fields["runtime_dir"])
    runtime.clean(fields["runtime_dir"], fields["guard_id"])


def _detach_from_starter(fields: dict[str, Any]) -> bool:
    """Forks, so that an intermediate process stands between the starter and the reaper. False if the starter has ended.

    Ray kills the children of an actor that it ends. It then kills the intermediate process, whose death the kernel
    signals to this one. If reaper and guard are killed, the intermediate process does their work.
    """
    if not die_with_parent(fields["starter_pid"]):
        return False
    become_subreaper()
    intermediate = os.getpid()
    reaper = os.fork()
    if reaper == 0:
        return die_with_parent(intermediate, signal.SIGTERM)
    set_name("rc:intermediate")
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _: os.kill(reaper, number))
    _, status = os.waitpid(reaper, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # its pid may be another's from here on
    _clean_up(fields)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _run_guard(
    reaper: int, config: bytes, fields: dict[str, Any], group: str, guard_main: Callable[[bytes], int]
) -> None:
    status = 1
    try:
        os.setsid()
        become_subreaper()
        set_name(GUARD_NAME)
        if die_with_parent(reaper, signal.SIGTERM):
            if group:
                cgroup.enter(group)
            status = guard_main(config)
        if os.getppid() != reaper:
            if group:
                cgroup.enter(Path(group).parent)
            _clean_up(fields)
    except BaseException as e:  # the child must never return into the reaper's code
        sys.excepthook(*sys.exc_info())
        if remedy(e):
            print(explained(e), file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait_for_guard(guard: int) -> int:
    terminated = False

    def forward(number: int, frame: object) -> None:
        nonlocal terminated
        os.kill(guard, signal.SIGKILL if terminated else signal.SIGTERM)  # our unreaped child: the pid is still its own
        terminated = True
        signal.alarm(STOP_TIMEOUT_S)

    for number in (*STOP_SIGNALS, signal.SIGALRM):
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    while True:
        # Seen first and reaped with the handlers off, so that `forward` never signals a pid that was reused.
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        assert ended is not None, "only WNOHANG has no answer"
        if ended.si_pid == guard:
            signal.pthread_sigmask(signal.SIG_BLOCK, (*STOP_SIGNALS, signal.SIGALRM))
        pid, status = os.waitpid(ended.si_pid, 0)
        if pid == guard:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
