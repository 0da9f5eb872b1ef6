"""A folder that holds a run: what was asked, what was evaluated, what was found."""

import contextlib
import json
import os
import socket
import tomllib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import IO, Any

import jax

from mapjax._atomic import existing_parent, new_file
from mapjax._result import provenance
from mapjax._solution import Solution
from mapjax._types import PRNGKey
from mapjax.io._solution import load_solution, save_solution

_FORMAT = "mapjax run 1"


class RunFolder:
    """A folder that holds a run, from its configuration to its pictures.

    Samples are appended as they arrive, everything else is written whole or not at all, so
    that a run that was killed goes on where it was. `with` holds a lock that the system
    releases when the process ends, however it ends; to read needs none.

    | file | what it holds |
    |---|---|
    | `samples.jsonl` | every real evaluation, for `save_to=` of a driver |
    | `config.toml` | the configuration as it was given |
    | `run.json` | key, versions, device, and what else was noted |
    | `solution.npz` | the solution, once there is one |
    | `pictures/` | what was drawn of it |

    Example:
        >>> import jax, jax.numpy as jnp, pathlib, tempfile, mapjax as mj, mapjax.io
        >>> def evaluate(c):
        ...     return jnp.stack([1 - (c**2).sum(1), 1 - ((1 - c) ** 2).sum(1)], axis=1)
        >>> key = jax.random.key(0)
        >>> with mapjax.io.RunFolder(pathlib.Path(tempfile.mkdtemp(), "run")) as run:
        ...     changed = run.begin(key=key)
        ...     solution = mj.map_front(
        ...         evaluate, num_coefficients=2, budget=12, key=key, save_to=run.samples
        ...     )
        ...     run.save(solution)
        >>> run.load().task_names
        ('task_0', 'task_1')
    """

    def __init__(self, path: str | os.PathLike):
        """Name a folder; nothing is made or read yet."""
        self.path = Path(path)
        self._lock: IO[str] | None = None

    @property
    def samples(self) -> Path:
        """The file for `save_to=` of a driver."""
        return self.path / "samples.jsonl"

    @property
    def _solution(self) -> Path:
        return self.path / "solution.npz"

    @property
    def pictures(self) -> Path:
        """The folder for pictures."""
        return self.path / "pictures"

    @property
    def config(self) -> str | None:
        """The configuration as it was given; None without one."""
        return _read(self.path / "config.toml")

    @property
    def notes(self) -> dict[str, Any]:
        """What `begin` noted: `key`, `versions`, `device`, and more.

        Raises:
            ValueError: If the folder is that of no run.
        """
        text = _read(self.path / "run.json")
        try:
            notes = json.loads(text or "")
            if notes["format"] != _FORMAT or not isinstance(notes["versions"], dict):
                raise ValueError
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} is no folder of a run: run.json is "
                f"{'missing' if text is None else 'damaged'}. Pass the `output` of "
                "`mapjax front`, or what `mapjax.io.RunFolder` was given."
            ) from error
        return notes

    def __enter__(self) -> "RunFolder":
        """Make the folder if need be, and lock it.

        Raises:
            ValueError: If another process, or another part of this one, holds it.
            OSError: If it cannot be made.
        """
        existing_parent(self.path / "lock")
        self.path.mkdir(parents=True, exist_ok=True)
        # Of several processes that run one program together, the first writes for all.
        if jax.process_index() == 0:
            self._lock = _locked(self.path)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()
        self._lock = None

    def begin(
        self,
        *,
        key: PRNGKey,
        config: str | None = None,
        may_change: Collection[str] = (),
        **notes: Any,
    ) -> list[str]:
        """Note what a run is made with, or check that it goes on as it began.

        A run that has neither samples nor a solution may begin anew, with anything. A
        refusal writes nothing.

        Args:
            key: The key of the driver.
            config: The configuration, as TOML.
            may_change: Top-level keys of the configuration, and notes, that may differ
                from what is noted; the new ones are then noted.
            notes: What else to note: anything that JSON holds. Absolute paths may move
                together with the run folder.

        Returns:
            Versions that are others than those the run was begun with, in words: then
            numbers may differ in their last digits.

        Raises:
            ValueError: If the run was begun with another configuration or other notes, or
                the folder is not locked by `with`.
            OSError: If it cannot be written.
        """
        self._check_locked()
        before = _read(self.path / "run.json")
        changed = []
        place = str(self.path.resolve())
        now = {"format": _FORMAT, "folder": place, **provenance(key), **notes}
        if before is not None:
            if self.samples.exists() or self._solution.exists():
                self._check_same(config, json.loads(json.dumps(notes)), may_change)
            old, new = self.notes, now["versions"]
            changed = [
                f"{name} {old['versions'].get(name)} then and {new[name]} now"
                for name in new
                if old["versions"].get(name) != new[name]
            ]
            earlier = old.get("earlier_versions", [])
            now["earlier_versions"] = earlier + [old["versions"]] * bool(changed)
        if jax.process_index() == 0:
            if config is not None:
                _write(self.path / "config.toml", config)
            _write(self.path / "run.json", json.dumps(now, indent=1) + "\n")
        return changed

    def find(self, paths: Iterable[str]) -> dict[str, Path]:
        """Say where noted absolute paths are now, which may have moved with the run folder."""
        here = str(self.path.resolve())
        ways = self.notes.get("folder", here), here
        moved = {path: Path(_moved(path, ways)) for path in paths}
        return {path: new if new.exists() else Path(path) for path, new in moved.items()}

    def save(self, solution: Solution) -> None:
        """Save the solution; see `save_solution`.

        Raises:
            ValueError: If the folder is not locked by `with`.
            OSError: If it cannot be written.
        """
        self._check_locked()
        if jax.process_index() == 0:
            save_solution(self._solution, solution)

    def load(self) -> Solution:
        """Load the solution.

        Raises:
            ValueError: If there is none yet, or it is damaged.
        """
        if not self._solution.exists():
            done = "" if not self.samples.exists() else ", only samples: run it to its end"
            raise ValueError(f"{self.path} holds no solution{done}.")
        return load_solution(self._solution)

    def _check_locked(self) -> None:
        if self._lock is None and jax.process_index() == 0:
            raise ValueError(
                f"{self.path} is not locked: write `with mapjax.io.RunFolder(...) as run:`."
            )

    def _check_same(
        self, config: str | None, notes: dict[str, Any], may_change: Collection[str]
    ) -> None:
        new = tomllib.loads(config or "")
        try:
            old = tomllib.loads(self.config or "")
        except ValueError as error:
            raise ValueError(
                f"{self.path / 'config.toml'} is damaged: {error}. Put back what the run was "
                "begun with, or pass another folder."
            ) from error
        pairs = {n: (old.get(n), new.get(n)) for n in sorted(old.keys() | new.keys())}
        other = {n: pair for n, pair in pairs.items() if repr(pair[0]) != repr(pair[1])}
        noted, here = self.notes, str(self.path.resolve())
        ways = noted.get("folder", here), here
        for name in notes.keys() & noted.keys():
            if name not in other and not _same(noted[name], notes[name], ways):
                other[name] = noted[name], notes[name]
        wrong = [
            f"`{name}` was {was!r} and is {now!r}"
            for name, (was, now) in sorted(other.items())
            if name not in may_change
        ]
        if wrong:
            raise ValueError(
                f"{self.path} holds a run with another configuration: {'; '.join(wrong)}. "
                "Pass another folder, or delete this one."
            )


def _same(was: Any, now: Any, ways: tuple[str, str]) -> bool:
    """Compare notes, whose paths may have moved as the run folder has."""
    if isinstance(was, dict) and isinstance(now, dict):  # the order is that of coefficients
        return list(was) == list(now) and all(_same(was[n], now[n], ways) for n in was)
    if isinstance(was, str) and isinstance(now, str) and os.path.isabs(was):
        return now in (was, _moved(was, ways))
    return repr(was) == repr(now)


def _moved(path: str, ways: tuple[str, str]) -> str:
    return os.path.normpath(os.path.join(ways[1], os.path.relpath(path, ways[0])))


def _locked(folder: Path) -> IO[str]:
    try:
        import fcntl
    except ImportError as error:
        raise OSError(
            "Run folders are locked by `flock`, which this system lacks."
        ) from error

    file = (folder / "lock").open("a+", encoding="utf-8")
    with contextlib.ExitStack() as stack:
        stack.callback(file.close)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read(200).strip() or "another process"
            raise ValueError(
                f"{folder} is in use by {owner}. Wait for it, stop it, or pass another folder."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        stack.pop_all()
    return file


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: it is no text.") from error


def _write(path: Path, text: str) -> None:
    with new_file(path) as file:
        file.write(text.encode())
