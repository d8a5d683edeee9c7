"""Tensors and arrays as plain bytes with a dtype's name and a shape, for HTTP clients. Both directions copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rolecall.errors import TensorError
from rolecall.tensors.dtypes import ITEMSIZE, is_array, itemsize, over

if TYPE_CHECKING:
    from rolecall.tensors.dtypes import Dense


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
