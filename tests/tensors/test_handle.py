"""Handles do what torch does with the tensor itself, without moving a byte."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rolecall.errors import DecodeError, TensorError
from rolecall.tensors.backends.wire import WireBackend
from rolecall.tensors.connections import Requester
from rolecall.tensors.dtypes import ITEMSIZE, native_dtype
from rolecall.tensors.fetch import Cache, Fetcher
from rolecall.tensors.handle import Piece, RTensor, pack_handles, read_handles
from rolecall.tensors.service import DataService
from rolecall.tensors.shard import Shard
from rolecall.tensors.store import Store


class World:
    """A store and its fetcher: a tensor becomes a handle, a handle becomes the tensor again."""

    def __init__(self) -> None:
        self.store = Store("actor/0", [], {"wire": WireBackend()})
        self.fetcher = Fetcher(_alone, Cache(0), {}, self.store)

    def leave(self, tensor: Any) -> RTensor:
        return RTensor.of(self.store.put(tensor))

    def same(self, handle: RTensor, tensor: torch.Tensor) -> bool:
        got = self.fetcher.fetch([handle])[0]
        shapes = handle.shape == tuple(tensor.shape) == tuple(got.shape)
        sizes = handle.nbytes == tensor.nbytes and handle.numel() == tensor.numel() and handle.ndim == tensor.ndim
        return shapes and sizes and handle.dtype == tensor.dtype == got.dtype and torch.equal(got, tensor)


def _alone(owner: str, addresses: tuple[str, ...]) -> Requester:
    raise AssertionError("nothing here is fetched from another worker")


def _outcome(make: Any) -> Any:
    try:
        return make()
    except (ValueError, IndexError, TypeError, RuntimeError) as e:
        return e


def _both(world: World, handle: Any, tensor: Any) -> None:
    """Either both failed, or both gave the same tensors."""
    if isinstance(tensor, Exception) or isinstance(handle, Exception):
        assert isinstance(tensor, Exception) and isinstance(handle, Exception), (handle, tensor)
        return
    if isinstance(tensor, torch.Tensor):
        handle, tensor = [handle], [tensor]
    assert len(handle) == len(tensor)
    assert all(world.same(h, t) for h, t in zip(handle, tensor, strict=True))


shapes = st.lists(st.integers(0, 5), min_size=0, max_size=3)
indices = st.one_of(
    st.integers(-7, 7),
    st.builds(slice, *[st.one_of(st.none(), st.integers(-7, 7))] * 2, st.sampled_from([None, 1, 2])),
    st.lists(st.integers(-6, 6), max_size=6),
    st.lists(st.booleans(), min_size=1, max_size=5),
)


def _numbered(shape: list[int]) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.int32).view(shape)


@given(
    st.one_of(
        st.just([]),
        st.builds(lambda rows, row: [rows, *row], st.integers(0, 5), st.lists(st.integers(1, 4), max_size=2)),
    ),
    st.lists(indices, min_size=1, max_size=3),
)
def test_indexing_equals_torchs(shape: list[int], chain: list[Any]) -> None:
    """Any chain of indices along the first axis gives what torch gives, or fails where torch fails.

    Rows have elements: of rows without, torch also takes some that are not there.
    """
    world, tensor = World(), _numbered(shape)
    handle = world.leave(tensor)
    for index in chain:
        of_torch = torch.tensor(index, dtype=torch.int64) if index == [] else index
        new_tensor, new_handle = _outcome(lambda i=of_torch, t=tensor: t[i]), _outcome(lambda i=index, h=handle: h[i])
        _both(world, new_handle, new_tensor)
        if isinstance(new_tensor, Exception):
            return
        tensor, handle = new_tensor, new_handle


@given(shapes, st.one_of(st.integers(-1, 7), st.lists(st.integers(0, 4), max_size=4)))
def test_split_equals_torchs(shape: list[int], size: Any) -> None:
    """`split` of a handle gives what `split` of its tensor gives, errors included."""
    world, tensor = World(), _numbered(shape)
    handle = world.leave(tensor)
    _both(world, _outcome(lambda: handle.split(size)), _outcome(lambda: tensor.split(size)))


@given(shapes, st.integers(1, 7))
def test_chunk_equals_torchs(shape: list[int], chunks: int) -> None:
    """`chunk` of a handle gives what `chunk` of its tensor gives, errors included."""
    world, tensor = World(), _numbered(shape)
    handle = world.leave(tensor)
    _both(world, _outcome(lambda: handle.chunk(chunks)), _outcome(lambda: tensor.chunk(chunks)))


@given(st.lists(st.integers(0, 4), max_size=2), st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_cat_and_stack_equal_torchs(row: list[int], lengths: list[int]) -> None:
    """`cat` and `stack` of handles give what they give for the tensors, errors included."""
    world = World()
    tensors = [_numbered([n, *row]) + 100 * i for i, n in enumerate(lengths)]
    handles = [world.leave(t) for t in tensors]
    _both(world, RTensor.cat(handles), torch.cat(tensors))
    _both(world, RTensor.cat(handles, dim=-1 - len(row)), torch.cat(tensors))
    _both(world, _outcome(lambda: RTensor.stack(handles)), _outcome(lambda: torch.stack(tensors)))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 5))
def test_what_was_split_and_joined_again_is_one_piece(lengths: list[int], size: int) -> None:
    """Then it is read without a copy, however often it was cut."""
    world = World()
    handle = RTensor.cat([world.leave(_numbered([n, 3])) for n in lengths])
    again = RTensor.cat(handle.split(size))
    assert again.pieces == handle.pieces and again.shape == handle.shape


@pytest.mark.parametrize("name", list(ITEMSIZE))
def test_every_dtype_keeps_its_bits(name: str) -> None:
    """Slices of handles of any dtype, joined and fetched, have the tensor's bytes."""
    world = World()
    bits = torch.randint(0, 2 if name == "bool" else 256, (6 * ITEMSIZE[name],), dtype=torch.uint8)
    tensor = bits.view(native_dtype(name)).view(2, 3)
    handle = RTensor.cat([world.leave(tensor)[1:], world.leave(tensor)[:1]])
    got = world.fetcher.fetch([handle])[0]
    assert got.dtype == tensor.dtype
    assert torch.equal(got.view(torch.uint8).view(2, -1).flip(0), tensor.view(torch.uint8).view(2, -1))


