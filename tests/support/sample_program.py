"""A module that tests run as a worker: `python -m tests.support.sample_program`."""

import os
import time

if __name__ == "__main__":
    print("module of role", os.environ["ROLECALL_WORKER"].partition("/")[0], flush=True)
    time.sleep(3600)
