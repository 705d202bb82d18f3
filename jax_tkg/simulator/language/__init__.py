"""``nki.language``: dtypes, tensors and tile functions, executed at once on NumPy."""

from jax_tkg.simulator.language.create import (
    copy,
    device_print,
    empty_like,
    full,
    hbm,
    is_hbm,
    is_on_chip,
    is_psum,
    is_sbuf,
    load,
    load_transpose2d,
    ndarray,
    ones,
    private_hbm,
    psum,
    rand,
    random_seed,
    sbuf,
    shared_constant,
    shared_hbm,
    shared_identity_matrix,
    store,
    tile_size,
    zeros,
    zeros_like,
)
from jax_tkg.simulator.language.elementwise import *  # noqa: F403
from jax_tkg.simulator.language.loops import (
    affine_range,
    ds,
    dynamic_range,
    fori_loop,
    no_reorder,
    num_programs,
    program_id,
    program_ndim,
    sequential_range,
    static_range,
    while_loop,
)
from jax_tkg.simulator.language.reduce import (
    all,
    broadcast_to,
    expand_dims,
    gather_flattened,
    matmul,
    max,
    mean,
    min,
    prod,
    rms_norm,
    softmax,
    sum,
    transpose,
    var,
)
from jax_tkg.simulator.memory import MemoryRegion
from jax_tkg.simulator.objects import NKIObject
from jax_tkg.simulator.tensor import NkiTensor

# Dtypes are strings.
DType = str
bool_ = "bool"
int8 = "int8"
int16 = "int16"
int32 = "int32"
uint8 = "uint8"
uint16 = "uint16"
uint32 = "uint32"
float16 = "float16"
float32 = "float32"
bfloat16 = "bfloat16"
tfloat32 = "tfloat32"
float8_e4m3 = "float8_e4m3"
float8_e4m3fn = "float8_e4m3fn"
float8_e5m2 = "float8_e5m2"
float8_e5m2_x4 = "float8_e5m2_x4"
float8_e4m3fn_x4 = "float8_e4m3fn_x4"
float8_e8m0fnu = "float8_e8m0fnu"
float4_e2m1fn_x4 = "float4_e2m1fn_x4"

# Older spellings that published kernels still use.
bool = bool_
tensor = NkiTensor
range = affine_range
