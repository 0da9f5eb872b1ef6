"""The evaluator: batches of coefficients to scores, on one device or many."""

import os
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from mapjax._progress import progress_bar
from mapjax._types import ArrayLike, Direction
from mapjax.evaluation._task import Task
from mapjax.task_vectors import TaskVectors, merge

_Kind = Literal["scores", "outputs", "jacobian"]


class Evaluator:
    """Score merges on every task: `evaluator(C)` takes `[candidates, coefficients]`.

    Candidates are merged and evaluated together in chunks, the data are scanned in
    batches, and one compiled program serves any number of candidates. Calling it inside
    `jax.jit` works too.
    """

    def __init__(
        self,
        rule: Any,
        tasks: Sequence[Task],
        *,
        num_coefficients: int | None = None,
        chunk_size: int | None = None,
        batch_size: int | None = None,
        memory_limit: int | None = None,
        mesh: Mesh | None = None,
    ):
        """Prepare an evaluation; nothing is compiled before it is needed.

        Args:
            rule: Task vectors, merged linearly, or any function `coefficients ->
                parameters` written in JAX.
            tasks: What to score on.
            num_coefficients: How many coefficients a rule takes that is a function.
            chunk_size: How many candidates are evaluated at once on each device. By
                default 1 on CPU, where more gains nothing, and else as many as fit into
                the memory limit, at most 16.
            batch_size: The most examples predicted at once; by default 2,048, or as many
                as fit into the memory limit.
            memory_limit: Bytes that one device may use for a chunk; by default 80 % of
                what is free.
            mesh: Devices to share the candidates out to, along the first axis of the
                mesh. Parameters that are already sharded over its other axes stay so.

        Raises:
            ValueError: If there are no tasks, two have one name, a number is not
                positive, or a task cannot be scored with the rule's parameters.
        """
        self.rule, self.num_coefficients = _as_rule(rule, num_coefficients)
        self.tasks = tuple(tasks)
        if not self.tasks:
            raise ValueError("`tasks` is empty: pass at least one `mapjax.Task`.")
        twice = sorted({n for n in self.task_names if self.task_names.count(n) > 1})
        if twice:
            raise ValueError(f"Task names must be unique, but {twice} come more than once.")
        for name, value in dict(chunk_size=chunk_size, batch_size=batch_size).items():
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}, but must be at least 1.")
        self.batch_size = batch_size or 2048
        self._may_halve = batch_size is None
        self.memory_limit = memory_limit
        self.mesh = mesh
        if mesh is not None:
            self.rule, self.tasks = (_place(x, mesh) for x in (self.rule, self.tasks))
        # Parted once: a call then hands over arrays alone.
        self._arrays, self._static = eqx.partition((self.rule, self.tasks), eqx.is_array)
        self._chunk_size = chunk_size
        self._compiled: dict[_Kind, Any] = {}
        self._check()

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks' names, in the order of the scores."""
        return tuple(task.name for task in self.tasks)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Whether higher scores are better, task by task."""
        return tuple(task.direction for task in self.tasks)

    @property
    def coefficient_names(self) -> tuple[str, ...]:
        """The experts' names where they are known."""
        vectors = getattr(self.rule, "args", (None,))[0]
        if isinstance(vectors, TaskVectors):
            return vectors.names
        return tuple(f"c{i}" for i in range(self.num_coefficients))

    @property
    def chunk_size(self) -> int:
        """How many candidates run at once on each device; compiles if not yet known."""
        if self._chunk_size is None:
            self._program("scores")
        assert self._chunk_size is not None
        return self._chunk_size

    @property
    def candidates_per_call(self) -> int:
        """How many candidates one run of the compiled program takes, over all devices."""
        return self.chunk_size * (1 if self.mesh is None else self.mesh.devices.shape[0])

    @property
    def predicted_memory(self) -> int:
        """Bytes that a device will hold at the peak of an evaluation, as XLA plans them.

        The data, the base, the vectors and the results are included.
        """
        return _peak_bytes(self._program("scores"))

    def __call__(
        self, coefficients: ArrayLike | Sequence, *, progress: bool | None = None
    ) -> Float[Array, "candidates tasks"]:
        """Score merges.

        Args:
            coefficients: `[candidates, coefficients]`, one merge per row.
            progress: True or False to insist on a progress bar or on none; by default
                one appears on a terminal after two seconds.

        Returns:
            Scores `[candidates, tasks]`, each in its task's own direction. NaN where a
            merge gave NaN.

        Raises:
            ValueError: If the coefficients do not have that shape.
        """
        return self._run("scores", coefficients, progress)

    def outputs(
        self, coefficients: ArrayLike | Sequence, *, progress: bool | None = None
    ) -> dict[str, PyTree]:
        """Predict with merges: what the metrics see.

        Args:
            coefficients: `[candidates, coefficients]`.
            progress: As in a call.

        Returns:
            For each task's name, outputs `[candidates, examples, ...]`.
        """
        return self._run("outputs", coefficients, progress)

    def value_and_jacobian(
        self, coefficients: ArrayLike | Sequence, *, progress: bool | None = None
    ) -> tuple[
        Float[Array, "candidates tasks"], Float[Array, "candidates tasks coefficients"]
    ]:
        """Score merges and differentiate the scores in the coefficients.

        Works in forward mode unless there are many more coefficients than tasks.

        Args:
            coefficients: `[candidates, coefficients]`.
            progress: As in a call.

        Returns:
            Scores `[candidates, tasks]` and d(score)/d(coefficient)
            `[candidates, tasks, coefficients]`.

        Raises:
            ValueError: If a metric is a step function, such as accuracy.
        """
        steps = [t.name for t in self.tasks if not t.metric.differentiable]
        if steps:
            raise ValueError(
                f"The metrics of {steps} are not differentiable (their derivative is zero "
                "almost everywhere). Use one that is, such as "
                "`mapjax.metrics.cross_entropy`."
            )
        return self._run("jacobian", coefficients, progress)

    def _check(self) -> None:
        """Trace every task once, so that a wrong function fails before any work."""
        c = jax.ShapeDtypeStruct((self.num_coefficients,), jnp.zeros(()).dtype)
        params = eqx.filter_eval_shape(self.rule, c)
        for task in self.tasks:
            try:
                score = eqx.filter_eval_shape(Task.score, task, params, self.batch_size)
            except Exception as error:
                error.add_note(f"This happened in task {task.name!r} of the evaluator.")
                raise
            if jax.tree.leaves(score) != [score] or score.shape != ():
                raise ValueError(
                    f"The metric of task {task.name!r} must return one number for all "
                    f"examples, but returned {score}. A metric that returns one value per "
                    "example is `mapjax.metrics.Metric(function, per_example=True)`."
                )

    def _run(self, kind: _Kind, coefficients: Any, progress: bool | None) -> Any:
        if isinstance(coefficients, Tracer):
            self._check_shape(coefficients)
            chunk = self._chunk_size or 1
            return _evaluate(
                self.rule, self.tasks, coefficients, kind, self.batch_size, chunk
            )
        c = np.asarray(coefficients, dtype=jnp.zeros(()).dtype)
        self._check_shape(c)
        program, size = self._program(kind), self.candidates_per_call
        count = len(c)
        # Rows of padding repeat the last candidate, so that every call has one shape.
        padded = np.concatenate([c, np.repeat(c[-1:], -count % size, axis=0)])
        blocks = []
        with progress_bar("Evaluating merges", count, show=progress) as advance:
            for start in range(0, max(len(padded), 1), size):
                block = (
                    padded[start : start + size]
                    if count
                    else np.zeros((size, c.shape[1]), c.dtype)
                )
                blocks.append(program(self._arrays, self._share(block)))
                if len(blocks) > 1:  # one block computes while the next is handed over
                    jax.block_until_ready(blocks[-2])
                    advance(size)
            jax.block_until_ready(blocks)
        return jax.tree.map(lambda *x: _join(x, count), *blocks)

    def _check_shape(self, c: Any) -> None:
        if c.ndim != 2 or c.shape[1] != self.num_coefficients:
            raise ValueError(
                f"`coefficients` has shape {c.shape}, but must be [candidates, "
                f"{self.num_coefficients}]: one row per merge, one column per expert. "
                "For a single merge pass `c[None]`."
            )

    def _share(self, block: np.ndarray) -> Any:
        if self.mesh is None:
            return jnp.asarray(block)
        sharding = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names[0]))
        return jax.make_array_from_callback(block.shape, sharding, block.__getitem__)

    def _program(self, kind: _Kind) -> Any:
        """Compile for a chunk that fits into memory; the compiler says what it needs."""
        if kind not in self._compiled:
            limit = self.memory_limit or _free_memory(0.8)
            may_shrink = self._chunk_size is None
            chunk = self._chunk_size or (1 if jax.default_backend() == "cpu" else 16)
            program = self._compile(kind, chunk)
            while _peak_bytes(program) > limit:
                if may_shrink and chunk > 1:
                    fixed = _argument_bytes(program)
                    each = (_peak_bytes(program) - fixed) / chunk
                    chunk = min(chunk - 1, max(1, int((limit - fixed) / each)))
                elif self._may_halve and self.batch_size > 32:
                    self.batch_size //= 2
                else:
                    break
                program = self._compile(kind, chunk)
            if _peak_bytes(program) > limit:
                warnings.warn(
                    f"Evaluating {chunk} candidate(s) at once needs "
                    f"{_peak_bytes(program) / 2**30:.1f} GiB, of which {limit / 2**30:.1f} "
                    f"GiB may be used. Lower `batch_size` (now {self.batch_size}), or shard "
                    "the parameters over more devices.",
                    stacklevel=4,
                )
            self._chunk_size = chunk
            self._compiled[kind] = program
        return self._compiled[kind]

    def _compile(self, kind: _Kind, chunk: int) -> Any:
        def run(arrays: PyTree, c: Array) -> Any:
            rule, tasks = eqx.combine(arrays, self._static)
            return _evaluate(rule, tasks, c, kind, self.batch_size, chunk)

        function, size = run, chunk
        if self.mesh is not None:
            axis = self.mesh.axis_names[0]
            size = chunk * self.mesh.shape[axis]
            everywhere = NamedSharding(self.mesh, PartitionSpec())
            share = jax.shard_map(
                run,
                mesh=self.mesh,
                in_specs=(PartitionSpec(), PartitionSpec(axis)),
                out_specs=PartitionSpec(axis),
                axis_names={axis},
                # The data scan's carry starts equal on all devices and then differs.
                check_vma=False,
            )

            def function(arrays: PyTree, c: Array) -> Any:
                return jax.lax.with_sharding_constraint(share(arrays, c), everywhere)

        block = self._share(np.zeros((size, self.num_coefficients), jnp.zeros(()).dtype))
        return jax.jit(function).lower(self._arrays, block).compile()


