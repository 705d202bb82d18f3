"""Loops on the device: turns, and what the compiler allows in a body."""

import numpy as np
from absl.testing import parameterized

from jax_tkg import simulator
from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from tests.simulator import harness
from tests.simulator.harness import psum, tile

_G = np.random.default_rng(11)


class LoopTest(parameterized.TestCase):
    def test_ranges(self):
        for function in (nl.affine_range, nl.sequential_range, nl.static_range):
            self.assertEqual(list(function(3)), [0, 1, 2])
            self.assertEqual(list(function(2, 9, 3)), [2, 5, 8])

    def test_fori_loop_with_a_runtime_bound_of_the_documentation(self):
        data = _G.normal(size=(1, 8)).astype(np.float32)

        def kernel(data, ub_input):
            output = nl.ndarray(data.shape, dtype=data.dtype, buffer=nl.shared_hbm)
            ub_sb = nl.ndarray((1, 1), dtype=nl.int32, buffer=nl.sbuf)
            nisa.dma_copy(dst=ub_sb, src=ub_input)
            ub_reg = nisa.register_alloc()
            nisa.register_load(ub_reg, ub_sb)
            zeros = nl.zeros((1, 8), dtype=nl.float32, buffer=nl.sbuf)
            nisa.dma_copy(dst=output, src=zeros)
            temp = nl.ndarray((1, 1), dtype=nl.float32, buffer=nl.sbuf)

            def body(i):
                nisa.dma_copy(
                    dst=temp, src=data.ap([[1, 1], [1, 1]], scalar_offset=i, indirect_dim=1)
                )
                nisa.dma_copy(
                    dst=output.ap([[1, 1], [1, 1]], scalar_offset=i, indirect_dim=1), src=temp
                )

            nl.fori_loop(0, ub_reg, body)
            return output

        result = harness.run(kernel, data, np.array([[5]], np.int32)).outputs[0]
        np.testing.assert_array_equal(result[0, :5], data[0, :5])
        np.testing.assert_array_equal(result[0, 5:], 0)

    def test_while_loop_of_the_documentation(self):
        def kernel(data, count_input):
            val, count_sb = nl.load(data), nl.load(count_input)
            acc = nl.zeros((1, 1), dtype=nl.float32, buffer=nl.sbuf)
            one_sb = nl.full((1, 1), 1, nl.int32)
            reg = nisa.register_alloc()
            nisa.register_load(reg, count_sb)

            def body(r):
                nisa.tensor_tensor(dst=acc, data1=acc, data2=val, op=nl.add)
                nisa.tensor_tensor(dst=count_sb, data1=count_sb, data2=one_sb, op=nl.subtract)
                nisa.register_load(r, count_sb)
                return r

            nl.while_loop(reg, body)
            out = nl.ndarray((1, 1), nl.float32, buffer=nl.shared_hbm)
            nisa.dma_copy(out, acc)
            return out

        arguments = np.array([[2.5]], np.float32), np.array([[4]], np.int32)
        self.assertEqual(float(harness.run(kernel, *arguments).outputs[0][0, 0]), 10.0)
        arguments = np.array([[2.5]], np.float32), np.array([[0]], np.int32)
        self.assertEqual(float(harness.run(kernel, *arguments).outputs[0][0, 0]), 0.0)

    def test_dynamic_range(self):
        seen = []

        def body():
            for i in nl.dynamic_range(nisa.register_alloc(1), nisa.register_alloc(6), 2):
                with nl.no_reorder():
                    seen.append(int(i))
            for i in nl.dynamic_range(2):
                seen.append(int(i))

        harness.run(body)
        self.assertEqual(seen, [1, 3, 5, 0, 1])

    def test_turns_are_in_the_record(self):
        def body():
            kept = tile(4, 4)
            nl.fori_loop(2, 4, lambda i: nisa.memset(kept, 0) and None)
            nisa.memset(kept, 1)

        stream = harness.run(body).record.streams[(0, 0)]
        opcodes = [i.opcode for i in stream]
        turn = ["loop_turn", "memset"]
        self.assertEqual(opcodes, ["memset", *turn, *turn, "loop_end", "memset"])
        marks = [i.attributes["turn"] for i in stream if i.opcode.startswith("loop")]
        self.assertEqual(marks, [0, 1, 2])
        self.assertRegex(stream[1].where, r"test_loops.py:\d+")

    def test_turns_of_a_while_loop_are_in_the_record(self):
        def body():
            def countdown(r):
                return nisa.register_alloc(int(r) - 1)

            nl.while_loop(nisa.register_alloc(2), countdown)

        stream = harness.run(body).record.streams[(0, 0)]
        self.assertEqual([i.opcode for i in stream], ["loop_turn", "loop_turn", "loop_end"])

    def test_axes_of_the_grid(self):
        for function in (lambda: nl.program_id(1), lambda: nl.num_programs(1)):
            with self.assertRaisesRegex(ValueError, "must be 0, got 1"):
                harness.run(lambda f=function: f() and None)


