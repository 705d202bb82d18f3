"""Kernels whose latency AWS has published, written again after their descriptions.

Each does the same loads, stores and instructions in the same order of loops as the published one,
which is what a prediction of its latency depends on. Only the simulator runs them here.
"""

from __future__ import annotations

from typing import Any

from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl

P = 128
COLUMNS = 512


def _load(source: Any) -> Any:
    tile = nl.ndarray(source.shape, dtype=source.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=source)
    return tile


def _spread(row: Any, ones: Any) -> Any:
    """A row [1, n] on all partitions: a product with ones, which stays in PSUM.

    Where the compiler puts a broadcast is not documented; the published profiles show PSUM filled.
    """
    n = row.shape[1]
    spread = nl.ndarray((P, n), dtype=nl.float32, buffer=nl.psum)
    for first in range(0, n, COLUMNS):
        part = slice(first, min(n, first + COLUMNS))
        nisa.nc_matmul(dst=spread[:, part], stationary=ones, moving=row[:, part], accumulate=False)
    return spread


def _combine(first: Any, second: Any, operator: Any) -> Any:
    out = nl.ndarray(first.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=out, data1=first, data2=second, op=operator)
    return out


def mamba(delta: Any, u: Any, A: Any, B: Any, C: Any, reload: bool, steps: int) -> Any:
    """The state-space layer of the fused-mamba tutorial.

    Args:
      delta: [channels, time] f32.
      u: [channels, time] f32.
      A: [channels, states].
      B: [states, time].
      C: [states, time].
      reload: load delta and u again for every state (its first version), or once (the others).
      steps: time steps worked on at once: all of them, or 512 (its third version).
    """
    channels, time = delta.shape
    out = nl.ndarray((channels, time), dtype=nl.float32, buffer=nl.shared_hbm)
    ones = nl.ndarray((1, P), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=ones, value=1.0)
    for start in range(0, channels, P):
        rows = slice(start, start + P)
        total = nl.ndarray((P, time), dtype=nl.float32, buffer=nl.sbuf)
        nisa.memset(dst=total, value=0.0)
        if not reload:
            delta_tile, u_tile = _load(delta[rows, :]), _load(u[rows, :])
        for state in range(A.shape[1]):
            if reload:
                delta_tile = _load(delta[rows, :])
            decay_rate = _load(A[rows, state : state + 1])
            if reload:
                u_tile = _load(u[rows, :])
            before: Any = 0.0
            for first in range(0, time, steps):
                part = slice(first, first + steps)
                decay = nl.ndarray((P, steps), dtype=nl.float32, buffer=nl.sbuf)
                nisa.activation(dst=decay, op=nl.exp, data=delta_tile[:, part], scale=decay_rate)
                weighted = _combine(delta_tile[:, part], u_tile[:, part], nl.multiply)
                brought = _spread(_load(B[state : state + 1, part]), ones)
                fed = _combine(weighted, brought, nl.multiply)
                scanned = nl.ndarray((P, steps), dtype=nl.float32, buffer=nl.sbuf)
                nisa.tensor_tensor_scan(
                    dst=scanned,
                    data0=decay,
                    data1=fed,
                    initial=before,
                    op0=nl.multiply,
                    op1=nl.add,
                )
                if first + steps < time:
                    before = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
                    nisa.tensor_copy(dst=before, src=scanned[:, steps - 1 : steps])
                read = _spread(_load(C[state : state + 1, part]), ones)
                seen = _combine(scanned, read, nl.multiply)
                nisa.tensor_tensor(dst=total[:, part], data1=total[:, part], data2=seen, op=nl.add)
        nisa.dma_copy(dst=out[rows, :], src=total)
    return out


def _store_product(out: Any, product: Any, row: int, column: int) -> None:
    copied = nl.ndarray((P, COLUMNS), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=copied, src=product)
    nisa.dma_copy(dst=out[row : row + P, column : column + COLUMNS], src=copied)