def test_a_handle_is_read_row_by_row() -> None:
    """Length, size, dimension and iteration of a handle are those of its tensor."""
    world, tensor = World(), _numbered([3, 2])
    handle = world.leave(tensor)
    assert len(handle) == 3 and handle.size(0) == 3 and handle.dim() == 2
    _both(world, list(handle), list(tensor))


@pytest.mark.parametrize(
    "use",
    [
        lambda h: torch.sum(h),
        lambda h: torch.cat([h, h]),
        lambda h: torch.ones(4) + h,
        lambda h: h + 1,
        lambda h: 1 - h,
        lambda h: h < 2,
        lambda h: bool(h),
        lambda h: float(h),
        lambda h: torch.as_tensor(h),
        lambda h: torch.tensor(h),
        lambda h: np.asarray(h),
    ],
)
def test_computing_with_a_handle_says_what_to_do(use: Any) -> None:
    """Arithmetic, comparison and torch functions on a handle fail and name `rolecall.localize`."""
    handle = World().leave(torch.ones(4))
    with pytest.raises(TypeError, match=r"rolecall\.localize\(x\)"):
        use(handle)


def test_a_missing_attribute_says_what_to_do() -> None:
    """A tensor's method that handles lack fails and names `rolecall.localize`."""
    with pytest.raises(AttributeError, match=r"'softmax'.*rolecall\.localize\(x\)"):
        _ = World().leave(torch.ones(4)).softmax


@pytest.mark.parametrize("dim", [1, -1])
def test_another_axis_is_refused_because_bytes_would_move(dim: int) -> None:
    """Handles are joined and split along axis 0 only."""
    handle = World().leave(torch.ones(4, 2))
    with pytest.raises(ValueError, match="axis 0 only"):
        RTensor.cat([handle, handle], dim=dim)
    with pytest.raises(ValueError, match="axis 0 only"):
        handle.split(1, dim=dim)


def test_dtypes_are_not_mixed() -> None:
    """Joining handles of different dtypes is refused."""
    world = World()
    with pytest.raises(TypeError, match="bfloat16"):
        RTensor.cat([world.leave(torch.ones(2)), world.leave(torch.ones(2, dtype=torch.bfloat16))])


def test_tensors_are_not_mixed_with_arrays() -> None:
    """Joining handles of tensors with handles of arrays is refused, and names both dtypes."""
    world = World()
    with pytest.raises(TypeError, match=r"float32.*numpy:<f4"):
        RTensor.cat([world.leave(torch.ones(2)), world.leave(np.ones(2, "f4"))])


CODES = "b1 i1 u1 <i2 >u2 <i4 <u4 <i8 <u8 <f2 >f4 <f8 <f16 <c8 <c16 <c32 <m8[s] <M8[ns] S3 <U2 V5"


@pytest.mark.parametrize("code", CODES.split())
def test_every_dtype_of_numpy_keeps_its_bits(code: str) -> None:
    """Slices of handles of arrays, joined and fetched, have the array's bytes, dtype and shape."""
    world, dtype = World(), np.dtype(code)
    array = np.frombuffer(bytes(range(2)) * 3 * dtype.itemsize, dtype).reshape(2, 3)
    handle = RTensor.cat([world.leave(array)[1:], world.leave(array.copy("F"))[:1]])
    got = world.fetcher.fetch([handle])[0]
    assert (got.dtype, got.shape, handle.dtype, handle.nbytes) == (dtype, array.shape, dtype, array.nbytes)
    assert got.tobytes() == array[::-1].tobytes()


