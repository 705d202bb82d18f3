"""Meetings that can never take place end, and a test of them never hangs."""

from unittest import mock

from absl.testing import absltest

from jax_tkg import simulator
from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from jax_tkg.simulator.machine.meeting import MeetingBoard
from tests.simulator import harness


def _one_core_comes():
    shared = nl.ndarray((1, 1), nl.float32, buffer=nl.shared_hbm)
    if nl.program_id(0) == 0:
        nisa.core_barrier(shared, (0, 1))


class MeetingTest(absltest.TestCase):
    def test_a_core_that_never_comes(self):
        with self.assertRaisesRegex(
            simulator.MissingPeerError, "core_barrier at .*: rank 0 core 0 waits for rank 0 core 1"
        ):
            harness.must_end(harness.run, _one_core_comes, lnc=2)

    def test_a_failing_core_ends_the_wait_of_the_other(self):
        def kernel():
            _one_core_comes()
            if nl.program_id(0) == 1:
                raise KeyError("of the kernel")

        with self.assertRaisesRegex(KeyError, "of the kernel"):
            harness.must_end(harness.run, kernel, lnc=2)

    def test_without_detection_a_test_fails_with_the_stacks(self):
        boards: list[MeetingBoard] = []
        with mock.patch.object(MeetingBoard, "_find_deadlock", lambda board: boards.append(board)):
            try:
                with self.assertRaisesRegex(
                    AssertionError, r"the run hangs; (.|\n)*in _one_core_comes\n(.|\n)*in meet\n"
                ):
                    harness.must_end(harness.run, _one_core_comes, patience=0.5, lnc=2)
            finally:
                # Lets the waiting thread go.
                boards[0].leave((0, 0), RuntimeError("the test is over"))


if __name__ == "__main__":
    absltest.main()
