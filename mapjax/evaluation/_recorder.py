"""The record of real evaluations: checked, saved as they arrive, never made twice."""

import json
import os
import time
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from mapjax._progress import progress_bar
from mapjax._result import Samples
from mapjax._types import widened
from mapjax.evaluation._evaluator import Evaluator
from mapjax.evaluation._files import (
    append_lines,
    check_path,
    load_outputs,
    read_lines,
    save_outputs,
)
from mapjax.evaluation._problem import Problem
from mapjax.evaluation._program import Kind

_FORMAT = "mapjax samples 2"
_SECONDS_PER_CALL = 0.5
_SAME = 0.01
"""Relative difference of scores that another device or batch size may make."""


class Recorder:
    """Evaluate through an `Evaluator` or any callable, and keep what came of it.

    With a path, each score is appended to a file of JSON lines (coefficients and scores
    of one merge a line) before the next evaluation starts. A recorder that finds such a
    file takes from it what it is asked for and evaluates only the rest.

    A driver says by `run` what its candidates depend on (key, bounds, budget, ...), and
    each line keeps that. The last lines, if they are of the same run, are an interrupted
    one that goes on: they are taken as they are asked for, so that the run repeats itself
    exactly. All lines before them were paid for by others: they are samples from the
    start.

    The last merge of a file is evaluated once more, if by an `Evaluator`: where its scores
    are others, the code was changed, and nothing in the file can be taken.
    """

    def __init__(
        self,
        problem: Problem,
        save_to: str | os.PathLike | None = None,
        *,
        run: str | None = None,
        keep_outputs: bool = False,
        keep_jacobian: bool = False,
        progress: bool | None = None,
    ):
        """Open the record; nothing is evaluated yet.

        Args:
            problem: What to evaluate.
            save_to: A file to append to and to go on from, which all processes can read.
                Outputs and derivatives are kept in folders beside it, a file per merge.
            run: What tells this run from others; None to take nothing from the file but
                what is asked for.
            keep_outputs: Whether to keep what the metrics of an `Evaluator` saw.
            keep_jacobian: Whether to differentiate an `Evaluator` too, and keep that in
                the place of outputs.
            progress: As in `Evaluator`.

        Raises:
            ValueError: If the file cannot be one, is no such record, is damaged, or
                belongs to other names, directions, parameters or data.
        """
        self.problem = problem
        self.path = None if save_to is None else Path(save_to)
        self.run = run
        self.progress = progress
        self.num_new = 0
        self.shapes = problem.evaluate.output_shapes() if keep_outputs else None
        self._kind: Kind = (
            "both" if keep_outputs else "jacobian" if keep_jacobian else "scores"
        )
        if keep_jacobian:
            num_tasks = len(problem.task_names or ())
            shape = (num_tasks, problem.num_coefficients)
            self.shapes = jax.ShapeDtypeStruct(shape, jnp.zeros(()).dtype)
        self._outputs: dict[bytes, list[np.ndarray]] = {}
        self._known: dict[bytes, np.ndarray] = {}
        self._unchecked: bytes | None = None
        self._asked: dict[bytes, None] = {}
        self._dtype = np.dtype(jnp.zeros(()).dtype)
        if self.path is not None:
            check_path(self.path)
            if self.path.exists():
                self._load(self.path)
        self.num_given = len(self._asked)

    @property
    def samples(self) -> Samples:
        """Those of other runs, in the order of the file, and those asked for since."""
        done = [key for key in self._asked if key in self._known]
        n = self.problem.num_coefficients
        rows = np.array([self._row(key) for key in done], self._dtype).reshape(-1, n)
        return Samples(jnp.asarray(rows), jnp.asarray(self._scores_of(done)))

    def is_given(self, coefficients: Any) -> np.ndarray:
        """Tell which of some merges other runs have left in the file."""
        return self._are_among(coefficients, set(list(self._asked)[: self.num_given]))

    def is_known(self, coefficients: Any) -> np.ndarray:
        """Tell which of some merges are samples."""
        return self._are_among(coefficients, self._asked)

    def _are_among(self, coefficients: Any, keys: Collection[bytes]) -> np.ndarray:
        rows = np.ascontiguousarray(coefficients, self._dtype)
        return np.array([_key(row) in keys for row in rows], bool)

    def outputs(self) -> list[PyTree]:
        """Give what the metrics saw, `[samples, examples, ...]` for each task."""
        assert self.shapes is not None
        each = [self._outputs[key] for key in self._asked if key in self._known]
        shapes, structure = jax.tree.flatten(self.shapes)
        leaves = [
            np.array([outputs[i] for outputs in each]).reshape(-1, *x.shape)
            for i, x in enumerate(shapes)
        ]
        tree = jax.tree.unflatten(structure, leaves)
        return [tree[name] for name in self.problem.task_names or ()]

    def jacobian(self) -> np.ndarray:
        """Give the derivatives, `[samples, tasks, coefficients]`."""
        assert self.shapes is not None
        each = [self._outputs[key][0] for key in self._asked if key in self._known]
        return np.array(each, self._dtype).reshape(-1, *self.shapes.shape)

    def __call__(self, coefficients: Any) -> jax.Array:
        """Score candidates `[candidates, coefficients]`, taking known ones from the record.

        Calls grow until each takes about half a second, so that slow evaluations are
        saved one by one and fast ones cost no overhead.

        Raises:
            ValueError: If the scores do not have the shape `[candidates, tasks]`, or what a
                file holds is no longer what is measured.
        """
        if self._unchecked is not None:
            self._check_unchanged(self._unchecked)
            self._unchecked = None
        rows = np.ascontiguousarray(coefficients, self._dtype)
        keys = [_key(row) for row in rows]
        first = {key: row for key, row in zip(keys, rows, strict=True)}
        self._asked |= dict.fromkeys(keys)
        todo = [(key, row) for key, row in first.items() if not self._has(key)]
        grain = 1
        if isinstance(self.problem.evaluate, Evaluator) and todo:
            grain = self.problem.evaluate.program(self._kind).num_candidates
        size, done = grain, 0
        with progress_bar("Evaluating merges", len(todo), show=self.progress) as advance:
            while done < len(todo):
                part = todo[done : done + size]
                begun = time.monotonic()
                scores, outputs = self._scores(np.stack([row for _, row in part]))
                seconds = time.monotonic() - begun
                self._save(part, scores, outputs)
                done += len(part)
                self.num_new += len(part)
                advance(len(part))
                grow = min(8.0, _SECONDS_PER_CALL / max(seconds, 1e-9))
                size = max(grain, int(size * grow) // grain * grain)
        return jnp.asarray(self._scores_of(keys))

    def _check_unchanged(self, key: bytes) -> None:
        """Evaluate a merge of the file again: of code there is no fingerprint."""
        row = self._row(key)
        then, now = self._known[key], self._scores(row[None])[0][0]
        if not np.allclose(then, now, rtol=_SAME, atol=1e-6, equal_nan=True):
            raise ValueError(
                f"`save_to` names {self.path}, where coefficients {row.tolist()} scored "
                f"{then.tolist()}, but now they score {now.tolist()}: `predict`, a metric or "
                "what one of them holds was changed since. Pass a new path or delete the file."
            )

    def _has(self, key: bytes) -> bool:
        if key not in self._known or self.shapes is None:
            return key in self._known
        if key not in self._outputs and self.path is not None:
            shapes = [x.shape for x in jax.tree.leaves(self.shapes)]
            found = load_outputs(self._folder(self.path), key, shapes)
            if found is not None:
                self._outputs[key] = found
        return key in self._outputs

    def _warn_of_missing(self) -> None:
        """Say what of a file is no use to this run, which would look as if it were ignored."""
        missing, known = sum(not self._has(key) for key in self._known), len(self._known)
        if missing:
            what = "derivatives" if self._kind == "jacobian" else "outputs"
            warnings.warn(
                f"{missing} of {known} merges in `save_to` ({self.path}) have no {what} and "
                "are evaluated again; `surrogate='quadratic'` would use their scores.",
                stacklevel=6,
            )

    def _row(self, key: bytes) -> np.ndarray:
        """Give the coefficients that `_key` made a key of."""
        narrow = len(key) == 4 * self.problem.num_coefficients
        return np.frombuffer(key, np.float32 if narrow else np.float64).astype(self._dtype)

    def _scores_of(self, keys: list[bytes]) -> np.ndarray:
        shape = len(keys), len(self.problem.task_names or ())
        return np.array([self._known[key] for key in keys], self._dtype).reshape(shape)

    def _scores(self, candidates: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        outputs = None
        try:
            if self._kind == "both":
                both = self.problem.evaluate.scores_and_outputs(candidates, progress=False)
                raw, outputs = both
            elif self._kind == "jacobian":
                both = self.problem.evaluate.value_and_jacobian(candidates, progress=False)
                raw, outputs = both
            elif isinstance(self.problem.evaluate, Evaluator):
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
        if not _is_real(scores.dtype):
            raise ValueError(
                f"`evaluate` returned scores of dtype {scores.dtype}, but must return real "
                "numbers, NaN for a merge that failed."
            )
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
        return scores.astype(self._dtype), [_wide(x) for x in jax.tree.leaves(outputs)]

    def _save(
        self,
        part: list[tuple[bytes, np.ndarray]],
        scores: np.ndarray,
        outputs: list[np.ndarray],
    ) -> None:
        for i, (key, _) in enumerate(part):
            self._known[key] = scores[i]
            if self.shapes is not None:
                self._outputs[key] = [leaf[i] for leaf in outputs]
        if self.path is None or jax.process_index() != 0:
            return
        # Outputs first: a sample that is on record has them.
        for key, _ in part if self.shapes is not None else ():
            save_outputs(self._folder(self.path), key, self._outputs[key])
        new = not self.path.exists() or self.path.stat().st_size == 0
        lines = [self._header()] if new else []
        for (_, row), score in zip(part, scores, strict=True):
            line = {"coefficients": row.tolist(), "scores": score.tolist()}
            lines.append(line if self.run is None else line | {"run": self.run})
        append_lines(self.path, lines)

    def _folder(self, path: Path) -> Path:
        kind = "jacobian" if self._kind == "jacobian" else "outputs"
        return path.with_name(f"{path.name}.{kind}")

    def _header(self) -> dict[str, Any]:
        problem = self.problem
        known = isinstance(problem.evaluate, Evaluator)
        found = problem.evaluate.fingerprint() if known else {}
        return {
            "format": _FORMAT,
            "coefficient_names": list(problem.coefficient_names),
            "task_names": list(problem.task_names or ()),
            "directions": list(problem.directions),
            "num_examples": problem.num_examples and list(problem.num_examples),
            "parameters": found.get("parameters"),
            "data": found.get("data"),
        }

    def _load(self, path: Path) -> None:
        found, lines, size = read_lines(path, _FORMAT)
        if found is not None:
            if self.problem.task_names is None and found["task_names"]:
                self.problem = self.problem.with_tasks(tuple(found["task_names"]))
            expected = self._header()
            if found != expected:
                raise ValueError(
                    f"`save_to` names {path}, which holds samples of another problem: "
                    f"{_differences(found, expected)}. Pass a new path or delete the file."
                )
        runs = []
        for number, line in enumerate(lines, start=2):
            try:
                sample = json.loads(line)
                row = np.asarray(sample["coefficients"], self._dtype)
                score = np.asarray(sample["scores"], self._dtype)
                assert row.shape == (self.problem.num_coefficients,)
                assert score.shape == (len(self.problem.task_names or ()),)
            except (ValueError, AssertionError, KeyError, TypeError) as error:
                raise ValueError(
                    f"Line {number} of {path} is damaged. Delete that line to go on from "
                    "the others."
                ) from error
            self._known[_key(row)] = score
            runs.append((_key(row), sample.get("run")))
        if isinstance(self.problem.evaluate, Evaluator) and runs:
            self._unchecked, _ = runs[-1]
        while runs and runs[-1][1] == self.run:
            runs.pop()
        self._warn_of_missing()
        if self.run is not None:
            self._asked = {key: None for key, _ in runs if self._has(key)}
        if size < path.stat().st_size and jax.process_index() == 0:
            os.truncate(path, size)


def _key(row: np.ndarray) -> bytes:
    """Tell a merge from others, in float32 if exact: then the same with 64 bits or not."""
    with np.errstate(over="ignore"):
        narrow = row.astype(np.float32)
    return (narrow if np.array_equal(narrow, row) else row).tobytes()


def _differences(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Say in what two headers differ, the plainest first."""
    names = [name for name in expected if found.get(name) != expected[name]]
    words = [
        f"`{name}` are {found.get(name)} there and {expected[name]} here"
        for name in names
        if name not in ("parameters", "data")
    ]
    if "parameters" in names:
        words.append("the base or the task vectors there hold other numbers")
    if "data" in names:
        words.append("the examples there are others")
    return "; ".join(words)


def _is_real(dtype: Any) -> bool:
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    return any(jnp.issubdtype(dtype, kind) for kind in kinds)


def _wide(x: Any) -> np.ndarray:
    """Bring outputs to the host, as float32 at least: NumPy cannot save bfloat16."""
    return np.asarray(widened(x) if jnp.issubdtype(x.dtype, jnp.floating) else x)
