"""The evaluator: batches of coefficients to scores, on one device or many."""

import hashlib
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from mapjax._checks import check_least
from mapjax._jit import automatic
from mapjax._progress import progress_bar
from mapjax._types import ArrayLike, Direction
from mapjax.evaluation._devices import (
    handed_over,
    in_shares,
    inside,
    num_shares,
    place,
    share,
    with_automatic_axes,
)
from mapjax.evaluation._fingerprint import fingerprints
from mapjax.evaluation._inputs import as_rule, as_tasks, check_shape, check_task
from mapjax.evaluation._program import (
    BATCH_SIZE,
    Kind,
    Program,
    compile_to_fit,
    evaluate,
    runs_inline,
    signature,
)
from mapjax.evaluation._task import Task
from mapjax.task_vectors import TaskVectors


class Evaluator:
    """Score merges on every task: `evaluator(C)` takes `[candidates, coefficients]`.

    Candidates are merged and evaluated together in chunks, the data are scanned in
    batches, and one compiled program serves any number of candidates. Calling it inside
    `jax.jit` works too; there, candidates run one by one unless `chunk_size` is given.
    """

    def __init__(
        self,
        rule: Any,
        tasks: Any,
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
                parameters` written in JAX. Those that `mapjax.group` made take one column
                per expert and group, with the groups of an expert side by side. A function
                that is an object may have `num_coefficients`, `coefficient_names`,
                `bounds` and `design`: what drivers search, and where they begin; "simplex"
                says that coefficients are weights of the experts.
            tasks: What to score on, a list of `mapjax.Task`.
            num_coefficients: How many coefficients a rule takes that is a function.
            chunk_size: How many candidates are evaluated at once on each device. By
                default 1 on CPU, where more gains nothing, and else as many as fit into
                the memory limit, at most 16.
            batch_size: The most examples predicted at once; by default 2,048, or as many
                as fit into the memory limit.
            memory_limit: Bytes that an evaluation may hold on one device, the data, the
                base and the vectors included; by default these and 80 % of what is free.
            mesh: Devices to share the candidates out to, along the first axis of the
                mesh. Parameters that are already sharded over its other axes stay so.

        Raises:
            ValueError: If there are no tasks, two have one name, a number is not
                positive, or a task cannot be scored with the rule's parameters.
        """
        check_least("num_coefficients", num_coefficients, 1)
        check_least("chunk_size", chunk_size, 1)
        check_least("batch_size", batch_size, 1)
        if memory_limit is not None and not memory_limit >= 1:
            raise ValueError(f"`memory_limit` is {memory_limit}, but must be at least 1.")
        rule, self.num_coefficients = as_rule(rule, num_coefficients)
        self.memory_limit = memory_limit
        self.mesh, self._devices = mesh, with_automatic_axes(mesh)
        self._rule, self._tasks = whole = place((rule, as_tasks(tasks)), self._devices)
        # Parted once: a call then hands over arrays alone.
        self._arrays, self._static = eqx.partition(whole, eqx.is_array)
        self._chunk_size, self._batch_size = chunk_size, batch_size
        self._signature = signature(self._arrays, self._static)
        self._programs: dict[tuple[Kind, Any, Any], Program] = {}
        self._fingerprint: dict[str, Any] | None = None
        # Before any work, so that a wrong function fails at once.
        with inside(self._devices):
            params, size = self._parameter_shapes(), self._batch_size or BATCH_SIZE
            for task in self._tasks:
                check_task(task, params, size)

    def replace(
        self, rule: Any = None, tasks: Any = None, *, num_coefficients: int | None = None
    ) -> "Evaluator":
        """Make an evaluator of other merges, of other data or of both, with the same options.

        What is compiled by either serves both where functions, shapes, dtypes and names
        are the same: for transformed task vectors, or other examples in the same number.

        Args:
            rule: As for a new evaluator; by default this one's.
            tasks: As for a new evaluator; by default this one's.
            num_coefficients: How many coefficients a rule takes that is a function.

        Raises:
            ValueError: As a new evaluator does.
        """
        if rule is None:
            rule, num_coefficients = self.rule, num_coefficients or self.num_coefficients
        other = Evaluator(
            rule,
            self.tasks if tasks is None else tasks,
            num_coefficients=num_coefficients,
            chunk_size=self._chunk_size,
            batch_size=self._batch_size,
            memory_limit=self.memory_limit,
            mesh=self.mesh,
        )
        other._programs = self._programs
        return other

    def __repr__(self) -> str:
        """Name the tasks, and say how many coefficients and examples there are."""
        tasks = ", ".join(f"{t.name!r} ({t.num_examples:,} examples)" for t in self._tasks)
        return f"<Evaluator of {self.num_coefficients} coefficients on {tasks}>"

    @property
    def rule(self) -> Any:
        """What merges: from coefficients to parameters."""
        return handed_over(self._rule, self.mesh)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What merges are scored on."""
        return handed_over(self._tasks, self.mesh)

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks' names, in the order of the scores."""
        return tuple(task.name for task in self._tasks)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Whether higher scores are better, task by task."""
        return tuple(task.direction for task in self._tasks)

    @property
    def coefficient_names(self) -> tuple[str, ...]:
        """The experts' names where they are known, with those of groups if there are any."""
        vectors = self._task_vectors
        if vectors is not None:
            return vectors.coefficient_names
        names = tuple(getattr(self._rule, "coefficient_names", ()))
        known = len(names) == self.num_coefficients
        return names if known else tuple(f"c{i}" for i in range(self.num_coefficients))

    @property
    def expert_names(self) -> tuple[str, ...]:
        """The experts' names: those of the coefficients, where there are no groups."""
        vectors = self._task_vectors
        return self.coefficient_names if vectors is None else vectors.names

    @property
    def bounds(self) -> Any:
        """What drivers search by default: the rule's `bounds`, or the unit box."""
        return getattr(self._rule, "bounds", (0.0, 1.0))

    @property
    def design(self) -> str | None:
        """Where drivers sample at first by default, where the rule says so."""
        return getattr(self._rule, "design", None)

    @property
    def _task_vectors(self) -> TaskVectors | None:
        """What is merged, where the rule says so."""
        first = (getattr(self._rule, "args", None) or (None,))[0]
        vectors = getattr(self._rule, "task_vectors", first)
        known = isinstance(vectors, TaskVectors)
        return (
            vectors if known and vectors.num_coefficients == self.num_coefficients else None
        )

    @property
    def chunk_size(self) -> int:
        """How many candidates are scored at once on each device; may have to compile."""
        return self._chunk_size or self.program("scores").chunk_size

    @property
    def batch_size(self) -> int:
        """The most examples predicted at once when scoring; may have to compile."""
        return self._batch_size or self.program("scores").batch_size

    @property
    def predicted_memory(self) -> int:
        """Bytes that a device will hold at the peak of an evaluation, as XLA plans them.

        The data, the base, the vectors and the results are included.
        """
        return self.program("scores").peak_bytes

    def fingerprint(self) -> dict[str, Any]:
        """Tell these parameters and data from others, by hashes of their arrays.

        Arrays that functions close over are not seen: use an `equinox.Module` there.

        Returns:
            A hash of the base and the vectors as `parameters`, and one for each task as
            `data`; None for a rule or a task without arrays.
        """
        if self._fingerprint is None:
            with inside(self._devices):
                parameters, *data = fingerprints([self._rule, *self._tasks])
            groups = getattr(self._task_vectors, "groups", ())
            label = getattr(self._rule, "label", "")
            if groups or label:  # the same arrays, but other merges
                words = repr((parameters, groups, label)).encode()
                parameters = hashlib.sha256(words).hexdigest()[:16]
            self._fingerprint = {"parameters": parameters, "data": data}
        return self._fingerprint

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

    def scores_and_outputs(
        self, coefficients: ArrayLike | Sequence, *, progress: bool | None = None
    ) -> tuple[Float[Array, "candidates tasks"], dict[str, PyTree]]:
        """Score merges and keep what the metrics saw, in one evaluation.

        Args:
            coefficients: `[candidates, coefficients]`.
            progress: As in a call.

        Returns:
            Scores `[candidates, tasks]`, and for each task's name outputs
            `[candidates, examples, ...]`.
        """
        return self._run("both", coefficients, progress)

    def output_shapes(self) -> dict[str, PyTree]:
        """Say what shapes and dtypes the outputs of one merge have, task by task."""
        size = self._batch_size or BATCH_SIZE
        with inside(self._devices):
            params = self._parameter_shapes()
            return {
                task.name: eqx.filter_eval_shape(Task.outputs, task, params, size)
                for task in self._tasks
            }

    def value_and_jacobian(
        self, coefficients: ArrayLike | Sequence, *, progress: bool | None = None
    ) -> tuple[
        Float[Array, "candidates tasks"], Float[Array, "candidates tasks coefficients"]
    ]:
        """Score merges and differentiate the scores in the coefficients.

        Takes the time of about three evaluations: in forward mode for one coefficient,
        else in reverse mode, task by task and batch by batch. A metric that is no mean
        over examples then needs the memory of all its examples at once.

        Args:
            coefficients: `[candidates, coefficients]`.
            progress: As in a call.

        Returns:
            Scores `[candidates, tasks]` and d(score)/d(coefficient)
            `[candidates, tasks, coefficients]`.

        Raises:
            ValueError: If a metric is a step function, such as accuracy.
        """
        steps = [t.name for t in self._tasks if not t.metric.differentiable]
        if steps:
            raise ValueError(
                f"The metrics of {steps} are not differentiable (their derivative is zero "
                "almost everywhere). Use one that is, such as "
                "`mapjax.metrics.cross_entropy`."
            )
        return self._run("jacobian", coefficients, progress)

    def _parameter_shapes(self) -> PyTree:
        c = jax.ShapeDtypeStruct((self.num_coefficients,), _dtype())
        return eqx.filter_eval_shape(self._rule, c)

    def _run(self, kind: Kind, coefficients: Any, progress: bool | None) -> Any:
        if runs_inline(coefficients):
            coefficients = jnp.asarray(coefficients, _dtype())
            check_shape(coefficients, self.num_coefficients, self.expert_names)
            sizes = self._batch_size or BATCH_SIZE, self._chunk_size or 1
            inline = automatic(evaluate)
            return inline(self.rule, self.tasks, coefficients, kind, *sizes)
        c = np.asarray(coefficients, dtype=_dtype())
        check_shape(c, self.num_coefficients, self.expert_names)
        program = self.program(kind)
        count, size = len(c), program.num_candidates
        # Rows of padding repeat the last candidate, so that every call has one shape.
        rows = c if count else np.zeros((1, c.shape[1]), c.dtype)
        padded = np.concatenate([rows, np.repeat(rows[-1:], -len(rows) % size, axis=0)])
        blocks = []
        bar = progress_bar("Evaluating merges", count, show=progress)
        with inside(self._devices), bar as advance:
            for start in range(0, len(padded), size):
                block = share(padded[start : start + size], self._devices)
                blocks.append(program.run(self._arrays, block))
                if len(blocks) > 1:  # one block computes while the next is handed over
                    jax.block_until_ready(blocks[-2])
                    advance(size)
            jax.block_until_ready(blocks)
            joined = jax.tree.map(lambda *x: _join(x, count), *blocks)
        joined = handed_over(joined, self.mesh)
        # JAX sorts the keys of dictionaries; a reader expects the tasks in their order.
        if kind == "outputs":
            return {name: joined[name] for name in self.task_names}
        if kind == "both":
            return joined[0], {name: joined[1][name] for name in self.task_names}
        return joined

    def program(self, kind: Kind) -> Program:
        """Compile for a chunk that fits into memory; the compiler says what it needs."""
        key = (kind, _dtype(), self._signature)
        if key not in self._programs:
            self._programs[key] = compile_to_fit(
                lambda chunk, batch: self._compile(kind, chunk, batch),
                self._chunk_size,
                self._batch_size,
                self.memory_limit,
            )
        return self._programs[key]

    def _compile(self, kind: Kind, chunk: int, batch: int) -> Program:
        static = self._static  # and nothing else of this evaluator, for others that run it

        def run(arrays: PyTree, c: Array) -> Any:
            rule, tasks = eqx.combine(arrays, static)
            return evaluate(rule, tasks, c, kind, batch, chunk)

        size = chunk * num_shares(self._devices)
        function = in_shares(run, self._devices)
        block = share(np.zeros((size, self.num_coefficients), _dtype()), self._devices)
        with inside(self._devices):
            compiled = jax.jit(function).lower(self._arrays, block).compile()
        return Program(compiled, chunk, batch, size)


def _dtype() -> Any:
    """Give the dtype of coefficients, which follows JAX's switch for 64 bits."""
    return jnp.zeros(()).dtype


def _join(blocks: Sequence[Array], count: int) -> Array:
    return jnp.concatenate(blocks)[:count] if len(blocks) > 1 else blocks[0][:count]
