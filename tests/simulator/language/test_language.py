"""Tile functions of nki.language: the examples of the API reference, and values by NumPy."""

import numpy as np
from absl.testing import parameterized

from jax_tkg import simulator
from jax_tkg.simulator import language as nl
from tests.simulator import harness

_G = np.random.default_rng(0)
_SIGNED = _G.normal(size=(128, 16)).astype(np.float32)
_POSITIVE = _G.uniform(0.1, 4, (128, 16)).astype(np.float32)


def _value(function, *arrays, target="trn2"):
    """The tile that a function of loaded tiles gives."""
    found = []

    def body(*tensors):
        result = function(*(nl.load(t) for t in tensors))
        copied = result
        if result.buffer == nl.psum:
            copied = nl.copy(result)
        found.append(copied.numpy())

    harness.run(body, *arrays, target=target)
    return found[0]


class ElementwiseTest(parameterized.TestCase):
    @parameterized.parameters(
        (nl.add, 3.0, 2.0, 5.0),
        (nl.subtract, 10.0, 3.0, 7.0),
        (nl.multiply, 3.0, 2.0, 6.0),
        (nl.divide, 10.0, 4.0, 2.5),
        (nl.maximum, 3.0, 5.0, 5.0),
        (nl.minimum, 3.0, 5.0, 3.0),
        (nl.power, 3.0, 2.0, 9.0),
        (nl.fmod, -7.0, 3.0, -1.0),
        (nl.mod, -7.0, 3.0, 2.0),
        (nl.equal, 2.0, 2.0, 1.0),
        (nl.not_equal, 2.0, 2.0, 0.0),
        (nl.less, 2.0, 3.0, 1.0),
        (nl.less_equal, 3.0, 3.0, 1.0),
        (nl.greater, 3.0, 3.0, 0.0),
        (nl.greater_equal, 3.0, 3.0, 1.0),
        (nl.logical_and, 1.0, 0.0, 0.0),
        (nl.logical_or, 1.0, 0.0, 1.0),
        (nl.logical_xor, 1.0, 1.0, 0.0),
    )
    def test_documented_examples(self, function, x, y, expected):
        a, b = np.full((128, 8), x, np.float32), np.full((128, 8), y, np.float32)
        np.testing.assert_array_equal(_value(function, a, b), expected)
        if function is not nl.power:
            np.testing.assert_array_equal(_value(lambda t: function(t, y), a), expected)

    @parameterized.parameters(
        (nl.abs_max, -5.0, 3.0, -5.0),
        (nl.abs_max, 1.0, -1.0, -1.0),
        (nl.abs_min, 5.0, -3.0, -3.0),
        (nl.abs_min, 1.0, -1.0, -1.0),
    )
    def test_documented_examples_of_v4(self, function, x, y, expected):
        a, b = np.full((128, 8), x, np.float32), np.full((128, 8), y, np.float32)
        np.testing.assert_array_equal(_value(function, a, b, target="trn3"), expected)

    def test_a_number_on_the_left(self):
        result = _value(lambda t: nl.subtract(10.0, t), np.full((4, 4), 3, np.float32))
        np.testing.assert_array_equal(result, 7)

    def test_a_column_is_broadcast(self):
        column = _G.normal(size=(128, 1)).astype(np.float32)
        np.testing.assert_array_equal(_value(nl.add, _SIGNED, column), _SIGNED + column)

    @parameterized.parameters(
        (nl.exp, np.exp, _SIGNED),
        (nl.log, np.log, _POSITIVE),
        (nl.sqrt, np.sqrt, _POSITIVE),
        (nl.rsqrt, lambda x: 1 / np.sqrt(x), _POSITIVE),
        (nl.reciprocal, lambda x: 1 / x, _POSITIVE),
        (nl.tanh, np.tanh, _SIGNED),
        (nl.square, np.square, _SIGNED),
        (nl.abs, np.abs, _SIGNED),
        (nl.negative, np.negative, _SIGNED),
        (nl.sign, np.sign, _SIGNED),
        (nl.relu, lambda x: np.maximum(x, 0), _SIGNED),
        (nl.sin, np.sin, 20 * _SIGNED),
        (nl.cos, np.cos, 20 * _SIGNED),
        (nl.arctan, np.arctan, np.clip(_SIGNED, -1.5, 1.5)),
        (nl.floor, np.floor, 10 * _SIGNED),
        (nl.ceil, np.ceil, 10 * _SIGNED),
        (nl.trunc, np.trunc, 10 * _SIGNED),
    )
    def test_functions(self, function, expected, x):
        result = _value(function, x)
        np.testing.assert_allclose(result, expected(x.astype(np.float64)), rtol=2e-5, atol=1e-5)

    def test_tan(self):
        x = np.linspace(-1.4, 1.4, 64, dtype=np.float32)[None]
        np.testing.assert_allclose(
            _value(nl.tan, x), np.tan(x.astype(np.float64)), rtol=1e-4, atol=1e-5
        )

    def test_integers(self):
        x, y = np.array([[0b1100, 7]], np.int32), np.array([[0b1010, 1]], np.int32)
        np.testing.assert_array_equal(_value(nl.bitwise_and, x, y), x & y)
        np.testing.assert_array_equal(_value(nl.bitwise_or, x, y), x | y)
        np.testing.assert_array_equal(_value(nl.bitwise_xor, x, y), x ^ y)
        np.testing.assert_array_equal(_value(nl.left_shift, x, y), x << y)
        np.testing.assert_array_equal(_value(nl.right_shift, x, y), x >> y)
        np.testing.assert_array_equal(_value(nl.invert, x), ~x)

    def test_logical_not(self):
        x = np.array([[0.0, 1.0]], np.float32)
        np.testing.assert_array_equal(_value(nl.logical_not, x), [[1.0, 0.0]])

    def test_where(self):
        condition = (_SIGNED > 0).astype(np.float32)
        expected = np.where(condition, _SIGNED, _POSITIVE)
        np.testing.assert_array_equal(_value(nl.where, condition, _SIGNED, _POSITIVE), expected)
        result = _value(lambda c: nl.where(c, 10.0, 5.0), condition)
        np.testing.assert_array_equal(result, np.where(condition, 10, 5))

    def test_dtype_of_the_result(self):
        result = _value(lambda t: nl.abs(t, dtype=nl.float16), _SIGNED)
        np.testing.assert_array_equal(result, np.abs(_SIGNED).astype(np.float16))

    def test_names_cannot_be_called(self):
        for name in ("prelu", "bypass", "average"):
            with self.assertRaisesRegex(TypeError, "only names"):
                getattr(nl, name)()

    def test_two_numbers_are_refused(self):
        with self.assertRaisesRegex(TypeError, "at least one of x, y must be a tile"):
            harness.run(lambda: nl.add(1.0, 2.0))


