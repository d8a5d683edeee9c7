"""Tensors as plain bytes with a dtype's name and a shape, for HTTP clients. Both directions copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rolecall.errors import TensorError
from rolecall.tensors.dtypes import ITEMSIZE, dtype_name, over

if TYPE_CHECKING:
    import torch


def row_major(tensor: torch.Tensor) -> Any:
    """The elements' bytes in row-major order as a flat numpy array; copies only if they are not contiguous."""
    import torch

    dtype_name(tensor.dtype)
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()


def to_bytes(tensor: torch.Tensor) -> bytes:
    """The elements in row-major order, as the host has them."""
    return bytes(row_major(tensor).data) if tensor.numel() else b""


def from_bytes(data: bytes, dtype: str, shape: Any) -> torch.Tensor:
    """The tensor of which `to_bytes` returned these bytes.

    Raises:
        TensorError: The dtype or the shape is invalid, or they need another number of bytes.
    """
    if dtype not in ITEMSIZE:
        raise TensorError(f"no dtype {dtype!r} (there are {', '.join(ITEMSIZE)})")
    if not isinstance(shape, Sequence) or len(shape) > 64 or not all(type(n) is int and n >= 0 for n in shape):
        raise TensorError(f"{shape!r} is no shape; use a list of whole numbers such as [2, 3]")
    count = math.prod(shape)
    if count * ITEMSIZE[dtype] != len(data):
        raise TensorError(f"{len(data)} bytes do not make {count} elements of {dtype}")
    return over(bytearray(data), dtype, count).view(tuple(shape))
