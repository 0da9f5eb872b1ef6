"""Resize images by areas, in NumPy."""

import numpy as np
from jaxtyping import Float


def resize(
    images: Float[np.ndarray, "*batch height width"], shape: tuple[int, int]
) -> Float[np.ndarray, "*batch new_height new_width"]:
    """Give each new pixel the mean of the old image over the new pixel's area.

    Args:
        images: Images of one shape; smaller or larger than the new ones.
        shape: The new height and width.

    Returns:
        The new images, in the dtype of the old ones.
    """
    height, width = images.shape[-2:]
    rows, columns = _areas(height, shape[0]), _areas(width, shape[1])
    return (rows @ images @ columns.T).astype(images.dtype)


def _areas(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """How much of each new cell every old cell covers; rows sum to 1."""
    edges = np.linspace(0.0, old, new + 1)
    low, high = (
        np.maximum(edges[:-1, None], np.arange(old)),
        np.minimum(edges[1:, None], np.arange(1, old + 1)),
    )
    return np.maximum(high - low, 0.0) * (new / old)
