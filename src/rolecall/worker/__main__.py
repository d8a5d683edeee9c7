"""Cold start of a worker: `python -m rolecall.worker`, with an inherited socket to the guard."""

from rolecall.worker.main import inherited_control, run

if __name__ == "__main__":
    run(inherited_control())
