"""Cold start of a worker: `python -m rolecall.worker --control-fd N`, where N is an inherited socket to the guard."""

import argparse
import socket

from rolecall.worker.main import run

parser = argparse.ArgumentParser(prog="rolecall.worker", description=__doc__)
parser.add_argument("--control-fd", type=int, required=True, help="inherited socket to the guard")

if __name__ == "__main__":
    run(socket.socket(fileno=parser.parse_args().control_fd))
