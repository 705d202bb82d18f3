"""Products of a run stay on one thread; afterwards the setting is what it was."""

import threading

import numpy as np
import threadpoolctl
from absl.testing import absltest

from jax_tkg import simulator
from jax_tkg.simulator import language as nl
from jax_tkg.simulator.machine.blas_threads import one_blas_thread


def _threads() -> set[int]:
    pools = threadpoolctl.threadpool_info()
    return {pool["num_threads"] for pool in pools if pool["user_api"] == "blas"}


class OneBlasThreadTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        limit = threadpoolctl.threadpool_limits(limits=2, user_api="blas")
        self.enter_context(limit)
        if _threads() != {2}:
            self.skipTest("NumPy's BLAS has no threads here")

    def test_in_a_run(self):
        seen = []

        def kernel(x):
            seen.append(_threads())
            nl.load(x)

        simulator.run(kernel, [{"x": np.ones((2, 2), np.float32)}], lnc=1)
        self.assertEqual(seen, [{1}])
        self.assertEqual(_threads(), {2})

    def test_runs_that_overlap(self):
        """Whichever ends first, the setting is what it was once both have ended."""
        for other_ends_first in (True, False):
            inside, leave = threading.Event(), threading.Event()

            def other(inside=inside, leave=leave):
                with one_blas_thread():
                    inside.set()
                    leave.wait()

            thread = threading.Thread(target=other)
            with one_blas_thread():
                thread.start()
                inside.wait()
                self.assertEqual(_threads(), {1})
                if other_ends_first:
                    leave.set()
                    thread.join()
                    self.assertEqual(_threads(), {1})
            leave.set()
            thread.join()
            self.assertEqual(_threads(), {2})

    def test_after_an_error(self):
        with self.assertRaises(ZeroDivisionError), one_blas_thread():
            raise ZeroDivisionError
        self.assertEqual(_threads(), {2})


if __name__ == "__main__":
    absltest.main()
