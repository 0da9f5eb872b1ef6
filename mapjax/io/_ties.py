"""TIES without the whole model in memory: an exact k-th largest in two passes."""

import dataclasses
import threading
from typing import Literal

import numpy as np

from mapjax.transforms._checks import check_density, check_scope

_LOW_BITS = 15  # of the 31 that a magnitude has in float32, the first pass sees the others
_BINS = 1 << 16


@dataclasses.dataclass(frozen=True)
class TIES:
    """TIES for `merge_files`: `mapjax.transforms.ties` for models of any size.

    Reads everything once or twice more, to find the smallest magnitude that is kept.

    Attributes:
        density: The share of numbers of each task vector to keep, in (0, 1].
        scope: The numbers that compete: of one "tensor", or "global", of all of them.

    References:
        Yadav et al., *TIES-Merging: Resolving Interference When Merging Models*, NeurIPS
        2023, arXiv 2306.01708, Algorithm 1.
    """

    density: float = 0.2
    scope: Literal["tensor", "global"] = "tensor"

    def __post_init__(self) -> None:
        check_density(self.density)
        check_scope(self.scope)


class Histogram:
    """Counts magnitudes by their upper bits, then those of one bin by their lower bits.

    Magnitudes in float32 are ordered as their bits are, so two passes find the k-th largest
    of any number of them exactly.
    """

    nbytes = 2 * 8 * _BINS  # those kept and those of a piece

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS, np.int64)
        self._lock = threading.Lock()
        self._bin: int | None = None
        self._above = 0

    def add(self, magnitudes: np.ndarray) -> None:
        """Count magnitudes; from several threads."""
        bits = magnitudes.view(np.uint32)
        if self._bin is None:
            which = (bits >> _LOW_BITS).astype(np.uint16)
        else:
            which = bits[bits >> _LOW_BITS == self._bin] & ((1 << _LOW_BITS) - 1)
        counts = np.bincount(which, minlength=_BINS)
        with self._lock:
            self.counts += counts

    def narrow(self, k: int) -> None:
        """End the first pass: look only into the bin of the k-th largest."""
        self._bin, self._above = _bin_of(self.counts, k)
        self.counts[:] = 0

    def kth_largest(self, k: int) -> float:
        """End the second pass."""
        assert self._bin is not None
        low, _ = _bin_of(self.counts, k - self._above)
        bits = np.uint32(self._bin << _LOW_BITS | low)
        return float(bits.view(np.float32))


def kept(density: float, size: int) -> int:
    """Say how many of so many numbers are kept."""
    return max(1, round(density * size))


def kth_largest(values: np.ndarray, k: int) -> float:
    """Find the k-th largest of values that are in memory; reorders them."""
    values.partition(values.size - k)
    return float(values[values.size - k])


def _bin_of(counts: np.ndarray, k: int) -> tuple[int, int]:
    """Find the bin of the k-th largest, and how many numbers are in bins above."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, k))
    return len(counts) - 1 - place, int(from_top[place] - counts[len(counts) - 1 - place])
