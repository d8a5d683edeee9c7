"""What the codec and the frames cost: microseconds for a small call, GB/s for a tensor through a socket pair, and
plain values beside pickle.

    python benchmarks/codec_cost.py [--json] [--mib 64] [--repeat 5] [--seconds 0.5]

For each kind of plain value (`plain_values.py`): medians in microseconds of encode and pickle.dumps, and of decode and
pickle.loads, measured in turn, and the ratio of ours to pickle's: below 1 is faster than pickle (protocol 5).
"""

from __future__ import annotations

import argparse
import json
import pickle
import socket
import statistics
import sys
import threading
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parent.parent)

from benchmarks.plain_values import CASES, value_of
from rolecall.transport.codec import decode, encode
from rolecall.transport.frames import FrameReader, pack

SMALL = {"method": "f", "args": (1, 2.0, "x", [1, 2, 3])}
_SOCKET_BUFFER = 4 << 20


def microseconds(work: Callable[[], Any], number: int, repeat: int) -> float:
    return min(timeit.repeat(work, number=number, repeat=repeat)) / number * 1e6


def in_turn(ours: Callable[[], Any], theirs: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """Medians in microseconds of two functions that are run in turn."""
    start = time.perf_counter()
    theirs()
    number = max(1, int(0.002 / (time.perf_counter() - start)))
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 7:
        for work, taken in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            for _ in range(number):
                work()
            taken.append((time.perf_counter() - start) / number * 1e6)
    return statistics.median(times[0]), statistics.median(times[1])


def beside_pickle(case: str, seconds: float) -> dict[str, float]:
    value = value_of(case)
    header, buffers = encode(value)
    pickled = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    ours, theirs = in_turn(lambda: encode(value), lambda: pickle.dumps(value, pickle.HIGHEST_PROTOCOL), seconds)
    back, their_back = in_turn(lambda: decode(header, buffers), lambda: pickle.loads(pickled), seconds)
    return {
        f"{case}_encode_us": ours,
        f"{case}_pickle_us": theirs,
        f"{case}_encode_to_pickle": ours / theirs,
        f"{case}_decode_us": back,
        f"{case}_unpickle_us": their_back,
        f"{case}_decode_to_pickle": back / their_back,
    }


def small_call(repeat: int) -> dict[str, float]:
    header, buffers = encode(SMALL)
    [frame] = pack(header)
    reader = FrameReader()

    def read() -> None:
        reader.get_buffer()[: len(frame)] = frame
        reader.buffer_updated(len(frame))

    return {
        "encode_us": microseconds(lambda: encode(SMALL), 20_000, repeat),
        "decode_us": microseconds(lambda: decode(header, buffers), 20_000, repeat),
        "pack_us": microseconds(lambda: pack(header), 20_000, repeat),
        "read_us": microseconds(read, 20_000, repeat),
    }


def send(end: socket.socket, parts: list[bytes | memoryview]) -> None:
    for part in parts:
        end.sendall(part)


def receive(end: socket.socket, reader: FrameReader) -> Any:
    while True:
        for header, buffers in reader.buffer_updated(end.recv_into(reader.get_buffer())):
            return decode(header, buffers)


def through_a_socket(value: Any, nbytes: int, repeat: int) -> float:
    """GB/s of one `value` from encode in one thread to decode in another."""
    left, right = socket.socketpair()
    best = 0.0
    with left, right:
        for end in (left, right):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER)
        reader = FrameReader()
        for _ in range(repeat + 1):
            start = time.perf_counter()
            sender = threading.Thread(target=lambda: send(left, pack(*encode(value))))
            sender.start()
            received = receive(right, reader)
            elapsed = time.perf_counter() - start
            sender.join()
            del received
            best = max(best, nbytes / elapsed / 1e9)
    return best


def tensor(mib: int, repeat: int) -> dict[str, float]:
    try:
        import torch
    except ImportError:
        return {}
    value = torch.ones(mib << 18)
    small = torch.ones(64)
    header, buffers = encode(small)
    return {
        f"tensor_{mib}_mib_gb_per_s": through_a_socket(value, value.nbytes, repeat),
        "tensor_256_b_encode_us": microseconds(lambda: encode(small), 5000, repeat),
        "tensor_256_b_decode_us": microseconds(lambda: decode(header, buffers), 5000, repeat),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--mib", type=int, default=64, help="size of the tensor")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each kind of plain value, twice")
    options = parser.parse_args()
    result = small_call(options.repeat) | tensor(options.mib, options.repeat)
    for case in CASES:
        result |= beside_pickle(case, options.seconds)
    if options.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name:32} {value:10.3f}" for name, value in result.items()))


if __name__ == "__main__":
    main()
