"""Rules for torch: tensors, dtypes, devices, sizes. It never imports torch unless one of these arrives.

Every dtype keeps its bits. A tensor that lies in order in host memory is viewed, not copied: it must not change until
the frame is written. One on an accelerator goes through host memory and arrives on the CPU, unless the receiver's
`context.tensor_device` says otherwise. `requires_grad` and the graph stay behind; an `nn.Parameter` arrives as a
tensor, a meta tensor as a meta tensor. Sparse tensors travel as their parts, which torch checks when they arrive.
Quantised and nested tensors and subclasses of Tensor do not travel. Two references to one tensor arrive as two tensors.
Many small ones in a list lie in one buffer, and are views of one memory when they arrive.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from functools import cache, partial
from math import prod
from typing import Any

from rolecall.errors import DecodeError
from rolecall.transport.codec.arrays import INLINE, check_size, number_of_elements, required
from rolecall.transport.codec.exceptions import full_name
from rolecall.transport.codec.places import Refused
from rolecall.transport.codec.reader import DECODERS, Reader
from rolecall.transport.codec.writer import RESOLVERS, ROWS, Encode, Writer, refusing

TENSOR, META, SPARSE, TORCH_DTYPE, DEVICE, SIZE, SMALL_TENSORS = -50, -51, -52, -53, -54, -55, -56

_PARTS = {
    "sparse_coo": ("_indices", "_values"),
    "sparse_csr": ("crow_indices", "col_indices", "values"),
    "sparse_csc": ("ccol_indices", "row_indices", "values"),
    "sparse_bsr": ("crow_indices", "col_indices", "values"),
    "sparse_bsc": ("ccol_indices", "row_indices", "values"),
}


_torch = partial(required, "torch", "a tensor")


@cache
def _dtypes() -> dict[str, Any]:
    """The dtypes whose bits stand for themselves. A quantised one made from bytes crashes the process."""
    dtypes = (found for found in vars(_torch()).values() if isinstance(found, _torch().dtype))
    return {_name(dtype): dtype for dtype in dtypes if not _name(dtype).startswith("q")}


def _name(dtype_or_layout: Any) -> str:
    return str(dtype_or_layout).removeprefix("torch.")


@cache
def _dtype_names() -> dict[Any, str]:
    return {dtype: name for name, dtype in _dtypes().items()}


def _dtype_of(name: Any) -> Any:
    dtype = _dtypes().get(name) if type(name) is str else None
    if dtype is None:
        raise DecodeError("no dtype of that name in this torch", name)
    return dtype


# --- tensors ---


def _tensor(writer: Writer, value: Any) -> Any:
    torch = sys.modules["torch"]
    if value.layout is not torch.strided:
        return _sparse(writer, value)
    name = _dtype_names().get(value.dtype)
    if name is None or value.is_nested:
        raise Refused(value, "nested and quantised tensors stay where they are; send dequantize() or a list")
    if value.is_meta:
        return writer.extension(META, [name, list(value.shape)])
    try:
        settled = _in_order(value)
    except RuntimeError as e:  # also NotImplementedError: a dtype that torch cannot copy
        raise Refused(value, str(e)) from e
    return writer.extension(TENSOR, [name, list(value.shape), writer.buffer(_memory(settled), INLINE)])


def _in_order(value: Any) -> Any:
    """The same values in host memory, one after another, with no view of them left to be applied."""
    value = value.detach()
    if value.is_conj() or value.is_neg():
        value = value.resolve_conj().resolve_neg()
    if not value.is_cpu:
        value = value.cpu()
    return value.contiguous()


def _memory(value: Any) -> memoryview:
    """Views a tensor's memory without numpy, which has no bfloat16 and no float8. The view keeps the tensor alive."""
    size = value.numel() * value.element_size()
    if size == 0:
        return memoryview(b"")
    array = (ctypes.c_ubyte * size).from_address(value.data_ptr())
    array.owner = value
    return memoryview(array).cast("B")


def _decode_tensor(reader: Reader, data: memoryview) -> Any:
    name, shape, ref = reader.items(data, 3)
    return _received(reader, name, number_of_elements(shape), ref).view(shape)


def _received(reader: Reader, name: Any, count: int, ref: Any) -> Any:
    """So many numbers in a buffer, on the device that the receiver wants them on."""
    dtype, memory = _dtype_of(name), reader.buffer(ref)
    check_size(count, dtype.itemsize, memory)
    torch = _torch()
    flat = torch.frombuffer(memory, dtype=dtype) if len(memory) else torch.empty(0, dtype=dtype)
    device = getattr(reader.context, "tensor_device", None)
    return flat if device is None else flat.to(device)


