"""Tied tensors of an expert, under the names that the base keeps them by."""

import numpy as np

from mapjax.io._tensor import AbstractCheckpoint


class RenamedCheckpoint(AbstractCheckpoint):
    """A checkpoint whose tensors have other names; several may stand for one."""

    def __init__(self, checkpoint: AbstractCheckpoint, names: dict[str, str]) -> None:
        self.path, self.format = checkpoint.path, checkpoint.format
        self.metadata, self.aliases = checkpoint.metadata, {}
        self.tensors = {name: checkpoint.tensors[own] for name, own in names.items()}
        self.checkpoint, self._names = checkpoint, names

    def read_into(self, name: str, start: int, out: np.ndarray) -> None:
        """Read numbers of the flattened tensor from `start` on until `out` is full."""
        self.checkpoint.read_into(self._names[name], start, out)

    def close(self) -> None:
        """Close the files."""
        self.checkpoint.close()


def named_like(base: AbstractCheckpoint, expert: AbstractCheckpoint) -> AbstractCheckpoint:
    """Let an expert's tensors be read by the names of the base's.

    Raises:
        ValueError: If two tensors of the expert are one in the base.
    """
    groups = {name: [name] for name in base.tensors}
    for alias, kept in base.aliases.items():
        groups[kept].append(alias)
    found = {}
    for kept, names in groups.items():
        own = dict.fromkeys(expert.aliases.get(name, name) for name in names)
        stored = [name for name in own if name in expert.tensors]
        if len(stored) > 1:
            raise ValueError(
                f"{expert.path} has {stored[0]!r} and {stored[1]!r} as two tensors, but "
                f"they are tied, one tensor, in {base.path}. Tie them in the expert, or save "
                "the base with an array of its own for each."
            )
        if stored:
            found[kept] = stored[0]
    if all(kept == name for kept, name in found.items()):
        return expert
    used = set(found.values())
    more = {name: name for name in expert.tensors if name not in used}
    return RenamedCheckpoint(expert, found | more)
