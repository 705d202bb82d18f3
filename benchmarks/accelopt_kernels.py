"""Kernels of NKIBench (zhang677/AccelOpt), written again after what each computes and loads.

Their latencies on Trainium1, HBM bytes and engine shares are published in the repository's
`profile_results.csv`. Tile sizes and loops are those of the published kernels. Where the published
bytes or shares show what the compiler chose, the kernel here does so: weights that stay on chip are
loaded once, those that do not are loaded again, and operations without a named engine run where
that engine's share puts them. Only the simulator runs them, on the first blocks of the outermost
loop: the rest follows from what one more block adds.
"""

from __future__ import annotations

from typing import Any

from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl

P = 128
COLUMNS = 512
WIDE = 1024


def _tile(*shape: int, space: Any = nl.sbuf) -> Any:
    return nl.ndarray(shape, dtype=nl.float32, buffer=space)


def _load(source: Any) -> Any:
    tile = _tile(*source.shape)
    nisa.dma_copy(dst=tile, src=source)
    return tile


def _copy_by_scalar(dst: Any, src: Any) -> None:
    nisa.activation(dst=dst, op=nl.copy, data=src)


def _out(*shape: int) -> Any:
    return nl.ndarray(shape, dtype=nl.float32, buffer=nl.shared_hbm)


def _scaled(data: Any, operator: Any, operand: float, engine: Any = nisa.engine.scalar) -> Any:
    tile = _tile(*data.shape)
    nisa.tensor_scalar(dst=tile, data=data, op0=operator, operand0=operand, engine=engine)
    return tile


def _combined(first: Any, second: Any, operator: Any) -> Any:
    tile = _tile(*first.shape)
    nisa.tensor_tensor(dst=tile, data1=first, data2=second, op=operator)
    return tile


def silu(x: Any) -> Any:
    """x / (1 + exp(-x)), of x [128, blocks, 7168], in tiles of 1024 columns and steps of 512."""
    out = _out(*x.shape)
    for block in range(x.shape[1]):
        for first in range(0, x.shape[2], WIDE):
            columns = slice(first, first + WIDE)
            loaded, result = _load(x[:, block, columns]), _tile(P, WIDE)
            for step in (slice(0, COLUMNS), slice(COLUMNS, WIDE)):
                decay, inverse = _tile(P, COLUMNS), _tile(P, COLUMNS)
                nisa.activation(dst=decay, op=nl.exp, data=loaded[:, step], scale=-1.0)
                nisa.reciprocal(dst=inverse, data=_scaled(decay, nl.add, 1.0))
                nisa.tensor_tensor(
                    dst=result[:, step], data1=loaded[:, step], data2=inverse, op=nl.multiply
                )
            nisa.dma_copy(dst=out[:, block, columns], src=result)
    return out


def rope(x: Any, cosine: Any, sine: Any) -> Any:
    """Rotates x [128, blocks * 512] by cosine and sine [64, blocks * 512]."""
    out = _out(*x.shape)
    half = P // 2
    for first in range(0, x.shape[1], COLUMNS):
        columns = slice(first, first + COLUMNS)
        loaded = _load(x[:, columns])
        cosines, sines = _load(cosine[:, columns]), _load(sine[:, columns])
        lower = _tile(half, COLUMNS)
        _copy_by_scalar(lower, loaded[half:P])
        upper = loaded[0:half]
        result = _tile(P, COLUMNS)
        nisa.tensor_tensor(
            dst=result[0:half],
            data1=_combined(upper, cosines, nl.multiply),
            data2=_combined(lower, sines, nl.multiply),
            op=nl.subtract,
        )
        nisa.tensor_tensor(
            dst=result[half:P],
            data1=_combined(lower, cosines, nl.multiply),
            data2=_combined(upper, sines, nl.multiply),
            op=nl.add,
        )
        nisa.dma_copy(dst=out[:, columns], src=result)
    return out


def _transposed(tile: Any) -> Any:
    """A tile [128, n * 128] in blocks of 128 columns, each transposed by the Tensor Engine."""
    turned = _tile(P, tile.shape[1])
    for first in range(0, tile.shape[1], P):
        columns = slice(first, first + P)
        product = _tile(P, P, space=nl.psum)
        nisa.nc_transpose(dst=product, data=tile[:, columns], engine=nisa.engine.tensor)
        _copy_by_scalar(turned[:, columns], product)
    return turned


