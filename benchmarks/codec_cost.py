"""What the codec and the frames cost: microseconds for a small call, GB/s for a tensor through a socket pair.

python benchmarks/codec_cost.py [--json] [--mib 64] [--repeat 5]
"""

from __future__ import annotations

import argparse
import json
import socket
import threading
import time
import timeit
from collections.abc import Callable
from typing import Any

from rolecall.transport.codec import decode, encode
from rolecall.transport.frames import FrameReader, pack

SMALL = {"method": "f", "args": (1, 2.0, "x", [1, 2, 3])}
_SOCKET_BUFFER = 4 << 20


def microseconds(work: Callable[[], Any], number: int, repeat: int) -> float:
    return min(timeit.repeat(work, number=number, repeat=repeat)) / number * 1e6


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
    options = parser.parse_args()
    result = small_call(options.repeat) | tensor(options.mib, options.repeat)
    if options.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name:28} {value:10.3f}" for name, value in result.items()))


if __name__ == "__main__":
    main()
