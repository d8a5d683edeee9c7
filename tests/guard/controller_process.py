"""A controller in a process of its own, to be killed: starts a guard and workers, says who they are, and waits."""

import json
import signal
import sys
from pathlib import Path

from tests.guard.descendants import workers_with_descendants
from tests.guard.guard_rig import Rig

if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    rig = Rig(Path(sys.argv[1]), lease_s=1.0)
    facts = {
        "run_id": rig.run_id,
        "runtime_dir": str(rig.runtime_dir),
        "reaper": rig.reaper.pid,
        "reaper_start": rig.process(rig.reaper.pid).start,
        "guard_log": str(rig.run_dir / "logs" / "guard-g0.log"),
        "processes": workers_with_descendants(rig),
    }
    print(json.dumps(facts), flush=True)
    signal.pause()