def _product(result: Any, left: list[Any], right: list[Any], first: int = 0) -> None:
    """result [128, n] on chip = the sum of left[k]^T right[k]: left[k] [128, 128], columns `first`
    and on of right[k]."""
    width = result.shape[1]
    for start in range(0, width, COLUMNS):
        place = slice(start, min(start + COLUMNS, width))
        product = _tile(P, place.stop - start, space=nl.psum)
        for k, (stationary, moving) in enumerate(zip(left, right, strict=True)):
            nisa.nc_matmul(
                dst=product,
                stationary=stationary,
                moving=moving[:, first + start : first + place.stop],
                accumulate=k > 0,
            )
        _copy_by_scalar(result[:, place], product)


def _multiply(out: Any, left: list[Any], right: list[Any], columns: int) -> None:
    """out [128, n] in HBM = the sum of left[k]^T right[k], stored `columns` at a time."""
    for first in range(0, out.shape[1], columns):
        result = _tile(P, columns)
        _product(result, left, right, first)
        nisa.dma_copy(dst=out[:, first : first + columns], src=result)


def _blocks_of(tile: Any) -> list[Any]:
    return [tile[:, first : first + P] for first in range(0, tile.shape[1], P)]


def _spread(row: Any) -> Any:
    """A row [1, n] of HBM on all partitions, by a product with ones."""
    ones, spread = _tile(1, P), _tile(P, row.shape[1])
    nisa.memset(dst=ones, value=1.0)
    loaded = _load(row)
    for first in range(0, row.shape[1], COLUMNS):
        columns = slice(first, first + COLUMNS)
        product = _tile(P, COLUMNS, space=nl.psum)
        nisa.nc_matmul(dst=product, stationary=ones, moving=loaded[:, columns], accumulate=False)
        nisa.tensor_copy(dst=spread[:, columns], src=product)
    return spread


def _normed(tile: Any) -> Any:
    """RMSNorm of the rows of a tile [128, n], without a gain."""
    n = tile.shape[1]
    squares, total, factor, normed = _tile(P, n), _tile(P, 1), _tile(P, 1), _tile(P, n)
    nisa.activation(dst=squares, op=nl.square, data=tile)
    nisa.tensor_reduce(dst=total, op=nl.add, data=squares, axis=1)
    nisa.activation(dst=factor, op=nl.rsqrt, data=total, scale=1.0 / n)
    nisa.activation(dst=normed, op=nl.copy, data=tile, scale=factor)
    return normed


def rmsnorm_matmul(x: Any, weight: Any, added: Any | None = None, gain: Any | None = None) -> Any:
    """rms_norm(x + added) @ weight, of x [blocks * 128, K] and weight [K, N]; gain [1, K] or None.

    The weight stays on chip, as the published HBM bytes show.
    """
    K, N = weight.shape
    out = _out(x.shape[0], N)
    rows_of_weight = [_load(weight[k : k + P, :]) for k in range(0, K, P)]
    gains = None if gain is None else _spread(gain)
    for first in range(0, x.shape[0], P):
        rows = slice(first, first + P)
        tile = _load(x[rows, :])
        if added is not None:
            tile = _combined(tile, _load(added[rows, :]), nl.add)
        normed = _normed(tile)
        if gains is not None:
            normed = _combined(normed, gains, nl.multiply)
        _multiply(out[rows, :], _blocks_of(_transposed(normed)), rows_of_weight, COLUMNS)
    return out


def add_rmsnorm_matmul(x: Any, weight: Any, added: Any, gain: Any) -> Any:
    """rms_norm(x + added) * gain @ weight."""
    return rmsnorm_matmul(x, weight, added, gain)


def matmul_add_rmsnorm(x: Any, weight: Any, added: Any, gain: Any) -> Any:
    """rms_norm(x @ weight + added) * gain; the weight stays on chip."""
    K, N = weight.shape
    out = _out(x.shape[0], N)
    rows_of_weight = [_load(weight[k : k + P, :]) for k in range(0, K, P)]
    gains = _spread(gain)
    for first in range(0, x.shape[0], P):
        rows = slice(first, first + P)
        tile = _load(x[rows, :])
        product = _tile(P, N)
        _product(product, _blocks_of(_transposed(tile)), rows_of_weight)
        summed = _combined(product, _load(added[rows, :]), nl.add)
        nisa.dma_copy(dst=out[rows, :], src=_combined(_normed(summed), gains, nl.multiply))
    return out


