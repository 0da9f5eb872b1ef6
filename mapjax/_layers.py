"""Recognising the number of a tensor's layer in its key path."""

import re
from collections.abc import Iterable


def layer_numbers(paths: Iterable[str]) -> dict[str, int | None]:
    """Read the number of its layer from each key path, None where there is none.

    An entry of a path such as `layer_3`, `blocks.3` or `[3]` numbers a layer if, with the
    same entries before it, other paths have other numbers there. The first such entry
    counts, so that of `blocks[3].mlp.fc1` it is 3; and `vgg16` alone numbers nothing.

    Example:
        >>> layer_numbers(["['embed']", "['layer_0']['w']", "['layer_1']['w']"])
        {"['embed']": None, "['layer_0']['w']": 0, "['layer_1']['w']": 1}
    """
    numbered = {path: _numbered_entries(path) for path in paths}
    seen: dict[tuple[str, ...], set[int]] = {}
    for entries in numbered.values():
        for stem, number in entries:
            seen.setdefault(stem, set()).add(number)
    return {
        path: next((n for stem, n in entries if len(seen[stem]) > 1), None)
        for path, entries in numbered.items()
    }


def _numbered_entries(path: str) -> list[tuple[tuple[str, ...], int]]:
    """List the entries that end in a number: what precedes it, and the number."""
    entries = [entry for entry in re.split(r"[\[\].'\"/]+", path) if entry]
    found = []
    for i, entry in enumerate(entries):
        match = re.fullmatch(r"(.*?)(\d+)", entry)
        if match:
            found.append(((*entries[:i], match[1]), int(match[2])))
    return found
