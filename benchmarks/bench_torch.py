"""Evaluations a second against PyTorch: candidate by candidate, and `torch.func.vmap`.

Same parameters, examples and candidates, in the same run, the data in memory, all examples
of a task in one batch. The loop merges one candidate, evaluates it on every task and goes
on, as the paper does; `vmap` takes as many candidates at once as it is fastest with. Scores
must agree. Needs PyTorch: `pip install torch` (a CPU build will do) beside
`pip install -e '.[bench]'`.
"""

import statistics
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

from benchmarks._report import parser, report, seconds
from benchmarks.suites import Suite, load

CHUNKS = (2, 4, 8, 16)
REPEATS = 5

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def digits8(params: Any, head: Any, x: Any) -> Any:
    """Compute the logits of digits8's perceptron, whose head is one of its layers."""
    *hidden, last = params
    for layer in hidden:
        x = F.relu(_dense(layer, x))
    return _dense(last, x)


def vision8(params: Any, head: Any, x: Any) -> Any:
    """Compute the logits of vision8's residual perceptron with the head of a task."""
    layers = params["params"]
    x = _dense(layers["Dense_0"], 2 * x - 0.5)
    for i in range(2):
        wide = _dense(layers[f"Dense_{2 * i + 1}"], _norm(layers[f"LayerNorm_{i}"], x))
        x = x + _dense(layers[f"Dense_{2 * i + 2}"], F.relu(wide))
    return _norm(layers["LayerNorm_2"], x) @ head.kernel + head.bias


def _dense(layer: Any, x: Any) -> Any:
    return x @ layer["kernel"] + layer["bias"]


def _norm(layer: Any, x: Any) -> Any:
    return F.layer_norm(x, x.shape[-1:], layer["scale"], layer["bias"], eps=1e-6)


MODELS: dict[str, Callable[[Any, Any, Any], Any]] = {"digits8": digits8, "vision8": vision8}


def measure(suite: Suite, num_candidates: int) -> dict[str, Any]:
    """Time three ways to the same scores, in turn."""
    predict, n = MODELS[suite.name], suite.task_vectors.num_tasks
    candidates = np.random.default_rng(0).uniform(0, 0.4, (num_candidates, n)).astype("f")

    def tensor(x: Any) -> Any:
        return torch.from_numpy(np.array(x)).to(DEVICE)

    base, vectors = (
        jax.tree.map(tensor, x)
        for x in (suite.task_vectors.base, suite.task_vectors.vectors)
    )
    tasks = [
        jax.tree.map(tensor, (eqx.filter(t.predict, eqx.is_array), t.inputs, t.targets))
        for t in suite.validation.tasks
    ]
    coefficients = tensor(candidates)

    def scores(params: Any) -> Any:
        return torch.stack(
            [
                (predict(params, head, x).argmax(-1) == y).float().mean()
                for head, x, y in tasks
            ]
        )

    def merge(c: Any) -> Any:
        def one(b: Any, v: Any) -> Any:
            return b + torch.tensordot(c, v, dims=1)

        return jax.tree.map(one, base, vectors)

    @torch.no_grad()
    def loop() -> np.ndarray:
        found = [scores(merge(c)) for c in coefficients]
        return torch.stack(found).cpu().numpy()

    @torch.no_grad()
    def vmapped(chunk: int) -> np.ndarray:
        one = torch.func.vmap(lambda c: scores(merge(c)), chunk_size=chunk)
        return one(coefficients).cpu().numpy()

    def ours() -> np.ndarray:
        return np.asarray(suite.validation(candidates, progress=False))

    first = seconds(ours)
    for theirs in (loop(), vmapped(CHUNKS[0])):
        # A tie between two logits may fall either way.
        np.testing.assert_allclose(theirs, ours(), atol=0.005)
    chunk = min(CHUNKS, key=lambda k: seconds(lambda: vmapped(k)))
    ways = {"mapjax": ours, "torch_loop": loop, "torch_vmap": lambda: vmapped(chunk)}
    rounds = [{name: seconds(way) for name, way in ways.items()} for _ in range(REPEATS)]
    taken = {name: statistics.median(r[name] for r in rounds) for name in ways}
    return {
        "candidates": num_candidates,
        "parameters": sum(x.size for x in jax.tree.leaves(suite.task_vectors.base)),
        "examples": sum(len(y) for *_, y in tasks),
        "vmap_chunk": chunk,
        "first_call": first,
        "candidates_per_second": {k: num_candidates / s for k, s in taken.items()},
        "times_faster_than_loop": statistics.median(
            r["torch_loop"] / r["mapjax"] for r in rounds
        ),
        "times_faster_than_vmap": statistics.median(
            r["torch_vmap"] / r["mapjax"] for r in rounds
        ),
    }


def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    figures: dict[str, Any] = {"torch": torch.__version__, "device": DEVICE}
    for name in MODELS:
        figures[name] = measure(load(name, 0), 16 if arguments.quick else 128)
    report("torch", figures, arguments.output)


if __name__ == "__main__":
    main()
