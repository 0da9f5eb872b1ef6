"""The program that an evaluation compiles to, and the memory that it takes."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, PyTree

from mapjax.evaluation._task import Task

BATCH_SIZE = 2048
"""The most examples that are predicted at once, where memory allows it."""
_LEAST_BATCH = 32
_FREE_SHARE = 0.8
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


def compile_to_fit(
    compile_for: Callable[[int, int], Program],
    chunk_size: int | None,
    batch_size: int | None,
    memory_limit: int | None,
) -> Program:
    """Compile for as much at once as memory allows; the compiler says what it needs.

    Args:
        compile_for: From sizes of a chunk and of a batch to a program.
        chunk_size: Candidates at once, where it is not to be chosen.
        batch_size: Examples at once, where it is not to be chosen.
        memory_limit: Bytes that a device may hold, or None for what is free.
    """
    chunk = chunk_size or (1 if jax.default_backend() == "cpu" else 16)
    batch = batch_size or BATCH_SIZE
    program = compile_for(chunk, batch)
    fixed = program.argument_bytes  # on the device already, and so not free
    limit = memory_limit or fixed + int(_FREE_SHARE * free_memory())
    while program.peak_bytes > limit:
        if chunk_size is None and chunk > 1:
            each = (program.peak_bytes - fixed) / chunk
            chunk = min(chunk - 1, max(1, int((limit - fixed) / each)))
        elif batch_size is None and batch > _LEAST_BATCH:
            batch //= 2
        else:
            warnings.warn(
                f"Evaluating {chunk} candidate(s) at once needs "
                f"{program.peak_bytes / 2**30:.1f} GiB, of which {limit / 2**30:.1f} "
                f"GiB may be used. Lower `batch_size` (now {batch}), or shard the "
                "parameters over more devices.",
                stacklevel=5,
            )
            break
        program = compile_for(chunk, batch)
    return program


def signature(arrays: PyTree, static: PyTree) -> Any:
    """Give what two evaluations have in common if one program serves both."""
    given, structure = jax.tree.flatten(arrays)
    rest, frame = jax.tree.flatten(static)
    kinds = [
        (x.shape, x.dtype, getattr(x, "weak_type", False), getattr(x, "sharding", None))
        for x in given
    ]
    known = structure, frame, *kinds, *rest
    try:
        hash(known)
    except TypeError:  # what holds a list or the like is equal to nothing
        return object()
    return known


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
