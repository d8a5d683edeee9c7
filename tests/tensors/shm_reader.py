"""Another process that reads shards from shared memory: a line of JSON in, a line out."""

from __future__ import annotations

import json
import sys

import msgspec
import torch

from rolecall.tensors.backends.shm import ShmBackend
from rolecall.tensors.shard import Shard


def main() -> None:
    """Fetches, changes, keeps or drops as each line says, until standard input ends."""
    torch.set_num_threads(1)
    backend = ShmBackend()
    kept: list[torch.Tensor] = []
    for line in sys.stdin:
        verb, plain = json.loads(line)
        shards = [] if plain is None else [msgspec.convert(plain, Shard)]
        found = [tensor for tensor in backend.fetch(shards) if tensor is not None]
        if verb == "spoil":
            found[0][:] = 0
        elif verb == "keep":
            kept += found
        elif verb == "sum kept":
            found = kept[:1]
        elif verb == "drop":
            kept.clear()
        total = int(found[0].sum()) if found else None
        found.clear()  # before the answer: whoever reads it may rely on it
        print(json.dumps(total), flush=True)


if __name__ == "__main__":
    main()
