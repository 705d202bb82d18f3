"""Launching kernels: arguments, results, grids, targets."""

import ml_dtypes
import numpy as np
import pytest
from absl.testing import parameterized

from jax_tkg import simulator
from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from tests.simulator.harness import tile

_X = np.arange(12, dtype=np.float32).reshape(3, 4)


def _double(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    t = nl.load(x)
    nisa.tensor_scalar(t, t, nl.multiply, 2.0)
    nisa.dma_copy(out, t)
    return out


def _increment(caches, by):
    for cache in caches:
        t = nl.load(cache)
        nisa.tensor_scalar(t, t, nl.add, by)
        nisa.dma_copy(cache, t)


def _grid():
    out = nl.ndarray((1, 3), nl.int32, buffer=nl.shared_hbm, name="grid")
    if nl.program_id(0) == nl.num_programs() - 1:
        for i, n in enumerate((nl.program_ndim(), nl.num_programs(), nl.program_id(0))):
            nisa.dma_copy(out[:, i : i + 1], tile(1, 1, dtype="int32", value=n))
    return out


class RunTest(parameterized.TestCase):
    def test_every_rank_has_its_own_arguments(self):
        result = simulator.run(_double, [{"x": _X}, {"x": _X + 1}])
        np.testing.assert_array_equal(result.outputs[0], 2 * _X)
        np.testing.assert_array_equal(result.outputs[1], 2 * _X + 2)

    @parameterized.parameters((({"x": _X},)), (((_X,),)), ((((_X,), {}),)))
    def test_forms_of_arguments(self, arguments):
        np.testing.assert_array_equal(simulator.run(_double, [arguments]).outputs[0], 2 * _X)

    def test_written_arguments_come_back_and_the_callers_stay(self):
        caches = [_X.copy(), _X + 5]
        result = simulator.run(_increment, [{"caches": caches, "by": 1.0}] * 2)
        for rank in range(2):
            self.assertEqual(set(result.mutated[rank]), {"caches[0]", "caches[1]"})
            np.testing.assert_array_equal(result.mutated[rank]["caches[1]"], _X + 6)
        np.testing.assert_array_equal(caches[0], _X)

    def test_unwritten_arguments_do_not(self):
        self.assertEqual(simulator.run(_double, [{"x": _X}]).mutated, [{}])

    def test_nested_results(self):
        def kernel(x):
            return {"pair": (_double(x), [_double(x)]), "number": 3}

        output = simulator.run(kernel, [(_X,)]).outputs[0]
        np.testing.assert_array_equal(output["pair"][1][0], 2 * _X)
        self.assertEqual(output["number"], 3)

    @parameterized.parameters((1, (0, 1, 0)), (2, (1, 2, 1)))
    def test_grid(self, lnc, expected):
        output = simulator.run(_grid, [()], lnc=lnc).outputs[0]
        np.testing.assert_array_equal(output, [expected])

    def test_jit_carries_its_lnc(self):
        np.testing.assert_array_equal(
            simulator.run(simulator.jit(_grid)[2], [()]).outputs[0], [[1, 2, 1]]
        )

    def test_a_kernel_called_by_a_kernel_is_part_of_it(self):
        inner = simulator.jit(_double)
        result = simulator.run(simulator.jit(lambda x: inner(inner(x))), [(_X,)])
        np.testing.assert_array_equal(result.outputs[0], 4 * _X)

    def test_the_kernels_own_error_is_raised(self):
        def kernel():
            raise ValueError("mine")

        for lnc in (1, 2):
            with self.assertRaisesRegex(ValueError, "mine"):
                simulator.run(kernel, [()], lnc=lnc)

    def test_booleans(self):
        def kernel(mask):
            out = nl.ndarray(mask.shape, nl.float32, buffer=nl.shared_hbm)
            nisa.dma_copy(out, nl.load(mask, dtype=nl.float32))
            return out

        mask = np.array([[True, False]])
        np.testing.assert_array_equal(simulator.run(kernel, [(mask,)]).outputs[0], [[1, 0]])

    def test_on_chip_tensors_cannot_be_returned(self):
        with self.assertRaisesRegex(simulator.NkiValidationError, "returns tensors in HBM"):
            simulator.run(lambda: tile(1, 1), [()])

    def test_calls_outside_a_kernel_are_explained(self):
        with self.assertRaisesRegex(RuntimeError, "no simulated kernel is running"):
            nl.ndarray((1, 1), nl.float32)

    @parameterized.parameters(
        ({"lnc": 3}, "lnc=3: a logical core has 1 or 2"),
        ({"lnc": 2, "target": "trn1"}, "lnc=2 needs NeuronCore-v3"),
        ({"target": "trn9"}, "target 'trn9' is unknown"),
    )
    def test_bad_launches(self, options, message):
        with self.assertRaisesRegex(ValueError, message):
            simulator.run(_double, [{"x": _X}], **options)

    def test_bad_options(self):
        with self.assertRaisesRegex(ValueError, "races='loud': expected"):
            simulator.Options(races="loud")

    def test_unknown_dtypes_are_named(self):
        with self.assertRaisesRegex(TypeError, "complex64"):
            simulator.run(_double, [{"x": _X.astype(np.complex64)}])


class SimulateTest(parameterized.TestCase):
    def test_numpy_in_and_out(self):
        np.testing.assert_array_equal(simulator.simulate(_double)(_X), 2 * _X)

    def test_arrays_are_updated_in_place(self):
        cache = _X.copy()
        simulator.simulate(_increment)([cache], by=2.0)
        np.testing.assert_array_equal(cache, _X + 2)

    def test_a_decorated_kernel_called_outside_is_simulated(self):
        np.testing.assert_array_equal(simulator.jit(_double)(_X), 2 * _X)

    def test_two_cores(self):
        output = simulator.simulate(simulator.jit(_grid)[2])()
        np.testing.assert_array_equal(output, [[1, 2, 1]])

    def test_arrays_of_other_libraries(self):
        class Array:
            shape, dtype = _X.shape, _X.dtype

            def __array__(self, dtype=None, copy=None):
                return _X

        np.testing.assert_array_equal(simulator.simulate(_double)(Array()), 2 * _X)

    def test_torch(self):
        torch = pytest.importorskip("torch")
        x = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
        result = simulator.simulate(_double)(x)
        self.assertEqual(result.dtype, torch.bfloat16)
        self.assertTrue(torch.equal(result, 2 * x))

    def test_jax(self):
        jnp = pytest.importorskip("jax.numpy")
        x = jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)
        result = simulator.simulate(_double)(x)
        self.assertEqual(result.dtype, ml_dtypes.bfloat16)
        np.testing.assert_array_equal(result, 2 * np.asarray(x))


class ObjectTest(parameterized.TestCase):
    def test_missing_fields_are_none(self):
        import dataclasses

        @dataclasses.dataclass
        class Config(nl.NKIObject):
            size: int
            scale: float = 2.0
            bias: object
            index = None

        config = Config(size=3)
        self.assertEqual((config.size, config.scale, config.bias), (3, 2.0, None))
        # Attributes without an annotation are fields too.
        self.assertEqual(Config(index=5).index, 5)

    def test_plain_objects_take_keywords(self):
        class Box(nl.NKIObject):
            pass

        self.assertEqual(Box(a=1).a, 1)