def _zeroes(tensor):
    """The body of a loop that writes a tensor."""
    return lambda i: nisa.memset(tensor, 0) and None


def _reads(tensor):
    """The body of a loop that reads a tensor, into one of its own."""
    return lambda i: nisa.tensor_copy(nl.ndarray((4, 4), nl.float32), tensor) and None


def _copies(tensor, **options):
    """The body of a loop that moves a tensor, to one of its own."""
    return lambda i: nisa.dma_copy(nl.ndarray((4, 4), nl.float32), tensor, **options) and None


def _read_in_a_loop(tensor):
    nl.fori_loop(0, 1, _reads(tensor))
    return tensor


def _made_in_a_loop():
    made = []
    nl.fori_loop(0, 1, lambda i: made.append(tile(4, 4)))
    return made[0]


def _reads_of_the_turn_before():
    made = []

    def body(i):
        made.append(tile(4, 4))
        nisa.tensor_copy(nl.ndarray((4, 4), nl.float32), made[0])

    return body


def _inside_no_reorder():
    """The body of a loop, in a kernel that has entered a no_reorder block."""
    block = nl.no_reorder()
    block.__enter__()
    return lambda i, block=block: None


class RuleTest(parameterized.TestCase, harness.Rules):
    @parameterized.named_parameters(
        (
            "loop_psum_written",
            lambda: nl.fori_loop(0, 1, _zeroes(psum(4, 4))),
            "psum tensor .* was not allocated in the body of the device loop that writes it; the "
            "compiler fails with NCC_IBIR092",
        ),
        (
            "dependency_out_of_a_loop",
            lambda: nisa.memset(tile(1, 1), 0).depends_on(*_instructions_of_turns()),
            "the producer ran in a turn of a device loop that does not enclose this instruction",
        ),
        (
            "loop_psum_of_an_outer_loop",
            lambda: nl.fori_loop(0, 1, lambda i: nl.fori_loop(0, 1, _zeroes(psum(4, 4)))),
            "was not allocated in the body of the device loop that writes it",
        ),
        (
            "loop_psum_read_by_two",
            lambda: nl.fori_loop(0, 1, _reads(_read_in_a_loop(psum(4, 4)))),
            "psum tensor .* was not allocated in the body of the device loop that reads it, and "
            "another loop reads it too; the compiler fails with NCC_IBIR092",
        ),
        (
            "loop_tensor_outside",
            lambda: nisa.memset(_made_in_a_loop(), 0),
            "was allocated in the body of a device loop, and cannot be used outside of that turn "
            "of the loop",
        ),
        (
            "loop_tensor_in_the_next_turn",
            lambda: nl.fori_loop(0, 2, _reads_of_the_turn_before()),
            "was allocated in the body of a device loop, and cannot be used outside of that turn "
            "of the loop",
        ),
        (
            "loop_dge_none",
            lambda: nl.fori_loop(0, 1, _copies(tile(4, 4), dge_mode=nisa.dge_mode.none)),
            "dge_mode.none is not possible inside a device loop, .* fails with NCC_ISQI001",
        ),
        (
            "loop_in_no_reorder",
            lambda: nl.fori_loop(0, 1, _inside_no_reorder()),
            r"a loop on the device cannot be inside nl.no_reorder\(\)",
        ),
        (
            "loop_result",
            lambda: nl.fori_loop(0, 1, lambda i: i),
            "body_fun must return None",
        ),
        (
            "loop_step",
            lambda: nl.fori_loop(0, 3, lambda i: None, step=0),
            "step must be a positive integer, got 0",
        ),
        (
            "loop_step_register",
            lambda: nl.dynamic_range(0, 3, nisa.register_alloc(1)),
            "step must be a positive integer",
        ),
        (
            "loop_bound",
            lambda: nl.fori_loop(0, 2.0, lambda i: None),
            "a bound must be an integer or a register, got 2.0",
        ),
        (
            "loop_condition",
            lambda: nl.while_loop(1, lambda r: r),
            "init must be a register, got 1",
        ),
        (
            "loop_next_condition",
            lambda: nl.while_loop(nisa.register_alloc(1), lambda r: 0),
            "body_fun's result must be a register, got 0",
        ),
    )
    def test_limit(self, body, message, target="trn2"):
        self.check_rule(body, message, target)

    @parameterized.named_parameters(
        (
            "loop_turns",
            lambda: nl.fori_loop(0, 3 - nl.program_id(0), lambda i: None),
            "core 0 of rank 0 makes 3 turns at .*, but core 1 2 at .*; both cores must make equal "
            "numbers of turns",
        ),
        (
            "loop_turns_of_while",
            lambda: nl.while_loop(nisa.register_alloc(2 + nl.program_id(0)), _down),
            "core 0 of rank 0 makes 2 turns at .*, but core 1 3 at .*",
        ),
        (
            "loop_turns_that_meet",
            lambda: nl.fori_loop(0, 3 - nl.program_id(0), _meets()),
            "core 0 of rank 0 makes 3 turns at .*, but core 1 2 at .*",
        ),
        (
            "loop_on_one_core",
            lambda: nl.fori_loop(0, 1, lambda i: None) if nl.program_id(0) else None,
            "core 1 of rank 0 runs the loop at .*, but core 0 does not",
        ),
    )
    def test_cores(self, body, message):
        with self.assertRaisesRegex(simulator.PeerMismatchError, message):
            harness.must_end(harness.run, lambda: body() and None, lnc=2)

    def test_a_returned_tensor_of_a_loop(self):
        def body():
            made = []
            nl.fori_loop(
                0, 1, lambda i: made.append(nl.ndarray((4, 4), nl.float32, buffer=nl.shared_hbm))
            )
            return made[0]

        with self.assertRaisesRegex(
            simulator.NkiValidationError, "returns the shared_hbm tensor .* body of a device loop"
        ):
            harness.run(body, uninitialized="ignore")

    @parameterized.parameters(
        (nisa.dge_mode.unknown, False, 1),
        (nisa.dge_mode.hwdge, False, 0),
        (nisa.dge_mode.unknown, True, 0),
    )
    def test_static_transfers_of_arguments(self, mode, indirect, findings):
        def body(x, y):
            def turn(i):
                own = nl.ndarray((1, 4), nl.float32)
                nisa.dma_copy(own, x.select(0, i if indirect else 0).expand_dim(0), dge_mode=mode)
                nisa.dma_copy(nl.ndarray((1, 4), nl.float32), own)

            nl.fori_loop(0, 2, turn)
            nl.load(x)

        x = np.ones((4, 4), np.float32)
        found = harness.run(body, x, x).findings
        self.assertLen(found, findings)
        for finding in found:
            self.assertEqual(finding.kind, "device_loop")
            self.assertRegex(
                finding.message,
                r"dma_copy: src is the kernel's argument '\[0\]' at a static address inside a "
                r"device loop.*NCC_ISQI001.*test_loops.py:\d+",
            )

    def test_a_dependency_on_another_turn(self):
        def body():
            first, second = _instructions_of_turns()
            second.depends_on(first)

        with self.assertRaisesRegex(simulator.NkiValidationError, "does not enclose"):
            harness.run(body)

    def test_what_a_body_may_do(self):
        def body(x):
            me = nl.program_id(0)
            kept, read = tile(4, 4, value=me), psum(4, 4, value=2)
            out = nl.ndarray((2, 4, 4), nl.float32, buffer=nl.shared_hbm)

            before = nisa.memset(tile(1, 1), 0)

            def turn(i):
                own = psum(4, 4, value=1)
                first = nisa.tensor_tensor(own, own, kept, nl.add).depends_on(before)
                nisa.tensor_copy(kept, own).depends_on(first)

                def inner(j):
                    nisa.tensor_copy(psum(4, 4), kept)
                    nisa.tensor_tensor(kept, kept, read, nl.add)

                nl.fori_loop(0, 2, inner)
                nisa.core_barrier(out, (0, 1))

            nl.fori_loop(0, 3, turn)
            nisa.dma_copy(out[me], kept)
            return out

        # Each of three turns adds 1, and each of two turns in it 2.
        result = harness.run(body, np.ones((4, 4), np.float32), lnc=2)
        np.testing.assert_array_equal(result.outputs[0][:, 0, 0], [15, 16])
        self.assertEqual(result.findings, [])


def _instructions_of_turns():
    made = []
    nl.fori_loop(0, 2, lambda i: made.append(nisa.memset(tile(1, 1), 0)))
    return made


def _down(register):
    return nisa.register_alloc(int(register) - 1)


def _meets():
    """The body of a loop with a barrier."""
    shared = nl.ndarray((4, 4), nl.float32, buffer=nl.shared_hbm)
    return lambda i: nisa.core_barrier(shared, (0, 1)) and None
