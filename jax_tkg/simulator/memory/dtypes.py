"""NKI's data types, their NumPy storage, and how engines convert between them.

A dtype is a plain string (``nki.language.float32 == "float32"``), as in NKI. Arithmetic is done in
float32; `round_to` gives the value that an engine would store.
"""

import dataclasses
import functools
from typing import Any

import ml_dtypes
import numpy as np

DType = str


@dataclasses.dataclass(frozen=True)
class DTypeInfo:
    """The properties of one dtype.

    Attributes:
      name: NKI's name.
      storage: NumPy dtype of one element in memory.
      kind: "float", "int", "uint", "bool" or "packed".
      bits: unsigned NumPy dtype of the same size, for bit-exact copies.
    """

    name: str
    storage: np.dtype
    kind: str
    bits: np.dtype

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.storage.itemsize


_UNSIGNED: dict[int, np.dtype] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
}


def _info(name: str, storage: Any, kind: str) -> DTypeInfo:
    dtype = np.dtype(storage)
    return DTypeInfo(name, dtype, kind, _UNSIGNED[dtype.itemsize])


# Table "Supported Data Types by NKI" of the NKI ISA documentation.
DTYPES = {
    info.name: info
    for info in (
        _info("bool", np.uint8, "bool"),
        _info("int8", np.int8, "int"),
        _info("int16", np.int16, "int"),
        _info("int32", np.int32, "int"),
        _info("uint8", np.uint8, "uint"),
        _info("uint16", np.uint16, "uint"),
        _info("uint32", np.uint32, "uint"),
        _info("float16", np.float16, "float"),
        _info("float32", np.float32, "float"),
        _info("bfloat16", ml_dtypes.bfloat16, "float"),
        _info("tfloat32", np.float32, "float"),
        _info("float8_e4m3", ml_dtypes.float8_e4m3, "float"),
        _info("float8_e4m3fn", ml_dtypes.float8_e4m3fn, "float"),
        _info("float8_e5m2", ml_dtypes.float8_e5m2, "float"),
        _info("float8_e8m0fnu", ml_dtypes.float8_e8m0fnu, "float"),
        _info("float8_e5m2_x4", np.uint32, "packed"),
        _info("float8_e4m3fn_x4", np.uint32, "packed"),
        _info("float4_e2m1fn_x4", np.uint16, "packed"),
    )
}

FLOAT8 = ("float8_e4m3", "float8_e4m3fn", "float8_e5m2")

_ALIASES = {
    "bool_": "bool",
    "float8e4": "float8_e4m3",
    "float8e5": "float8_e5m2",
    # 64-bit host arrays have no counterpart on the device; PyTorch and NumPy make them by default.
    "int64": "int32",
    "uint64": "uint32",
    "float64": "float32",
}


@functools.lru_cache(maxsize=512)
def _named(name: str) -> DTypeInfo | None:
    return DTYPES.get(_ALIASES.get(name, name))


def info(dtype: Any) -> DTypeInfo:
    """Returns the properties of a dtype, given as an NKI string or a NumPy, ml_dtypes or PyTorch
    dtype.

    Raises:
      TypeError: no NKI dtype has that name.
    """
    if isinstance(dtype, str):
        found = _named(dtype)
    else:
        try:
            name = np.dtype(dtype).name
        except TypeError:
            name = str(dtype).removeprefix("torch.")
        found = _named(name)
    if found is None:
        raise TypeError(f"dtype {dtype!r} is not an NKI dtype; expected one of {list(DTYPES)}")
    return found


_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

# A table of all 256 values converts 8-bit floats several times faster than a cast.
_FLOAT8_VALUES = {
    DTYPES[name].storage: np.arange(256, dtype=np.uint8)
    .view(DTYPES[name].storage)
    .astype(np.float32)
    for name in (*FLOAT8, "float8_e8m0fnu")
}


def to_float32(values: np.ndarray) -> np.ndarray:
    """Converts the elements to float32: exact for every dtype except 32-bit integers."""
    if values.dtype == np.float32:
        return values
    if values.dtype == _BFLOAT16:
        # bfloat16 is the upper half of a float32. This is several times faster than a cast.
        wide = values.view(np.uint16).astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    table = _FLOAT8_VALUES.get(values.dtype)
    if table is not None:
        return table[values.view(np.uint8)]
    return values.astype(np.float32)


def round_tfloat32(values: np.ndarray) -> np.ndarray:
    """Rounds float32 values to 10 mantissa bits, to nearest even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    dropped = 13  # 23 mantissa bits of float32 minus 10 of tfloat32
    odd = (bits >> dropped) & 1
    rounded = (bits + ((1 << (dropped - 1)) - 1) + odd) & np.uint32(
        (0xFFFFFFFF << dropped) & 0xFFFFFFFF
    )
    return np.where(np.isfinite(values), rounded.view(np.float32), values)


def round_to(values: np.ndarray, dtype: DTypeInfo) -> np.ndarray:
    """Converts computed values to what an engine writes.

    Floats round to nearest even. Integers round to nearest even and saturate; NaN becomes 0. A
    value beyond the largest float8 value becomes infinity in float8_e4m3 and float8_e5m2, and NaN
    in float8_e4m3fn.
    """
    if dtype.name == "tfloat32":
        return round_tfloat32(values)
    if dtype.kind == "float":
        with np.errstate(over="ignore", invalid="ignore"):
            return values if values.dtype == dtype.storage else values.astype(dtype.storage)
    if values.dtype.kind in "iub":
        limits = np.iinfo(dtype.storage)
        wide = values.astype(np.int64)
        return np.clip(wide, limits.min, limits.max).astype(dtype.storage)
    if dtype.kind == "bool":
        return (values != 0).astype(np.uint8)
    if dtype.kind == "packed":
        raise TypeError(f"cannot convert computed values to the packed dtype {dtype.name}")
    limits = np.iinfo(dtype.storage)
    rounded = np.nan_to_num(np.rint(values.astype(np.float64)), nan=0.0)
    return np.clip(rounded, limits.min, limits.max).astype(np.int64).astype(dtype.storage)
