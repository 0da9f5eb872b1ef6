"""What is known of a tensor before its numbers are read, and where they are read."""

import abc
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint.

    Attributes:
        shape: Its shape.
        dtype: Its NumPy dtype; small floats are those of `ml_dtypes`.
        file: The file or folder that holds it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes its numbers take in memory."""
        return self.size * self.dtype.itemsize


class Wish(NamedTuple):
    """How a tensor shall come: its dtype, and where on devices (None: on the host)."""

    dtype: np.dtype
    sharding: jax.sharding.Sharding | None


class AbstractCheckpoint(abc.ABC):
    """A checkpoint opened to look at: names, shapes and dtypes now, numbers on demand.

    A context manager: `with mj.io.open_checkpoint(path) as checkpoint: ...`.

    Attributes:
        path: What was opened.
        format: "safetensors", "npz", "orbax" or "msgpack".
        tensors: The tensors by name, in the order of the files.
        metadata: The strings that the file carries beside its tensors.
        aliases: Tied tensors, stored once: further names, and the name each stands for.
        tree: The tensors as the tree that was saved; None for a format of flat names.
    """

    path: Path
    format: str
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    aliases: dict[str, str]
    tree: PyTree = None

    @property
    def nbytes(self) -> int:
        """How many bytes all tensors take in memory."""
        return sum(info.nbytes for info in self.tensors.values())

    @abc.abstractmethod
    def read_into(self, name: str, start: int, out: np.ndarray) -> None:
        """Read the flattened tensor's numbers from `start` on until `out`, 1-D, is full."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close the files."""

    def verify(self) -> None:  # noqa: B027, as not every format has hashes
        """Compare what was stored with the hashes beside it, where there are any.

        Raises:
            ValueError: If one differs.
        """

    def place(self, wishes: Mapping[str, Wish]) -> dict[str, Any]:
        """Read whole tensors, each as a dtype and onto devices if that is asked for."""
        return {name: self._place(name, wish) for name, wish in wishes.items()}

    def _place(self, name: str, wish: Wish) -> Any:
        if wish.sharding is None:
            return self.read(name).astype(wish.dtype, copy=False)
        shape = self.tensors[self.aliases.get(name, name)].shape

        def part(index: Any) -> np.ndarray:
            return _narrowed(name, self.read(name, index).astype(wish.dtype, copy=False))

        return jax.make_array_from_callback(shape, wish.sharding, part)

    def read(self, name: str, index: tuple[Any, ...] = ()) -> np.ndarray:
        """Read a tensor or a slice of it; only the rows asked for are read.

        Args:
            name: One of `tensors`.
            index: Slices with a step of 1 of the leading axes; nothing reads everything.

        Raises:
            ValueError: If there is no such tensor, the first slice has a step, or the file is
                damaged.
            OSError: If the file cannot be read.
        """
        name = self.aliases.get(name, name)
        if name not in self.tensors:
            raise ValueError(
                f"{self.path} has no tensor {name!r}, but {some(list(self.tensors))}."
            )
        info = self.tensors[name]
        if not info.shape:
            rows, row = 1, 1
            first, last = 0, 1
        else:
            rows, row = info.shape[0], math.prod(info.shape[1:])
            first, last, step = (index[0] if index else slice(None)).indices(rows)
            if step != 1:
                raise ValueError(
                    f"`index` has the step {step} on the first axis of {name!r}, but rows are "
                    "read one after the other: leave the step out, and slice what was read."
                )
        last = max(first, last)
        flat = np.empty((last - first) * row, info.dtype)
        self.read_into(name, first * row, flat)
        shape = (last - first, *info.shape[1:]) if info.shape else ()
        return flat.reshape(shape)[(slice(None), *index[1:]) if index else ...]

    def __enter__(self) -> "AbstractCheckpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def as_bytes(numbers: np.ndarray) -> memoryview:
    """See contiguous numbers as the bytes that they are."""
    # Buffers of small floats, which the buffer protocol does not know, are bytes all the same.
    return memoryview(numbers.reshape(-1).view(np.uint8).data)


def difference(missing: list[str], extra: list[str]) -> str:
    """Say which names are missing that `like` has, and which it has not."""
    parts = [f"lacks {some(missing)}, which `like` has"] if missing else []
    parts += [f"has {some(extra)}, which `like` lacks"] if extra else []
    return " and ".join(parts)


def some(names: list[str], most: int = 3) -> str:
    """List a few names."""
    shown = ", ".join(map(repr, names[:most]))
    if not names:
        return "nothing"
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _narrowed(name: str, x: np.ndarray) -> np.ndarray:
    """Cut 64 bits to 32 as JAX does without its switch, if numbers stay what they are."""
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    if dtype == x.dtype:
        return x
    with np.errstate(over="ignore"):
        cut = x.astype(dtype)
    if x.dtype.kind in "iu":
        same = np.array_equal(cut, x)
    else:  # digits may be lost, but nothing may become infinite
        same = np.array_equal(np.isfinite(cut), np.isfinite(x))
    if not same:
        raise ValueError(
            f"{name!r} holds {x.dtype} numbers that 32 bits do not. Enable `jax_enable_x64`, "
            "or leave out `sharding`."
        )
    return cut