@pytest.mark.parametrize("dtype", ["O", "i4,f4"])
def test_an_array_of_objects_or_fields_is_no_handle(dtype: str) -> None:
    """Their dtype's code does not say all, so they stay in the value, and a store refuses them."""
    world, array = World(), np.zeros(3, dtype)
    service = DataService(world.store, world.fetcher)
    assert service.remotize([array])[0] is array
    with pytest.raises(TensorError, match="without objects and fields"):
        world.leave(array)


def test_equality_is_identity() -> None:
    """Handles compare and hash by identity, and a deep copy is the handle itself."""
    world = World()
    handle = world.leave(torch.ones(2))
    assert handle == handle and handle[:] != handle and len({handle, handle}) == 1
    assert copy.deepcopy([handle])[0] is handle


def test_a_handle_is_not_pickled() -> None:
    """Pickling a handle fails and says what to do instead."""
    with pytest.raises(TypeError, match="localize"):
        pickle.dumps(World().leave(torch.ones(2)))


def test_repr_names_shape_dtype_and_owner() -> None:
    """The repr of a handle shows shape, dtype and the worker that holds it."""
    assert repr(World().leave(torch.ones(2, 3))) == "RTensor([2, 3], float32, on actor/0)"


def test_bytes_and_back_give_the_same_handle() -> None:
    """Each shard travels once, and only the ranges that are needed."""
    world = World()
    a, b = world.leave(_numbered([4, 2])), world.leave(_numbered([3, 2]))
    handle = RTensor.cat([a[1:3], b, a[:1]])
    packed = pack_handles([handle])
    assert packed.count(b"actor/0") == 2
    (again,) = read_handles(packed)
    assert [p[1:] for p in again.pieces] == [p[1:] for p in handle.pieces] and again.shape == handle.shape
    assert world.same(again, world.fetcher.fetch([handle])[0])


def _shard(**changes: Any) -> tuple[Any, ...]:
    fields = {"id": "0" * 32, "owner": "a/0", "addresses": (), "backend": "wire", "where": {}, "dtype": "int8"}
    return tuple({**fields, "shape": (4,), **changes}.values())


@pytest.mark.parametrize(
    "plain",
    [
        None,
        (),
        ([_shard()], [("int8", (4,), [(0, 0, 5)])]),
        ([_shard()], [("int8", (4,), [(0, -1, 3)])]),
        ([_shard()], [("int8", (4,), [(1, 0, 4)])]),
        ([_shard()], [("int8", (4,), [(-1, 0, 4)])]),
        ([_shard()], [("int8", (5,), [(0, 0, 4)])]),
        ([_shard()], [("int8", (-4,), [(0, 0, 4)])]),
        ([_shard()], [("int8", ("4",), [(0, 0, 4)])]),
        ([_shard()], [("int16", (4,), [(0, 0, 4)])]),
        ([_shard(dtype="object")], [("object", (4,), [(0, 0, 4)])]),
        ([_shard(id="x")], [("int8", (4,), [(0, 0, 4)])]),
        ([_shard(owner=3)], [("int8", (4,), [(0, 0, 4)])]),
        ([_shard(where={"fd": []})], [("int8", (4,), [(0, 0, 4)])]),
        ([_shard()[:-1]], [("int8", (4,), [(0, 0, 4)])]),
    ],
)
def test_bytes_that_are_no_handle_are_refused(plain: Any) -> None:
    """A received description that is no handle is refused by a typed error."""
    with pytest.raises(DecodeError):
        read_handles(msgspec.msgpack.encode(plain))


def test_pieces_must_fill_the_shape() -> None:
    """A handle whose pieces have another number of elements than its shape is refused."""
    shard = Shard("0" * 32, "a/0", (), "wire", {}, "int8", (4,))
    with pytest.raises(ValueError, match="elements"):
        RTensor("int8", (5,), [Piece(shard, 0, 4)])


def test_importing_handles_does_not_import_torch() -> None:
    """The controller's side of handles works without torch."""
    code = "import rolecall.tensors.functions, rolecall.tensors.lifetime, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # an import of it fails
import numpy
from rolecall.tensors.backends.shm import ShmBackend
from rolecall.tensors.backends.wire import WireBackend
from rolecall.tensors.fetch import Cache
from rolecall.tensors.fetch import Fetcher
from rolecall.tensors.service import DataService
from rolecall.tensors.store import Store

store = Store("actor/0", [], {"shm": ShmBackend(), "wire": WireBackend()})
service = DataService(store, Fetcher(None, Cache(0), {}, store))
mask = numpy.array([[1, 1, 0]])
arrays = {"small": numpy.ones(3), "packed": numpy.ones(1 << 14), "mapped": numpy.ones(1 << 18), "attention_mask": mask}
for _ in range(2):  # from the second time on, memory is used again
    handles = service.remotize(arrays)
    for got, name in zip(service.fetcher.fetch([*handles.values()]), arrays):
        assert (got == arrays[name][..., : 2 if name == "attention_mask" else None]).all() and got.any(), name
        got[:] = 0
    del got
    store.clear()
store.close()
"""


def test_arrays_are_left_and_fetched_where_torch_is_not_installed() -> None:
    """In each backend's memory, and memory that is used again; batches lose their padding there too."""
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True)
