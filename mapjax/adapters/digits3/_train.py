"""The network of digits3: one base trained on a mixture, one expert fine-tuned per task."""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from mapjax._progress import progress_bar
from mapjax._types import PRNGKey
from mapjax.adapters.digits3._data import SIDE, Dataset

_BATCH, _CHUNK = 64, 50


class MLP(nn.Module):
    """A perceptron 784-256-256-10 with one head that the tasks share."""

    @nn.compact
    def __call__(self, inputs: Float[Array, "*batch pixels"]) -> Float[Array, "*batch 10"]:
        hidden = nn.relu(nn.Dense(256)(inputs))
        hidden = nn.relu(nn.Dense(256)(hidden))
        return nn.Dense(10)(hidden)


class Trained(NamedTuple):
    """Flax parameters, ready for `TaskVectors.from_params(*trained)`.

    Attributes:
        base: Trained for a short time on all tasks in equal parts.
        experts: The base, fine-tuned on one task each, by the task's name.
    """

    base: PyTree
    experts: dict[str, PyTree]


def predict(
    params: PyTree, inputs: Float[Array, "*batch pixels"]
) -> Float[Array, "*batch 10"]:
    """Compute the logits of images in rows."""
    return MLP().apply(params, inputs)  # pyright: ignore[reportReturnType]


def train(
    datasets: Mapping[str, Dataset],
    *,
    key: PRNGKey,
    base_steps: int = 80,
    expert_steps: int = 600,
    progress: bool | None = None,
) -> Trained:
    """Train the base and fine-tune one expert per data set.

    Reads the `train` splits only. Adam on the cross-entropy of batches of 64; one
    compilation for all runs. The same key gives the same parameters.

    Args:
        datasets: Data sets by name; those of `load`, or any with 784 pixels and 10 classes.
        key: Draws the first weights and the batches.
        base_steps: Updates of the base, at least 1.
        expert_steps: Updates of each expert, at least 1.
        progress: True or False to insist on a progress bar or on none; by default one
            appears on a terminal after two seconds.

    Returns:
        The base and the experts.

    Raises:
        ValueError: If there is no data set, or a number of steps is below 1.
    """
    if not datasets:
        raise ValueError("`datasets` is empty: pass at least one, such as `load()`.")
    for name, steps in {"base_steps": base_steps, "expert_steps": expert_steps}.items():
        if steps < 1:
            raise ValueError(f"`{name}` is {steps}, but at least one step is needed.")
    init_key, *run_keys = jax.random.split(key, 2 + len(datasets))
    pool = _Pool.of([dataset.train for dataset in datasets.values()])
    total = base_steps + expert_steps * len(datasets)
    with progress_bar("Training digits3", total, show=progress) as advance:
        init = MLP().init(init_key, jnp.zeros((1, SIDE**2)))
        mixture = jnp.ones(len(datasets)) / len(datasets)
        base = _fit(init, pool, mixture, run_keys[0], base_steps, advance)
        experts = {
            name: _fit(base, pool, only, run_key, expert_steps, advance)
            for name, only, run_key in zip(
                datasets, jnp.eye(len(datasets)), run_keys[1:], strict=True
            )
        }
    return Trained(base, experts)


class _Pool(NamedTuple):
    """All training images in one array, so that every run has the same shapes."""

    inputs: Float[Array, "examples pixels"]
    targets: Int[Array, " examples"]
    starts: Int[Array, " tasks"]
    sizes: Int[Array, " tasks"]

    @classmethod
    def of(cls, splits: list) -> "_Pool":
        sizes = np.array([len(split.targets) for split in splits])
        return cls(
            jnp.concatenate([split.inputs for split in splits]),
            jnp.concatenate([split.targets for split in splits]),
            jnp.asarray(np.cumsum(sizes) - sizes),
            jnp.asarray(sizes),
        )


_optimizer = optax.adam(1e-3)


def _fit(params, pool, mixture, key, steps, advance):
    state = _optimizer.init(params)
    for first in range(0, steps, _CHUNK):
        last = min(first + _CHUNK, steps)
        params, state = _run(params, state, pool, mixture, key, first, last)
        jax.block_until_ready(params)
        advance(last - first)
    return params


@jax.jit
def _run(params, state, pool, mixture, key, first, last):
    def step(i, carry):
        params, state = carry
        task_key, item_key = jax.random.split(jax.random.fold_in(key, i))
        task = jax.random.categorical(task_key, jnp.log(mixture), shape=(_BATCH,))
        item = jax.random.uniform(item_key, (_BATCH,)) * pool.sizes[task]
        rows = pool.starts[task] + item.astype(pool.starts.dtype)
        grads = jax.grad(_loss)(params, pool.inputs[rows], pool.targets[rows])
        updates, state = _optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(first, last, step, (params, state))


def _loss(params, inputs, targets):
    logits = predict(params, inputs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
