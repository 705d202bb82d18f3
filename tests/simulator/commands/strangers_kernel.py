"""A kernel as its author writes it, who knows NKI and nothing of this repository."""

import nki
import nki.collectives as nccl
import nki.isa as nisa
import nki.language as nl


@nki.jit
def softmax_of_product(lhs, rhs, scale=1.0, groups=((0,),)):
    """softmax(scale * sum over ranks of lhs.T @ rhs), for lhs [K, M] and rhs [K, N]."""
    K, M = lhs.shape
    N = rhs.shape[1]
    out = nl.ndarray((M, N), dtype=nl.float32, buffer=nl.shared_hbm)
    for m in nl.affine_range(M // 128):
        rows = nl.ds(m * 128, 128)
        product = nl.ndarray((128, N), dtype=nl.float32, buffer=nl.psum)
        for k in nl.affine_range(K // 128):
            left = nl.ndarray((128, 128), dtype=lhs.dtype, buffer=nl.sbuf)
            right = nl.ndarray((128, N), dtype=rhs.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=left, src=lhs[nl.ds(k * 128, 128), rows])
            nisa.dma_copy(dst=right, src=rhs[nl.ds(k * 128, 128), :])
            nisa.nc_matmul(dst=product, stationary=left, moving=right)
        partial = nl.ndarray((128, N), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=partial, src=product)
        scores = nl.ndarray((128, N), dtype=nl.float32, buffer=nl.sbuf)
        group = nccl.ReplicaGroup(groups)
        nccl.all_reduce(srcs=[partial], dsts=[scores], replica_group=group, op=nl.add)
        largest = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=largest, op=nl.maximum, data=scores, axis=1)
        nisa.tensor_scalar(dst=scores, data=scores, op0=nl.subtract, operand0=largest)
        nisa.activation(dst=scores, op=nl.exp, data=scores, scale=scale)
        total = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=total, op=nl.add, data=scores, axis=1)
        nisa.reciprocal(dst=total, data=total)
        nisa.tensor_scalar(dst=scores, data=scores, op0=nl.multiply, operand0=total)
        nisa.dma_copy(dst=out[rows, :], src=scores)
    return out


def misspelled(x):
    """Breaks off at a name that does not exist."""
    tile = nl.load(x)
    nisa.tensor_tensr(dst=tile, data1=tile, data2=tile, op=nl.add)
    return tile


def too_wide(x):
    """Breaks the rule on the free size of a product."""
    tile = nl.ndarray((128, 600), dtype=nl.float32, buffer=nl.sbuf, name="moving_tile")
    nisa.memset(tile, 0)
    product = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=product, stationary=nl.load(x), moving=tile)
    return x


def unfit_for_the_compiler(x):
    """Runs, but AWS's compiler rejects a comprehension."""
    tiles = [nl.load(x) for _ in range(2)]
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=tiles[1])
    return out
