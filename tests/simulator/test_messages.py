"""Every message has the kernel's line, and misspelled names get the right one."""

import os
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg import simulator
from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from tests.simulator import harness


def _tile():
    return nl.ndarray((4, 8), dtype=nl.float32, buffer=nl.sbuf, name="scores")


class LinesTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("instruction", lambda: nisa.tensor_copy(_tile(), harness.tile(4, 9)), "tensor_copy"),
        ("view", lambda: _tile()[:, 4:9], r"<sbuf tensor 'scores' \[4, 8\] float32>"),
        ("index", lambda: _tile()[:, "a"], "expected an integer"),
        ("allocation", lambda: nl.ndarray((129, 4), dtype=nl.float32), "partition dimension 129"),
        ("dtype", lambda: nl.ndarray((4, 4), dtype="float23"), "not an NKI dtype"),
        ("assignment", lambda: _tile().__setitem__(0, 1), "not part of NKI"),
        ("device_loop", lambda: nl.fori_loop(0, 2, lambda i: i), "must return None"),
    )
    def test_the_kernels_line(self, statement, message) -> None:
        with self.assertRaisesRegex(
            (simulator.NkiValidationError, TypeError), rf"{message}.*test_messages.py:\d+"
        ):
            harness.run(lambda: statement() and None)

    def test_errors_of_the_kernel_stay_as_they_are(self) -> None:
        def body():
            def turn(i):
                raise ValueError("the kernel's own")

            nl.fori_loop(0, 1, turn)

        with self.assertRaisesRegex(ValueError, "^the kernel's own$"):
            harness.run(body)

    def test_a_misspelled_keyword(self) -> None:
        with self.assertRaisesRegex(TypeError, "did you mean 'operand0'|Did you mean 'operand0'"):
            harness.run(
                lambda: nisa.tensor_scalar(_tile(), _tile(), op0=nl.add, oprand0=1.0) and None
            )


class NamesTest(absltest.TestCase):
    def test_a_misspelled_name(self) -> None:
        simulator.install()
        import nki.isa
        import nki.language

        with self.assertRaisesRegex(
            AttributeError,
            r"'nki.isa' has no attribute 'tensor_tensr'; did you mean 'tensor_tensor'\? "
            r"\(.*test_messages.py:\d+\)",
        ):
            _ = nki.isa.tensor_tensr
        with self.assertRaisesRegex(AttributeError, r"'zzzzzz' \("):
            _ = nki.language.zzzzzz
        self.assertFalse(hasattr(nki.isa, "tensor_tensr"))
        self.assertIs(nki.isa.tensor_tensor, nisa.tensor_tensor)


class PrecisionTest(absltest.TestCase):
    def test_what_is_not_simulated_is_refused(self) -> None:
        self.enter_context(mock.patch.dict(os.environ, NKI_PRECISE_FP="0"))
        with self.assertRaisesRegex(ValueError, "NKI_PRECISE_FP=0: expected 1 or nothing"):
            harness.run(lambda x: x, np.zeros(4, np.float32))


if __name__ == "__main__":
    absltest.main()
