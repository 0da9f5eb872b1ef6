"""Solutions on disk: arrays and JSON in one .npz, nothing that could run."""

import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from mapjax import metrics
from mapjax._result import RESULTS, Front, Samples
from mapjax._solution import Solution
from mapjax.io._load import load
from mapjax.io._save import save
from mapjax.metrics import Metric
from mapjax.surrogate import OutputSurrogate, Quadratic
from mapjax.surrogate._mixtures import Rows

_FORMAT = "mapjax solution 1"
_TEXT = "json"
_LARGEST_SURROGATE = 2**30
_RESULTS = {
    "successful": RESULTS.successful,
    "few_samples": RESULTS.few_samples,
    "rank_deficient": RESULTS.rank_deficient,
    "constant_metric": RESULTS.constant_metric,
    "nonfinite_scores": RESULTS.nonfinite_scores,
    "no_finite_scores": RESULTS.no_finite_scores,
}
assert len(_RESULTS) == len(RESULTS)
_METRICS = {name: x for name, x in vars(metrics).items() if isinstance(x, Metric)}
_MODULES = {
    cls.__name__: cls
    for cls in (Solution, Front, Samples, Quadratic, OutputSurrogate, Rows)
}


class _Unknown(Exception):
    """Something that is neither numbers nor one of ours."""


def save_solution(path: str | Path, solution: Solution) -> None:
    """Save a solution, whole or not at all.

    Everything is kept: front, samples, what was verified, names, directions and stats, to
    the last bit. The surrogate is kept if it is one of `mapjax.surrogate` whose metrics are
    those of `mapjax.metrics`, and takes at most 1 GiB: a function of your own cannot be
    written into a file. Without one, a solution that was loaded still picks and plots its
    front, and predicts no other merges.

    Args:
        path: A file; its suffix must be .npz.
        solution: What to save.

    Raises:
        ValueError: If the suffix is another, or `stats` holds what is neither numbers nor
            text.
        OSError: If the file cannot be written. Nothing is left behind.

    Example:
        >>> import jax, jax.numpy as jnp, pathlib, tempfile, mapjax as mj, mapjax.io
        >>> def evaluate(c):
        ...     return jnp.stack([1 - (c**2).sum(1), 1 - ((1 - c) ** 2).sum(1)], axis=1)
        >>> solution = mj.map_front(
        ...     evaluate, num_coefficients=2, budget=12, key=jax.random.key(0)
        ... )
        >>> path = pathlib.Path(tempfile.mkdtemp(), "solution.npz")
        >>> mapjax.io.save_solution(path, solution)
        >>> again = mapjax.io.load_solution(path)
        >>> bool((again.pick() == solution.pick()).all())
        True
    """
    path = _checked(path)
    arrays: dict[str, np.ndarray] = {}
    surrogate = solution.surrogate
    if surrogate is not None:
        size = sum(x.nbytes for x in jax.tree.leaves(eqx.filter(surrogate, eqx.is_array)))
        try:
            _encode(surrogate, {})
        except _Unknown:
            surrogate = None
        if size > _LARGEST_SURROGATE:
            surrogate = None
    kept = eqx.tree_at(
        lambda s: s.surrogate, solution, surrogate, is_leaf=lambda x: x is None
    )
    try:
        tree = _encode(kept, arrays)
    except _Unknown as error:
        raise ValueError(
            f"The solution holds {error}, which cannot be saved: keep numbers, arrays and "
            "text in `stats`."
        ) from error
    text = json.dumps({"format": _FORMAT, "solution": tree})
    arrays[_TEXT] = np.frombuffer(text.encode(), np.uint8)
    save(path, arrays)


def load_solution(path: str | Path) -> Solution:
    """Load what `save_solution` saved.

    Raises:
        ValueError: If the file is no solution, or damaged.
        OSError: If it cannot be read.
    """
    arrays = load(_checked(path))
    try:
        whole = json.loads(arrays[_TEXT].tobytes())
        if whole["format"] != _FORMAT:
            raise ValueError(f"its format is {whole['format']!r}")
        solution = _decode(whole["solution"], arrays)
        _check(solution)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{path} is no solution that this version of mapjax reads "
            f"({type(error).__name__}: {str(error)[:200]}). Save it again with "
            "`mapjax.io.save_solution`."
        ) from error
    return solution


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"`path` is {path}, but a solution is a .npz file: rename it.")
    return path


def _check(solution: Any) -> None:
    """Refuse what was put together wrongly, before it is used."""
    if not isinstance(solution, Solution):
        raise ValueError("it holds something else")
    n, t = len(solution.coefficient_names), len(solution.task_names)
    for points in (solution.front, solution.samples, solution.verified):
        if points is None:
            continue
        k = len(points.coefficients)
        if points.coefficients.shape != (k, n) or points.scores.shape != (k, t):
            raise ValueError("its arrays do not fit its names")


def _encode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Turn a value into what JSON holds, and put its arrays aside."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_encode(x, arrays) for x in value]
    if isinstance(value, tuple):
        return {"tuple": [_encode(x, arrays) for x in value]}
    if isinstance(value, dict):
        return {
            "dict": [[_encode(k, arrays), _encode(v, arrays)] for k, v in value.items()]
        }
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _encode_array(value, arrays)
    if isinstance(value, RESULTS):
        return {"result": next(n for n, x in _RESULTS.items() if value == x)}
    if isinstance(value, Metric):
        names = [n for n, known in _METRICS.items() if known == value]
        if not names:
            raise _Unknown("a metric that is none of `mapjax.metrics`")
        return {"metric": names[0]}
    if _MODULES.get(type(value).__name__) is type(value):
        fields = {
            name: _encode(getattr(value, name), arrays)
            for name in type(value).__dataclass_fields__
        }
        return {"module": type(value).__name__, "fields": fields}
    raise _Unknown(f"a {type(value).__name__}")


def _encode_array(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if jnp.issubdtype(value.dtype, jax.dtypes.extended):
        raise _Unknown(f"an array of {value.dtype}")
    array = np.asarray(value)
    if array.dtype.kind not in "biufc":
        raise _Unknown(f"an array of {array.dtype}")
    name = f"array_{len(arrays)}"
    arrays[name] = array
    return {"array": name, "jax": isinstance(value, jax.Array)}


def _decode(value: Any, arrays: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_decode(x, arrays) for x in value]
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(_decode(x, arrays) for x in value["tuple"])
    if "dict" in value:
        return {_decode(k, arrays): _decode(v, arrays) for k, v in value["dict"]}
    if "array" in value:
        array = arrays[value["array"]]
        if not value["jax"]:
            return array if array.ndim else array[()]
        with jax.enable_x64(array.dtype.itemsize == 8 or jax.config.read("jax_enable_x64")):
            return jnp.asarray(array)
    if "result" in value:
        return _RESULTS[value["result"]]
    if "metric" in value:
        return _METRICS[value["metric"]]
    cls = _MODULES[value["module"]]
    return cls(**{name: _decode(x, arrays) for name, x in value["fields"].items()})
