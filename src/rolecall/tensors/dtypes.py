"""Names and sizes of tensor dtypes, so that handles know them without torch. It never imports torch by itself."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

from rolecall.errors import TensorError
from rolecall.transport.frames import allocate

if TYPE_CHECKING:
    import torch

# torch gets memory of this size afresh each time, in small pages, which cost more than filling them
HUGE_FROM = 32 << 20

_NAMES = {
    1: "bool uint8 int8 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu",
    2: "uint16 int16 float16 bfloat16",
    4: "uint32 int32 float32 complex32",
    8: "uint64 int64 float64 complex64",
    16: "complex128",
}
ITEMSIZE: dict[str, int] = {name: size for size, names in _NAMES.items() for name in names.split()}


def dtype_name(dtype: Any) -> str:
    """`torch.float32` -> `float32`.

    Raises:
        TensorError: The dtype cannot be stored, for instance a quantized one.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in ITEMSIZE:
        raise TensorError(f"tensors of dtype {dtype} cannot be stored (supported: {', '.join(ITEMSIZE)})")
    return name


@cache
def torch_dtype(name: str) -> torch.dtype:
    """`float32` -> `torch.float32`."""
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype


def storable(value: Any) -> bool:
    """True for a dense tensor of a supported dtype: not sparse, meta or quantized."""
    import torch

    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and not value.is_meta
        and str(value.dtype).removeprefix("torch.") in ITEMSIZE
    )


def over(buffer: Any, dtype: str, count: int, offset: int = 0) -> torch.Tensor:
    """A flat tensor of `count` elements of `dtype` over `buffer`, which it keeps alive. No copy."""
    import torch

    if not count:
        return torch.empty(0, dtype=torch_dtype(dtype))
    size = count * ITEMSIZE[dtype]
    return torch.frombuffer(buffer, dtype=torch.uint8, count=size, offset=offset).view(torch_dtype(dtype))


def empty(dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A new tensor of that dtype and shape with undefined values; a large one cannot be resized to more.

    Raises:
        ProtocolError: The system does not give that much memory.
    """
    import torch

    size = math.prod(shape) * ITEMSIZE[dtype]
    huge = size >= HUGE_FROM
    flat = torch.frombuffer(allocate(size), dtype=torch.uint8) if huge else torch.empty(size, dtype=torch.uint8)
    return flat.view(torch_dtype(dtype)).view(shape)  # by way of bytes: torch warns of some dtypes otherwise