def _evaluate(
    rule: Any, tasks: tuple[Task, ...], c: Array, kind: _Kind, batch_size: int, chunk: int
) -> Any:
    """Merge and evaluate `chunk` candidates at a time."""

    def scores(x: Array) -> Array:
        params = rule(x)
        return jnp.stack([task.score(params, batch_size) for task in tasks])

    def outputs(x: Array) -> dict[str, PyTree]:
        params = rule(x)
        return {task.name: task.outputs(params, batch_size) for task in tasks}

    def jacobian(x: Array) -> tuple[Array, Array]:
        # A forward derivative costs about a third of a reverse one in time and far less
        # in memory.
        mode = jax.jacfwd if x.shape[0] <= 3 * len(tasks) else jax.jacrev
        gradient, value = mode(lambda x: (scores(x),) * 2, has_aux=True)(x)
        return value, gradient

    one = {"scores": scores, "outputs": outputs, "jacobian": jacobian}[kind]
    return jax.lax.map(one, c, batch_size=min(chunk, c.shape[0]))


def _as_rule(rule: Any, num_coefficients: int | None) -> tuple[Any, int]:
    if isinstance(rule, TaskVectors):
        if num_coefficients not in (None, rule.num_tasks):
            raise ValueError(
                f"`num_coefficients` is {num_coefficients}, but the task vectors have "
                f"{rule.num_tasks} experts: leave it out."
            )
        return jax.tree_util.Partial(merge, rule), rule.num_tasks
    if not callable(rule):
        raise ValueError(
            f"`rule` is a {type(rule).__name__}; pass `TaskVectors` or a function from "
            "coefficients to parameters."
        )
    if num_coefficients is None or num_coefficients < 1:
        raise ValueError(
            "A merge rule that is a function needs `num_coefficients`, at least 1; got "
            f"{num_coefficients}."
        )
    return rule, num_coefficients


def _place(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copy arrays to every device of the mesh, but for those sharded on it already."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def put(x: Any) -> Any:
        if not eqx.is_array(x):
            return x
        if isinstance(x.sharding, NamedSharding) and x.sharding.mesh == mesh:
            return x
        # Other processes' devices take host memory, not an array of this process's.
        return jax.device_put(np.asarray(x), everywhere)

    return jax.tree.map(put, tree)


def _join(blocks: Sequence[Array], count: int) -> Array:
    return jnp.concatenate(blocks)[:count] if len(blocks) > 1 else blocks[0][:count]


def _analysis(program: Any) -> Any:
    return program.memory_analysis()


def _argument_bytes(program: Any) -> int:
    plan = _analysis(program)
    return plan.argument_size_in_bytes if plan else 0


def _peak_bytes(program: Any) -> int:
    plan = _analysis(program)
    if plan is None:
        return 0
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        + plan.temp_size_in_bytes
        - plan.alias_size_in_bytes
    )


def _free_memory(share: float) -> float:
    """Read how much memory the first device has left, in bytes."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return share * (stats["bytes_limit"] - stats["bytes_in_use"])
    return share * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