def _small_tensors(writer: Writer, values: Sequence[Any]) -> Any:
    """The rule for a list of small tensors of one dtype; it takes no others."""
    torch = sys.modules["torch"]
    dtype = values[0].dtype
    name = _dtype_names().get(dtype)
    if name is None or not all(_is_small(value, dtype, torch.strided) for value in values):
        return None
    shapes = [list(value.shape) for value in values]
    with torch.no_grad():
        joined = torch.cat([value if value.dim() == 1 else value.reshape(-1) for value in values])
    return writer.extension(SMALL_TENSORS, [name, shapes, writer.buffer(_memory(joined), INLINE)])


def _is_small(value: Any, dtype: Any, layout: Any) -> bool:
    fits = value.dtype is dtype and value.layout is layout and value.is_cpu and not value.is_nested
    return bool(fits) and value.nbytes <= INLINE


def _decode_small_tensors(reader: Reader, data: memoryview) -> Any:
    name, shapes, ref = reader.items(data, 3)
    reader.count(len(shapes))
    counts = [number_of_elements(shape) for shape in shapes]
    parts = _received(reader, name, sum(counts), ref).split(counts)
    return [part if len(shape) == 1 else part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _decode_meta(reader: Reader, data: memoryview) -> Any:
    name, shape = reader.items(data, 2)
    dtype = _dtype_of(name)
    if type(shape) is not list or prod(shape) * dtype.itemsize >= 1 << 63:
        raise DecodeError("bad shape", shape)
    return _torch().empty(shape, dtype=dtype, device="meta")


# --- sparse tensors ---


def _sparse(writer: Writer, value: Any) -> Any:
    layout = _name(value.layout)
    if layout not in _PARTS:
        raise Refused(value, f"its layout is {layout}; send to_dense()")
    value = value.detach()
    parts = [_tensor(writer, getattr(value, part)()) for part in _PARTS[layout]]
    coalesced = layout == "sparse_coo" and value.is_coalesced()
    return writer.extension(SPARSE, [layout, list(value.shape), coalesced, *parts])


def _decode_sparse(reader: Reader, data: memoryview) -> Any:
    layout, shape, coalesced, *parts = reader.items(data)
    torch = _torch()
    if layout not in _PARTS or len(parts) != len(_PARTS[layout]):
        raise DecodeError("not a sparse layout, or not its parts", layout)
    if not all(type(part) is torch.Tensor for part in parts):
        raise DecodeError("parts of a sparse tensor are no tensors", layout)
    if layout != "sparse_coo":
        kind = getattr(torch, layout)
        return torch.sparse_compressed_tensor(*parts, size=shape, layout=kind, check_invariants=True)
    value = torch.sparse_coo_tensor(*parts, size=shape, check_invariants=True)
    return value.coalesce() if coalesced else value


# --- dtypes, devices, sizes ---


def _decode_torch_dtype(reader: Reader, data: memoryview) -> Any:
    found = vars(_torch()).get(reader.content(data, str))
    if not isinstance(found, _torch().dtype):
        raise DecodeError("no dtype of that name in this torch", str(found))
    return found


def _rule_of(kind: type) -> Encode | None:
    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "nn"):  # the latter while another thread imports it
        return None
    ROWS[torch.Tensor] = _small_tensors
    if kind in (torch.Tensor, torch.nn.Parameter, getattr(torch.nn, "Buffer", None)):
        return _tensor
    if issubclass(kind, torch.Tensor):
        return refusing("subclasses of Tensor do not travel; send full_tensor() or as_subclass(torch.Tensor)")
    if issubclass(kind, torch.nn.Module):
        return refusing("modules do not travel; send state_dict()")
    return _SMALL.get(full_name(kind))


_SMALL: dict[str, Encode] = {
    "torch.dtype": lambda writer, value: writer.extension(TORCH_DTYPE, _name(value)),
    "torch.device": lambda writer, value: writer.extension(DEVICE, str(value)),
    "torch.Size": lambda writer, value: writer.extension(SIZE, list(value)),
}

RESOLVERS.insert(0, _rule_of)  # before the user's types: torch.Size is a tuple
DECODERS[TENSOR] = _decode_tensor
DECODERS[SMALL_TENSORS] = _decode_small_tensors
DECODERS[META] = _decode_meta
DECODERS[SPARSE] = _decode_sparse
DECODERS[TORCH_DTYPE] = _decode_torch_dtype
DECODERS[DEVICE] = lambda reader, data: _torch().device(reader.content(data, str))
DECODERS[SIZE] = lambda reader, data: _torch().Size(reader.items(data))
