"""Faults of the simulator, each with the test file that must notice it."""

from __future__ import annotations

from scripts.mutations.mutation import Mutation

SIMULATOR: tuple[Mutation, ...] = (
    Mutation(
        "activation drops its scale",
        "simulator/isa/scalar.py",
        "        values = values * factor\n",
        "        values = values\n",
        ("simulator/isa/test_scalar.py",),
    ),
    Mutation(
        "activation adds the bias after the function",
        "simulator/isa/scalar.py",
        "        values = values + _bias(step, bias, data)\n",
        "        values = values + 0 * _bias(step, bias, data)\n",
        ("simulator/isa/test_scalar.py",),
    ),
    Mutation(
        "reduction registers are never reset",
        "simulator/isa/scalar.py",
        "        lanes[:] = reduction.identity\n",
        "        lanes[:] = lanes\n",
        ("simulator/isa/test_scalar.py",),
    ),
    Mutation(
        "vector_offset is off by one",
        "simulator/isa/dma.py",
        "        self.rows = index[: tensor.shape[0]]\n",
        "        self.rows = index[: tensor.shape[0]] - 1\n",
        ("simulator/isa/test_dma.py",),
    ),
    Mutation(
        "scalar_offset ignores the stride of its dimension",
        "simulator/isa/operands.py",
        "int(index[0]) * indirection.stride * size",
        "int(index[0]) * size",
        ("simulator/isa/test_dma.py",),
    ),
    Mutation(
        "out-of-bounds rows are written in skip mode",
        "simulator/isa/dma.py",
        "        rows = self.rows[keep]\n        storage.prepare_write()\n",
        "        rows = np.clip(self.rows, 0, 3)\n        keep[:] = True\n"
        "        storage.prepare_write()\n",
        ("simulator/isa/test_dma.py",),
    ),
    Mutation(
        "matmul ignores accumulate",
        "simulator/isa/matmul.py",
        "old.reshape(product.shape) + product, matmul=True",
        "product, matmul=True",
        ("simulator/isa/test_matmul.py",),
    ),
    Mutation(
        "matmul always accumulates",
        "simulator/isa/matmul.py",
        "    if accumulate is False:\n        step.write",
        "    if accumulate is False and not any_started:\n        step.write",
        ("simulator/isa/test_matmul.py",),
    ),
    Mutation(
        "matmul transposes nothing",
        "simulator/isa/matmul.py",
        "        product = left.T @ right\n",
        "        product = left[: left.shape[1], :].T @ right[: left.shape[1]]\n",
        ("simulator/isa/test_matmul.py",),
    ),
    Mutation(
        "reversed operands are not reversed",
        "simulator/isa/arithmetic.py",
        "op.apply(right, left) if reverse else op.apply(left, right)",
        "op.apply(left, right)",
        ("simulator/isa/test_vector.py",),
    ),
    Mutation(
        "tensor_reduce drops negate",
        "simulator/isa/vector.py",
        "-result if negate else result",
        "result",
        ("simulator/isa/test_vector.py",),
    ),
    Mutation(
        "nc_stream_shuffle ignores quadrants",
        "simulator/isa/vector.py",
        "        wanted = sources[moved] + start\n",
        "        wanted = sources[moved]\n",
        ("simulator/isa/test_vector.py",),
    ),
    Mutation(
        "integers are truncated, not rounded",
        "simulator/memory/dtypes.py",
        "np.rint(values.astype(np.float64))",
        "np.trunc(values.astype(np.float64))",
        ("simulator/memory/test_dtypes.py",),
    ),
    Mutation(
        "iota forgets the channel multiplier",
        "simulator/isa/gpsimd.py",
        "np.arange(tensor.shape[0])[:, None] * int(multiplier)",
        "np.arange(tensor.shape[0])[:, None] * 0",
        ("simulator/isa/test_gpsimd.py",),
    ),
    Mutation(
        "ap ignores its offset",
        "simulator/memory/tensor.py",
        "start = base + (0 if offset is None else int(offset))",
        "start = base",
        ("simulator/memory/test_tensor.py",),
    ),
    Mutation(
        "slices ignore their step",
        "simulator/memory/tensor.py",
        "            strides.append(stride * step)\n",
        "            strides.append(stride)\n",
        ("simulator/memory/test_tensor.py",),
    ),
    Mutation(
        "writes do not clear overlapping tensors",
        "simulator/memory/storage.py",
        "                theirs[mine != 0] = 0\n",
        "                theirs[mine != 0] = theirs[mine != 0]\n",
        ("simulator/memory/test_storage.py",),
    ),
    Mutation(
        "only wholly unwritten reads are found",
        "simulator/isa/operands.py",
        "            if written.min() != _ALL_WRITTEN[info.itemsize]:\n",
        "            if written.max() != _ALL_WRITTEN[info.itemsize]:\n",
        ("simulator/memory/test_storage.py",),
    ),
    Mutation(
        "all_reduce leaves out the last rank",
        "simulator/collectives/operations.py",
        "        for part in wide[1:]:\n",
        "        for part in wide[1:-1]:\n",
        ("simulator/collectives/test_collectives.py",),
    ),
    Mutation(
        "all_gather concatenates by rank number",
        "simulator/collectives/operations.py",
        "            np.concatenate([c.sources[i] for c in brought], axis=collective_dim)\n",
        "            np.concatenate(\n"
        "                [c.sources[i] for c in sorted(brought, key=lambda c: c.rank)],\n"
        "                axis=collective_dim,\n"
        "            )\n",
        ("simulator/collectives/test_collectives.py",),
    ),
    Mutation(
        "barriers order nothing",
        "simulator/isa/synchronization.py",
        '        "core_barrier",\n        _place(),\n    )\n    core.epoch += 1\n',
        '        "core_barrier",\n        _place(),\n    )\n',
        ("simulator/ordering/test_races.py",),
    ),
    Mutation(
        "dependencies end at a meeting",
        "simulator/ordering/dependencies.py",
        "            if partner is not None:\n",
        "            if partner is None:\n",
        ("simulator/ordering/test_races.py",),
    ),
    Mutation(
        "readers hold no writer back",
        "simulator/ordering/hazards.py",
        "            if is_write:\n                for (other, _), index",
        "            if False:\n                for (other, _), index",
        ("simulator/ordering/test_races.py",),
    ),
    Mutation(
        "races are seen between neighboring rows",
        "simulator/ordering/shared_hbm.py",
        "    if start >= end:\n        return False\n",
        "    if start > end:\n        return False\n    return True\n",
        ("simulator/ordering/test_races.py",),
    ),
    Mutation(
        "tensors live for ever",
        "simulator/machine/capacity.py",
        "        while ends and ends[0][0] < life.first_use:\n",
        "        while ends and ends[0][0] < 0:\n",
        ("simulator/machine/test_capacity.py",),
    ),
)
