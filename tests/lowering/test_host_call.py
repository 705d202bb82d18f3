"""Host functions inside compiled programs: what they get, and how their exceptions come out."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import PartitionSpec

from jax_tkg.lowering.host_call import host_call, own_exceptions


def _mesh(ranks: int) -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.asarray(jax.devices("cpu")[:ranks]), ("ranks",))


class CallTest(parameterized.TestCase):
    @parameterized.parameters("float32", "bfloat16", "float8_e4m3", "int32", "bool")
    def test_arrays(self, dtype: str) -> None:
        kinds = []

        def swap(one: np.ndarray, other: np.ndarray) -> list[np.ndarray]:
            kinds.append((type(one), one.dtype, other.shape))
            return [other, one]

        one = jnp.arange(6).reshape(2, 3).astype(dtype)
        other = jnp.ones((4,), jnp.float32)
        run = jax.jit(lambda *given: host_call(swap, given, like=(1, 0)))
        got = run(one, other)
        np.testing.assert_array_equal(got[0], other)
        np.testing.assert_array_equal(got[1], one)
        self.assertEqual(kinds, [(np.ndarray, jnp.dtype(dtype), (4,))])

    def test_two_calls_in_one_program(self) -> None:
        def run(x: jax.Array) -> jax.Array:
            (x,) = host_call(lambda a: [a + 1], [x], like=(0,))
            (x,) = host_call(lambda a: [a * 2], [x], like=(0,))
            return x

        np.testing.assert_array_equal(jax.jit(run)(jnp.ones(3)), 4.0)

    @parameterized.parameters(True, False)
    def test_each_device_of_a_mesh_calls(self, check_vma: bool) -> None:
        run = jax.shard_map(
            lambda x: host_call(lambda a: [a * 2], [x], like=(0,))[0],
            mesh=_mesh(4),
            in_specs=PartitionSpec("ranks"),
            out_specs=PartitionSpec("ranks"),
            check_vma=check_vma,
        )
        x = jnp.arange(8.0)
        np.testing.assert_array_equal(jax.jit(run)(x), 2 * x)

    def test_sharded_by_the_compiler(self) -> None:
        sharding = jax.sharding.NamedSharding(_mesh(4), PartitionSpec("ranks"))
        x = jax.device_put(jnp.arange(8.0), sharding)
        run = jax.jit(lambda x: host_call(lambda a: [a - a.sum()], [x], like=(0,))[0])
        np.testing.assert_array_equal(run(x), np.arange(8.0) - 28)


class ExceptionsTest(parameterized.TestCase):
    def tearDown(self) -> None:
        # JAX reports a device's last program at exit if it failed.
        self._run(None, 2)
        super().tearDown()

    def _run(self, error: BaseException | None, ranks: int) -> None:
        def fail(*arrays: Any) -> Any:
            if error is not None:
                raise error
            return arrays

        call = functools.partial(host_call, fail, like=(0,))
        run = lambda x: call([x])[0]  # noqa: E731
        if ranks > 1:
            spec = PartitionSpec("ranks")
            run = jax.shard_map(run, mesh=_mesh(ranks), in_specs=spec, out_specs=spec)
        jax.block_until_ready(jax.jit(run)(jnp.ones(4)))

    @parameterized.product(
        error=(ValueError("a limit"), KeyboardInterrupt("now"), SystemExit(3)), ranks=(1, 2)
    )
    def test_the_last_line_names_it(self, error: BaseException, ranks: int) -> None:
        with self.assertRaises(jax.errors.JaxRuntimeError) as caught:
            self._run(error, ranks)
        last = str(caught.exception).strip().splitlines()[-1]
        self.assertEqual(last, f"{type(error).__name__}: {error}")

    @parameterized.product(
        error=(ValueError("a limit"), KeyboardInterrupt(), SystemExit(3)), ranks=(1, 2)
    )
    def test_own_exceptions(self, error: BaseException, ranks: int) -> None:
        with self.assertRaises(type(error)) as caught, own_exceptions():
            self._run(error, ranks)
        self.assertIs(caught.exception, error)

    def test_other_errors_of_jax_stay(self) -> None:
        with self.assertRaisesRegex(jax.errors.JaxRuntimeError, "another"), own_exceptions():
            raise jax.errors.JaxRuntimeError("another")


if __name__ == "__main__":
    absltest.main()
