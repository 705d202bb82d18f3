"""Whether the tensors that live together fit."""

from absl.testing import parameterized

from jax_tkg import simulator
from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from tests.simulator import harness
from tests.simulator.harness import tile

_KIB = 1024


def _use(*tensors):
    for tensor in tensors:
        nisa.tensor_copy(tensor, tensor)


def _kib(size, address=None):
    return tile(1, size * _KIB // 4, address=address)


class CapacityTest(parameterized.TestCase):
    def test_live_tensors_must_fit_together(self):
        def body():
            a, b = _kib(150), _kib(100)
            _use(a, b)

        with self.assertRaisesRegex(
            simulator.CapacityError,
            r"SBUF of rank 0 core 0: live tensors need 256000 bytes per partition at instruction "
            r"1 \(memset at .*\), but trn2 has 229376; the largest are 153600 bytes of",
        ):
            harness.run(body)

    def test_a_tensor_lives_from_first_to_last_use(self):
        def body():
            a = _kib(150)
            _use(a)
            b = _kib(100)
            _use(b)

        harness.run(body)

    def test_tensors_at_addresses_take_their_place(self):
        def body(address, use_last):
            a = _kib(150, address=(0, 0))
            b = _kib(80)
            _use(b, *([a] if use_last else []))

        harness.run(lambda: body(None, False))
        with self.assertRaises(simulator.CapacityError):
            harness.run(lambda: body(None, True))

    def test_overlapping_addresses_count_once(self):
        def body():
            a, b = _kib(150, address=(0, 0)), _kib(150, address=(0, 0))
            c = _kib(70)
            _use(c, b)
            del a

        harness.run(body)

    def test_psum(self):
        def body():
            tiles = [nl.ndarray((1, 512), nl.float32, buffer=nl.psum) for _ in range(9)]
            for t in tiles:
                nisa.memset(t, 0.0)
            for t in tiles:
                nisa.tensor_copy(tile(1, 512), t)

        with self.assertRaisesRegex(simulator.CapacityError, "PSUM of .* need 18432 .* has 16384"):
            harness.run(body)

    def test_report_and_ignore(self):
        def body():
            _use(_kib(150), _kib(100))

        result = harness.run(body, capacity="report")
        self.assertEqual([f.kind for f in result.findings], ["capacity"])
        self.assertEqual(harness.run(body, capacity="ignore").findings, [])

    def test_works_without_a_record(self):
        with self.assertRaises(simulator.CapacityError):
            harness.run(lambda: _use(_kib(150), _kib(100)), record=False)
