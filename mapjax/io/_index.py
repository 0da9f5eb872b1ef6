"""Which files make a safetensors checkpoint; none outside its folder."""

import json
from pathlib import Path
from typing import Any

from mapjax.io._header import unique_pairs

INDEX_SUFFIX = ".safetensors.index.json"
"""How the name of an index ends."""

SHOWN = "[!.]*"
"""Names that are not hidden, as those are that macOS puts beside files (`._model`)."""

_LONGEST_INDEX = 100_000_000


def read_index(
    path: Path,
) -> tuple[Path | None, list[Path], dict[str, Path] | None, dict[str, Any]]:
    """Find the files of a checkpoint, given a file, an index or a folder.

    Returns:
        The index (None without one), the files, the file of each tensor as the index has
        it, and the index's metadata.

    Raises:
        ValueError: If the index is damaged, names a file outside its folder, or shards are
            missing.
    """
    if path.is_dir():
        indices = sorted(path.glob(SHOWN + INDEX_SUFFIX))
        if len(indices) > 1:
            raise ValueError(
                f"{path} has several indices, {[i.name for i in indices]}: pass the path of "
                "one of them."
            )
        if not indices:
            files = sorted(path.glob(SHOWN + ".safetensors"))
            return None, [inside(path, file.name, path) for file in files], None, {}
        path = indices[0]
    elif not path.name.endswith(".json"):
        return None, [path], None, {}
    names, metadata = _parse(path)
    files = {name: inside(path.parent, name, path) for name in sorted(set(names.values()))}
    missing = [name for name, file in files.items() if not _is_file(file)]
    if missing:
        raise ValueError(
            f"{path} names {len(files)} shards, of which {str(missing[:3])[:200]} are missing. "
            "Copy or download them into the same folder."
        )
    places = {tensor: files[name] for tensor, name in names.items()}
    return path, list(files.values()), places, metadata


def _parse(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    if path.stat().st_size > _LONGEST_INDEX:
        raise ValueError(
            f"{path} has more than {_LONGEST_INDEX} bytes and is no index: pass a "
            f"*{INDEX_SUFFIX}."
        )
    try:
        index = json.loads(path.read_bytes().decode(), object_pairs_hook=unique_pairs)
        names, metadata = index["weight_map"], index.get("metadata") or {}
        if not isinstance(metadata, dict) or not isinstance(names, dict):
            raise TypeError("`weight_map` and `metadata` must be JSON objects")
        if not names or any(not isinstance(file, str) for file in names.values()):
            raise TypeError("`weight_map` must map names of tensors to names of files")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no index of safetensors shards: {type(error).__name__}, "
            f"{str(error)[:200]}. Copy or download it again."
        ) from error
    return names, metadata


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # too long a name
        return False


def inside(folder: Path, name: str, owner: Path) -> Path:
    """Give the path of a shard, unless that would leave the folder."""
    plain = Path(name).parts
    if "\0" in name or not plain or Path(name).is_absolute() or ".." in plain:
        raise ValueError(_outside(owner, name))
    root = folder.resolve()
    allowed = [root]
    # The hub's cache keeps every file as a link from `snapshots/<revision>` to `blobs`.
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    try:
        real = (folder / name).resolve()
    except (OSError, RuntimeError) as error:  # too long, or links in a circle
        raise ValueError(_outside(owner, name)) from error
    if not any(real.is_relative_to(place) for place in allowed):
        raise ValueError(_outside(owner, name))
    return folder / name


def _outside(owner: Path, name: str) -> str:
    return (
        f"{owner} points to {name[:200]!r}, which is not inside its folder. Only files beside "
        "the index are read: put the shards there, or get the checkpoint from a source that "
        "you trust."
    )
