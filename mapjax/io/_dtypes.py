"""Names of dtypes in files, small floating-point ones included."""

import math
from pathlib import Path

import ml_dtypes
import numpy as np

SAFETENSORS = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
}
"""What the safetensors format calls each dtype."""

BY_NAME = {dtype.name: dtype for dtype in SAFETENSORS.values()} | {
    "complex128": np.dtype(np.complex128)
}
"""The dtypes that files may hold, by NumPy's names."""

_MOST_DIMENSIONS = 64  # NumPy's own limit
_MOST_BYTES = 2**62


def check_shape(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Return how many bytes a tensor takes, or refuse a shape that no array can have."""
    zero_or_one = math.prod(max(size, 1) for size in shape) * dtype.itemsize
    if (
        len(shape) > _MOST_DIMENSIONS
        or any(size < 0 for size in shape)
        or zero_or_one > _MOST_BYTES
    ):
        raise ValueError(
            f"{path}: tensor {name!r} claims the shape {str(shape)[:80]}, which no array can "
            "have. The file is damaged: copy or download it again."
        )
    return math.prod(shape) * dtype.itemsize
