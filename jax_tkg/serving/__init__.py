"""Serving many requests at once: a running batch, which requests enter and leave as others go on.

Needs the `models` extra: `pip install "jax_tkg[models]"`.
"""

from jax_tkg.serving.request import Event, Request
from jax_tkg.serving.running_batch import RunningBatch

__all__ = ["Event", "Request", "RunningBatch"]
