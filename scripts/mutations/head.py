"""Faults of the head: final norm, candidates, and what models choose from."""

from __future__ import annotations

from scripts.mutations.mutation import Mutation

HEAD: tuple[Mutation, ...] = (
    Mutation(
        "kernel lists the other core's candidates first",
        "kernels/candidates.py",
        "    own = core.index\n    other = 1 - own\n    nisa.tensor_copy(dst=both",
        "    own = 1 - core.index\n    other = 1 - own\n    nisa.tensor_copy(dst=both",
        ("stages/test_candidates.py",),
    ),
    Mutation(
        "kernel counts columns of each bank from its segment's first",
        "kernels/candidates.py",
        "found.search(logits, column + first * width)",
        "found.search(logits, column)",
        ("stages/test_candidates.py",),
    ),
    Mutation(
        "kernel's second core multiplies the first columns",
        "kernels/divisions.py",
        "return (half, V - half)",
        "return (0, V - half)",
        ("stages/test_candidates.py",),
    ),
    Mutation(
        "kernel searches columns of the segment before again",
        "kernels/candidates.py",
        "if first == 0 and skipped > 0:",
        "if first == 0 and skipped > 127:",
        ("stages/test_candidates.py",),
    ),
    Mutation(
        "kernel caps logits before it scales them",
        "kernels/candidates.py",
        "scale=1.0 / softcap",
        "scale=1.0 / (scale * softcap)",
        ("stages/test_candidates.py",),
    ),
    Mutation(
        "reference caps logits before it scales them",
        "reference/candidates.py",
        "jnp.tanh(values / parameters.logit_softcap)",
        "jnp.tanh(values / parameters.logit_scale / parameters.logit_softcap)",
        ("stages/test_candidates.py", "test_candidates.py"),
    ),
    Mutation(
        "kernel takes NaN for a logit",
        "kernels/candidates.py",
        "op0=nl.greater_equal, operand0=LOWEST_LOGIT",
        "op0=nl.not_equal, operand0=LOWEST_LOGIT",
        ("stages/test_candidates.py",),
    ),
    Mutation(
        "reference takes NaN for a logit",
        "reference/candidates.py",
        "logits >= LOWEST",
        "~(logits < LOWEST)",
        ("stages/test_candidates.py",),
    ),
    Mutation(
        "candidates of ranks are numbered by rank",
        "reference/candidates.py",
        "return columns + place_in_group(parameters) * jnp.int32(V)",
        "return columns + place_in_group(parameters) * jnp.int32(1)",
        ("test_candidates.py",),
    ),
    Mutation(
        "of equal candidates the last rank's come first",
        "output_head.py",
        "logits, places = jax.lax.top_k(candidate_logits, count)\n",
        "logits, places = jax.lax.top_k(candidate_logits[..., ::-1], count)\n"
        "    places = candidate_logits.shape[-1] - 1 - places\n",
        ("test_candidates.py",),
    ),
    Mutation(
        "the likeliest of equal candidates is the last rank's",
        "output_head.py",
        "ids = jnp.where(candidate_logits == largest, candidate_ids, none)\n"
        "        return largest, jnp.min(ids",
        "ids = jnp.where(candidate_logits == largest, candidate_ids, -1)\n"
        "        return largest, jnp.max(ids",
        ("test_candidates.py",),
    ),
    Mutation(
        "every launch has the head",
        "lowering/launches.py",
        "if first + count < total:",
        "if first + count < 0:",
        ("kernels/test_candidates.py",),
    ),
    Mutation(
        "heads are padded with zeros",
        "models/packing.py",
        "head[:, rows.shape[0] :] = np.nan",
        "head[:, rows.shape[0] :] = 0",
        ("models/test_candidates.py",),
    ),
    Mutation(
        "all logits have those of the padding",
        "models/forward.py",
        "logits = logits[..., : self.model.config.vocabulary_size]",
        "logits = logits[..., : self.model.config.vocabulary_size + 8]",
        ("models/test_decode.py",),
    ),
    Mutation(
        "candidates are not scaled and capped",
        "models/forward.py",
        "return Scores(self._scaled(logits), ids), *caches",
        "return Scores(logits, ids), *caches",
        ("models/test_candidates.py",),
    ),
    Mutation(
        "candidates are taken where the kernel has no room",
        "models/forward.py",
        "return all(found)",
        "return True",
        ("models/test_candidates.py",),
    ),
    Mutation(
        "candidates are enough with a penalty",
        "models/sampling.py",
        "        if self.penalizes:\n            return None\n        if self.greedy",
        "        if self.greedy",
        ("models/test_sampling.py",),
    ),
    Mutation(
        "top_k keeps more of equal logits",
        "models/sampling.py",
        "(numbers > last_id)",
        "(numbers < 0)",
        ("models/test_sampling.py",),
    ),
    Mutation(
        "slots keep more of equal logits",
        "serving/slot_sampling.py",
        "(jnp.cumsum(equal, axis=-1) <= room)",
        "(room > 0)",
        ("serving/test_slot_sampling.py",),
    ),
    Mutation(
        "candidates are drawn with noise of their own",
        "models/sampling.py",
        "jnp.take_along_axis(noise, ids, axis=-1) + logits",
        "noise[:, : ids.shape[1]] + logits",
        ("models/test_sampling.py",),
    ),
)
