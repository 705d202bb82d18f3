"""Places of tensors that have no address, against rules that any compiler has to keep."""

import itertools

import hypothesis
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jax_tkg.simulator.timing.placement import SBUF_ALIGNMENT, Placement, place
from jax_tkg.simulator.timing.timeline import memory_dependencies, schedule
from tests.simulator.streams import Stream, access, record

KIB = 1024
SBUF_BYTES = 224 * KIB
BANK_BYTES = 2 * KIB
PSUM_BYTES = 8 * BANK_BYTES
PLACED = (Placement.OLDEST, Placement.LOWEST)


class Tensors:
    """A stream of memsets, each of which touches a tensor."""

    def __init__(self, space: str = "sbuf"):
        self.space = space
        self.stream = Stream()

    def use(self, number: int, row_bytes: int, address: int | None = None) -> None:
        """An instruction writes a tensor."""
        dst = access("dst", self.space, number, (128, row_bytes), dtype="uint8", address=address)
        self.stream.add("vector", "memset", dst)

    def placed(self, placement: Placement, target: str = "trn2") -> dict[int, int]:
        """Addresses by number."""
        return place(self.stream.instructions, self.space, target, placement)


class PlaceTest(parameterized.TestCase):
    @parameterized.product(placement=PLACED, space=("sbuf", "psum"))
    @hypothesis.given(
        uses=st.lists(st.integers(0, 11), min_size=1, max_size=40),
        kinds=st.lists(st.integers(0, 4), min_size=12, max_size=12),
        fixed=st.sampled_from((None, 0, 4096)),
    )
    @hypothesis.settings(max_examples=60, deadline=None)
    def test_no_two_tensors_in_use_share_bytes(self, uses, kinds, fixed, placement, space):
        sizes = (12, 40, 512, 2048, 6144) if space == "psum" else (4, 100, 9000, 33000, 70000)
        capacity = PSUM_BYTES if space == "psum" else SBUF_BYTES
        tensors = Tensors(space)
        for number in uses:
            # Tensor 0 has an address of its own in some streams.
            tensors.use(number, sizes[kinds[number]], fixed if number == 0 else None)
        found = tensors.placed(placement)
        self.assertLessEqual(set(found), set(uses))
        if fixed is not None:
            self.assertNotIn(0, found)
        for number, start in found.items():
            end = start + sizes[kinds[number]]
            self.assertBetween(start, 0, capacity - 1)
            self.assertLessEqual(end, capacity)
            if space == "sbuf":
                self.assertEqual(start % SBUF_ALIGNMENT, 0)
            elif sizes[kinds[number]] >= BANK_BYTES:
                self.assertEqual(start % BANK_BYTES, 0)
            else:
                self.assertEqual(start // BANK_BYTES, (end - 1) // BANK_BYTES)
        times = {n: (uses.index(n), len(uses) - 1 - uses[::-1].index(n)) for n in uses}
        addresses = dict(found)
        if fixed is not None and 0 in uses:
            addresses[0] = fixed
            times[0] = (0, len(uses))
        for one, two in itertools.combinations(addresses, 2):
            (first, last), (begin, end) = times[one], times[two]
            if first <= end and begin <= last:
                apart = (
                    addresses[one] + sizes[kinds[one]] <= addresses[two]
                    or addresses[two] + sizes[kinds[two]] <= addresses[one]
                )
                self.assertTrue(apart, (one, two, addresses))

    def test_choices(self):
        """Four tensors one after the other, of which three fit side by side."""
        tensors = Tensors()
        for number in range(4):
            tensors.use(number, 64 * KIB)
        self.assertEqual(tensors.placed(Placement.APART), {})
        self.assertEqual(tensors.placed(Placement.LOWEST), dict.fromkeys(range(4), 0))
        oldest = {0: 0, 1: 64 * KIB, 2: 128 * KIB, 3: 0}
        self.assertEqual(tensors.placed(Placement.OLDEST), oldest)

    def test_what_does_not_fit_has_no_address(self):
        tensors = Tensors()
        tensors.use(1, 120 * KIB)
        tensors.use(2, 120 * KIB)
        tensors.use(1, 120 * KIB)
        tensors.use(3, 120 * KIB)
        self.assertEqual(tensors.placed(Placement.LOWEST), {1: 0, 3: 0})
        self.assertEqual(tensors.placed(Placement.LOWEST, "trn3"), {1: 0, 2: 120 * KIB, 3: 0})

    def test_banks(self):
        tensors = Tensors("psum")
        for number, size in ((1, 4), (2, 2048), (3, 1028), (4, 1028)):
            tensors.use(number, size)
        for number, size in ((1, 4), (2, 2048), (3, 1028), (4, 1028)):
            tensors.use(number, size)
        self.assertEqual(tensors.placed(Placement.LOWEST), {1: 0, 2: 2048, 3: 4096, 4: 6144})


class DependenciesTest(absltest.TestCase):
    def test_reused_bytes_are_waited_for(self):
        """The Vector Engine makes tensor 5 while the Scalar Engine still reads tensor 1."""
        stream = Stream()
        stream.vector(1, 2)
        stream.scalar(3, 1)
        stream.vector(5, 4)
        made = record(stream)
        last = {p: memory_dependencies(made, placement=p)[0][2] for p in Placement}
        self.assertEqual(last[Placement.APART], {})
        self.assertEqual(last[Placement.OLDEST], {})
        self.assertEqual(last[Placement.LOWEST], {0: "overwrite", 1: "reuse"})

        def latency(placement: Placement) -> float:
            return schedule(made, dependencies=memory_dependencies(made, 0, placement)).latency

        self.assertGreater(latency(Placement.LOWEST), latency(Placement.APART) + 400)
        self.assertEqual(latency(Placement.OLDEST), latency(Placement.APART))


if __name__ == "__main__":
    absltest.main()