class ReduceTest(parameterized.TestCase):
    @parameterized.parameters(
        (nl.sum, np.sum), (nl.max, np.max), (nl.min, np.min), (nl.prod, np.prod), (nl.mean, np.mean)
    )
    def test_reductions(self, function, expected):
        x = _G.uniform(0.5, 1.5, (16, 3, 4)).astype(np.float32)
        for axis in (2, (1, 2)):
            wanted = expected(x.astype(np.float64), axis=axis, keepdims=True)
            kept = _value(lambda t, a=axis: function(t, a, keepdims=True), x)
            np.testing.assert_allclose(kept, wanted, rtol=1e-5)
            dropped = _value(lambda t, a=axis: function(t, a), x)
            np.testing.assert_allclose(dropped.reshape(-1), wanted.reshape(-1), rtol=1e-5)

    def test_variance_all_softmax_and_norm(self):
        wide = _SIGNED.astype(np.float64)
        np.testing.assert_allclose(
            _value(lambda t: nl.var(t, 1), _SIGNED), wide.var(axis=1, keepdims=True), rtol=1e-4
        )
        flags = (_SIGNED > -2).astype(np.float32)
        np.testing.assert_array_equal(
            _value(lambda t: nl.all(t, 1), flags)[:, 0], flags.all(axis=1)
        )
        powers = np.exp(wide - wide.max(axis=1, keepdims=True))
        np.testing.assert_allclose(
            _value(lambda t: nl.softmax(t, axis=1), _SIGNED),
            powers / powers.sum(axis=1, keepdims=True),
            rtol=1e-5,
        )
        expected = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-6) * _POSITIVE
        np.testing.assert_allclose(
            _value(lambda t, w: nl.rms_norm(t, w, 1, 16), _SIGNED, _POSITIVE), expected, rtol=1e-5
        )


