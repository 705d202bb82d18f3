"""Real models on `transformer_tkg`: checkpoints, tokenizers, sampling and the decode loop.

Needs the `models` extra: `pip install "jax_tkg[models]"`.
"""
