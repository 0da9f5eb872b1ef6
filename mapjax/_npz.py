"""NumPy archives whose bytes depend on nothing but the arrays."""

import zipfile
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np


def write_npz(
    file: BinaryIO, arrays: Mapping[str, np.ndarray], *, compressed: bool = False
) -> None:
    """Write arrays so that `np.load` reads them, and `load` their dtypes too."""
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(name + ".npy")  # the same bytes whatever the time
            member.compress_type = method
            if array.dtype.isbuiltin != 1:
                member.comment = array.dtype.name.encode()
                array = array.view(f"V{array.dtype.itemsize}")
            with archive.open(member, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)
