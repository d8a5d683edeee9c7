"""Processes below a worker, one of each kind that could escape its end."""

from rolecall.guard.proc import Process
from tests.guard.guard_rig import Rig

SPAWN = {
    "plain": "import subprocess; answer = subprocess.Popen(['sleep', '1000']).pid",
    "setsid": "import subprocess; answer = subprocess.Popen(['sleep', '1000'], start_new_session=True).pid",
    "deaf": "import subprocess; answer = subprocess.Popen(['sh', '-c', 'trap \"\" TERM; sleep 1000 & wait']).pid",
    "daemon": """
import os, signal
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(write, str(os.getpid()).encode())
        signal.pause()
    os._exit(0)
answer = int(os.read(read, 20))
""",
    "anonymous": """
import subprocess
answer = subprocess.Popen(['setsid', 'sleep', '1000'], env={'PATH': '/usr/bin:/bin'}).pid
""",
}


def descendants(rig: Rig, result: dict[str, object]) -> list[Process]:
    """A worker with one process of each kind below it or escaped from it."""
    return [rig.process(rig.do(result, source)) for source in SPAWN.values()]


def workers_with_descendants(rig: Rig) -> list[Process]:
    """Two workers and a program, and below the first one process of each kind."""
    first, second, program = rig.start(
        {"worker_id": "a/0"}, {"worker_id": "a/1"}, {"worker_id": "p/0", "argv": ["sleep", "1000"]}
    )
    pids = [first["pid"], second["pid"], program["pid"], *(rig.do(first, source) for source in SPAWN.values())]
    return [rig.process(pid) for pid in pids]
