"""Merge checkpoints that are larger than memory."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mapjax._keys import check_key
from mapjax._progress import progress_bar
from mapjax.io._inputs import Inputs, check_inputs, read_coefficients, read_experts
from mapjax.io._open import open_checkpoint
from mapjax.io._plan import MergePlan, Piece, make_plan
from mapjax.io._recipe import Recipe, compute, copied, schedule
from mapjax.io._shards import Form, Shards, check_output, new_safetensors, shards_like
from mapjax.io._stream import run
from mapjax.io._thresholds import find_thresholds, first_pass
from mapjax.io._ties import TIES


def merge_files(
    base: str | Path,
    experts: Mapping[str, str | Path] | Sequence[str | Path],
    output: str | Path,
    coefficients: Any,
    *,
    transform: Any = None,
    elementwise: bool = False,
    key: Any = None,
    memory: int = 4 * 2**30,
    dtype: Any = None,
    statistics: bool = False,
    verify: bool = True,
    dry_run: bool = False,
    progress: bool | None = None,
) -> MergePlan:
    r"""Merge files to files, $\theta_0 + \sum_i c_i v_i$, in bounded memory.

    Reads, computes and writes at the same time, a piece of a tensor at a time. Sums in
    float32 (float64 for float64), rounded once. Every error that names, shapes, dtypes,
    disk and memory can make is found before anything is written; the output appears when
    it is complete.

    Args:
        base: The pretrained parameters: safetensors of any kind, or .npz.
        experts: Those of the fine-tuned models, by name or in order; tensors and shapes are
            those of the base, their formats, shards and widths may be others.
        output: A .safetensors file, or a folder if the base has shards or is one: shards,
            index, order, dtypes, tied tensors, metadata and small text files like the
            base's.
        coefficients: One number per expert.
        transform: Edits the task vectors: `TIES(...)`, or a function such as
            `lambda tv: mj.transforms.ties(tv, density=0.2)`, which gets each tensor alone
            and whole, under its own name.
        elementwise: The function looks at each number on its own: it gets flat blocks of
            2^18 numbers, and tensors larger than memory can be merged.
        key: For a function that takes one, such as `functools.partial(mj.transforms.dare,
            density=0.1)`: passed as `key=`, another for every tensor and block.
        memory: The bound, in bytes, beside Python and JAX themselves.
        dtype: Write merged tensors in this floating-point dtype, and complex ones in their
            own; None keeps the base's.
        statistics: Merge BatchNorm statistics as well.
        verify: Compare files with the hashes beside them first, as `load` does.
        dry_run: Make the plan, which takes milliseconds, and stop.
        progress: True or False to insist on a progress bar or on none.

    Returns:
        What was done, or would be: tensors merged and left alone, memory, bytes.

    Raises:
        ValueError: If the files do not fit each other, are damaged, quantised or hold NaN or
            infinity, the coefficients are not one per expert, the transform returns something
            else, or `memory` is too small. Nothing is left behind.
        OSError: If a file cannot be read or written.

    Example:
        >>> import numpy as np, pathlib, tempfile, mapjax.io
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for name, w in {"base": [0, 0], "a": [1, 0], "b": [0, 1]}.items():
        ...     mapjax.io.save(folder / f"{name}.npz", {"w": np.array(w, np.float32)})
        >>> paths = [folder / "a.npz", folder / "b.npz"]
        >>> output = folder / "merged.safetensors"
        >>> plan = mapjax.io.merge_files(folder / "base.npz", paths, output, [0.5, 0.25])
        >>> plan.merged, mapjax.io.load(output)
        (('w',), {'w': array([0.5 , 0.25], dtype=float32)})
    """
    names, paths = read_experts(experts)
    recipe = _recipe(coefficients, names, transform, elementwise, key)
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(open_checkpoint(path)) for path in (Path(base), *paths)
        ]
        inputs = check_inputs(
            opened[0], opened[1:], names, statistics=statistics, dtype=dtype
        )
        order = schedule(inputs, recipe, memory)
        groups = (
            first_pass(inputs, transform, memory) if isinstance(transform, TIES) else []
        )
        shards, forms = _output(inputs, Path(output))
        written = check_output(Path(output), shards, forms)
        first = [piece for group in groups for piece in group]
        plan = make_plan(inputs, (first, order.pieces), memory, written)
        if dry_run:
            return plan
        for checkpoint in opened if verify else ():
            checkpoint.verify()
        thresholds = (
            find_thresholds(inputs, transform, groups, memory)
            if isinstance(transform, TIES)
            else {}
        )
        merge_piece = compute(inputs, recipe, thresholds)
        with (
            new_safetensors(Path(output), shards, forms) as writer,
            _counting(plan, progress) as advance,
        ):

            def work(piece: Piece) -> None:
                if piece.name in order.copied:
                    numbers = copied(inputs, piece)
                else:
                    numbers = merge_piece(piece)
                writer.write(piece.name, piece.start, numbers)
                advance(numbers.nbytes)

            run(
                order.pieces,
                work,
                workers=inputs.workers,
                memory=memory - inputs.held,
                doubles=inputs.doubles,
            )
    return plan


def _recipe(
    coefficients: Any,
    names: tuple[str, ...],
    transform: Any,
    elementwise: bool,
    key: Any,
) -> Recipe:
    if not (transform is None or callable(transform) or isinstance(transform, TIES)):
        raise ValueError(
            f"`transform` is {transform!r}, but must be a function of `mapjax.TaskVectors`, "
            "or `mapjax.io.TIES(...)`."
        )
    if (elementwise or key is not None) and not callable(transform):
        raise ValueError(
            "`elementwise` and `key` are for a `transform` that is a function: leave them out."
        )
    if key is not None:
        check_key(key)
    return Recipe(read_coefficients(coefficients, names), transform, elementwise, key)


def _output(inputs: Inputs, output: Path) -> tuple[Shards, dict[str, Form]]:
    files = {
        info.file.resolve()
        for c in (inputs.base, *inputs.experts)
        for info in c.tensors.values()
    }
    if Path(os.path.realpath(output)) in files:
        raise ValueError(f"`output` is {output}, which is read: pass another path.")
    shards = shards_like(inputs.base, output)
    if not shards.folder and output.suffix != ".safetensors":
        raise ValueError(
            f"`output` is {output}, but a base in one file makes one .safetensors file: pass "
            "a path that ends so."
        )
    if shards.folder and output.suffix == ".safetensors":
        raise ValueError(
            f"`output` is {output}, but a base that is a folder makes a folder: pass "
            f"{output.with_suffix('')}, or convert the base first, `mapjax.io.save("
            "'base.safetensors', mapjax.io.load(folder))`, to get a file."
        )
    forms = {
        name: (info.shape, inputs.rounded(name))
        for name, info in inputs.base.tensors.items()
    }
    return shards, forms


@contextlib.contextmanager
def _counting(plan: MergePlan, show: bool | None) -> Iterator[Callable[[int], None]]:
    """Show how many MiB are written, which threads report in bytes."""
    lock, done = threading.Lock(), 0
    with progress_bar("merged MiB", plan.bytes_written >> 20, show=show) as bar:

        def advance(nbytes: int) -> None:
            nonlocal done
            with lock:
                before, done = done, done + nbytes
                bar((done >> 20) - (before >> 20))

        yield advance
