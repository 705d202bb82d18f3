"""A model's sizes for the profile from a Hugging Face `config.json`."""

from __future__ import annotations

import pathlib
from typing import Any

from jax_tkg.models import json_config
from jax_tkg.models.config import ModelConfig
from jax_tkg.models.folder import ModelFolder
from jax_tkg.profile.model_shapes import ModelShape

OPTIONS = ("activation", "softmax_scale", "attention_softcap")
"""Static options of the operation that are fields of `ModelConfig`."""


def read_model(path: str) -> ModelShape:
    """The model that a `config.json` describes.

    Args:
      path: the file, or the folder that holds it.

    Raises:
      ModelError: there is no such file, or the model is refused; see `json_config.read_config`.
      ValueError: its layers have windows of several sizes, or only some of them experts.
    """
    file = pathlib.Path(path)
    if file.is_dir():
        file /= json_config.CONFIG
    return shape_of(json_config.read_config(ModelFolder(file.parent).json(file.name)))


def shape_of(config: ModelConfig) -> ModelShape:
    """The shape of a model with this configuration.

    Raises:
      ValueError: its layers have windows of several sizes, or only some of them experts.
    """
    if config.dense_layers:
        raise ValueError(
            f"--config: expected experts in all layers or in none, got the dense layers "
            f"{list(config.dense_layers)}"
        )
    windows = [kind.window for kind in config.layers if kind.window is not None]
    if len(set(windows)) > 1:
        raise ValueError(f"--config: expected windows of one size, got {sorted(set(windows))}")
    options: dict[str, Any] = {name: getattr(config, name) for name in OPTIONS}
    experts = config.experts
    if experts is not None:
        options["experts_per_token"] = experts.per_token
        options["routing"] = experts.routing
        options["normalize_expert_weights"] = experts.normalize_weights
    return ModelShape(
        layers=config.num_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size if experts is None else experts.intermediate_size,
        query_heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_size=config.head_size,
        operands=config.optional_operands,
        options=tuple(options.items()),
        window=windows[0] if windows else None,
        window_layers=len(windows),
        experts=0 if experts is None else experts.count,
        vocabulary=config.vocabulary_size,
        shared=0 if experts is None else experts.shared_size,
    )