def matmul_tiled(lhsT: Any, rhs: Any) -> Any:
    """lhsT [K, M], rhs [K, N]: both tiles are loaded for each product (the tutorial's second)."""
    (K, M), N = lhsT.shape, rhs.shape[1]
    out = nl.ndarray((M, N), dtype=nl.float32, buffer=nl.shared_hbm)
    for row in range(0, M, P):
        for column in range(0, N, COLUMNS):
            product = nl.ndarray((P, COLUMNS), dtype=nl.float32, buffer=nl.psum)
            for k in range(0, K, P):
                left = _load(lhsT[k : k + P, row : row + P])
                right = _load(rhs[k : k + P, column : column + COLUMNS])
                nisa.nc_matmul(dst=product, stationary=left, moving=right, accumulate=k > 0)
            _store_product(out, product, row, column)
    return out


def matmul_blocked(lhsT: Any, rhs: Any, rows: int, columns: int) -> Any:
    """Tiles of whole K are loaded for `rows` x `columns` tiles of the result (third and fourth)."""
    (K, M), N = lhsT.shape, rhs.shape[1]
    out = nl.ndarray((M, N), dtype=nl.float32, buffer=nl.shared_hbm)
    for row in range(0, M, P * rows):
        left = [
            [_load(lhsT[k : k + P, row + i * P : row + (i + 1) * P]) for k in range(0, K, P)]
            for i in range(rows)
        ]
        for column in range(0, N, COLUMNS * columns):
            right = [
                [
                    _load(rhs[k : k + P, column + i * COLUMNS : column + (i + 1) * COLUMNS])
                    for k in range(0, K, P)
                ]
                for i in range(columns)
            ]
            for i in range(rows):
                for j in range(columns):
                    product = nl.ndarray((P, COLUMNS), dtype=nl.float32, buffer=nl.psum)
                    for k in range(K // P):
                        nisa.nc_matmul(
                            dst=product,
                            stationary=left[i][k],
                            moving=right[j][k],
                            accumulate=k > 0,
                        )
                    _store_product(out, product, row + i * P, column + j * COLUMNS)
    return out


def matmul_all_blocked(lhsT: Any, rhs: Any, rows: int, columns: int, depth: int) -> Any:
    """Also K is blocked, and sums of its blocks are kept on chip (the tutorial's last)."""
    (K, M), N = lhsT.shape, rhs.shape[1]
    out = nl.ndarray((M, N), dtype=nl.float32, buffer=nl.shared_hbm)
    height, width = P * rows, COLUMNS * columns
    for column in range(0, N, width):
        sums = []
        for _ in range(M // P * columns):
            tile = nl.ndarray((P, COLUMNS), dtype=nl.float32, buffer=nl.sbuf)
            nisa.memset(dst=tile, value=0.0)
            sums.append(tile)
        for k in range(0, K, P * depth):
            right = [
                _load(rhs[k + i * P : k + (i + 1) * P, column : column + width])
                for i in range(depth)
            ]
            for row in range(0, M, height):
                left = [
                    _load(lhsT[k + i * P : k + (i + 1) * P, row : row + height])
                    for i in range(depth)
                ]
                for j in range(columns):
                    for i in range(rows):
                        _add_product(
                            sums[(row // P + i) * columns + j],
                            [tile[:, i * P : (i + 1) * P] for tile in left],
                            [tile[:, j * COLUMNS : (j + 1) * COLUMNS] for tile in right],
                        )
        for index in range(M // P):
            packed = nl.ndarray((P, width), dtype=nl.float32, buffer=nl.sbuf)
            for j in range(columns):
                nisa.tensor_copy(
                    dst=packed[:, j * COLUMNS : (j + 1) * COLUMNS], src=sums[index * columns + j]
                )
            nisa.dma_copy(dst=out[index * P : (index + 1) * P, column : column + width], src=packed)
    return out


def _add_product(total: Any, left: list[Any], right: list[Any]) -> None:
    product = nl.ndarray((P, COLUMNS), dtype=nl.float32, buffer=nl.psum)
    for k, (stationary, moving) in enumerate(zip(left, right, strict=True)):
        nisa.nc_matmul(dst=product, stationary=stationary, moving=moving, accumulate=k > 0)
    nisa.tensor_tensor(dst=total, data1=total, data2=product, op=nl.add)


def exponential(x: Any) -> Any:
    """exp of a tile: both examples of the DMA overview."""
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    result = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    nisa.activation(dst=result, op=nl.exp, data=_load(x))
    nisa.dma_copy(dst=out, src=result)
    return out
