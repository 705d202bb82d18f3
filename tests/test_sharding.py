"""PartitionSpecs, against specs written by hand and against the model on one device."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from jax.sharding import PartitionSpec as P

import jax_tkg
from jax_tkg import sharding, weights
from tests import cases

# "T" stands for the tensor axis, "D" for the data axis.
BY_HAND = {
    "X": ("D", None, None),
    "RoPE_cos": (None, "D", None),
    "RoPE_sin": (None, "D", None),
    "mask_cache": (None, "D", "T", None),
    "mask_active": (None, "D", "T", None),
    "position_ids": ("D", None),
    "hidden": ("D", None, None),
}
BY_HAND_PER_LAYER = {
    "W_qkvs": (None, "T"),
    "W_outs": ("T", None),
    "W_gates": (None, "T"),
    "W_ups": (None, "T"),
    "W_downs": ("T", None),
    "W_gamma_qkvs": (None, None),
    "W_gamma_mlps": (None, None),
    "K_caches": ("D", "T", None, None),
    "V_caches": ("D", "T", None, None),
    "W_gate_scales": (None, "T"),
    "W_up_scales": (None, "T"),
    # The columns of W_down are whole on every rank.
    "W_down_scales": (None, None),
}
FLOAT8 = (("float8_e4m3",) * 3,) * 2
WHOLE = cases.Shape(B=2, S=2, q=4, k=2, d=64, H=256, I=512, L=2, quantized=FLOAT8)


@pytest.mark.thorough
class SpecsTest(parameterized.TestCase):
    @parameterized.product(
        tensor_axis=("tp", ("x", "y"), None), data_axis=(None, "dp"), stacked=(False, True)
    )
    def test_by_hand(self, tensor_axis: Any, data_axis: Any, stacked: bool) -> None:
        specs = sharding.partition_specs(tensor_axis, data_axis, stacked=stacked)
        axes = {"T": tensor_axis, "D": data_axis, None: None}
        layer = (None,) if stacked else ()
        for name, letters in BY_HAND.items():
            self.assertEqual(getattr(specs, name), P(*(axes[one] for one in letters)), name)
        for name, letters in BY_HAND_PER_LAYER.items():
            want = P(*layer, *(axes[one] for one in letters))
            self.assertEqual(getattr(specs, name), want, name)

    def test_experts_by_hand(self) -> None:
        by_expert = sharding.partition_specs("tp", expert_split="expert")
        by_size = sharding.partition_specs("tp", stacked=True, expert_split="intermediate")
        for name, of_experts, of_size in (
            ("W_gates", P("tp", None, None), P(None, None, None, "tp")),
            ("W_downs", P("tp", None, None), P(None, None, "tp", None)),
            ("W_up_scales", P("tp", None, None), P(None, None, None, "tp")),
            ("W_down_scales", P("tp", None, None), P(None, None, None, None)),
            ("bias_gates", P("tp", None), P(None, None, "tp")),
            ("bias_downs", P("tp", None), P(None, None, None)),
            ("W_routers", P(None, None), P(None, None, None)),
            ("bias_routers", P(None, None), P(None, None, None)),
            ("W_shared_ups", P(None, "tp"), P(None, None, "tp")),
            ("W_shared_downs", P("tp", None), P(None, "tp", None)),
            ("W_qkvs", P(None, "tp"), P(None, None, "tp")),
        ):
            self.assertEqual(getattr(by_expert, name), of_experts, name)
            self.assertEqual(getattr(by_size, name), of_size, name)
        some = sharding.partition_specs("tp", expert_split="expert", expert_layers=(False, True))
        self.assertEqual(some.W_gates, [P(None, "tp"), P("tp", None, None)])
        self.assertEqual(some.bias_downs, P("tp", None))

    def test_bad_experts(self) -> None:
        with self.assertRaisesRegex(ValueError, "expert_split: expected 'intermediate', 'expert'"):
            sharding.partition_specs("tp", expert_split="I")
        for options in ({"stacked": True, "expert_split": "expert"}, {}):
            with self.assertRaisesRegex(ValueError, "expert_layers: expected None"):
                sharding.partition_specs("tp", expert_layers=(True,), **options)

    def test_placing(self) -> None:
        """Layers with experts and without have specs of their own; what is absent stays absent."""
        mesh = jax.sharding.Mesh(np.asarray(jax.devices("cpu")[:2]), ("tp",))
        specs = sharding.partition_specs("tp", expert_split="expert", expert_layers=(True, False))
        W_gates = [np.zeros((4, 128, 128)), np.zeros((128, 256))]
        placed = sharding.place({"W_gates": W_gates, "mask_active": None}, mesh, specs)
        self.assertIsNone(placed["mask_active"])
        shards = [array.addressable_shards[1].data.shape for array in placed["W_gates"]]
        self.assertEqual(shards, [(2, 128, 128), (128, 128)])
        in_tuple = sharding.place({"W_gates": tuple(W_gates)}, mesh, specs)["W_gates"]
        self.assertIsInstance(in_tuple, tuple)
        for one, other in zip(in_tuple, placed["W_gates"], strict=True):
            self.assertEqual(one.sharding, other.sharding)
        with self.assertRaisesRegex(ValueError, "arguments: expected array arguments .* 'W_gate'"):
            sharding.place({"W_gate": W_gates}, mesh, specs)

    @parameterized.parameters(
        (False, (1, 2)), (False, (2, 2)), (True, (1, 2)), (True, (2, 2)), (False, (2, 4))
    )
    @pytest.mark.extended_except("1", "2")
    def test_the_whole_model(self, stacked: bool, mesh: tuple[int, int]) -> None:
        """A float8 model with arrays as for one device, split by the specs over several.

        Four ranks share its two KV heads.
        """
        rng = np.random.default_rng(0)
        whole, inputs = cases.random_weights(WHOLE, rng), cases.random_inputs(WHOLE, rng)
        copies = weights.split_heads(WHOLE.q, WHOLE.k, mesh[1]).copies
        packed = {**whole, "W_qkvs": [_packed(layer, mesh[1]) for layer in whole["W_qkvs"]]}
        arguments = {**packed, **inputs}
        for name in ("K_caches", "V_caches"):
            arguments[name] = [np.repeat(cache, copies, axis=1) for cache in inputs[name]]
        if stacked:
            arguments = cases.stack(arguments)
        specs = sharding.partition_specs("tp", "dp", stacked=stacked)

        def step(arguments: Any) -> Any:
            out = jax_tkg.transformer_tkg(**arguments, **cases.options(WHOLE), axis_name="tp")
            return tuple(out)

        devices = np.asarray(jax.devices("cpu")[: mesh[0] * mesh[1]]).reshape(mesh)
        device_mesh = jax.sharding.Mesh(devices, ("dp", "tp"))
        run = jax.shard_map(
            step,
            mesh=device_mesh,
            in_specs=({name: getattr(specs, name) for name in arguments},),
            out_specs=(specs.hidden, specs.K_caches, specs.V_caches),
        )
        placed = sharding.place(arguments, device_mesh, specs)
        leaf = jax.tree.leaves(placed["V_caches"])[0]
        self.assertEqual(leaf.sharding.spec, specs.V_caches)
        hidden_states, *updated = jax.jit(run)(placed)
        hidden, K, V, written = cases.expected(WHOLE, [whole], [inputs])
        for copy in range(copies):
            # Layers come first where they are stacked.
            mine = jax.tree.map(lambda cache, copy=copy: cache[..., copy::copies, :, :], updated)
            got = jax_tkg.TransformerTkgOutput(hidden_states, *mine)
            cases.check(got, WHOLE, inputs, hidden, K[0], V[0], written)


def _packed(W_qkv: np.ndarray, ranks: int) -> jax.Array:
    """The columns of one device's W_qkv in the order for several ranks."""
    ends = (WHOLE.q * WHOLE.d, (WHOLE.q + WHOLE.k) * WHOLE.d)
    return weights.pack_qkv(*np.split(W_qkv, ends, axis=1), WHOLE.d, ranks)


if __name__ == "__main__":
    absltest.main()
