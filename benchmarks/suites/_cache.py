"""What suites keep on disk: downloaded packages and trained parameters."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from mapjax import io

CACHE = Path("~/.cache/mapjax").expanduser()


def fetch(requirement: str, file: str, sha256: str) -> Path:
    """Find the file of a package in the cache, or download it there with pip, once.

    Nothing is installed: what is wanted is read out of the archive.

    Args:
        requirement: Name and version, such as "animal-mnist==0.4".
        file: The name of the wheel or of the source archive.
        sha256: What its bytes must hash to.

    Raises:
        RuntimeError: If it can neither be found nor downloaded, or is another.
    """
    path = CACHE / file
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        try:
            subprocess.run([*command, "--dest", str(CACHE), requirement], check=True)
        except subprocess.CalledProcessError as error:
            raise RuntimeError(
                f"{requirement} could not be downloaded. Put {file} into {CACHE} yourself."
            ) from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != sha256:
        raise RuntimeError(
            f"{path} has the SHA-256 {digest}, not {sha256}. Delete it and try again."
        )
    return path


def trained(name: str, train: Callable[[], PyTree], *ingredients: Any) -> PyTree:
    """Load what `train` made of the same ingredients before, or train and keep it.

    Args:
        name: Begins the name of the file, for people.
        train: Returns nested dicts of arrays, whose keys are words without dots. Keys come
            back in alphabetical order.
        *ingredients: All that the result depends on: pytrees of arrays, numbers and words.
            Name a version among them, and raise it when the training changes.
    """
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(ingredients):
        array = np.asarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    path = CACHE / "suites" / f"{name}-{digest.hexdigest()[:16]}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        io.save(path, train())
    return io.load(path, separator=".")
