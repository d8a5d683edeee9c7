"""Dtypes of stored tensors and arrays by name, and memory of them. It imports neither torch nor numpy by itself.

A tensor's dtype is named as torch names it, `float32`; an array's is `numpy:` and numpy's code, `numpy:<f4`. As plain
bytes, for HTTP clients, both are copied.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from rolecall.errors import TensorError
from rolecall.transport.frames import allocate

if TYPE_CHECKING:
    import numpy
    import torch

Dense: TypeAlias = "torch.Tensor | numpy.ndarray[Any, Any]"

# memory of this size comes afresh each time, in small pages, which cost more than filling them
HUGE_FROM = 32 << 20
NUMPY = "numpy:"

_NAMES = {
    1: "bool uint8 int8 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu",
    2: "uint16 int16 float16 bfloat16",
    4: "uint32 int32 float32 complex32",
    8: "uint64 int64 float64 complex64",
    16: "complex128",
}
ITEMSIZE: dict[str, int] = {name: size for size, names in _NAMES.items() for name in names.split()}
# Those of numpy's own whose code says all: no objects, no fields.
_CODE = re.compile(r"[<>|](b1|[iu][1248]|f(?:[248]|12|16)|c(?:8|16|24|32)|[mM]8|[SUV][1-9]\d{0,8})(\[\w{1,16}\])?")


@lru_cache(1024)
def itemsize(name: str) -> int:
    """Bytes of an element; 0 when there is no dtype of that name."""
    if not name.startswith(NUMPY):
        return ITEMSIZE.get(name, 0)
    code = _CODE.fullmatch(name.removeprefix(NUMPY))
    return int(code[1][1:]) * (4 if code[1][0] == "U" else 1) if code else 0


@lru_cache(1024)
def native_dtype(name: str) -> Any:
    """`float32` -> `torch.float32`, `numpy:<f4` -> `numpy.dtype("<f4")`; imports what it needs.

    Raises:
        TensorError: The library that is installed here has no such dtype.
    """
    try:
        if name.startswith(NUMPY):
            import numpy

            return numpy.dtype(name.removeprefix(NUMPY))
        import torch

        return getattr(torch, name)
    except (TypeError, AttributeError, ImportError) as e:
        raise TensorError(f"there is no dtype {name!r} here: {e}") from e


def is_tensor(value: Any) -> bool:
    """True for a torch tensor."""
    return any(kind.__name__ == "Tensor" and kind.__module__ == "torch" for kind in type(value).__mro__)


def is_array(value: Any) -> bool:
    """True for a numpy array; subclasses, such as masked ones, have more to them than their elements."""
    numpy: Any = sys.modules.get("numpy")
    return numpy is not None and type(value) in (numpy.ndarray, numpy.memmap)


def dtype_name(value: Any) -> str:
    """The name of the dtype under which a tensor or an array is stored; empty for what cannot be stored.

    Stored are dense tensors (not sparse, meta or quantized), and arrays without objects and fields.
    """
    if is_array(value):
        name = f"{NUMPY}{value.dtype.str}"
        return name if itemsize(name) and native_dtype(name) == value.dtype else ""
    if not is_tensor(value) or value.layout is not sys.modules["torch"].strided or value.is_meta:
        return ""
    name = str(value.dtype).removeprefix("torch.")
    return name if name in ITEMSIZE else ""


def over(buffer: Any, dtype: str, shape: tuple[int, ...], offset: int = 0) -> Dense:
    """A tensor or array over `buffer`, which it keeps alive. No copy."""
    if dtype.startswith(NUMPY):
        import numpy

        return numpy.ndarray(shape, native_dtype(dtype), buffer, offset)
    import torch

    size = math.prod(shape) * ITEMSIZE[dtype]
    if not size:
        return torch.empty(shape, dtype=native_dtype(dtype))
    # by way of bytes: torch warns of some dtypes otherwise
    return torch.frombuffer(buffer, dtype=torch.uint8, count=size, offset=offset).view(native_dtype(dtype)).view(shape)


def empty(dtype: str, shape: tuple[int, ...]) -> Dense:
    """A new tensor or array with undefined values; a large one cannot be resized to more.

    Raises:
        ProtocolError: The system does not give that much memory.
    """
    size = math.prod(shape) * itemsize(dtype)
    if size >= HUGE_FROM:
        return over(allocate(size), dtype, shape)
    if dtype.startswith(NUMPY):
        import numpy

        return numpy.empty(shape, native_dtype(dtype))
    import torch

    return torch.empty(size, dtype=torch.uint8).view(native_dtype(dtype)).view(shape)


def fill(memory: Any, values: Any) -> Any:
    """Copies `values` into `memory`, which has their dtype and shape; returns `memory`."""
    if is_array(values):
        memory[...] = values
        return memory
    return memory.copy_(values.detach())


def copied(dtype: str, values: Dense) -> Any:
    """`values` in memory of their own, in row-major order."""
    return fill(empty(dtype, tuple(values.shape)), values)


def row_major(tensor: Any) -> Any:
    """The elements' bytes in row-major order as a flat numpy array; copies only if they are not contiguous."""
    if is_array(tensor):
        return tensor.reshape(-1).view("uint8")
    import torch

    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()


def to_bytes(tensor: Dense) -> bytes:
    """The elements in row-major order, as the host has them."""
    return bytes(row_major(tensor).data) if tensor.nbytes else b""


def from_bytes(data: bytes, dtype: str, shape: Any) -> Dense:
    """The tensor of which `to_bytes` returned these bytes.

    Raises:
        TensorError: The dtype or the shape is invalid, or they need another number of bytes.
    """
    if not itemsize(dtype):
        raise TensorError(f"no dtype {dtype!r} (there are {', '.join(ITEMSIZE)}, and numpy's as 'numpy:<f4')")
    if not isinstance(shape, Sequence) or len(shape) > 64 or not all(type(n) is int and n >= 0 for n in shape):
        raise TensorError(f"{shape!r} is no shape; use a list of whole numbers such as [2, 3]")
    count = math.prod(shape)
    if count * itemsize(dtype) != len(data):
        raise TensorError(f"{len(data)} bytes do not make {count} elements of {dtype}")
    return over(bytearray(data), dtype, tuple(shape))
