"""`NkiTensor`: a kernel's handle to a tensor, with NKI's methods that create views."""

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from jax_tkg.simulator import errors
from jax_tkg.simulator.memory import dtypes
from jax_tkg.simulator.memory.addressing import DynamicSlice, Indirection, VirtualRegister
from jax_tkg.simulator.memory.layout import (
    Shape,
    element_count,
    merge_contiguous,
    reshaped_strides,
    trivial_strides,
)
from jax_tkg.simulator.memory.view import View, described


class NkiTensor(View):
    """An NKI tensor. The NKI documentation describes each of its methods."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return self.shape[0]

    def _view(
        self,
        shape: Shape,
        strides: Shape,
        offset: int,
        dtype: str | None = None,
        indirection: Indirection | None = None,
    ) -> "NkiTensor":
        view = NkiTensor.__new__(NkiTensor)
        view.shape = shape
        view.strides = strides
        view.offset = offset
        view.dtype = dtype or self.dtype
        view.storage = self.storage
        view.buffer = self.buffer
        view.name = self.name
        view.indirection = indirection or self.indirection
        view._layout = None
        return view

    def _fail(self, method: str, limit: str, came: Any) -> NoReturn:
        shown = came.label if isinstance(came, View) else came
        raise errors.NkiValidationError(f"{self.label}.{method}: {limit}, got {shown}")

    def _require(self, condition: bool, method: str, limit: str, came: Any) -> None:
        if not condition:
            self._fail(method, limit, came)

    @property
    def _fixed_first(self) -> bool:
        """Whether dimension 0 must stay first: the partition, or one that a vector selects."""
        return self.on_chip or (self.indirection is not None and self.indirection.is_vector)

    def _dim(self, dim: int, method: str) -> int:
        actual = dim + self.ndim if dim < 0 else dim
        self._require(0 <= actual < self.ndim, method, f"dim must be in 0..{self.ndim - 1}", dim)
        return actual

    # Indexing

    def __getitem__(self, key: Any) -> "NkiTensor":
        keys = list(key) if isinstance(key, tuple) else [key]
        ellipses = [i for i, k in enumerate(keys) if k is Ellipsis]
        given = len(keys) - len(ellipses)
        if given > self.ndim or len(ellipses) > 1:
            self._fail("[]", f"at most {self.ndim} indices and one ...", given)
        if ellipses:
            keys[ellipses[0] : ellipses[0] + 1] = [slice(None)] * (self.ndim - given)
        keys += [slice(None)] * (self.ndim - len(keys))
        shape: list[int] = []
        strides: list[int] = []
        offset = self.offset
        dropped: list[int] = []
        for dim, k in enumerate(keys):
            size, stride = self.shape[dim], self.strides[dim]
            start, count, step, is_integer = self._index(dim, size, k)
            if self.indirection is not None and (start, count, step) != (0, size, 1):
                self._forbid_indirect_dim(dim, "[]")
            offset += start * stride
            if is_integer and not (dim == 0 and self.on_chip):
                dropped.append(stride)
                continue
            shape.append(count)
            strides.append(stride * step)
        # On chip a view keeps at least two dimensions, in HBM one.
        while len(shape) < (2 if self.on_chip else 1):
            shape.append(1)
            strides.append(1)
        return self._view(tuple(shape), tuple(strides), offset)

    def _index(self, dim: int, size: int, key: Any) -> tuple[int, int, int, bool]:
        """Returns start, count and step of one index, and whether the index is an integer."""
        if isinstance(key, DynamicSlice):
            start, count = int(key.start), int(key.size)
            if not (start >= 0 and count > 0 and start + count <= size):
                limit = f"ds(start, size) must lie in 0..{size}"
                self._fail(f"[dim {dim}]", limit, f"ds({start}, {count})")
            return start, count, 1, False
        if isinstance(key, slice):
            step = 1 if key.step is None else int(key.step)
            if step < 1:
                self._fail(f"[dim {dim}]", "step must be 1 or more", step)
            start = 0 if key.start is None else int(key.start)
            stop = size if key.stop is None else int(key.stop)
            start = start + size if start < 0 else start
            stop = stop + size if stop < 0 else stop
            if not 0 <= start < stop <= size:
                limit = f"slice must satisfy 0 <= start < stop <= {size}"
                self._fail(f"[dim {dim}]", limit, f"{start}:{stop}")
            return start, (stop - start + step - 1) // step, step, False
        if isinstance(key, (int, np.integer)):
            index = int(key) + size if key < 0 else int(key)
            if not 0 <= index < size:
                self._fail(f"[dim {dim}]", f"index must be in 0..{size - 1}", key)
            return index, 1, 1, True
        raise TypeError(
            f"{self.label}[dim {dim}]: expected an integer, a slice, ... or nl.ds, got "
            f"{described(key)}; "
            "a run-time index goes through select, vector_select or ap"
        )

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError(
            f"{self.label}[...] = value: assignment to a tensor is not part of NKI; "
            "write it with an nki.isa instruction"
        )

    def _forbid_indirect_dim(self, dim: int, method: str) -> None:
        self._require(
            self.indirection is None or not self.indirection.is_vector or dim != 0,
            method,
            "a dimension that is addressed at run time cannot be sliced or selected",
            f"dim {dim}",
        )

    def slice(self, dim: int, start: int, end: int, step: int = 1) -> "NkiTensor":
        """Selects the elements start, start + step, ... below `end` of one dimension."""
        dim = self._dim(dim, "slice")
        self._require(
            0 <= start < end <= self.shape[dim],
            "slice",
            f"0 <= start < end <= {self.shape[dim]} (dim {dim})",
            f"start={start}, end={end}",
        )
        self._require(step >= 1, "slice", "step must be 1 or more", step)
        self._forbid_indirect_dim(dim, "slice")
        shape, strides = list(self.shape), list(self.strides)
        shape[dim] = (end - start + step - 1) // step
        strides[dim] *= step
        return self._view(tuple(shape), tuple(strides), self.offset + start * self.strides[dim])

    def select(self, dim: int, index: Any) -> "NkiTensor":
        """Selects one element of a dimension, and removes the dimension.

        `index` is an integer, or a register or tensor whose value is known only at run time.
        """
        dim = self._dim(dim, "select")
        shape = self.shape[:dim] + self.shape[dim + 1 :]
        strides = self.strides[:dim] + self.strides[dim + 1 :]
        if isinstance(index, (NkiTensor, VirtualRegister)):
            self._require(
                self.indirection is None, "select", "one dynamic select per tensor", "a second"
            )
            self._require(
                not (self.on_chip and dim == 0), "select", "dim must not be the partition", dim
            )
            found = Indirection(index, False, self.strides[dim], self.shape[dim])
            return self._pad(shape, strides, self.offset, found)
        self._require(
            0 <= index < self.shape[dim],
            "select",
            f"0 <= index < {self.shape[dim]} (dim {dim})",
            index,
        )
        self._forbid_indirect_dim(dim, "select")
        offset = self.offset + int(index) * self.strides[dim]
        if self.on_chip and dim == 0:
            return self._view((1, *shape), (self.strides[0], *strides), offset)
        return self._pad(shape, strides, offset, None)

    def _pad(
        self, shape: Shape, strides: Shape, offset: int, indirection: Indirection | None
    ) -> "NkiTensor":
        missing = (2 if self.on_chip else 1) - len(shape)
        if missing > 0:
            shape, strides = shape + (1,) * missing, strides + (1,) * missing
        return self._view(shape, strides, offset, indirection=indirection)

    def vector_select(self, dim: int, vector_offset: "NkiTensor") -> "NkiTensor":
        """Selects for entry p of dimension 0 the index ``vector_offset[p]``."""
        self._require(dim == 0, "vector_select", "dim must be 0", dim)
        self._require(not self.on_chip, "vector_select", "only HBM tensors", self.buffer.name)
        self._require(
            self.indirection is None, "vector_select", "one dynamic select per tensor", "a second"
        )
        found = Indirection(vector_offset, True, self.strides[0], self.shape[0])
        return self._view(
            (vector_offset.shape[0], *self.shape[1:]), self.strides, self.offset, indirection=found
        )

    # Reshaping

    def permute(self, dims: Sequence[int]) -> "NkiTensor":
        """Reorders dimensions."""
        dims = tuple(int(d) for d in dims)
        self._require(
            sorted(dims) == list(range(self.ndim)),
            "permute",
            f"dims must be a permutation of 0..{self.ndim - 1}",
            dims,
        )
        self._require(
            not self._fixed_first or dims[0] == 0, "permute", "dims[0] must be 0", dims[0]
        )
        return self._view(
            tuple(self.shape[d] for d in dims), tuple(self.strides[d] for d in dims), self.offset
        )

    def broadcast(self, dim: int, size: int) -> "NkiTensor":
        """Repeats a dimension of size 1."""
        dim = self._dim(dim, "broadcast")
        self._require(self.shape[dim] == 1, "broadcast", f"shape[{dim}] must be 1", self.shape[dim])
        self._require(not (self._fixed_first and dim == 0), "broadcast", "dim must not be 0", dim)
        shape, strides = list(self.shape), list(self.strides)
        shape[dim], strides[dim] = int(size), 0
        return self._view(tuple(shape), tuple(strides), self.offset)

    def expand_dim(self, dim: int) -> "NkiTensor":
        """Inserts a dimension of size 1."""
        self._require(0 <= dim <= self.ndim, "expand_dim", f"dim must be in 0..{self.ndim}", dim)
        self._require(not (self._fixed_first and dim == 0), "expand_dim", "dim must not be 0", dim)
        stride = 1 if dim == self.ndim else self.shape[dim] * self.strides[dim]
        return self._view(
            (*self.shape[:dim], 1, *self.shape[dim:]),
            (*self.strides[:dim], stride, *self.strides[dim:]),
            self.offset,
        )

    def squeeze_dim(self, dim: int) -> "NkiTensor":
        """Removes a dimension of size 1."""
        dim = self._dim(dim, "squeeze_dim")
        self._require(
            self.shape[dim] == 1, "squeeze_dim", f"shape[{dim}] must be 1", self.shape[dim]
        )
        self._require(not (self._fixed_first and dim == 0), "squeeze_dim", "dim must not be 0", dim)
        return self._view(
            self.shape[:dim] + self.shape[dim + 1 :],
            self.strides[:dim] + self.strides[dim + 1 :],
            self.offset,
        )

    def reshape_dim(self, dim: int, shape: Sequence[int]) -> "NkiTensor":
        """Splits a dimension."""
        dim = self._dim(dim, "reshape_dim")
        sizes = self._inferred(tuple(shape), self.shape[dim], "reshape_dim")
        self._require(
            not (self._fixed_first and dim == 0) or len(sizes) == 1,
            "reshape_dim",
            "dim must not be 0",
            dim,
        )
        inner = tuple(s * self.strides[dim] for s in trivial_strides(sizes))
        return self._view(
            self.shape[:dim] + sizes + self.shape[dim + 1 :],
            self.strides[:dim] + inner + self.strides[dim + 1 :],
            self.offset,
        )

    def _inferred(self, shape: Shape, size: int, method: str) -> Shape:
        shape = tuple(int(n) for n in shape)
        self._require(shape.count(-1) <= 1, method, "at most one -1", shape)
        if -1 in shape:
            known = -element_count(shape)
            self._require(
                known > 0 and size % known == 0,
                method,
                f"{size} elements must divide by the known sizes",
                shape,
            )
            shape = tuple(size // known if n == -1 else n for n in shape)
        self._require(
            element_count(shape) == size, method, f"the product of the sizes must be {size}", shape
        )
        return shape

    def flatten_dims(self, start_dim: int, end_dim: int) -> "NkiTensor":
        """Merges dimensions start_dim..end_dim, which must be contiguous."""
        start_dim, end_dim = (
            self._dim(start_dim, "flatten_dims"),
            self._dim(end_dim, "flatten_dims"),
        )
        self._require(
            start_dim <= end_dim,
            "flatten_dims",
            "start_dim must not exceed end_dim",
            (start_dim, end_dim),
        )
        self._require(
            not (self._fixed_first and start_dim == 0),
            "flatten_dims",
            "start_dim must be > 0",
            start_dim,
        )
        merged = merge_contiguous(
            self.shape[start_dim : end_dim + 1], self.strides[start_dim : end_dim + 1]
        )
        self._require(
            len(merged) == 1,
            "flatten_dims",
            "the dimensions must be contiguous in memory",
            f"strides {self.strides}",
        )
        size, stride = merged[0]
        return self._view(
            (*self.shape[:start_dim], size, *self.shape[end_dim + 1 :]),
            (*self.strides[:start_dim], stride, *self.strides[end_dim + 1 :]),
            self.offset,
        )

    def reshape(self, *shape: Any) -> "NkiTensor":
        """Changes the shape, where the layout allows it without a copy."""
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        new = self._inferred(tuple(sizes), self.size, "reshape")
        fixed = 1 if self._fixed_first else 0
        if fixed:
            self._require(
                new[0] == self.shape[0],
                "reshape",
                f"shape[0] must stay {self.shape[0]}",
                f"shape {new}",
            )
        strides = reshaped_strides(self.shape[fixed:], self.strides[fixed:], new[fixed:])
        if strides is None:
            limit = f"shape {new} is not a view of the layout with strides {self.strides}"
            self._fail("reshape", limit, f"shape {self.shape}")
        view = self._view(new, (*self.strides[:fixed], *strides), self.offset)
        return view.expand_dim(1) if fixed and len(new) == 1 else view

    def rearrange(
        self, src_pattern: tuple, dst_pattern: tuple, fixed_sizes: dict[str, int] | None = None
    ) -> "NkiTensor":
        """Splits, reorders and merges dimensions by einops-style patterns of names."""
        known = dict(fixed_sizes or {})
        self._require(
            len(src_pattern) == self.ndim,
            "rearrange",
            f"src_pattern must name {self.ndim} dimensions",
            src_pattern,
        )
        names: list[str] = []
        view = self
        for group in src_pattern:
            parts = (group,) if isinstance(group, str) else tuple(group)
            if len(parts) > 1:
                view = view.reshape_dim(len(names), tuple(known.get(p, -1) for p in parts))
            names.extend(parts)
        wanted = [p for g in dst_pattern for p in ((g,) if isinstance(g, str) else g)]
        self._require(
            sorted(wanted) == sorted(names) and len(set(names)) == len(names),
            "rearrange",
            f"dst_pattern must use each of {names} once",
            dst_pattern,
        )
        view = view.permute(tuple(names.index(name) for name in wanted))
        for dim, group in enumerate(dst_pattern):
            if not isinstance(group, str) and len(group) > 1:
                view = view.flatten_dims(dim, dim + len(group) - 1)
        return view

    # Raw access

    def ap(
        self,
        pattern: Sequence[Sequence[int]],
        offset: int | None = None,
        scalar_offset: Any = None,
        vector_offset: "NkiTensor | None" = None,
        indirect_dim: int = 0,
        dtype: Any = None,
    ) -> "NkiTensor":
        """Returns a view with an explicit ``[[stride, count], ...]`` pattern over the storage.

        AWS's documentation contradicts itself about `offset` on a view that does not start at 0.
        Here, as in its API reference, `offset` is added to the view's own offset.
        """
        steps = [(int(step), int(count)) for step, count in pattern]
        self._require(
            all(step >= 0 and count >= 1 for step, count in steps),
            "ap",
            "each [stride, count] needs stride >= 0 and count >= 1",
            steps,
        )
        self._require(
            scalar_offset is None or vector_offset is None,
            "ap",
            "scalar_offset and vector_offset exclude each other",
            "both",
        )
        shape = tuple(count for _, count in steps)
        strides = tuple(step for step, _ in steps)
        new_dtype = dtypes.info(dtype or self.dtype)
        base = self._rescaled_offset(new_dtype)
        start = base + (0 if offset is None else int(offset))
        found = None
        index = scalar_offset if scalar_offset is not None else vector_offset
        if index is not None:
            self._require(self.indirection is None, "ap", "one run-time offset per view", "two")
            dim = self._dim(indirect_dim, "ap")
            is_vector = vector_offset is not None
            self._require(
                not is_vector or dim == 0, "ap", "vector_offset needs indirect_dim=0", dim
            )
            self._require(
                not (is_vector and self.on_chip), "ap", "vector_offset needs an HBM tensor", self
            )
            found = Indirection(index, is_vector, self.strides[dim], self.shape[dim])
        view = NkiTensor._view(self, shape, strides, start, new_dtype.name)
        view.indirection = found
        return view

    def _rescaled_offset(self, dtype: dtypes.DTypeInfo) -> int:
        old = dtypes.info(self.dtype).itemsize
        if old == dtype.itemsize:
            return self.offset
        position = self.offset * old
        self._require(
            position % dtype.itemsize == 0,
            "ap",
            f"the view's start, byte {position}, must be a multiple of the size of {dtype.name}",
            dtype.itemsize,
        )
        return position // dtype.itemsize

    def view(self, dtype: Any) -> "NkiTensor":
        """Reinterprets the bytes as another dtype, and rescales the last dimension."""
        new = dtypes.info(dtype)
        self._require(self.indirection is None, "view", "not after a dynamic select", "one")
        old_size, new_size = dtypes.info(self.dtype).itemsize, new.itemsize
        if old_size == new_size:
            return self._view(self.shape, self.strides, self.offset, new.name)
        self._require(
            self.strides[-1] == 1 or self.shape[-1] == 1,
            "view",
            "the last dimension must be contiguous",
            f"stride {self.strides[-1]}",
        )
        last = self.shape[-1] * old_size
        scaled = [s * old_size for s in (*self.strides[:-1], self.offset)]
        self._require(
            last % new_size == 0 and all(s % new_size == 0 for s in scaled),
            "view",
            f"the bytes of the last dimension, strides and offset must divide by {new_size}",
            f"{last} bytes",
        )
        scaled = [s // new_size for s in scaled]
        return self._view(
            (*self.shape[:-1], last // new_size), (*scaled[:-1], 1), scaled[-1], new.name
        )

    reinterpret_cast = view

    def indirect(self, index: "NkiTensor", num_elem: int | None = None) -> "NkiTensor":
        """Tensor indirection (NeuronCore-v4), which the simulator does not implement."""
        raise errors.NotSimulatedError(
            "NkiTensor.indirect (tensor indirection of NeuronCore-v4) is not simulated"
        )
