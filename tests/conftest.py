"""Eight CPU devices for the tests under shard_map; set before JAX starts its backend."""

import hypothesis
import jax

jax.config.update("jax_num_cpu_devices", 8)

# Runs are repeatable, and a slow machine is no failure.
hypothesis.settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")
