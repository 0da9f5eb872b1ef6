"""Solutions on disk: arrays and JSON in one .npz, nothing that could run."""

import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from mapjax import metrics
from mapjax._atomic import check_space, new_file
from mapjax._npz import write_npz
from mapjax._result import RESULTS, Front, Samples
from mapjax.metrics import Metric
from mapjax.surrogate import OutputSurrogate, Quadratic
from mapjax.surrogate._kernel import Kernel
from mapjax.surrogate._mixtures import Rows

_FORMAT = "mapjax solution 2"
_TEXT = "json"
_ARRAY = ".npy"
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
    cls.__name__: cls for cls in (Front, Samples, Quadratic, OutputSurrogate, Kernel, Rows)
}


class _Unknown(Exception):
    """Something that is neither numbers nor one of ours."""


def write_solution(path: str | Path, solution: Any) -> None:
    """Write a solution, whole or not at all; see `mapjax.Solution.save`."""
    path = _checked(path)
    arrays: dict[str, np.ndarray] = {}
    reason = _why_left_out(solution.surrogate)
    if reason:
        solution = eqx.tree_at(lambda s: s.surrogate, solution, None)
    try:
        tree = _encode_module(solution, arrays)
    except _Unknown as error:
        raise ValueError(
            f"The solution holds {error}, which cannot be saved: keep numbers, arrays and "
            "text in `stats`."
        ) from error
    text = json.dumps({"format": _FORMAT, "solution": tree})
    arrays[_TEXT] = np.frombuffer(text.encode(), np.uint8)
    check_space(path, sum(x.nbytes for x in arrays.values()))
    with new_file(path) as file:
        write_npz(file, arrays)
    if reason:
        warnings.warn(
            f"The surrogate is not in {path}, since it {reason}. Front and samples are kept; "
            "what is loaded predicts no other merges.",
            stacklevel=4,  # of `solution.save`, as equinox wraps methods
        )


def why_no_surrogate(result: RESULTS) -> str:
    """Say why a solution has no surrogate, and what to do."""
    if result == RESULTS.no_finite_scores:
        return f"There is no surrogate. {RESULTS[result]}"
    return (
        "There is no surrogate: none was kept. Either the solution was loaded from a file, "
        "which cannot hold one with metrics or functions of your own: run the driver again, "
        "with its `save_to` so that nothing is evaluated twice. Or it comes from a tuner, "
        "which fits none."
    )


def read_solution(path: str | Path, cls: type) -> Any:
    """Read what `write_solution` wrote; see `mapjax.Solution.load`.

    Args:
        path: The file.
        cls: The class of solutions.
    """
    path = _checked(path)
    data = path.read_bytes()
    try:
        arrays = _read_arrays(data)
        whole = json.loads(arrays[_TEXT].tobytes())
        if whole["format"] != _FORMAT:
            raise ValueError(f"its format is {whole['format']!r}")
        if whole["solution"]["module"] != cls.__name__:
            raise ValueError("it holds something else")
        solution = _decode_module(cls, whole["solution"], arrays)
        _check(solution)
    except Exception as error:  # zipfile, zlib, JSON and NumPy raise a dozen kinds
        raise ValueError(
            f"{path} is no solution that this version of mapjax reads "
            f"({type(error).__name__}: {str(error)[:200]}). Save it again with "
            "`solution.save`."
        ) from error
    return solution


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"`path` is {path}, but a solution is a .npz file: rename it.")
    return path


def _read_arrays(data: bytes) -> dict[str, np.ndarray]:
    """Read arrays, in no more memory than some times the file."""
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > len(data):
            raise ValueError("it is compressed, or its arrays overlap")
        for member in members:
            stream = io.BytesIO(archive.read(member))  # which compares the checksum
            name = member.filename.removesuffix(_ARRAY)
            arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    return arrays


def _check(solution: Any) -> None:
    """Refuse what was put together wrongly, before it is used."""
    n, t = len(solution.coefficient_names), len(solution.task_names)
    for points in (solution.front, solution.samples, solution.verified):
        if points is None:
            continue
        k = len(points.coefficients)
        if points.coefficients.shape != (k, n) or points.scores.shape != (k, t):
            raise ValueError("its arrays do not fit its names")


def _why_left_out(surrogate: Any) -> str:
    """Say what keeps a surrogate out of a file; "" if nothing does."""
    arrays = jax.tree.leaves(eqx.filter(surrogate, eqx.is_array))
    if sum(x.nbytes for x in arrays) > _LARGEST_SURROGATE:
        return "takes more than 1 GiB"  # before anything is brought to the host
    try:
        _encode(surrogate, {})
    except _Unknown as error:
        return f"holds {error}"
    return ""


def _encode_module(module: Any, arrays: dict[str, np.ndarray]) -> Any:
    fields = {
        name: _encode(getattr(module, name), arrays)
        for name in type(module).__dataclass_fields__
    }
    return {"module": type(module).__name__, "fields": fields}


def _decode_module(cls: type, value: Any, arrays: dict[str, Any]) -> Any:
    # A file of an earlier version may hold what is no longer kept.
    fields = {n: x for n, x in value["fields"].items() if n in cls.__dataclass_fields__}
    return cls(**{name: _decode(x, arrays) for name, x in fields.items()})


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
        return _encode_module(value, arrays)
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
    return _decode_module(_MODULES[value["module"]], value, arrays)
