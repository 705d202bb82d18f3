"""Faults of layers with experts, each with the tests that must notice it."""

from __future__ import annotations

from scripts.mutations.mutation import Mutation

_ROUTER = ("stages/test_router.py",)
_EXPERTS = ("stages/test_experts.py",)
_OPERATION = ("test_experts.py",)

EXPERTS: tuple[Mutation, ...] = (
    Mutation(
        "reference router leaves its bias out",
        "reference/router.py",
        "logits = logits + bias.astype(jnp.float32)",
        "logits = logits + 0 * bias.astype(jnp.float32)",
        _ROUTER,
    ),
    Mutation(
        "reference weights have the selection's bias",
        "reference/router.py",
        "weights = jnp.take_along_axis(values, chosen, axis=-1)",
        "weights = jnp.take_along_axis(scores, chosen, axis=-1)",
        _ROUTER,
    ),
    Mutation(
        "reference leaves the factor of weights out",
        "reference/router.py",
        "weights * jnp.float32(parameters.routed_scale)",
        "weights",
        _ROUTER,
    ),
    Mutation(
        "the last bias counts once on every rank",
        "reference/experts.py",
        "biases.down.astype(jnp.float32) / ranks_of(parameters)",
        "biases.down.astype(jnp.float32)",
        _OPERATION,
    ),
    Mutation(
        "experts of other ranks are run as this rank's first",
        "reference/experts.py",
        "jnp.where(is_held, shares, 0)",
        "shares",
        _OPERATION,
    ),
    Mutation(
        "ranks hold experts in the order of the mesh",
        "reference/expert_ranks.py",
        "places[list(group)] = np.arange(len(group))",
        "places[list(group)] = np.argsort(np.argsort(group))",
        _OPERATION,
    ),
    Mutation(
        "every block on the CPU takes its expert's first tokens",
        "cpu/expert_groups.py",
        "place = done[turn] + jnp.arange",
        "place = 0 * done[turn] + jnp.arange",
        ("cpu/test_expert_groups.py",),
    ),
    Mutation(
        "blocks on the CPU leave out the expert of each first one",
        "cpu/expert_groups.py",
        "(ends[None] <= turns[:, None])",
        "(ends[None] < turns[:, None])",
        ("cpu/test_expert_groups.py",),
    ),
    Mutation(
        "kernel chooses experts by eights",
        "kernels/router.py",
        "if wanted < EIGHT:",
        "if wanted < 1:",
        _ROUTER,
    ),
    Mutation(
        "kernel normalizes weights over all experts",
        "kernels/router.py",
        "        summands = weights\n",
        "        summands = values\n",
        _ROUTER,
    ),
    Mutation(
        "kernel router leaves its bias out",
        "kernels/router.py",
        "columns = Columns(first, width, bias=bias)",
        "columns = Columns(first, width)",
        _ROUTER,
    ),
    Mutation(
        "kernel counts an expert once for each user",
        "kernels/router.py",
        "            op0=nl.minimum,\n            operand0=1.0,",
        "            op0=nl.maximum,\n            operand0=0.0,",
        _EXPERTS,
    ),
    Mutation(
        "kernel leaves a router's float32 where blocks are skipped",
        "kernels/router.py",
        "                group.clear()\n",
        "                group.begin()\n",
        ("kernels/test_experts.py",),
    ),
    Mutation(
        "kernel's sum in PSUM begins anew with each expert",
        "kernels/experts.py",
        "            self.begun = True\n        else:",
        "            self.begun = self.begun\n        else:",
        ("kernels/test_experts.py",),
    ),
    Mutation(
        "kernel adds experts that nobody chose in PSUM",
        "kernels/experts.py",
        "if weighted and self.present != None:",
        "if weighted and self.present == 1:",
        ("kernels/test_experts.py",),
    ),
    Mutation(
        "kernel's passes without an expert are added",
        "kernels/experts.py",
        "if self.present == None:",
        "if True:",
        _EXPERTS,
    ),
    Mutation(
        "kernel takes the first expert's scales and biases",
        "kernels/experts.py",
        "    return columns[:, :, index]",
        "    return columns[:, :, 0]",
        _EXPERTS,
    ),
    Mutation(
        "kernel's last bias counts once on every rank",
        "kernels/experts.py",
        "operand0=1.0 / routing.sharing",
        "operand0=1.0",
        ("kernels/test_experts.py",),
    ),
    Mutation(
        "kernel runs no shared expert",
        "kernels/experts.py",
        "nisa.tensor_tensor(dst=own, data1=own, data2=shared, op=nl.add)",
        "nisa.tensor_tensor(dst=own, data1=own, data2=own, op=nl.maximum)",
        ("kernels/test_experts.py",),
    ),
    Mutation(
        "gate and up of fused experts change places",
        "models/layer_tensors.py",
        '"expert_gate_up": ("expert_gate", "expert_up")',
        '"expert_gate_up": ("expert_up", "expert_gate")',
        ("models/families/test_families.py",),
    ),
    Mutation(
        "gate and up of experts by column change places",
        "models/layer_tensors.py",
        '{"expert_gate": both[:, ::2], "expert_up": both[:, 1::2]}',
        '{"expert_gate": both[:, 1::2], "expert_up": both[:, ::2]}',
        ("models/families/test_families.py",),
    ),
    Mutation(
        "the shared expert has no residual factor",
        "models/packing.py",
        "down = _scaled(tensors.shared_down.T, config.residual_scale)",
        "down = tensors.shared_down.T",
        ("models/families/test_families.py",),
    ),
    Mutation(
        "layers are counted from zero where every n-th has experts",
        "models/families/json_layers.py",
        "if n in listed or (n + 1) % every)",
        "if n in listed or n % every)",
        ("models/families/test_published_configs.py",),
    ),
    Mutation(
        "one of anything unknown is off",
        "models/json_config.py",
        "(*_OFF, 1) if is_factor else _OFF",
        "(*_OFF, 1)",
        ("models/families/test_published_configs.py",),
    ),
    Mutation(
        "gpt-oss of GGUF files widens YaRN's limits",
        "models/families/gpt_oss.py",
        "truncate=False",
        "truncate=True",
        ("models/families/test_families.py",),
    ),
)
