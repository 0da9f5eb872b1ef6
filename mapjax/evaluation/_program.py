"""The program that an evaluation compiles to, and the memory that it takes."""

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, PyTree

from mapjax.evaluation._task import Task

MOST_FORWARD = 1
"""Of so many coefficients the derivative is as cheap in forward mode."""

Kind = Literal["scores", "outputs", "both", "jacobian"]


class Program(NamedTuple):
    """A compiled evaluation.

    Attributes:
        run: From arrays and candidates to what was asked for.
        chunk_size: How many candidates run at once on each device.
        batch_size: The most examples predicted at once.
        num_candidates: How many candidates one run takes, over all devices.
    """

    run: Any
    chunk_size: int
    batch_size: int
    num_candidates: int

    @property
    def argument_bytes(self) -> int:
        """Memory of a device that the data, the base and the vectors take."""
        plan = self.run.memory_analysis()
        return plan.argument_size_in_bytes if plan else 0

    @property
    def peak_bytes(self) -> int:
        """Memory of a device at the peak of a run, arguments and results included."""
        plan = self.run.memory_analysis()
        if plan is None:
            return 0
        return (
            plan.argument_size_in_bytes
            + plan.output_size_in_bytes
            + plan.temp_size_in_bytes
            - plan.alias_size_in_bytes
        )


def runs_inline(coefficients: Any) -> bool:
    """Tell whether no program is called: inside of `jit`, and where JAX compiles nothing."""
    config: Any = jax.config
    return isinstance(coefficients, Tracer) or config.jax_disable_jit


def evaluate(
    rule: Any, tasks: tuple[Task, ...], c: Array, kind: Kind, batch_size: int, chunk: int
) -> Any:
    """Merge and evaluate `chunk` candidates at a time."""

    def scores(x: Array) -> Array:
        params = rule(x)
        each = [task.score(params, batch_size) for task in tasks]
        return jnp.stack(each).astype(x.dtype)

    def outputs(x: Array) -> dict[str, PyTree]:
        params = rule(x)
        return {task.name: task.outputs(params, batch_size) for task in tasks}

    def both(x: Array) -> tuple[Array, dict[str, PyTree]]:
        seen = outputs(x)
        each = [task.metric(seen[task.name], task.targets) for task in tasks]
        return jnp.stack(each).astype(x.dtype), seen

    def jacobian(x: Array) -> tuple[Array, Array]:
        # Forward mode takes the time of up to two evaluations for each coefficient and one
        # more, and little memory; reverse mode that of three, as every task is
        # differentiated on its own data alone.
        if x.shape[0] <= MOST_FORWARD:
            gradient, value = jax.jacfwd(lambda x: (scores(x),) * 2, has_aux=True)(x)
            return value, gradient
        params = rule(x)
        _, pull = jax.vjp(lambda x: eqx.filter(rule(x), eqx.is_inexact_array), x)
        each = [task.value_and_gradient(params, batch_size) for task in tasks]
        rows = [pull(gradient)[0] for _, gradient in each]
        return jnp.stack([value for value, _ in each]), jnp.stack(rows)

    kinds = {"scores": scores, "outputs": outputs, "both": both, "jacobian": jacobian}
    return jax.lax.map(kinds[kind], c, batch_size=max(1, min(chunk, c.shape[0])))


def free_memory() -> int:
    """Read how much memory the first device has left, in bytes."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return host_memory()


def host_memory() -> int:
    """Read how much memory programs can still have, in bytes."""
    found = Path("/proc/meminfo")
    if found.exists():  # on Linux, where a file that was read fills what is free
        lines = dict(line.split(":", 1) for line in found.read_text().splitlines())
        if "MemAvailable" in lines:
            return 1024 * int(lines["MemAvailable"].split()[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
