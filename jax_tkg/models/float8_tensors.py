"""float8 weights in folders of safetensors: what `config.json` says of them, and their values.

Weights are multiplied out when they are loaded. Activations stay in the model's dtype, whatever
scheme the checkpoint names for them, which is closer to the model before its quantization.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jax_tkg.models.errors import ModelError
from jax_tkg.models.typed_keys import Range, TypedKeys

DTYPES = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
"""float8 dtypes by their names in safetensors files."""

SCALE_SUFFIXES = ("_scale", "_scale_inv")
"""What follows a tensor's name in that of its scale. Either multiplies the stored weight."""

_METHOD = "quant_method"
_READ = {
    "fp8": {
        "weight_block_size",
        "activation_scheme",
        "fmt",
        "modules_to_convert",
        "modules_to_not_convert",
    },
    "fbgemm_fp8": {"activation_scale_ub", "modules_to_not_convert"},
    "compressed-tensors": {
        "config_groups",
        "format",
        "global_compression_ratio",
        "ignore",
        "quantization_status",
        "version",
    },
    # Its weights are in dtypes of their own; see `mxfp4_tensors`.
    "mxfp4": {"modules_to_not_convert"},
}
"""The methods whose weights are float8 with scales, and their keys."""

_NEUTRAL: Mapping[str, Any] = {
    # How the loader is to run the model.
    "dequantize": (True, False),
    # Of scales, and of experts.
    "scale_fmt": "float",
    "expert_dtype": "fp8",
    "sparsity_config": {},
    "transform_config": {},
}
"""Further keys, and the values with which weights are as this module reads them."""

_BLOCK = Range(1, 1 << 20)


@dataclasses.dataclass(frozen=True)
class Float8:
    """How a checkpoint's float8 weights are scaled.

    Attributes:
      block: rows and columns of a weight that share a scale; None: rows, or whole weights.
    """

    block: tuple[int, int] | None = None

    def multiplied(self, where: str, stored: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """The weights [rows, columns] float32.

        Args:
          where: file and tensor, for the message.
          stored: [rows, columns] float8.
          scale: as stored: one number, one for each row, or one for each block.

        Raises:
          ModelError: the scale has another shape.
        """
        rows, columns = stored.shape
        wide = scale.astype(np.float32)
        if scale.size == 1:
            factors = wide.reshape(1, 1)
        elif scale.shape in ((rows,), (rows, 1)):
            factors = wide.reshape(rows, 1)
        else:
            factors = self._of_blocks(where, wide, rows, columns)
        return stored.astype(np.float32) * factors

    def _of_blocks(self, where: str, scale: np.ndarray, rows: int, columns: int) -> np.ndarray:
        expected = f"one number or [{rows}, 1]"
        if self.block is not None:
            high, wide = self.block
            shape = (-(-rows // high), -(-columns // wide))
            if scale.shape == shape:
                return scale.repeat(high, axis=0)[:rows].repeat(wide, axis=1)[:, :columns]
            expected += f" or {list(shape)}"
        raise ModelError(f"{where}: expected a scale of {expected}, got shape {list(scale.shape)}")


def read_float8(keys: TypedKeys) -> Float8:
    """What `quantization_config` says, if it is there.

    Raises:
      ModelError: another method, or a key that is not known.
    """
    quantization = keys.object("quantization_config")
    if not list(quantization):
        return Float8()
    method = quantization.string(_METHOD, tuple(_READ))
    for key in quantization:
        if key not in _READ[method] | {_METHOD}:
            quantization.check_neutral(key, _NEUTRAL.get(key, ()))
    if method == "compressed-tensors":
        quantization.string("format", ("float-quantized",))
        return _of_groups(quantization.object("config_groups"))
    return _of_blocks(quantization, "weight_block_size")


def _of_groups(groups: TypedKeys) -> Float8:
    """What compressed-tensors says of its groups of layers, which must have blocks of one size."""
    found = Float8()
    for name in groups:
        # A list names layers for one of the package's presets, of which none has blocks.
        if isinstance(groups.raw(name), list):
            continue
        weights = groups.object(name).object("weights")
        stated = _of_blocks(weights, "block_structure")
        if None not in (stated.block, found.block) and stated != found:
            raise weights.error("block_structure", f"{list(found.block or ())}, as in other groups")
        found = found if stated.block is None else stated
    return found


def _of_blocks(keys: TypedKeys, key: str) -> Float8:
    """Blocks of the sizes that a key states, if it is there."""
    if key not in keys:
        return Float8()
    sizes = keys.integers(key, _BLOCK)
    if len(sizes) != 2:
        raise keys.error(key, "rows and columns")
    return Float8((sizes[0], sizes[1]))


class Float8File:
    """The float8 tensors of one file, which safetensors cannot read as NumPy.

    The header is parsed once: of a model with experts it describes thousands of tensors.

    Args:
      path: a file whose header safetensors has checked.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            self._entries = json.loads(file.read(size))
        self._start = 8 + size

    def tensor(self, name: str) -> np.ndarray:
        """A tensor of the file."""
        entry = self._entries[name]
        start, end = entry["data_offsets"]
        with self._path.open("rb") as file:
            file.seek(self._start + start)
            content = file.read(end - start)
        return np.frombuffer(content, DTYPES[entry["dtype"]]).reshape(entry["shape"])