class TensorTest(parameterized.TestCase):
    @parameterized.parameters(False, True)
    def test_matmul(self, transposed):
        x, y = _G.normal(size=(32, 24)).astype(np.float32), _G.normal(size=(24, 7))
        y = y.astype(np.float32)
        given = np.ascontiguousarray(x.T) if transposed else x
        result = _value(lambda a, b: nl.matmul(a, b, transpose_x=transposed), given, y)
        np.testing.assert_allclose(result, x.astype(np.float64) @ y, rtol=1e-4, atol=1e-5)

    def test_transpose_of_the_identity(self):
        result = _value(lambda: nl.transpose(nl.shared_identity_matrix(n=128, dtype=nl.float32)))
        np.testing.assert_array_equal(result, np.eye(128))

    def test_load_transpose2d_and_gather(self):
        x = _G.normal(size=(16, 8)).astype(np.float32)

        def body(t):
            np.testing.assert_array_equal(nl.load_transpose2d(t).numpy(), x.T)

        harness.run(body, x)
        index = _G.integers(0, 8, (16, 5)).astype(np.uint32)
        np.testing.assert_array_equal(
            _value(nl.gather_flattened, x, index), np.take_along_axis(x, index.astype(int), 1)
        )

    def test_creation(self):
        np.testing.assert_array_equal(_value(lambda: nl.zeros((4, 4), nl.float32)), 0)
        np.testing.assert_array_equal(_value(lambda: nl.ones((4, 4), nl.int32)), 1)
        np.testing.assert_array_equal(_value(lambda t: nl.zeros_like(t), _SIGNED), 0)
        np.testing.assert_array_equal(
            _value(lambda: nl.copy(nl.load(nl.full((4, 6), 2.5, nl.float32, buffer=nl.hbm)))), 2.5
        )
        np.testing.assert_array_equal(_value(lambda: nl.load(nl.shared_constant(_SIGNED))), _SIGNED)

    def test_broadcast_and_expand(self):
        row = _SIGNED[:1]
        np.testing.assert_array_equal(
            _value(lambda t: nl.broadcast_to(t, (8, 16)), row), np.repeat(row, 8, 0)
        )
        column = _SIGNED[:, :1]
        np.testing.assert_array_equal(
            _value(lambda t: nl.broadcast_to(t, (128, 5)), column), np.repeat(column, 5, 1)
        )
        shapes = []
        harness.run(lambda x: shapes.append(nl.expand_dims(nl.load(x), 1).shape), row)
        self.assertEqual(shapes, [(1, 1, 16)])

    def test_equal_seeds_give_equal_numbers(self):
        def body():
            seed = nl.full((1, 1), 42, dtype=nl.int32, buffer=nl.sbuf)
            nl.random_seed(seed)
            a = nl.rand((128, 64), dtype=nl.float32)
            nl.random_seed(seed)
            b = nl.rand((128, 64), dtype=nl.float32)
            np.testing.assert_array_equal(a.numpy(), b.numpy())
            self.assertTrue(((a.numpy() >= 0) & (a.numpy() < 1)).all())
            self.assertBetween(float(a.numpy().mean()), 0.45, 0.55)

        harness.run(body)

    @parameterized.parameters((0.0, 0), (1.0, 128 * 16))
    def test_dropout_at_its_ends(self, rate, zeros):
        result = _value(lambda t: nl.dropout(t, rate), _POSITIVE)
        self.assertEqual(int((result == 0).sum()), zeros)

    def test_regions_and_sizes(self):
        self.assertTrue(nl.is_sbuf(nl.sbuf) and nl.is_psum(nl.psum) and nl.is_on_chip(nl.sbuf))
        self.assertTrue(nl.is_hbm(nl.hbm) and nl.is_hbm(nl.shared_hbm) and not nl.is_hbm(nl.psum))
        self.assertEqual((nl.tile_size.pmax, nl.tile_size.psum_bank_fmax), (128, 512))
        self.assertEqual(nl.tile_size.gemm_moving_fmax, 512)
        self.assertEqual(nl.tile_size.psum_num_banks * nl.tile_size.psum_bank_fmax_bytes, 16384)


