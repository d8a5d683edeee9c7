"""Rules for numpy: arrays, scalars, dtypes. It never imports numpy unless an array arrives.

The bits travel as they lie, in the sender's byte order, C or Fortran layout kept; only an array with gaps is copied
first. What arrives views the received memory. Dtypes with Python objects or pointers inside do not travel, and the
dtype that a header claims is checked against the buffer's length before an array is made.
"""

from __future__ import annotations

import importlib
import re
import sys
from functools import cache, partial
from math import prod
from typing import Any

from rolecall.errors import DecodeError
from rolecall.transport.codec.places import Refused
from rolecall.transport.codec.reader import DECODERS, Reader
from rolecall.transport.codec.writer import RESOLVERS, Encode, Writer

ARRAY, SCALAR, DTYPE = -40, -41, -42

INLINE = 512  # bytes; less than this is not worth a buffer of its own
_CODE = re.compile(r"[<>|=][?biufcmMSUV]\d{0,9}(\[\d{0,9}[a-zA-Z]{1,7}\])?")


def _array(writer: Writer, value: Any) -> Any:
    fortran = value.flags.f_contiguous and not value.flags.c_contiguous
    dtype = _described(value, value.dtype)
    flat = value.T if fortran else value
    return writer.extension(ARRAY, [dtype, list(value.shape), fortran, writer.buffer(_memory(flat), INLINE)])


def _memory(value: Any) -> memoryview:
    """The bytes of an array, viewed where they lie in order, else copied."""
    numpy = sys.modules["numpy"]
    if value.nbytes == 0:
        return memoryview(b"")
    flat = numpy.ascontiguousarray(value).reshape(-1)
    return memoryview(flat.view(numpy.uint8))


def _described(owner: Any, dtype: Any) -> Any:
    """A dtype as plain values, which name the same dtype again.

    Raises:
        Refused: It holds objects, or is not one of numpy's own.
    """
    if dtype.hasobject:
        raise Refused(owner, f"its dtype {dtype} holds Python objects; send a list")
    described = _form_of(dtype)
    try:
        same = _dtype_of(described) == dtype
    except (DecodeError, TypeError, ValueError):
        same = False
    if not same:
        raise Refused(owner, f"its dtype {dtype} is not one of numpy's own; send a view, for instance of uint8")
    return described


def _form_of(dtype: Any) -> Any:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return [_form_of(base), list(shape)]
    if dtype.names is None:
        return dtype.str
    fields = [dtype.fields[name] for name in dtype.names]
    return [list(dtype.names), [_form_of(field[0]) for field in fields], [field[1] for field in fields], dtype.itemsize]


def _dtype_of(form: Any) -> Any:
    numpy = _numpy()
    if type(form) is str:
        if not _CODE.fullmatch(form):
            raise DecodeError("not the code of a dtype", form)
        dtype = numpy.dtype(form)
    elif type(form) is list and len(form) == 2:
        dtype = numpy.dtype((_dtype_of(form[0]), tuple(form[1])))
    elif type(form) is list and len(form) == 4:
        names, formats, offsets, itemsize = form
        formats = [_dtype_of(each) for each in formats]
        dtype = numpy.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": itemsize})
    else:
        raise DecodeError("not the description of a dtype", form)
    if dtype.hasobject:
        raise DecodeError("a dtype with Python objects inside", form)
    return dtype


@cache
def required(module: str, what: str) -> Any:
    """The module of an extra, which is needed for what arrived."""
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise DecodeError(f"{what} arrived, but {module} is not installed here; pip install 'rolecall[torch]'") from e


_numpy = partial(required, "numpy", "an array")


def checked_shape(shape: Any, itemsize: int, memory: memoryview) -> tuple[int, ...]:
    """Returns `shape` as a tuple when it is one and needs exactly the bytes of `memory`."""
    check_size(number_of_elements(shape), itemsize, memory)
    return tuple(shape)


def check_size(count: int, itemsize: int, memory: memoryview) -> None:
    if count * itemsize != len(memory):
        raise DecodeError(f"{count} {itemsize}-byte items do not fit the number of bytes", len(memory))


def number_of_elements(shape: Any) -> int:
    """The product of `shape`, when it is one."""
    if type(shape) is not list or not all(type(n) is int and 0 <= n < 1 << 63 for n in shape):
        raise DecodeError("bad shape", shape)
    return prod(shape)


def _decode_array(reader: Reader, data: memoryview) -> Any:
    form, shape, fortran, ref = reader.items(data, 4)
    dtype, memory = _dtype_of(form), reader.buffer(ref)
    shape = checked_shape(shape, dtype.itemsize, memory)
    return _numpy().ndarray(shape, dtype, buffer=memory, order="F" if fortran else "C")


def _decode_scalar(reader: Reader, data: memoryview) -> Any:
    form, content = reader.items(data, 2)
    dtype, memory = _dtype_of(form), reader.buffer(content)
    checked_shape([], dtype.itemsize, memory)
    return _numpy().ndarray((), dtype, buffer=memory)[()]


def _rule_of(kind: type) -> Encode | None:
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "memmap"):  # the latter while another thread imports it
        return None
    if kind in (numpy.ndarray, numpy.memmap):
        return _array
    if issubclass(kind, numpy.generic):
        return lambda writer, value: writer.extension(SCALAR, [_described(value, value.dtype), value.tobytes()])
    if issubclass(kind, numpy.dtype):
        return lambda writer, value: writer.extension(DTYPE, _described(value, value))
    return None


RESOLVERS.insert(0, _rule_of)  # before the user's types: numpy.float64 is a float, numpy.str_ a str
DECODERS[ARRAY] = _decode_array
DECODERS[SCALAR] = _decode_scalar
DECODERS[DTYPE] = lambda reader, data: _dtype_of(reader.value(data))
