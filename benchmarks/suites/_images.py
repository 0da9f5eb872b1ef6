"""Folders of images with one folder for each class, read in an order of their own."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from mapjax._progress import progress_bar

# Those of torchvision's ImageFolder.
SUFFIXES = {
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp"),
    *(".pgm", ".tif", ".tiff", ".webp"),
}


class Example(NamedTuple):
    """An image that has not been read yet, and the number of its class."""

    path: Path
    label: int


def folders(path: Path, purpose: str) -> list[str]:
    """List the names of the folders in a folder, in alphabetical order.

    Args:
        path: Where to look. Hidden folders and all files are passed over.
        purpose: What a folder in it is for, to say when there is none.

    Raises:
        ValueError: If there is none.
    """
    found = path.is_dir() and sorted(p.name for p in path.iterdir() if p.is_dir())
    names = [name for name in found or [] if not name.startswith(".")]
    if not names:
        what = "has no folders" if path.is_dir() else "is no folder"
        raise ValueError(f"{path} {what}. Put one there for each {purpose}.")
    return names


def find(folder: Path, classes: Sequence[str], seed: int) -> list[Example]:
    """List the images of all classes, in an order that does not depend on the machine.

    The order is that of checksums of the seed and of the path from `folder`: a part of the
    list, such as its beginning, is a random part of the images, and the same everywhere.

    Args:
        folder: Has one folder for each class. Images may lie deeper in it.
        classes: The names of these folders. The place in the list is the label.
        seed: Draws the order.

    Raises:
        ValueError: If the folders are not those of the classes, or hold no image.
    """
    names = folders(folder, "class, with its images")
    missing, extra = sorted({*classes} - {*names}), sorted({*names} - {*classes})
    if missing or extra:
        parts = [f"lacks the classes {missing[:3]}"] if missing else []
        parts += [f"has {extra[:3]}, which are none"] if extra else []
        raise ValueError(
            f"{folder} {' and '.join(parts)}. It must have one folder for each of the "
            f"{len(classes)} classes of the task, an empty one if need be."
        )
    examples = [
        Example(path, label)
        for label, name in enumerate(classes)
        for path in (folder / name).rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    if not examples:
        raise ValueError(
            f"{folder} has no images. Put {', '.join(sorted(SUFFIXES))} there."
        )

    def checksum(example: Example) -> bytes:
        words = f"{seed}/{example.path.relative_to(folder).as_posix()}"
        return hashlib.sha256(words.encode()).digest()

    return sorted(examples, key=checksum)


def read(
    examples: Sequence[Example], size: int
) -> tuple[UInt8[np.ndarray, "examples size size 3"], Int[np.ndarray, " examples"]]:
    """Read images as red, green and blue from 0 to 255, and their labels.

    The shorter side becomes `size` by bicubic interpolation, and the middle of the longer
    one is kept, as in CLIP. A copy of all is in memory, of 3 size^2 bytes for each image.

    Raises:
        ValueError: If one is damaged.
    """
    images = np.empty((len(examples), size, size, 3), np.uint8)
    with (
        ThreadPoolExecutor() as pool,  # Pillow decodes and resizes without the lock
        progress_bar("Reading images", len(examples)) as advance,
    ):
        one_each = pool.map(lambda example: _read_one(example.path, size), examples)
        for row, image in zip(images, one_each, strict=True):
            row[...] = image
            advance(1)
    return images, np.array([example.label for example in examples], np.int32)


def _read_one(path: Path, size: int) -> np.ndarray:
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's, for damaged files
        raise ValueError(
            f"{path} cannot be read as an image: {error}. Copy it again, or remove it."
        ) from error
    shorter = min(image.size)
    # Sizes and offsets are rounded as torchvision's Resize and CenterCrop round them.
    width, height = (size * side // shorter for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + size, top + size)))
