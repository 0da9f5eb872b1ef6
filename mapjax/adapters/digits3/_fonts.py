"""Digits and other characters of FIGlet fonts as images."""

import io
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32

from mapjax.adapters.digits3._resize import resize

DIGITS = "0123456789"


def render_fonts(
    folder: Path, side: int, characters: str = DIGITS
) -> tuple[
    Float32[np.ndarray, "examples pixels"], Int32[np.ndarray, " examples"], list[str]
]:
    """Draw characters of every font in a folder.

    What a font draws with is a cell twice as high as wide, inked unless it is blank.
    Characters are cut out, scaled to fit 20/28 of the side, as in MNIST, and centred.
    Those that a font leaves blank are left out.

    Args:
        folder: Where the `.flf` and `.tlf` files are.
        side: The width and height of an image.
        characters: What to draw, of ASCII.

    Returns:
        The images in rows, with ink 1; the place of each in `characters`; and the name of
        each image's font.
    """
    images, targets, fonts = [], [], []
    for path in sorted(folder.glob("*.[ft]lf")):
        for place, cells in read_digits(path.read_bytes(), characters).items():
            if cells.any():
                images.append(_draw(cells, side))
                targets.append(place)
                fonts.append(path.stem)
    flat = np.stack(images).reshape(len(images), side**2)
    return flat, np.array(targets, np.int32), fonts


def read_digits(data: bytes, characters: str = DIGITS) -> dict[int, np.ndarray]:
    """Read characters of a FIGlet font, as matrices that say which cells are inked.

    Args:
        data: The font file, zipped or not.
        characters: What to read, of ASCII; the ten digits unless others are wanted.

    Returns:
        A matrix for each place in `characters`.

    References:
        The FIGfont standard, version 2: a header `flf2a$ height baseline length layout
        comments`, the comments, and from the space on `height` lines for each character.
    """
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            data = archive.read(archive.namelist()[0])
    # Fonts may hold characters that Unicode, but not the standard, takes for line ends.
    text = data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    header = lines[0].split()
    blanks, height, comments = header[0][-1] + " ", int(header[1]), int(header[5])
    matrices = {}
    for place, character in enumerate(characters):
        start = 1 + comments + (ord(character) - ord(" ")) * height
        rows = [row.rstrip() for row in lines[start : start + height]]
        rows = [row.rstrip(row[-1:]) for row in rows]  # one or two end marks
        width = max(map(len, rows), default=0)
        matrices[place] = np.array(
            [[cell not in blanks for cell in row.ljust(width)] for row in rows], bool
        ).reshape(len(rows), width)
    return matrices


def _draw(cells: np.ndarray, side: int) -> np.ndarray:
    """Cut out, scale and centre one character."""
    rows, columns = np.flatnonzero(cells.any(1)), np.flatnonzero(cells.any(0))
    cut = cells[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    height, width = 2 * cut.shape[0], cut.shape[1]
    scale = side * 20 / 28 / max(height, width)
    shape = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
    image = np.zeros((side, side), np.float32)
    image[top : top + shape[0], left : left + shape[1]] = resize(cut, shape)
    return image
