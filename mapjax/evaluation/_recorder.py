"""The record of real evaluations: checked, saved as they arrive, never made twice."""

import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mapjax._progress import progress_bar
from mapjax._result import Samples
from mapjax.evaluation._evaluator import Evaluator
from mapjax.evaluation._problem import Problem

_FORMAT = "mapjax samples 1"
_SECONDS_PER_CALL = 0.5


class Recorder:
    """Evaluate through an `Evaluator` or any callable, and keep what came of it.

    With a path, each score is appended to a file of JSON lines (coefficients and scores
    of one merge a line) before the next evaluation starts. A recorder that finds such a
    file takes from it what it is asked for and evaluates only the rest.
    """

    def __init__(
        self,
        problem: Problem,
        save_to: str | os.PathLike | None = None,
        *,
        progress: bool | None = None,
    ):
        """Open the record; nothing is evaluated yet.

        Args:
            problem: What to evaluate.
            save_to: A file to append to and to go on from.
            progress: As in `Evaluator`.

        Raises:
            ValueError: If the file is no such record, is damaged, or belongs to other
                coefficients or tasks.
        """
        self.problem = problem
        self.path = None if save_to is None else Path(save_to)
        self.progress = progress
        self.num_new = 0
        self._known: dict[bytes, np.ndarray] = {}
        self._asked: dict[bytes, None] = {}
        self._dtype = np.dtype(jnp.zeros(()).dtype)
        if self.path is not None and self.path.exists():
            self._load(self.path)

    @property
    def samples(self) -> Samples:
        """Every evaluation asked for so far, in that order."""
        done = [key for key in self._asked if key in self._known]
        n, t = self.problem.num_coefficients, len(self.problem.task_names or ())
        coefficients = np.frombuffer(b"".join(done), self._dtype).reshape(-1, n)
        scores = np.array([self._known[key] for key in done], self._dtype).reshape(-1, t)
        return Samples(jnp.asarray(coefficients), jnp.asarray(scores))

    def __call__(self, coefficients: Any) -> jax.Array:
        """Score candidates `[candidates, coefficients]`, taking known ones from the record.

        Calls grow until each takes about half a second, so that slow evaluations are
        saved one by one and fast ones cost no overhead.

        Raises:
            ValueError: If the scores do not have the shape `[candidates, tasks]`.
        """
        rows = np.ascontiguousarray(coefficients, self._dtype)
        keys = [row.tobytes() for row in rows]
        first = {key: row for key, row in zip(keys, rows, strict=True)}
        self._asked |= dict.fromkeys(keys)
        todo = [(key, row) for key, row in first.items() if key not in self._known]
        grain = 1
        if isinstance(self.problem.evaluate, Evaluator) and todo:
            grain = self.problem.evaluate.candidates_per_call
        size, done = grain, 0
        with progress_bar("Evaluating merges", len(todo), show=self.progress) as advance:
            while done < len(todo):
                part = todo[done : done + size]
                begun = time.monotonic()
                scores = self._scores(np.stack([row for _, row in part]))
                seconds = time.monotonic() - begun
                self._save(part, scores)
                done += len(part)
                self.num_new += len(part)
                advance(len(part))
                grow = min(8.0, _SECONDS_PER_CALL / max(seconds, 1e-9))
                size = max(grain, int(size * grow) // grain * grain)
        return jnp.asarray(np.stack([self._known[key] for key in keys]))

    def _scores(self, candidates: np.ndarray) -> np.ndarray:
        try:
            if isinstance(self.problem.evaluate, Evaluator):
                raw = self.problem.evaluate(candidates, progress=False)
            else:
                raw = self.problem.evaluate(jnp.asarray(candidates))
        except Exception as error:
            kept = (
                f"the {len(self._known)} before it are in {self.path}: run again to go on"
                if self.path
                else "pass `save_to=` to keep those before it and go on from there"
            )
            error.add_note(f"Evaluating coefficients {candidates.tolist()} raised; {kept}.")
            raise
        scores = np.asarray(raw)
        given, tasks = scores.shape, self.problem.task_names
        if scores.ndim != 2 or len(scores) != len(candidates) or given[1] < 1:
            raise ValueError(
                f"`evaluate` was given coefficients of shape {candidates.shape} and returned "
                f"scores of shape {given}, but must return [candidates, tasks]: one row "
                "per candidate, one column per task."
            )
        if tasks is None:
            names = tuple(f"task_{t}" for t in range(given[1]))
            self.problem = self.problem.with_tasks(names)
        elif given[1] != len(tasks):
            raise ValueError(
                f"`evaluate` returned scores of shape {given} for {len(tasks)} tasks {tasks}: "
                "it must return one column per task."
            )
        return scores.astype(self._dtype)

    def _save(self, part: list[tuple[bytes, np.ndarray]], scores: np.ndarray) -> None:
        for (key, _), score in zip(part, scores, strict=True):
            self._known[key] = score
        if self.path is None or jax.process_index() != 0:
            return
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            if new:
                file.write(json.dumps(self._header()) + "\n")
            for (_, row), score in zip(part, scores, strict=True):
                line = {"coefficients": row.tolist(), "scores": score.tolist()}
                file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _header(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "num_coefficients": self.problem.num_coefficients,
            "task_names": list(self.problem.task_names or ()),
        }

    def _load(self, path: Path) -> None:
        whole = path.read_bytes()
        intact = whole[: whole.rfind(b"\n") + 1]  # a kill can cut the last line short
        lines = intact.decode(errors="replace").splitlines()
        try:
            found = json.loads(lines[0]) if lines else self._header()
            assert found["format"] == _FORMAT
        except (ValueError, AssertionError, KeyError, TypeError) as error:
            raise ValueError(
                f"`save_to` names {path}, which is not a record of samples. Pass a new path."
            ) from error
        if self.problem.task_names is None and found["task_names"]:
            self.problem = self.problem.with_tasks(tuple(found["task_names"]))
        expected = self._header()
        if found != expected:
            raise ValueError(
                f"`save_to` names {path}, which holds samples of another problem "
                f"({found}, not {expected}). Pass a new path or delete the file."
            )
        for number, line in enumerate(lines[1:], start=2):
            try:
                sample = json.loads(line)
                row = np.asarray(sample["coefficients"], self._dtype)
                score = np.asarray(sample["scores"], self._dtype)
                assert row.shape == (self.problem.num_coefficients,)
                assert score.shape == (len(found["task_names"]),)
            except (ValueError, AssertionError, KeyError, TypeError) as error:
                raise ValueError(
                    f"Line {number} of {path} is damaged. Delete that line to go on from "
                    "the others."
                ) from error
            self._known[row.tobytes()] = score
        if len(intact) < len(whole):
            os.truncate(path, len(intact))
