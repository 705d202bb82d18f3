"""Executables: one per set of sizes, and the results of the function."""

from __future__ import annotations

import concurrent.futures
import threading
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jax_tkg.models.executables import Compiled, Executables


class ExecutablesTest(absltest.TestCase):
    def test_one_per_set_of_sizes(self) -> None:
        traced = []

        def scaled_sum(weight: jax.Array, x: jax.Array, times: int) -> jax.Array:
            traced.append((x.shape, x.dtype, times))
            return weight * x.sum() * times

        executables = Executables(scaled_sum, ("times",))
        weight = jnp.float32(2)
        for x in (np.ones(3, np.float32), np.ones(3, np.float32), np.ones(4, np.float32)):
            self.assertEqual(executables(weight, x, times=5), 10 * x.size)
        self.assertEqual(executables.count, 2)
        self.assertEqual(executables(weight, np.ones(3, np.float32), times=6), 36)
        self.assertEqual(executables(weight, np.ones(3, np.int32), times=6), 36)
        self.assertEqual(executables.count, 4)
        self.assertLen(traced, 4)

    def test_seconds_count_compiling_only(self) -> None:
        executables = Executables(lambda weight, x: weight + x, ())
        self.assertEqual(executables.seconds, 0)
        executables(jnp.ones(3), jnp.ones(3))
        first = executables.seconds
        self.assertGreater(first, 0)
        executables(jnp.ones(3), jnp.ones(3))
        self.assertEqual(executables.seconds, first)

    def test_prepared_in_another_thread(self) -> None:
        """Whoever asks for the same sizes meanwhile waits for the one compilation."""
        started, released = threading.Event(), threading.Event()
        traced = []

        def double(weight: jax.Array, x: jax.Array) -> jax.Array:
            traced.append(threading.get_ident())
            started.set()
            released.wait()
            return weight * x

        executables = Executables(double, ())
        shape = jax.ShapeDtypeStruct((3,), jnp.float32)
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            first = executables.prepare(threads, shape, shape)
            started.wait()
            self.assertIs(executables.prepare(threads, shape, shape), first)
            result = threads.submit(executables, jnp.full(3, 2.0), jnp.ones(3))
            self.assertFalse(first.done())
            released.set()
            self.assertEqual(result.result().tolist(), [2, 2, 2])
        self.assertLen(traced, 1)
        self.assertNotEqual(traced[0], threading.get_ident())
        self.assertEqual(executables.count, 1)
        executables.forget()
        self.assertEqual(executables.count, 0)

    def test_failure_is_told_to_who_calls_and_tried_again(self) -> None:
        attempts = []

        def fails_once(weight: jax.Array, x: jax.Array) -> jax.Array:
            attempts.append(x)
            if len(attempts) == 1:
                raise ValueError("not yet")
            return weight * x

        executables = Executables(fails_once, ())
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            prepared = executables.prepare(threads, jnp.ones(3), jnp.ones(3))
        with self.assertRaisesRegex(ValueError, "not yet"):
            prepared.result()
        self.assertEqual(executables(jnp.ones(3), jnp.ones(3)).tolist(), [1, 1, 1])

    def test_work_that_executors_refuse_or_drop(self) -> None:
        """Or never begin, or that is cancelled by hand: a call compiles what it needs."""
        traced = []

        def double(weight: jax.Array, x: jax.Array) -> jax.Array:
            traced.append(x.shape)
            return weight * x

        executables = Executables(double, ())
        weight = jnp.float32(2)
        closed = concurrent.futures.ThreadPoolExecutor(1)
        closed.shutdown()
        with self.assertRaisesRegex(RuntimeError, "after shutdown"):
            executables.prepare(closed, weight, np.ones(1))
        self.assertEqual(executables.count, 0)
        begun, released = threading.Event(), threading.Event()

        def occupy() -> None:
            begun.set()
            released.wait()

        busy = concurrent.futures.ThreadPoolExecutor(1)
        busy.submit(occupy)
        begun.wait()
        dropped, by_hand = (executables.prepare(busy, weight, np.ones(n)) for n in (1, 2))
        self.assertTrue(by_hand.cancel())
        busy.shutdown(wait=False, cancel_futures=True)
        concurrent.futures.wait([dropped])
        self.assertTrue(dropped.cancelled())
        released.set()
        idle = mock.create_autospec(concurrent.futures.Executor)
        never = executables.prepare(idle, weight, np.ones(3))
        self.assertEqual(executables.count, 1)
        for n in (1, 2, 3):
            self.assertEqual(executables(weight, np.ones(n)).tolist(), [2] * n)
        self.assertTrue(never.done())
        self.assertLen(traced, 3)
        self.assertEqual(executables.count, 3)
        # The executor comes too late.
        work, *given = idle.submit.call_args.args
        work(*given)
        self.assertLen(traced, 3)

    def test_cancelled_while_a_call_waits(self) -> None:
        executables = Executables(lambda weight, x: weight * x, ())
        compile_ = executables._compile

        def cancelled_before(future: Compiled, *arguments: Any) -> None:
            if not cancelled:
                cancelled.append(future.cancel())
            compile_(future, *arguments)

        cancelled: list[bool] = []
        with mock.patch.object(executables, "_compile", cancelled_before):
            self.assertEqual(executables(jnp.float32(2), np.ones(2)).tolist(), [2, 2])
        self.assertEqual(cancelled, [True])


if __name__ == "__main__":
    absltest.main()