def adamw(theta: Any, gradient: Any, mean: Any, square: Any) -> Any:
    """A step of AdamW on [blocks * 128, 2048], in tiles of 1024 columns and steps of 512.

    What has a scalar runs on the Scalar Engine, as its published share shows.
    """
    out = _out(*theta.shape)
    for row in range(0, theta.shape[0], P):
        rows = slice(row, row + P)
        for first in range(0, theta.shape[1], WIDE):
            columns = slice(first, first + WIDE)
            tiles = [_load(each[rows, columns]) for each in (theta, mean, square, gradient)]
            result = _tile(P, WIDE)
            for step in (slice(0, COLUMNS), slice(COLUMNS, WIDE)):
                weights, means, squares, gradients = (tile[:, step] for tile in tiles)
                decayed = _combined(weights, _scaled(weights, nl.multiply, 1e-5), nl.subtract)
                first_moment = _combined(
                    _scaled(means, nl.multiply, 0.9),
                    _scaled(gradients, nl.multiply, 0.1),
                    nl.add,
                )
                second_moment = _combined(
                    _scaled(squares, nl.multiply, 0.999),
                    _combined(_scaled(gradients, nl.multiply, 0.001), gradients, nl.multiply),
                    nl.add,
                )
                root, inverse = _tile(P, COLUMNS), _tile(P, COLUMNS)
                nisa.activation(dst=root, op=nl.sqrt, data=second_moment, scale=1000.0)
                nisa.reciprocal(dst=inverse, data=_scaled(root, nl.add, 1e-8))
                moved = _combined(_scaled(first_moment, nl.multiply, 0.01), inverse, nl.multiply)
                nisa.tensor_tensor(dst=result[:, step], data1=decayed, data2=moved, op=nl.subtract)
            nisa.dma_copy(dst=out[rows, columns], src=result)
    return out


def transpose_matmul(left: Any, right: Any) -> Any:
    """left^T @ right, of left [2048, blocks * 1024] and right [2048, 10944].

    1024 rows of the result at a time share a load of `right`.
    """
    K, M = left.shape
    N = right.shape[1]
    out = _out(M, N)
    chunks = [slice(k, k + P) for k in range(0, K, P)]
    for row in range(0, M, WIDE):
        height = min(WIDE, M - row)
        lefts = [_load(left[k, row : row + height]) for k in chunks]
        for first in range(0, N, WIDE):
            width = min(WIDE, N - first)
            rights = [_load(right[k, first : first + width]) for k in chunks]
            for block in range(0, height, P):
                target = out[row + block : row + block + P, first : first + width]
                _multiply(target, [each[:, block : block + P] for each in lefts], rights, width)
    return out


def matmul(left: Any, right: Any) -> Any:
    """left @ right, of left [blocks * 128, 5120] and right [5120, 1024].

    The tiles of `right` are loaded again for each block of rows, as the published HBM bytes show.
    """
    K = right.shape[0]
    out = _out(left.shape[0], right.shape[1])
    for row in range(0, left.shape[0], P):
        rows = slice(row, row + P)
        lefts = []
        for first in range(0, K, WIDE):
            lefts += _blocks_of(_transposed(_load(left[rows, first : first + WIDE])))
        rights = [_load(right[k : k + P, :]) for k in range(0, K, P)]
        _multiply(out[rows, :], lefts, rights, WIDE)
    return out


def batched_matmul(left: Any, right: Any) -> Any:
    """left[b] @ right[b], of left [blocks, 4096, 64] and right [blocks, 64, 4096]."""
    B, M, K = left.shape
    N = right.shape[2]
    out = _out(B, M, N)
    for b in range(B):
        turned = _tile(K, M)
        for row in range(0, M, P):
            product = _tile(K, P, space=nl.psum)
            tile = _load(left[b, row : row + P, :])
            nisa.nc_transpose(dst=product, data=tile, engine=nisa.engine.tensor)
            _copy_by_scalar(turned[:, row : row + P], product)
        for first in range(0, N, WIDE):
            columns = slice(first, first + WIDE)
            moving = _load(right[b, :, columns])
            for row in range(0, M, P):
                target = out[b, row : row + P, columns]
                _multiply(target, [turned[:, row : row + P]], [moving], WIDE)
    return out