class NameTest(parameterized.TestCase):
    def test_every_public_name_of_nki_0_6_is_there(self):
        for module, names in (
            (simulator.language, _LANGUAGE),
            (simulator.isa, _ISA),
            (simulator.collectives, _COLLECTIVES),
        ):
            missing = [name for name in names.split() if not hasattr(module, name)]
            self.assertEqual(missing, [])


_LANGUAGE = """
bool_ int8 int16 int32 uint8 uint16 uint32 float16 float32 bfloat16 tfloat32 float8_e4m3
float8_e4m3fn float8_e5m2 float8_e5m2_x4 float8_e4m3fn_x4 float8_e8m0fnu float4_e2m1fn_x4 sbuf
psum hbm private_hbm shared_hbm tile_size average prelu bypass MemoryRegion NKIObject NkiTensor
is_hbm is_on_chip is_psum is_sbuf add subtract multiply divide maximum minimum abs_max abs_min abs
square power equal not_equal less less_equal greater greater_equal bitwise_and bitwise_or
bitwise_xor invert left_shift right_shift logical_and logical_or logical_xor logical_not exp log
sqrt rsqrt tanh sigmoid relu gelu gelu_apprx_sigmoid gelu_apprx_tanh gelu_dx gelu_apprx_sigmoid_dx
silu silu_dx softplus mish erf erf_dx reciprocal copy sin cos tan arctan ceil floor trunc negative
sign fmod mod sum max min mean prod var all softmax rms_norm where dropout ones full zeros_like
empty_like random_seed expand_dims broadcast_to transpose matmul no_reorder load_transpose2d
gather_flattened ds affine_range sequential_range static_range dynamic_range fori_loop while_loop
ndarray zeros load store program_id num_programs program_ndim shared_constant
shared_identity_matrix device_print rand
"""
_ISA = """
engine reduce_cmd dge_mode oob_mode matmul_perf_mode nc_version dma_engine NkiInstruction
NkiValidationError VirtualRegister get_nc_sub_version get_nc_version dma_copy tensor_copy memset
tensor_copy_predicated nc_matmul nc_matmul_mx nc_transpose dma_transpose tensor_tensor
tensor_scalar tensor_reduce tensor_partition_reduce tensor_scalar_cumulative activation
activation_reduce activate2 iota affine_select local_gather nc_n_gather bn_stats bn_aggr
tensor_tensor_scan nc_stream_shuffle rng dropout set_rng_seed rand_set_state rand_get_state rand2
exponential reciprocal max8 sequence_bounds scalar_tensor_tensor tensor_scalar_reduce core_barrier
dma_compute quantize_mx range_select select_reduce sendrecv register_alloc register_move
register_load register_store nc_find_index8 nc_match_replace8 nonzero_with_count topk
tensor_engine vector_engine scalar_engine gpsimd_engine unknown_engine
"""
_COLLECTIVES = """
ReplicaGroup all_reduce all_gather all_gather_v reduce_scatter all_to_all all_to_all_v
collective_permute collective_permute_implicit collective_permute_implicit_reduce
collective_permute_implicit_current_processing_rank_id rank_id
"""
